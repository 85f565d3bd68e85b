"""Ensemblers: many backbones' logits → one (Eq. 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gvbsm_registry import Component, Ensembler, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Mean(Ensembler):
    """The mean over the backbones (Eq. 8)."""

    name = "mean"

    def combine(self, logits: Tensor) -> Tensor:
        return logits.mean(0)


class Normalized(Ensembler):
    """Eq. 8 with logit normalisation.

    Each backbone's logit matrix [B, K] is rescaled to the mean Frobenius norm over the backbones, then the
    mean is taken. A matrix of zeros stays zero.
    """

    name = "normalized"

    def combine(self, logits: Tensor) -> Tensor:
        import torch

        # The norm of a half-precision matrix leaves its range.
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        norms = torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True)
        scaled = wide * (norms.mean() / norms.where(norms > 0, 1))
        return scaled.mean(0).to(logits.dtype)


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [Mean, Normalized]
