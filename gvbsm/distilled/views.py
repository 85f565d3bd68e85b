"""The views of one epoch: that of every image, and CutMix, drawn once and replayed exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from gvbsm_registry import View

if TYPE_CHECKING:
    from gvbsm.distilled.normalized import LazyNormalizedImages
    from gvbsm_registry import Augmentation


@dataclass(frozen=True)
class EpochViews:
    """N views: of N images, one each, or of those that `images` says.

    view: the images' own views.
    partners: int64 [N], the view that is pasted into this one (CutMix).
    boxes: int64 [N, 4], (top, left, bottom, right) of the pasted part; empty where nothing is.
    images: int64 [N], of which image each view is; None: of its own number.
    """

    view: View
    partners: Tensor
    boxes: Tensor
    images: Tensor | None = None

    def apply(self, images: Tensor | LazyNormalizedImages, index: Tensor) -> Tensor:
        """Return the views at `index`, int64 [n], of the set's `images` [N, C, H, W]: float [n, C, H, W]."""
        image_size = images.shape[-1]
        own = self.view.select(index).apply(images[self._images_of(index)])
        inside = self._inside(index, image_size).to(own.device)
        if not bool(inside.any()):
            return own
        partners = self.partners[index]
        other = self.view.select(partners).apply(images[self._images_of(partners)])
        return torch.where(inside.unsqueeze(1), other, own)

    def truth(self, labels: Tensor, index: Tensor, classes: int, image_size: int) -> Tensor:
        """Return the class mixture of the views at `index`, float [n, classes]: CutMix mixes by area."""
        share = self._inside(index, image_size).float().mean((1, 2)).unsqueeze(1)
        own = one_hot(labels[self._images_of(index)], classes).float()
        other = one_hot(labels[self._images_of(self.partners[index])], classes).float()
        return own * (1 - share) + other * share

    def part(self, index: Tensor) -> EpochViews:
        """Return the views at `index`, int64 [n], by themselves; their partners must be among them."""
        places = torch.empty(len(self.partners), dtype=torch.int64)
        places[index] = torch.arange(len(index))
        partners = places[self.partners[index]]
        return EpochViews(self.view.select(index), partners, self.boxes[index], self._images_of(index))

    def _images_of(self, index: Tensor) -> Tensor:
        return index if self.images is None else self.images[index]

    def _inside(self, index: Tensor, image_size: int) -> Tensor:
        top, left, bottom, right = self.boxes[index].unbind(1)
        pixel = torch.arange(image_size, device=self.boxes.device)
        rows = (pixel >= top[:, None]) & (pixel < bottom[:, None])
        columns = (pixel >= left[:, None]) & (pixel < right[:, None])
        return rows[:, :, None] & columns[:, None, :]

    def tensors(self) -> dict[str, Tensor]:
        """Return the views as small tensors by name, for storing."""
        view = self.view
        optional = {"color": view.colors, "angle": view.angles, "cutout": view.cutouts, "image": self.images}
        return {
            "crop": view.boxes.float(),
            "flip": view.flips,
            "roll": view.rolls.to(torch.int32),
            "partner": self.partners.to(torch.int32),
            "cutmix": self.boxes.to(torch.int32),
            **{name: part for name, part in optional.items() if part is not None},
        }

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], epoch: int) -> EpochViews:
        """Read back the views of one epoch from stored tensors with a leading epoch axis."""
        one = {name: tensor[epoch] for name, tensor in tensors.items()}
        view = View(
            one["crop"].float(),
            one["flip"],
            one["roll"].long(),
            one["color"].float() if "color" in one else None,
            one["angle"].float() if "angle" in one else None,
            one["cutout"].long() if "cutout" in one else None,
        )
        images = one["image"].long() if "image" in one else None
        return EpochViews(view, one["partner"].long(), one["cutmix"].long(), images)

    @staticmethod
    def join(epochs: Sequence[EpochViews]) -> EpochViews:
        """Return the views of several epochs one after another; `partners` count within each epoch."""
        images = [each.images for each in epochs if each.images is not None]
        return EpochViews(
            View.join([each.view for each in epochs]),
            torch.cat([each.partners for each in epochs]),
            torch.cat([each.boxes for each in epochs]),
            torch.cat(images) if images else None,
        )

    def without_mixing(self) -> EpochViews:
        """Return the same views of each image with no CutMix."""
        return replace(self, boxes=torch.zeros_like(self.boxes))


def draw(
    augmentation: Augmentation,
    groups: Sequence[Tensor],
    image_size: int,
    cutmix: float,
    alpha: float,
    generator: Generator,
) -> EpochViews:
    """Draw an epoch's views of images that are mixed within `groups`, a partition of 0..N-1.

    With chance `cutmix` a group is mixed: one box for the group, its area (1 - λ) with λ from Beta(α, α),
    every image paired with another of its group by a random permutation.
    """
    count = sum(len(group) for group in groups)
    view = augmentation.draw(count, image_size, generator)
    partners = torch.arange(count)
    boxes = torch.zeros(count, 4, dtype=torch.int64)
    for group in groups:
        shuffled = group[torch.randperm(len(group), generator=generator)]
        box = _cutmix_box(image_size, alpha, generator)
        if float(torch.rand((), generator=generator)) < cutmix:
            partners[group] = shuffled
            boxes[group] = box
    return EpochViews(view, partners, boxes)


def _cutmix_box(image_size: int, alpha: float, generator: Generator) -> Tensor:
    share = 1 - _beta(alpha, generator)
    extent = int(image_size * share**0.5)
    centre = torch.randint(image_size, (2,), generator=generator)
    low = (centre - extent // 2).clamp(0, image_size)
    high = (centre - extent // 2 + extent).clamp(0, image_size)
    return torch.cat([low, high])


def _beta(alpha: float, generator: Generator) -> float:
    """Draw from Beta(α, α) = X / (X + Y) with X, Y from Gamma(α), by a generator of its own."""
    if alpha == 1:
        return float(torch.rand((), generator=generator))
    draws = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator)
    return float(draws[0] / draws.sum())
