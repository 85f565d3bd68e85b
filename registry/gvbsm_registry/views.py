"""A view: which part of every image of a batch is seen, and how it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class View:
    """Geometry of B views, one an image: crop, then resize to the image's size, then flip, then roll.

    boxes: float [B, 4], (top, left, height, width) in pixels of the source image. A box may reach beyond
        the image; what lies outside is 0, which is the mean colour of normalised images.
    flips: bool [B], mirror left and right.
    rolls: int64 [B, 2], cyclic shift (down, right) in pixels of the view.

    Resizing is bilinear with pixel centres at half-integers, clamped to the box: what torchvision's
    `resized_crop(..., antialias=False)` computes.
    """

    boxes: Tensor
    flips: Tensor
    rolls: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def apply(self, images: Tensor) -> Tensor:
        """Return the views of `images`, float [B, C, H, W] to [B, C, H, W]; differentiable in the images.

        Rows and columns are resampled separately, as two small matrix products: R X Cᵀ.
        """
        import torch

        height, width = images.shape[-2:]
        device, dtype = images.device, images.dtype
        boxes, flips, rolls = (part.to(device) for part in (self.boxes, self.flips, self.rolls))
        never = flips.new_zeros(len(flips))
        rows = _resampling(boxes[:, 0], boxes[:, 2], never, rolls[:, 0], height).to(dtype)
        columns = _resampling(boxes[:, 1], boxes[:, 3], flips, rolls[:, 1], width).to(dtype)
        # A view that is replayed must be the one that was labelled, whatever precision each ran under.
        with torch.autocast(device.type, enabled=False):
            return (rows.unsqueeze(1) @ images) @ columns.unsqueeze(1).transpose(-1, -2)

    def select(self, index: Tensor) -> View:
        """Return the views at `index`, int64 [n], alone."""
        return View(self.boxes[index], self.flips[index], self.rolls[index])


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


def identity_view(count: int, image_size: int) -> View:
    """Return the view that changes nothing, `count` times, for images of `image_size` pixels."""
    import torch

    boxes = torch.tensor([[0.0, 0.0, image_size, image_size]]).repeat(count, 1)
    return View(boxes, torch.zeros(count, dtype=torch.bool), torch.zeros(count, 2, dtype=torch.int64))
