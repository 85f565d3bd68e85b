"""Regularizers: data densification, total variation, squared norm."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_registry import Component, Regularizer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

POOLED_SIDE = 32


class DataDensification(Regularizer):
    """L_DD (Eq. 5): Σ_y KL( stop_grad(softmax(Σ_y / τ)) ‖ softmax(Σ_y) ), the sum over the batch's classes.

    Σ_y are the eigenvalues of the Gram matrix of class y's images, average-pooled to 32×32 (smaller ones are
    kept) and flattened. A class with one image adds 0. Images that are not finite give NaN.
    """

    name = "dd"

    temperature: float = Field(4.0, gt=0, description="τ: how much the spectrum is evened out")

    def penalty(self, images: Tensor, labels: Tensor) -> Tensor:
        import torch

        by_count: dict[int, list[Tensor]] = defaultdict(list)
        counts = labels.unique(return_counts=True)[1].tolist()
        for members in labels.argsort(stable=True).split(counts):
            by_count[len(members)].append(members)
        by_count.pop(1, None)

        # Eigenvalues have no half-precision solver, and a spectrum of thousands needs every digit.
        with torch.autocast(images.device.type, enabled=False):
            rows = _pooled(images.float() if images.dtype in (torch.float16, torch.bfloat16) else images)
            total = rows[:0].sum()  # 0, but with a gradient (of 0) where no class has two images
            for classes in by_count.values():
                vectors = rows[torch.stack(classes)]
                total = total + self._divergence(vectors @ vectors.mT)
        return total

    def _divergence(self, gram: Tensor) -> Tensor:
        """Return the sum of KL over Gram matrices [classes, n, n]."""
        import torch

        # The solver raises on values that are not finite; a loss of NaN lets the caller say what happened.
        finite = torch.nan_to_num(gram, nan=0.0, posinf=0.0, neginf=0.0)
        spectrum = torch.linalg.eigvalsh(finite)
        evened = (spectrum.detach() / self.temperature).log_softmax(-1)
        divergence = (evened.exp() * (evened - spectrum.log_softmax(-1))).sum()
        return divergence + (gram.detach() * 0).sum()


def _pooled(images: Tensor) -> Tensor:
    from torch.nn.functional import adaptive_avg_pool2d

    height, width = images.shape[-2:]
    if max(height, width) > POOLED_SIDE:
        images = adaptive_avg_pool2d(images, (min(height, POOLED_SIDE), min(width, POOLED_SIDE)))
    return images.flatten(1)


class TotalVariation(Regularizer):
    """Anisotropic total variation: mean |x[i+1, j] - x[i, j]| + mean |x[i, j+1] - x[i, j]|.

    The means run over images, channels and pairs of neighbours; a side of one pixel has none and adds 0.
    """

    name = "tv"

    def penalty(self, images: Tensor, labels: Tensor) -> Tensor:
        down, right = images.diff(dim=-2).abs(), images.diff(dim=-1).abs()
        return down.sum() / max(down.numel(), 1) + right.sum() / max(right.numel(), 1)


class SquaredNorm(Regularizer):
    """The mean of the squared normalised pixels."""

    name = "l2"

    def penalty(self, images: Tensor, labels: Tensor) -> Tensor:
        return images.square().mean()


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [DataDensification, TotalVariation, SquaredNorm]
