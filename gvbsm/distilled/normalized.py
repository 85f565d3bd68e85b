"""Pixels as networks see them: normalised by channel, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

AT_ONCE = 2**28
"""Pixels up to which a set is normalised once and kept: a gibibyte of floats."""


@dataclass(frozen=True)
class Normalization:
    """Channel means and standard deviations of pixels in 0..1, one of each a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def tensors(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, float32 [C, 1, 1] each."""
        mean, std = (torch.tensor(part, device=device)[:, None, None] for part in (self.mean, self.std))
        return mean, std

    def normalize(self, images: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Return uint8 [..., C, H, W] as float32 on the device: (pixel / 255 - mean) / std."""
        mean, std = self.tensors(device)
        return (images.to(device, torch.float32) / 255 - mean) / std

    def quantize(self, images: Tensor) -> Tensor:
        """Return normalised floats [..., C, H, W] as the nearest 8-bit pixels, uint8 on the CPU."""
        mean, std = self.tensors(images.device)
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).cpu()

    def pixel_range(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return the normalised values of black and white, [C, 1, 1] each."""
        mean, std = self.tensors(device)
        return -mean / std, (1 - mean) / std


class LazyNormalizedImages:
    """uint8 `images` [N, C, H, W], normalised when indexed by int64 [n]: float32 [n, C, H, W].

    So a large set never lies in memory as floats; a small one is normalised once and kept.
    """

    def __init__(
        self, images: Tensor, normalization: Normalization, device: torch.device | str = "cpu"
    ) -> None:
        self._images, self._normalization, self._device = images, normalization, device
        small = images.numel() <= AT_ONCE
        self._normalized = normalization.normalize(images, device) if small else None

    def __getitem__(self, index: Tensor) -> Tensor:
        if self._normalized is not None:
            return self._normalized[index]
        return self._normalization.normalize(self._images[index], self._device)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def shape(self) -> torch.Size:
        """[N, C, H, W]."""
        return self._images.shape
