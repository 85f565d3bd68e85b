"""Populations: pretrained backbones, in turn, at random or several at once, or near them; untrained ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from gvbsm_registry import Component, Network, OpenPopulation, Population, Stock, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.nn import Module


class Pretrained(Population):
    """The pretrained backbones, frozen (Eq. 7 of arXiv 2311.17950: one of them a step).

    With `ascend`, each image batch has copies of its own, whose weights were moved by that many steps along
    the gradient of the cross-entropy on the batch's first images, by `radius` in all (DWA, arXiv 2409.17612):
    θ ← θ + radius/ascend · ∇L / ‖∇L‖₂.
    """

    name = "pretrained"

    order: Literal["cycle", "random", "fixed"] = Field(
        "cycle",
        description="cycle: in turn; random: drawn for each step; fixed: drawn once for each image batch",
    )
    per_step: int = Field(1, ge=1, description="networks a step; all of them, if there are fewer")
    first: int = Field(0, ge=0, description="how many of the backbones there are, from the first; 0: all")
    by_accuracy: float = Field(
        0.0,
        ge=0,
        description="temperature, in points of test accuracy, of the softmax that weighs a step's networks; "
        "0: each counts as one",
    )
    ascend: int = Field(0, ge=0, description="steps by which the weights are moved beforehand")
    radius: float = Field(0.015, gt=0, description="how far these steps move the weights in all")

    @property
    def joint(self) -> bool:
        return self.order != "fixed" and not self.ascend

    def open(self, stock: Stock, generator: Generator) -> OpenPopulation:
        return _PretrainedMembers(self, stock, generator)


class _PretrainedMembers(OpenPopulation):
    def __init__(self, options: Pretrained, stock: Stock, generator: Generator) -> None:
        import torch

        self.options, self.generator = options, generator
        count = min(options.first or len(stock.names), len(stock.names))
        self.size = min(options.per_step, count)
        chosen: Sequence[int] = range(count)
        if options.order == "fixed":
            chosen = torch.randperm(count, generator=generator)[: self.size].tolist()
        change = _ascent(options, stock) if options.ascend else None
        self.networks = [stock.pretrained(index, change) for index in chosen]
        self.accuracies = [100 * stock.accuracies[index] for index in chosen]

    def draw(self, step: int) -> Sequence[Network]:
        chosen = self._chosen(step)
        if not self.options.by_accuracy:
            return [self.networks[index] for index in chosen]
        import torch

        accuracies = torch.tensor([self.accuracies[index] for index in chosen], dtype=torch.float64)
        weights = (accuracies / self.options.by_accuracy).softmax(0).tolist()
        drawn = zip(chosen, weights, strict=True)
        return [Network(self.networks[i].name, self.networks[i].module, weight) for i, weight in drawn]

    def _chosen(self, step: int) -> list[int]:
        import torch

        count = len(self.networks)
        if self.options.order == "random" and self.size == 1:
            return [int(torch.randint(count, (), generator=self.generator))]
        if self.options.order == "random":
            return list(torch.randperm(count, generator=self.generator)[: self.size].tolist())
        return [(step * self.size + position) % count for position in range(self.size)]


def _ascent(options: Pretrained, stock: Stock) -> Callable[[Module], None]:
    """Return what moves a network's weights up the loss on the images before step 0."""

    def change(module: Module) -> None:
        import torch
        from torch.nn.functional import cross_entropy

        weights: list[Tensor] = list(module.parameters())
        for weight in weights:
            weight.requires_grad_(True)
        for _ in range(options.ascend):
            loss = cross_entropy(module(stock.images), stock.labels)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            found = [gradient for gradient in gradients if gradient is not None]
            size = torch.stack([gradient.square().sum() for gradient in found]).sum().sqrt()
            rate = options.radius / options.ascend / size.clamp(min=1e-12)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        weight += rate * gradient

    return change


class Fresh(Population):
    """Untrained backbones with random weights, drawn anew (DM, arXiv 2110.04181: for every step)."""

    name = "fresh"

    keeps: ClassVar[Literal["none", "final"]] = "none"

    every: int = Field(1, ge=1, description="steps through one network before the next one is drawn")
    first: int = Field(0, ge=0, description="how many backbones take turns, from the first; 0: all")

    def open(self, stock: Stock, generator: Generator) -> OpenPopulation:
        return _FreshMembers(self, stock, generator)


class _FreshMembers(OpenPopulation):
    def __init__(self, options: Fresh, stock: Stock, generator: Generator) -> None:
        self.options, self.stock, self.generator = options, stock, generator
        self.count = min(options.first or len(stock.names), len(stock.names))
        self.seed = 0
        self.network: Network | None = None

    def draw(self, step: int) -> Sequence[Network]:
        import torch

        turn, since = divmod(step, self.options.every)
        if since == 0:
            self.seed, self.network = int(torch.randint(2**62, (), generator=self.generator)), None
        if self.network is None:  # after `restore` between two turns, too
            self.network = self.stock.fresh(turn % self.count, self.seed)
        return [self.network]

    def state(self) -> dict[str, Tensor]:
        import torch

        return {"seed": torch.tensor(self.seed)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.seed, self.network = int(state["seed"]), None


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [Pretrained, Fresh]
