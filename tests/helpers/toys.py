"""A plugin for tests: data, a backbone and regularizers small enough to run whole stages in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Generator, Tensor, nn

from gvbsm_registry import (
    Backbone,
    Callback,
    Component,
    Dataset,
    Memory,
    Network,
    OpenPopulation,
    Parameterization,
    Population,
    Regularizer,
    Split,
    Stock,
    SynthesisState,
    SynthesisStep,
    TensorSplit,
    Term,
    hookimpl,
)


class ToyData(Dataset):
    """One random picture for each class, and noise."""

    name = "toy_data"

    per_class: int = 8
    tests: int = 20
    image_size: int = 8
    channels: int = 1
    names: tuple[str, ...] = ("ant", "bee", "cat")
    noise: float = 40.0
    streamed: bool = Field(False, description="read in batches by worker processes")

    def open(self, split: Literal["train", "test"], cache: Path) -> Split:
        shape = (len(self.names), self.channels, self.image_size, self.image_size)
        pictures = 60 + 135 * torch.rand(shape, generator=torch.Generator().manual_seed(5))
        count = self.per_class if split == "train" else self.tests
        labels = torch.arange(len(self.names)).repeat(count)
        generator = torch.Generator().manual_seed(len(split))
        noise = torch.randn((len(labels), *shape[1:]), generator=generator)
        pixels = (pictures[labels] + self.noise * noise).clamp(0, 255).to(torch.uint8)
        found = TensorSplit(pixels, labels, self.names)
        return _Streamed(found) if self.streamed else found


class _Streamed(Split):
    in_memory = False

    def __init__(self, inner: TensorSplit) -> None:
        self.inner, self.classes, self.labels = inner, inner.classes, inner.labels
        self.image_size, self.channels = inner.image_size, inner.channels

    def read(self, indices: Tensor) -> Tensor:
        return self.inner.read(indices)

    @property
    def digest(self) -> str:
        return self.inner.digest


class ToyNet(Backbone):
    """Two convolutions, the second with a stride, each with BatchNorm."""

    name = "toy_net"

    width: int = 6

    def build(self, classes: int, image_size: int, channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, self.width, 3, padding=1),
            nn.BatchNorm2d(self.width),
            nn.ReLU(),
            nn.Conv2d(self.width, 2 * self.width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * self.width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * self.width * ((image_size + 1) // 2) ** 2, classes),
        )


class ToyFault(Regularizer):
    """0, but from call `at` on (counted from 0) the loss, or its gradient alone, is not a number."""

    name = "toy_fault"

    at: int = 3
    where: Literal["loss", "gradient"] = "loss"
    _calls: int = PrivateAttr(0)

    def penalty(self, images: Tensor, labels: Tensor) -> Tensor:
        self._calls += 1
        zero = (images * 0).sum()
        if self._calls <= self.at:
            return zero
        return zero / 0 if self.where == "loss" else zero.sqrt()


class ToyWrong(Term):
    """A term that raises, or is not a scalar."""

    name = "toy_wrong"

    what: Literal["raise", "shape"] = "raise"

    def loss(self, step: SynthesisStep, memory: Memory) -> Tensor:
        if self.what == "raise":
            raise ValueError("on purpose")
        return step.images


class ToyNobody(Population):
    """Draws no network."""

    name = "toy_nobody"

    def open(self, stock: Stock, generator: Generator) -> OpenPopulation:
        return _Nobody()


class _Nobody(OpenPopulation):
    def draw(self, step: int) -> Sequence[Network]:
        return []


class ToyFlat(Parameterization):
    """Loses the axis of the images."""

    name = "toy_flat"

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"flat": images.flatten()}

    def decode(self, leaves: dict[str, Tensor]) -> Tensor:
        return leaves["flat"]


class ToyLate(Callback):
    """Divides by zero after the last step."""

    name = "toy_late"

    def after(self, step: int, state: SynthesisState) -> None:
        1 / (state.steps - step)


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [ToyData, ToyNet, ToyFault, ToyWrong, ToyNobody, ToyFlat, ToyLate]
