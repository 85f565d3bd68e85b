"""Images of noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gvbsm_registry import Initializer, Source

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Noise(Initializer):
    """Standard normal noise in normalised space (SRe2L's and the paper's start)."""

    name = "noise"
    uses_networks = False

    def looks_at(self, per_class: int) -> int:
        return 1

    def images(self, labels: Tensor, ranks: Tensor, source: Source, generator: Generator) -> Tensor:
        import torch

        shape = (len(labels), source.train.channels, source.train.image_size, source.train.image_size)
        return torch.randn(shape, generator=generator, device=generator.device)
