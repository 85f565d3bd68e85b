"""The images of a unit between two steps: what is learnt, what callbacks see and change of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from gvbsm.recipe.schema import Synthesis
from gvbsm.runtime.asking import built_optimizer
from gvbsm.runtime.blame import calling, describe_tensor, refuse, returned
from gvbsm.runtime.rates import set_rates
from gvbsm_registry import Memory, Source

ENCODED = "named float tensors whose first axis is that of the images"
DECODED = "float images, [B, C, H, W], as many as were encoded"


def resized(images: Tensor, size: int) -> Tensor:
    """Return images of `size` pixels a side, bilinear; the same ones if they are of that size."""
    if images.shape[-1] == size:
        return images
    return interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


class LearntImages:
    """What is learnt, the leaves, with its optimizer; images are decoded from it.

    pixel_range: the normalised values of black and white.
    """

    def __init__(self, section: Synthesis, images: Tensor, pixel_range: tuple[Tensor, Tensor]) -> None:
        self._section, self.pixel_range, self._image_size = section, pixel_range, images.shape[-1]
        self.active = torch.ones(len(images), dtype=torch.bool, device=images.device)
        self._begin(self._encode(images))

    def _begin(self, leaves: Mapping[str, Tensor]) -> None:
        self.leaves = {name: leaf.detach().clone().requires_grad_(True) for name, leaf in leaves.items()}
        self.restart_optimizer()

    def restart_optimizer(self) -> None:
        """Build the optimizer anew."""
        section = self._section
        self.optimizer = built_optimizer(section.optimizer, self.leaves.values(), section.learning_rate)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        component = self._section.parameterization
        with calling(component, "encode", ENCODED):
            leaves = component.encode(images)
        if not (isinstance(leaves, dict) and leaves):
            raise refuse(component, "encode", type(leaves).__name__, ENCODED)
        for leaf in leaves.values():
            returned(component, "encode", leaf, ENCODED)
            if leaf.ndim == 0 or len(leaf) != len(images):
                raise refuse(component, "encode", describe_tensor(leaf), ENCODED)
        return leaves

    def decode(self) -> Tensor:
        """Return the images, [N, C, H, W], differentiable in the leaves."""
        component = self._section.parameterization
        with calling(component, "decode", DECODED):
            images = component.decode(self.leaves)
        return returned(component, "decode", images, DECODED, shape=(len(self.active), None, None, None))

    @torch.no_grad()
    def now(self) -> Tensor:
        """Return the images as they are, within the pixels' range."""
        return self.decode().detach().clamp(*self.pixel_range)

    def final(self) -> Tensor:
        """Return the images as they are to be kept, of the size that they began with."""
        return resized(self.now(), self._image_size).clamp(*self.pixel_range)

    @torch.no_grad()
    def replace(self, images: Tensor) -> None:
        """Go on from other images; those of another size are learnt with a new optimizer."""
        allowed = images.to(self.active.device).clamp(*self.pixel_range)
        encoded = self._encode(allowed)
        if any(encoded[name].shape != leaf.shape for name, leaf in self.leaves.items()):
            self._begin(encoded)
            return
        for name, leaf in self.leaves.items():
            leaf.copy_(encoded[name])

    def update(self, gradients: tuple[Tensor, ...], factor: float) -> None:
        """Take one step of the optimizer, at `factor` times its rates; images that are not active stay."""
        leaves = list(self.leaves.values())
        set_rates(self.optimizer, self._rates, factor)
        idle = None if bool(self.active.all()) else ~self.active
        before = [] if idle is None else [leaf.detach()[idle].clone() for leaf in leaves]
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            component = self._section.parameterization
            with calling(component, "project", "leaves that are brought back in place"):
                component.project(self.leaves, self.pixel_range)
            for leaf, kept in zip(leaves, before, strict=False):
                leaf[idle] = kept

    def state(self) -> dict[str, Tensor]:
        """Return all that a later run needs to go on from here."""
        tensors = {f"leaf.{name}": leaf.detach() for name, leaf in self.leaves.items()}
        tensors["active"] = self.active
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{index}.{name}": torch.as_tensor(value)
                for name, value in values.items()
                if value is not None
            }
        return tensors

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self._begin({name: state[f"leaf.{name}"].to(self.active.device) for name in self.leaves})
        self.active = state["active"].to(self.active.device)
        by_leaf: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                by_leaf.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": by_leaf, "param_groups": groups})


class BatchState:
    """An image batch between two steps: see `gvbsm_registry.SynthesisState`."""

    def __init__(
        self,
        learnt: LearntImages,
        steps: int,
        labels: Tensor,
        ranks: Tensor,
        source: Source,
        generator: Generator,
        memory: Memory,
    ) -> None:
        self._learnt = learnt
        self.steps, self.labels, self.ranks = steps, labels, ranks
        self.source, self.generator, self.memory = source, generator, memory
        self.replace: Callable[[Tensor], None] = learnt.replace
        self.restart_optimizer = learnt.restart_optimizer

    @property
    def images(self) -> Tensor:
        """The images as they are now."""
        return self._learnt.now()

    @property
    def active(self) -> Tensor:
        """Which images take part in steps."""
        return self._learnt.active.clone()

    def activate(self, active: Tensor) -> None:
        """Say which images take part in the next steps."""
        self._learnt.active = active.to(self._learnt.active).clone()
