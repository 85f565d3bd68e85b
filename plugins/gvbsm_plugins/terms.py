"""Terms of the synthesis loss that look at what networks say of the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_registry import Component, Memory, SynthesisStep, Term, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(Term):
    """The classification term: cross-entropy of each network's logits and the labels (first of Eq. 2)."""

    name = "cross_entropy"

    def loss(self, step: SynthesisStep, memory: Memory) -> Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        losses = [
            network.weight * cross_entropy(step.logits(network), step.labels) for network in step.networks
        ]
        return torch.stack(losses).sum()


class Flatness(Term):
    """A flat minimum (EDC, arXiv 2404.13733): images are to be judged as their running average is.

    Σ_networks KL( softmax(f(x̄) / τ) ‖ softmax(f(x) / τ) ), the mean over the images; x̄ ← β x̄ + (1 - β) x,
    beginning with the first images, seen through the same views. No gradient goes through x̄.
    """

    name = "flatness"

    weight: float = Field(0.25, ge=0, description="weight of this term in the loss")
    temperature: float = Field(4.0, gt=0, description="τ")
    momentum: float = Field(0.99, ge=0, lt=1, description="β: how slowly the average of the images follows")

    def loss(self, step: SynthesisStep, memory: Memory) -> Tensor:
        import torch
        from torch.nn.functional import kl_div

        with torch.no_grad():
            now = step.images.detach()
            average = memory.get("average")
            average = (
                now if average is None or len(average) != len(now) else average.lerp(now, 1 - self.momentum)
            )
            memory["average"] = average.clone()
            seen = step.view.apply(average)
        losses = []
        for network in step.networks:
            with torch.no_grad():
                target = (network.module(seen) / self.temperature).log_softmax(1)
            given = (step.logits(network) / self.temperature).log_softmax(1)
            losses.append(network.weight * kl_div(given, target, reduction="batchmean", log_target=True))
        return torch.stack(losses).sum()


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [CrossEntropy, Flatness]
