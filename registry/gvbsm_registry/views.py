"""A view: which part of every image of a batch is seen, how it lies, and in what colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NEUTRAL = {"colors": (0.0, 1.0, 1.0), "angles": 0.0, "cutouts": (0, 0, 0, 0)}
"""The optional parts of a view, and the value with which each changes nothing."""


@dataclass(frozen=True)
class View:
    """B views, one an image: colours, then crop, resize to the image's size, flip, roll, turn, cut out.

    boxes: float [B, 4], (top, left, height, width) in pixels of the source image. A box may reach beyond
        the image; what lies outside is 0, which is the mean colour of normalised images.
    flips: bool [B], mirror left and right.
    rolls: int64 [B, 2], cyclic shift (down, right) in pixels of the view.
    colors: float [B, 3], (brightness b, saturation s, contrast c). To an image x, first b is added; then each
        pixel's distance from the mean of its channels is multiplied by s, then each value's distance from
        the mean of the image by c, as DSA (arXiv 2102.08259) does. Neutral: (0, 1, 1).
    angles: float [B], degrees by which the view is turned counter-clockwise about its centre, bilinear;
        what was outside is 0.
    cutouts: int64 [B, 4], (top, left, bottom, right) of a part of the view that is set to 0.

    The last three are None where there is none. Resizing is bilinear with pixel centres at half-integers,
    clamped to the box: what torchvision's `resized_crop(..., antialias=False)` computes.
    """

    boxes: Tensor
    flips: Tensor
    rolls: Tensor
    colors: Tensor | None = None
    angles: Tensor | None = None
    cutouts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def apply(self, images: Tensor) -> Tensor:
        """Return the views of `images`, float [B, C, H, W] to [B, C, H, W]; differentiable in the images."""
        import torch

        view = self._each(lambda part: part.to(images.device))
        # A view that is replayed must be the one that was labelled, whatever precision each ran under.
        with torch.autocast(images.device.type, enabled=False):
            seen = images if view.colors is None else _recolored(images, view.colors)
            seen = view._moved(seen)
            seen = seen if view.angles is None else _turned(seen, view.angles)
            return seen if view.cutouts is None else _cut(seen, view.cutouts)

    def _moved(self, images: Tensor) -> Tensor:
        """Crop, resize, flip and roll: rows and columns apart, as two small matrix products R X Cᵀ."""
        height, width = images.shape[-2:]
        boxes, flips, rolls = self.boxes, self.flips, self.rolls
        never = flips.new_zeros(len(flips))
        rows = _resampling(boxes[:, 0], boxes[:, 2], never, rolls[:, 0], height).to(images.dtype)
        columns = _resampling(boxes[:, 1], boxes[:, 3], flips, rolls[:, 1], width).to(images.dtype)
        return (rows.unsqueeze(1) @ images) @ columns.unsqueeze(1).transpose(-1, -2)

    def select(self, index: Tensor) -> View:
        """Return the views at `index`, int64 [n], alone."""
        return self._each(lambda part: part[index])

    @classmethod
    def join(cls, views: Sequence[View]) -> View:
        """Return all views one after another; a part that some of them lack is neutral in those."""
        import torch

        if len(views) == 1:
            return views[0]
        boxes, flips, rolls = (
            torch.cat([getattr(view, name) for view in views]) for name in ("boxes", "flips", "rolls")
        )
        there = [name for name in NEUTRAL if any(getattr(view, name) is not None for view in views)]
        optional = {name: torch.cat([view._part(name) for view in views]) for name in there}
        return cls(boxes, flips, rolls, **optional)

    def _part(self, name: str) -> Tensor:
        """Return an optional part, neutral if there is none."""
        import torch

        part: Tensor | None = getattr(self, name)
        if part is not None:
            return part
        neutral = torch.tensor(NEUTRAL[name], device=self.boxes.device)
        return neutral.expand(len(self), *neutral.shape)

    def _each(self, change: Callable[[Tensor], Tensor]) -> View:
        """Return the view with each of its parts changed."""
        there = {name: getattr(self, name) for name in ("boxes", "flips", "rolls", *NEUTRAL)}
        return replace(self, **{name: change(part) for name, part in there.items() if part is not None})


def _resampling(start: Tensor, extent: Tensor, mirror: Tensor, roll: Tensor, size: int) -> Tensor:
    """Return [B, size, size] matrices: output pixel to the source pixels that make it, by weight."""
    import torch

    target = torch.arange(size, device=start.device)
    target = (target[None, :] - roll[:, None]) % size
    target = torch.where(mirror[:, None], size - 1 - target, target)
    inside = (target.to(start.dtype) + 0.5) * extent[:, None] / size - 0.5
    inside = inside.clamp(min=0).minimum(extent[:, None] - 1)
    source = inside + start[:, None]
    pixel = torch.arange(size, device=start.device, dtype=start.dtype)
    return (1 - (source[:, :, None] - pixel).abs()).clamp(min=0)


def _recolored(images: Tensor, colors: Tensor) -> Tensor:
    """Brightness, saturation and contrast in one: the three are affine in the pixels."""
    brightness, saturation, contrast = colors.to(images.dtype)[:, :, None, None, None].unbind(1)
    grey, mean = images.mean(1, keepdim=True), images.mean((1, 2, 3), keepdim=True)
    scaled = contrast * (saturation * images + (1 - saturation) * grey)
    return scaled + (1 - contrast) * mean + brightness


def _turned(images: Tensor, angles: Tensor) -> Tensor:
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    if len(images) == 0:
        return images
    dtype = torch.promote_types(images.dtype, torch.float32)
    height, width = images.shape[-2:]
    radians = angles.to(dtype) * (math.pi / 180)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # Places are in halves of the image's height and width.
    rows = [cos, -sin * (height / width), zero, sin * (width / height), cos, zero]
    grid = affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(images.shape), align_corners=False)
    return grid_sample(images.to(dtype), grid, align_corners=False).to(images.dtype)


def _cut(images: Tensor, cutouts: Tensor) -> Tensor:
    import torch

    top, left, bottom, right = cutouts[:, :, None].unbind(1)
    rows, columns = (torch.arange(length, device=images.device) for length in images.shape[-2:])
    inside = ((rows >= top) & (rows < bottom))[:, None, :, None]
    return images.masked_fill(inside & ((columns >= left) & (columns < right))[:, None, None, :], 0)


def identity_view(count: int, image_size: int) -> View:
    """Return the view that changes nothing, `count` times, for images of `image_size` pixels."""
    import torch

    boxes = torch.tensor([[0.0, 0.0, image_size, image_size]]).repeat(count, 1)
    return View(boxes, torch.zeros(count, dtype=torch.bool), torch.zeros(count, 2, dtype=torch.int64))
