"""What initializers take images from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gvbsm_registry.kinds.networks import Member

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from gvbsm_registry.splits import Split


@dataclass(frozen=True)
class CommitteeMember(Member):
    """A pretrained backbone; `module` is frozen and in evaluation mode."""

    module: Module


class Source(Protocol):
    """Where real images, and the pretrained backbones' opinion of them, come from."""

    @property
    def train(self) -> Split:
        """The training split."""

    @property
    def seed(self) -> int:
        """The run's seed; derive per-class seeds from it so that a choice depends on nothing else."""

    @property
    def classes(self) -> int:
        """How many classes there are."""

    def features(self, indices: Tensor) -> Tensor:
        """Features of training images by the first pretrained backbone, float32 [n, D] on the CPU."""

    @property
    def committee(self) -> Sequence[CommitteeMember]:
        """All pretrained backbones, in the recipe's order, on the run's device; loaded when asked for.

        Not the teachers of [relabel]. An initializer whose `uses_networks` is False must not ask.
        """

    def backbone(self) -> Module:
        """A fresh, untrained copy of the first backbone, on the run's device, in evaluation mode."""

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 images [n, C, H, W] as normalised floats on the run's device."""

    @property
    def prepared(self) -> dict[str, Tensor]:
        """What the initializer's `prepare` returned; {} while it runs."""
