"""Kinds that take part in synthesis beside the terms of its loss."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from gvbsm_registry.kinds.component import Component

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from gvbsm_registry.step import OpenPopulation, Stock, SynthesisState


class Population(Component):
    """Which networks a step looks through, and what happens to them after it.

    With the class attribute `separable = False` the whole set is one image batch; with `keeps = "none"` no
    network is pretrained for it.
    """

    kind = "population"

    keeps: ClassVar[Literal["none", "final"]] = "final"
    """What has to be kept of each backbone's training: "none", so that there is none, or the "final" weights.

    Where it is "none", `stock.pretrained` must not be called, and there are no matchers.
    """

    separable: ClassVar[bool] = True
    """Whether image batches can be optimised each by itself; if not, the whole set is one image batch."""

    @property
    def joint(self) -> bool:
        """Whether several image batches may be looked at through the same networks, in one forward pass.

        False where the networks depend on the images or are drawn for each image batch anew.
        """
        return True

    @abstractmethod
    def open(self, stock: Stock, generator: Generator) -> OpenPopulation:
        """Return the networks of one unit of work; all randomness from the CPU `generator`.

        generator: the same for all image batches if the population is `joint`, else one for each.
        """


class Parameterization(Component):
    """What is learnt, and how it becomes images."""

    kind = "parameterization"

    @abstractmethod
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Return what is learnt, by name, so that it stands for `images`, normalised float [B, C, H, W].

        The first axis of every tensor is that of the images, each coded by itself.
        """

    @abstractmethod
    def decode(self, leaves: dict[str, Tensor]) -> Tensor:
        """Return the images, [B, C, H, W], differentiable in `leaves`, which `encode` returned."""

    def project(self, leaves: dict[str, Tensor], pixel_range: tuple[Tensor, Tensor]) -> None:
        """Bring `leaves` back in place, after every step, to where their images are allowed to be.

        pixel_range: the normalised values of black and white, [C, 1, 1] each. Whatever is done here, the
        images that are kept in the end are clamped to this range.
        """


class Callback(Component):
    """Acts between steps on what is learnt."""

    kind = "callback"

    every: int = Field(1, ge=1, description="steps between two calls")

    @abstractmethod
    def after(self, step: int, state: SynthesisState) -> None:
        """Act when `step` steps have been taken: 0, before the first one, then every `every` steps."""
