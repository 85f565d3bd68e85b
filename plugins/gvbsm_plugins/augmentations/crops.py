"""Geometric augmentations: padded crop, resized crop, nothing; each with flip and roll."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from gvbsm_registry import Augmentation, View, identity_view

if TYPE_CHECKING:
    from torch import Generator, Tensor

MAX_TRIES = 10


class WholeImage(Augmentation):
    """The image as it is."""

    name = "none"

    def draw(self, count: int, image_size: int, generator: Generator, progress: float = 1.0) -> View:
        return identity_view(count, image_size)


class _FlipRoll(Augmentation):
    flip: float = Field(0.5, ge=0, le=1, description="chance that an image is mirrored left and right")
    roll: int = Field(0, ge=0, le=10**6, description="largest cyclic shift along both axes, in pixels")
    per_image: bool = Field(False, description="draw a shift for every image, not one for the batch")

    def flips(self, count: int, generator: Generator) -> Tensor:
        """Return bool [count]."""
        import torch

        return torch.rand(count, generator=generator) < self.flip

    def rolls(self, count: int, generator: Generator) -> Tensor:
        """Return int64 [count, 2], uniform in -roll to roll."""
        import torch

        drawn = count if self.per_image else 1
        rolls = torch.randint(-self.roll, self.roll + 1, (drawn, 2), generator=generator)
        return rolls.expand(count, 2).clone()


class CropFlipRoll(_FlipRoll):
    """A crop of the image's own size out of the image padded with its mean colour, then flip, then roll."""

    name = "crop_flip_roll"

    padding: int = Field(4, ge=0, le=10**6, description="pixels added on each side before cropping")

    def draw(self, count: int, image_size: int, generator: Generator, progress: float = 1.0) -> View:
        import torch

        boxes = torch.full((count, 4), float(image_size))
        boxes[:, :2] = torch.randint(-self.padding, self.padding + 1, (count, 2), generator=generator).float()
        return View(boxes, self.flips(count, generator), self.rolls(count, generator))


class ResizedCrop(_FlipRoll):
    """A box of random area and shape, resized to the image's size, then flip, then roll.

    Boxes are distributed as torchvision's RandomResizedCrop draws them: area uniform in `scale`, logarithm of
    width/height uniform in `ratio`, whole pixels, anywhere in the image; after ten boxes that do not fit, the
    largest central box whose shape is within `ratio`.

    With `curriculum` m (CDA, arXiv 2311.18838) the smallest area depends on the progress p of the work: it is
    low + (high - low)·(1 + cos(π·p/m))/2 for p < m, where `scale` is (low, high), then low. Views begin with
    the whole image and end as they are without.
    """

    name = "resized_crop"

    scale: tuple[float, float] = Field(
        (0.08, 1.0), description="smallest and largest share of the image's area"
    )
    ratio: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="smallest and largest width/height of a box"
    )

    curriculum: float = Field(
        0.0, ge=0, le=1, description="share of the work in which the smallest area falls to its limit"
    )

    @field_validator("scale", "ratio")
    @classmethod
    def _ordered(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if not 0 < limits[0] <= limits[1] < math.inf:
            raise ValueError("must be two positive numbers, the smaller first")
        return limits

    @field_validator("scale")
    @classmethod
    def _within_image(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[1] > 1:
            raise ValueError("must not be above 1, the whole image")
        return limits

    def draw(self, count: int, image_size: int, generator: Generator, progress: float = 1.0) -> View:
        import torch

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

        area = image_size * image_size * uniform(self._smallest(progress), self.scale[1], count, MAX_TRIES)
        ratio = uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), count, MAX_TRIES).exp()
        sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=-1).round()
        fits = ((sizes > 0) & (sizes <= image_size)).all(-1)
        first = fits.int().argmax(1)  # of equal values argmax takes the first
        size = sizes[torch.arange(count), first]
        corner = (uniform(0, 1, count, 2) * (image_size - size + 1)).floor()

        central = torch.tensor(self._largest_box(image_size), dtype=torch.float64)
        any_fits = fits.any(1, keepdim=True)
        size = torch.where(any_fits, size, central)
        corner = torch.where(any_fits, corner, ((image_size - central) / 2).floor())
        boxes = torch.cat([corner, size], dim=1).float()
        return View(boxes, self.flips(count, generator), self.rolls(count, generator))

    def _smallest(self, progress: float) -> float:
        """Return the smallest share of the image's area at that progress of the work."""
        low, high = self.scale
        if progress >= self.curriculum:
            return low
        return low + (high - low) * (1 + math.cos(math.pi * progress / self.curriculum)) / 2

    def _largest_box(self, image_size: int) -> tuple[float, float]:
        """Return (height, width) of the largest box of allowed shape."""
        low, high = self.ratio
        if low > 1:
            return max(1, round(image_size / low)), image_size
        if high < 1:
            return image_size, max(1, round(image_size * high))
        return image_size, image_size
