"""What all backbones of this plugin share: where their weights come from, and how a module is handed out."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from gvbsm_plugins.backbones import checkpoints, surgery
from gvbsm_registry import Backbone, GvbsmError
from gvbsm_registry.values import absolute

if TYPE_CHECKING:
    from torch.nn import Module

DEFAULT = "DEFAULT"


class WeightedBackbone(Backbone):
    """A backbone whose weights are fresh, the provider's own (`"DEFAULT"`) or those of a local file."""

    reset_classifier: bool = Field(
        False, description="drop the classifier that comes with the weights and start it afresh"
    )

    ignored_keys: ClassVar[tuple[str, ...]] = ()
    """Beginnings of keys that a file may hold beside the module's (parts used in training only)."""

    @field_validator("weights")
    @classmethod
    def _found_from_everywhere(cls, weights: str | None) -> str | None:
        return weights if weights in (None, DEFAULT) else str(absolute(Path(weights or "")))

    @abstractmethod
    def fresh(self, classes: int, image_size: int, channels: int) -> Module:
        """Return the module with fresh parameters; shapes as in `build`."""

    def pretrained(self, classes: int, image_size: int, channels: int) -> Module:
        """Return the module with the provider's weights.

        Raises GvbsmError if they can't be fetched, or if there are none (which is what this method does).
        """
        raise GvbsmError(
            f'{self.full_name}: has no published weights, so weights = "{DEFAULT}" means nothing here; '
            "give a local file, or leave `weights` out to train it"
        )

    def build(self, classes: int, image_size: int, channels: int) -> Module:
        """Return a module: float [B, channels, S, S], normalised, to logits [B, classes].

        No activation in it works in place, so that the input of every module can be recorded.
        Raises GvbsmError if the weights can't be had, read or fitted, naming the file.
        """
        if self.weights == DEFAULT:
            model = self.pretrained(classes, image_size, channels)
        else:
            model = self.fresh(classes, image_size, channels)
        if self.weights not in (None, DEFAULT):
            assert self.weights is not None
            what = f"{self.full_name} for {classes} classes and {channels}×{image_size}×{image_size} images"
            state = checkpoints.read(self.weights, self.ignored_keys)
            checkpoints.load(model, state, self.weights, what, classes, self.reset_classifier)
        surgery.disable_inplace(model)
        return model
