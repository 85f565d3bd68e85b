"""Images that are normalised as they are read, so that a large set never lies in memory as floats."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

AT_ONCE = 2**28
"""Pixels up to which a set is normalised once and kept: a gibibyte of floats."""


class Normalized:
    """uint8 `images` [N, C, H, W]; indexing by int64 [n] gives what `normalize` makes of those, float32."""

    def __init__(self, images: Tensor, normalize: Callable[[Tensor], Tensor]) -> None:
        self._images, self._normalize = images, normalize
        self._whole = normalize(images) if images.numel() <= AT_ONCE else None

    def __getitem__(self, index: Tensor) -> Tensor:
        if self._whole is not None:
            return self._whole[index]
        return self._normalize(self._images[index])

    def __len__(self) -> int:
        return len(self._images)

    @property
    def shape(self) -> torch.Size:
        """[N, C, H, W]."""
        return self._images.shape
