"""PRISM for gvbsm (arXiv 2511.09905): classes by one network, statistics by others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_registry import Component, GvbsmError, OpenPopulation, Population, Term, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from gvbsm_registry import Memory, Network, Stock, SynthesisStep

requires_contract = ">=2,<3"


class Prism(Population):
    """The first backbone, the teacher, of weight 0; k others, drawn for each image batch, of weight 1/k."""

    name = "prism"

    others: int = Field(2, ge=1, description="k: networks beside the teacher; all, if there are fewer")

    @property
    def joint(self) -> bool:
        return False

    def open(self, stock: Stock, generator: Generator) -> OpenPopulation:
        import torch

        if len(stock.names) < 2:
            raise GvbsmError(f"{self.name}: there is no network beside the teacher; add a backbone")
        drawn = torch.randperm(len(stock.names) - 1, generator=generator)[: self.others]
        others = [stock.pretrained(1 + place) for place in drawn.tolist()]
        others = [replace(network, weight=1 / len(others)) for network in others]
        return _Drawn([replace(stock.pretrained(0), weight=0.0), *others])


class _Drawn(OpenPopulation):
    def __init__(self, networks: list[Network]) -> None:
        self.networks = networks

    def draw(self, step: int) -> list[Network]:
        return self.networks


class TeacherCrossEntropy(Term):
    """Cross-entropy of the first network's logits and the labels, the mean over the images."""

    name = "teacher_cross_entropy"

    def loss(self, step: SynthesisStep, memory: Memory) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(step.logits(step.networks[0]), step.labels)


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [Prism, TeacherCrossEntropy]


@hookimpl
def gvbsm_recipes() -> list[Path]:
    return [Path(__file__).with_name("recipes")]
