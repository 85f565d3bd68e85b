"""Differentiable Siamese Augmentation (Zhao and Bilen, arXiv 2102.08259)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from gvbsm_registry import Augmentation, View

if TYPE_CHECKING:
    from torch import Generator, Tensor

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


class Dsa(Augmentation):
    """DSA's operations, one of them at random or all: colours, crop, cutout, flip, scale, rotate.

    Where several are applied, a view's order holds: colours, crop and scale, flip, rotation, cutout. Sizes
    and places are whole pixels, so that labels store them in few bytes. Colours change normalised images, as
    in DSA. With `mode = "one"` an operation is drawn for every image, or for the batch without `per_image`.
    """

    name = "dsa"

    strategy: str = Field("_".join(OPERATIONS), description="names of operations, joined by _")
    mode: Literal["one", "all"] = Field("one", description="apply one of them at random, or all of them")
    per_image: bool = Field(True, description="draw for every image, not once for the batch (siamese)")
    brightness: float = Field(1.0, ge=0, description="width of the range around 0 from which one is added")
    saturation: float = Field(2.0, ge=0, description="factors are drawn from 0 to this")
    contrast: float = Field(0.5, ge=0, description="factors are drawn from this to 1 more")
    crop: float = Field(0.125, ge=0, lt=1, description="largest shift along both axes, share of the image")
    cutout: float = Field(0.5, ge=0, le=1, description="side of the part that is cut out, share of the image")
    flip: float = Field(0.5, ge=0, le=1, description="chance that an image is mirrored left and right")
    scale: float = Field(1.2, ge=1, description="views show from 1/this to this of the image along each axis")
    rotate: float = Field(15.0, ge=0, le=180, description="largest angle in degrees, either way")

    @field_validator("strategy")
    @classmethod
    def _known(cls, strategy: str) -> str:
        names = strategy.split("_")
        if len(set(names)) != len(names) or not set(names) <= set(OPERATIONS):
            raise ValueError(f"must be some of {', '.join(OPERATIONS)}, each once, joined by _")
        return strategy

    def draw(self, count: int, image_size: int, generator: Generator, progress: float = 1.0) -> View:
        import torch

        rows = count if self.per_image else 1
        names = self.strategy.split("_")
        chosen = torch.randint(len(names), (rows,), generator=generator)
        # Operations that are not chosen for an image are drawn for it all the same, and then left out.
        used = {
            name: chosen == place if self.mode == "one" else torch.ones_like(chosen, dtype=torch.bool)
            for place, name in enumerate(names)
        }

        def drawn(name: str, values: Tensor, neutral: float) -> Tensor:
            there = used.get(name, torch.zeros(rows, dtype=torch.bool))
            there = there.reshape(-1, *[1] * (values.ndim - 1))
            return values.where(there, torch.tensor(neutral, dtype=values.dtype))

        def uniform(*shape: int) -> Tensor:
            return torch.rand(rows, *shape, generator=generator)

        shift = drawn("crop", self._shifts(rows, image_size, generator), 0)
        size = drawn("scale", self._sizes(uniform(2), image_size), image_size)
        corner = shift + ((image_size - size) / 2).floor()
        colors = torch.stack(
            [
                drawn("color", (uniform() - 0.5) * self.brightness, 0),
                drawn("color", uniform() * self.saturation, 1),
                drawn("color", uniform() + self.contrast, 1),
            ],
            1,
        )
        angles = drawn("rotate", (2 * uniform() - 1) * self.rotate, 0)
        cutouts = drawn(
            "cutout", centred_boxes(rows, int(image_size * self.cutout + 0.5), image_size, generator), 0
        )
        view = View(
            torch.cat([corner, size], 1),
            drawn("flip", uniform() < self.flip, False),
            torch.zeros(rows, 2, dtype=torch.int64),
            colors if "color" in used else None,
            angles if "rotate" in used else None,
            cutouts if "cutout" in used else None,
        )
        return view if self.per_image else view.select(torch.zeros(count, dtype=torch.int64))

    def _shifts(self, rows: int, image_size: int, generator: Generator) -> Tensor:
        """Return whole shifts, float [rows, 2]."""
        import torch

        most = int(image_size * self.crop + 0.5)
        return torch.randint(-most, most + 1, (rows, 2), generator=generator).float()

    def _sizes(self, share: Tensor, image_size: int) -> Tensor:
        """Return whole heights and widths of what a view shows, uniform in 1/scale to scale."""
        factor = 1 / self.scale + (self.scale - 1 / self.scale) * share
        return (image_size * factor).round().clamp(min=1)


def centred_boxes(count: int, side: int, image_size: int, generator: Generator) -> Tensor:
    """Return boxes of `side` pixels, (top, left, bottom, right), int64 [count, 4], cut by the border.

    Their centres are uniform in the image.
    """
    import torch

    centre = torch.randint(image_size + 1 - side % 2, (count, 2), generator=generator)
    low = centre - side // 2
    return torch.cat([low.clamp(min=0), (low + side).clamp(max=image_size)], 1)
