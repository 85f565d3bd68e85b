"""Optimizers against the steps of their papers, written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from gvbsm_plugins.optimizers import SGD, Adam, AdamW
from gvbsm_registry import Optimizer

Rule = Callable[[list[float], list[float], float], float]


def sgd(momentum: float, decay: float, nesterov: bool) -> Rule:
    """Momentum: v ← μ v + g + λ w; w ← w - η v, or with Nesterov's look ahead w - η (g + λ w + μ v)."""

    def value(weights: list[float], gradients: list[float], rate: float) -> float:
        velocity = 0.0
        for weight, gradient in zip(weights, gradients, strict=True):
            slope = gradient + decay * weight
            velocity = momentum * velocity + slope
            last = weight - rate * (slope + momentum * velocity if nesterov else velocity)
        return last

    return value


def adam(betas: tuple[float, float], decay: float, decoupled: bool) -> Rule:
    """Adam with corrected moments, ε = 1e-8; the decay in the gradient, or taken off the weights."""

    def value(weights: list[float], gradients: list[float], rate: float) -> float:
        mean = square = 0.0
        for step, (weight, gradient) in enumerate(zip(weights, gradients, strict=True), 1):
            slope = gradient + (0 if decoupled else decay * weight)
            mean = betas[0] * mean + (1 - betas[0]) * slope
            square = betas[1] * square + (1 - betas[1]) * slope**2
            moved = mean / (1 - betas[0] ** step) / (math.sqrt(square / (1 - betas[1] ** step)) + 1e-8)
            last = weight * (1 - rate * decay if decoupled else 1) - rate * moved
        return last

    return value


CASES: list[tuple[Optimizer, Rule]] = [
    (SGD(), sgd(0.9, 0, False)),
    (SGD(momentum=0.0, weight_decay=0.1), sgd(0, 0.1, False)),
    (SGD(momentum=0.7, weight_decay=0.1, nesterov=True), sgd(0.7, 0.1, True)),
    (Adam(), adam((0.9, 0.999), 0, False)),
    (Adam(betas=(0.5, 0.9), weight_decay=0.1), adam((0.5, 0.9), 0.1, False)),
    (AdamW(), adam((0.9, 0.999), 0.01, True)),
    (AdamW(betas=(0.8, 0.95), weight_decay=0.3), adam((0.8, 0.95), 0.3, True)),
]


@pytest.mark.parametrize(("optimizer", "rule"), CASES, ids=[repr(case[0]) for case in CASES])
def test_steps_are_those_of_the_papers(optimizer: Optimizer, rule: Rule) -> None:
    generator = torch.Generator().manual_seed(0)
    values: Tensor = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_(True)
    built = optimizer.build(iter([values]), 0.05)
    weights, gradients = [], []
    for _ in range(6):
        gradient = torch.randn(3, generator=generator, dtype=torch.float64)
        weights.append(values.detach().tolist())
        gradients.append(gradient.tolist())
        values.grad = gradient
        built.step()
        for index, value in enumerate(values.tolist()):
            history = [[step[index] for step in steps] for steps in (weights, gradients)]
            assert value == pytest.approx(rule(history[0], history[1], 0.05), abs=1e-12)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (SGD, {"momentum": 0.0, "nesterov": True}, "nesterov needs a momentum"),
        (SGD, {"momentum": 1.0}, "less than 1"),
        (SGD, {"weight_decay": -0.1}, "greater than or equal to 0"),
        (Adam, {"betas": (0.9, 1.0)}, "from 0 to below 1"),
        (AdamW, {"betas": (-0.1, 0.9)}, "from 0 to below 1"),
    ],
)
def test_wrong_options(make: type[Optimizer], options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        make(**options)
