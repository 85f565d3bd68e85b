"""Terms of the synthesis loss that look at what networks say, or see, of the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_registry import Component, GvbsmError, Memory, Network, SynthesisStep, Term, hookimpl

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


class MeanFeatures(Term):
    """Distribution matching (DM, arXiv 2110.04181): features are to have the mean of real images' ones.

    Σ_networks Σ_c ‖ mean φ(T_c) - mean φ(S_c) ‖², over the classes c of the images S; φ is what the last
    linear layer is given, T_c real images of the class. A class belongs in one image batch whole, as it is
    with `synthesis.batching = "one_class"`.
    """

    name = "mean_features"

    real: int = Field(256, ge=1, description="real images of each class in a step; all, if there are fewer")
    same_view: bool = Field(True, description="real images are seen through the views of the synthetic ones")

    def loss(self, step: SynthesisStep, memory: Memory) -> Tensor:
        import torch

        real, truth = step.real(self.real, same_view=self.same_view)
        classes = truth.unique()
        losses = []
        for network in step.networks:
            with torch.no_grad():
                wanted = class_means(step.features(network, real), truth, classes)
            found = class_means(step.features(network), step.labels, classes)
            losses.append(network.weight * (found - wanted).square().sum())
        return torch.stack(losses).sum()


class Attention(Term):
    """Attention matching (DataDAM, arXiv 2310.00093): attention maps are to have the mean of real ones.

    Σ_networks Σ_c Σ_l ‖ mean a_l(T_c) - mean a_l(S_c) ‖², where a_l = A_l / ‖A_l‖₂ and, by pixel,
    A_l = Σ_channels |f_l|^p; f_l is what the l-th ReLU gives. The last one is left out: its features are
    the part of `mean_features`. As there, a class belongs in one image batch whole.
    """

    name = "attention"

    weight: float = Field(100.0, ge=0, description="weight of this term in the loss")
    power: float = Field(1.0, ge=1, description="p; 1 in the authors' code")
    real: int = Field(64, ge=1, description="real images of each class in a step; all, if there are fewer")
    same_view: bool = Field(True, description="real images are seen through the views of the synthetic ones")

    def loss(self, step: SynthesisStep, memory: Memory) -> Tensor:
        import torch

        real, truth = step.real(self.real, same_view=self.same_view)
        classes = truth.unique()
        losses = []
        for network in step.networks:
            sites = self._sites(network)
            with torch.no_grad():
                wanted = step.inputs(network, sites, real)
            found = step.inputs(network, sites)
            for site in sites:
                target = class_means(self._map(wanted[site]), truth, classes)
                gap = class_means(self._map(found[site]), step.labels, classes) - target
                losses.append(network.weight * gap.square().sum())
        return torch.stack(losses).sum()

    def _sites(self, network: Network) -> list[str]:
        from torch.nn import ReLU

        sites = [name for name, part in network.module.named_modules() if isinstance(part, ReLU)][:-1]
        if not sites:
            raise GvbsmError(
                f"term {self.name!r}: network {network.name!r} has fewer than two ReLUs that are modules, so "
                "that there is no attention to compare; take another backbone"
            )
        return sites

    def _map(self, given: Tensor) -> Tensor:
        """Return the attention maps, flat and of length 1 each, from what a ReLU is given, [n, C, H, W]."""
        from torch.nn.functional import normalize

        return normalize(given.relu().pow(self.power).sum(1).flatten(1))


def class_means(features: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Return the mean of the features, [n, D], of each of K classes: [K, D]."""
    belongs = (labels == classes[:, None]).to(features.dtype)
    return (belongs @ features) / belongs.sum(1, keepdim=True)


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [CrossEntropy, Flatness, MeanFeatures, Attention]
