"""Any classifier of torchvision or timm, with or without its published weights."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from gvbsm_plugins.backbones import surgery
from gvbsm_plugins.backbones.base import WeightedBackbone
from gvbsm_registry import GvbsmError

if TYPE_CHECKING:
    from torch.nn import Module

READING = ("pretrained", "weights", "checkpoint", "cache_dir", "backbone_weights", "url", "hf_hub", "file")
"""How the names of arguments begin by which constructors of timm and torchvision fetch or read files."""
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


class Provided(WeightedBackbone):
    """A model that a library builds by name.

    With `weights = "DEFAULT"` a classifier of another number of classes is replaced by a fresh one, and grey
    images are seen as RGB images of three equal channels.
    """

    variant: str = Field(description="the model's name in the library")
    options: dict[str, Any] = Field({}, description="more keyword arguments for the model's constructor")

    @field_validator("options")
    @classmethod
    def _build_and_read_nothing(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Weights come by `weights` alone: read safely, part of keys, and not given to students."""
        for name in options:
            if name.startswith(READING):
                raise PydanticCustomError(
                    "gvbsm",
                    "option {name} says where weights come from; give a file, or DEFAULT, as `weights`",
                    {"name": repr(name)},
                )
        return options

    @abstractmethod
    def available(self) -> Sequence[str]:
        """Return the names of all models."""

    @abstractmethod
    def make(self, classes: int, image_size: int, channels: int, published: bool) -> Module:
        """Call the library, with its published weights or without."""

    def fresh(self, classes: int, image_size: int, channels: int) -> Module:
        """Return the model with fresh parameters.

        Raises GvbsmError for an unknown name, options it does not take, or images it can't process.
        """
        return self._make_checked(classes, image_size, channels, published=False)

    def pretrained(self, classes: int, image_size: int, channels: int) -> Module:
        """Return the model with its published weights, fetched if they are not in the library's cache.

        Raises GvbsmError as `fresh` does, and if the weights can't be fetched or there are none.
        """
        return self._make_checked(classes, image_size, channels, published=True)

    def _make_checked(self, classes: int, image_size: int, channels: int, published: bool) -> Module:
        self._check_name()
        try:
            model = self.make(classes, image_size, channels, published)
        except GvbsmError:
            raise
        except Exception as error:
            # What a constructor raises is about its arguments; of fetching, some errors are ValueErrors too.
            by_arguments = isinstance(error, (TypeError, ValueError, AssertionError))
            if published and (isinstance(error, OSError) or not by_arguments):
                raise GvbsmError(
                    f"{self.full_name}: its published weights could not be fetched ({_one_line(error)}); "
                    "check the network, or give a local file as `weights`"
                ) from error
            raise self._build_error(classes, image_size, channels, error) from error
        self._check_logits(model, classes, image_size, channels)
        return model

    def _check_name(self) -> None:
        names = self.available()
        if self.variant not in names:
            near = difflib.get_close_matches(self.variant, names, n=5, cutoff=0.0)
            library = self.name.removesuffix("/*")
            raise GvbsmError(
                f"unknown {library} model {self.variant!r}; did you mean "
                f"{' or '.join(map(repr, near))}? ({len(names)} models in this version of {library})"
            )

    def _build_error(self, classes: int, image_size: int, channels: int, error: Exception) -> GvbsmError:
        options = f" with options {self.options}" if self.options else ""
        return GvbsmError(
            f"{self.full_name}: can't be built for {classes} classes and "
            f"{channels}×{image_size}×{image_size} images{options} ({_one_line(error)}); "
            "change `options`, the image size or the backbone"
        )

    def _check_logits(self, model: Module, classes: int, image_size: int, channels: int) -> None:
        """Raise GvbsmError unless `model` maps images to logits: many can't if the images are too small."""
        import torch

        training, parameter = model.training, next(model.parameters())
        try:
            with torch.no_grad():
                logits = model.eval()(parameter.new_zeros(2, channels, image_size, image_size))
        except Exception as error:
            raise self._build_error(classes, image_size, channels, error) from error
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if shape != (2, classes):
            wrong = ValueError(f"two images give {shape} instead of {(2, classes)}")
            raise self._build_error(classes, image_size, channels, wrong)
        model.train(training)


class Torchvision(Provided):
    """Any classifier of torchvision.models, by its name there: `torchvision/resnet18`."""

    name = "torchvision/*"
    ignored_keys = ("aux1.", "aux2.", "AuxLogits.")

    def available(self) -> Sequence[str]:
        """Return the names of torchvision's classifiers."""
        import torchvision

        return torchvision.models.list_models(module=torchvision.models)

    def make(self, classes: int, image_size: int, channels: int, published: bool) -> Module:
        """Call the model's builder; the classifier and the first convolution are changed afterwards."""
        from torchvision.models import get_model, get_model_weights

        options = self._defaults(image_size, published) | self.options
        if published:
            weights = get_model_weights(self.variant).DEFAULT
            model: Module = get_model(self.variant, weights=weights, progress=False, **options)
            known = len(weights.meta["categories"])
            if classes != known or self.reset_classifier:
                for head in surgery.classifiers(model, known):
                    surgery.replace_classifier(model, head, classes)
        else:
            model = get_model(self.variant, weights=None, num_classes=classes, **options)
        if channels == 1:
            surgery.make_grey(model)
        return model

    def _defaults(self, image_size: int, published: bool) -> dict[str, Any]:
        if self.variant.startswith("vit_"):
            return {"image_size": image_size}
        if self.variant.startswith("maxvit"):
            return {"input_size": (image_size, image_size)}
        if self.variant in WITH_AUXILIARY_HEADS:
            return {"aux_logits": False} | ({} if published else {"init_weights": True})
        return {}


class Timm(Provided):
    """Any classifier of timm, by its name there: `timm/resnet18`, or `timm/resnet18.a1_in1k` (tagged)."""

    name = "timm/*"

    def available(self) -> Sequence[str]:
        """Return the names of timm's models; with the tags of their weights if the variant has one."""
        import timm

        return timm.list_pretrained() if "." in self.variant else timm.list_models()

    def make(self, classes: int, image_size: int, channels: int, published: bool) -> Module:
        """Call timm.create_model, which fits classifier, input channels and position embeddings itself."""
        import timm

        make: Callable[..., Module] = timm.create_model
        config = timm.models.get_pretrained_cfg(self.variant)
        if published and not (config and config.has_weights):
            raise GvbsmError(
                f"{self.full_name}: timm has no published weights for it; give a local file as `weights`, "
                "or leave `weights` out to train it"
            )
        # Only models of a fixed input size have such an argument.
        sized = {"img_size": image_size} if config and config.fixed_input_size else {}
        arguments = sized | self.options
        model = make(self.variant, published, num_classes=classes, in_chans=channels, **arguments)
        if published and self.reset_classifier:
            model.reset_classifier(classes)  # type: ignore[operator]  # a method of every classifier of timm
        return model


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'…' if len(text) > 200 else ''}"
