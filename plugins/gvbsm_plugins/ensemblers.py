"""Ensemblers: a committee's logits → one (Eq. 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_registry import Component, Ensembler, Member, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Mean(Ensembler):
    """The mean over the members (Eq. 8)."""

    name = "mean"

    def combine(self, logits: Tensor, members: Sequence[Member]) -> Tensor:
        return logits.mean(0)


class Normalized(Ensembler):
    """Eq. 8 with logit normalisation.

    Each member's logit matrix [B, K] is rescaled to the mean Frobenius norm over the members, then the
    mean is taken. A matrix of zeros stays zero.
    """

    name = "normalized"

    def combine(self, logits: Tensor, members: Sequence[Member]) -> Tensor:
        import torch

        # The norm of a half-precision matrix leaves its range.
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        norms = torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True)
        scaled = wide * (norms.mean() / norms.where(norms > 0, 1))
        return scaled.mean(0).to(logits.dtype)


class ByAccuracy(Ensembler):
    """Σ w logits, w the softmax over the members of accuracy / temperature (arXiv:2501.07575).

    Accuracies are those on the real test split, 0 to 1. The paper divides such priors, in percent, by 5:
    here by 0.05.
    """

    name = "by_accuracy"

    temperature: float = Field(0.05, gt=0, description="the accuracy that e times the weight is worth")

    def combine(self, logits: Tensor, members: Sequence[Member]) -> Tensor:
        best = max(member.accuracy for member in members)
        shares = [math.exp((member.accuracy - best) / self.temperature) for member in members]
        weights = logits.new_tensor([share / sum(shares) for share in shares])
        return (weights[:, None, None] * logits).sum(0)


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [Mean, Normalized, ByAccuracy]
