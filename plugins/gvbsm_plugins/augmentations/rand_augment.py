"""The part of RandAugment (Cubuk et al., arXiv 1909.13719) that views can express."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_plugins.augmentations.crops import ResizedCrop
from gvbsm_plugins.augmentations.dsa import centred_boxes
from gvbsm_registry import View

if TYPE_CHECKING:
    from torch import Generator

LARGEST = 10.0
OPERATIONS = (
    "identity",
    "brightness",
    "saturation",
    "contrast",
    "rotate",
    "translate_x",
    "translate_y",
    "cutout",
)


class RandAugment(ResizedCrop):
    """A subset of RandAugment: each image gets `num_ops` operations, drawn with repetition, of one magnitude.

    The operations are identity, brightness, saturation (Pillow's "color"), contrast, rotation, translation
    down and across, and cutout. Those of the paper that are not differentiable or not affine are left out:
    autocontrast, equalize, invert, posterize, solarize, sharpness and shearing.

    At magnitude 10, saturation and contrast change by a factor of 1 ± 0.9, brightness by ± 0.9 standard
    deviations of the pixels (added, since images are normalised), rotation is by 30 degrees, translation by
    45 % of the image and cutout takes a square of half its side; other magnitudes are in proportion. The sign
    is random. They come on top of `resized_crop`, which shows the whole image unless `scale` says otherwise.
    """

    name = "rand_augment"

    scale: tuple[float, float] = Field(
        (1.0, 1.0), description="smallest and largest share of the image's area"
    )
    num_ops: int = Field(2, ge=0, description="how many operations each image gets")
    magnitude: float = Field(6.0, ge=0, le=LARGEST, description="strength of all operations, 0 to 10")

    def draw(self, count: int, image_size: int, generator: Generator, progress: float = 1.0) -> View:
        import torch

        crop = super().draw(count, image_size, generator, progress)
        shape = (count, self.num_ops)
        chosen = torch.randint(len(OPERATIONS), shape, generator=generator)
        sign = 2.0 * torch.randint(2, shape, generator=generator) - 1
        strength = self.magnitude / LARGEST
        amounts = {
            name: (sign * strength).where(chosen == place, torch.zeros(()))
            for place, name in enumerate(OPERATIONS)
        }
        shift = torch.stack([amounts["translate_y"].sum(1), amounts["translate_x"].sum(1)], 1)
        boxes = crop.boxes.clone()
        boxes[:, :2] += (0.45 * image_size * shift).round()
        cut = centred_boxes(count, int(image_size * 0.5 * strength + 0.5), image_size, generator)
        return replace(
            crop,
            boxes=boxes,
            colors=torch.stack(
                [
                    0.9 * amounts["brightness"].sum(1),
                    (1 + 0.9 * amounts["saturation"]).prod(1),
                    (1 + 0.9 * amounts["contrast"]).prod(1),
                ],
                1,
            ),
            angles=30 * amounts["rotate"].sum(1),
            cutouts=cut * (chosen == OPERATIONS.index("cutout")).any(1, keepdim=True),
        )
