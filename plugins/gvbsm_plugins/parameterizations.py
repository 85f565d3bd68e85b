"""What is learnt: the pixels themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gvbsm_registry import Component, Parameterization, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Pixels(Parameterization):
    """The normalised pixels, clamped to black and white after every step."""

    name = "pixels"

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"pixels": images}

    def decode(self, leaves: dict[str, Tensor]) -> Tensor:
        return leaves["pixels"]

    def project(self, leaves: dict[str, Tensor], pixel_range: tuple[Tensor, Tensor]) -> None:
        leaves["pixels"].clamp_(*pixel_range)


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [Pixels]
