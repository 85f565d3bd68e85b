from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gvbsm_plugins.objectives import KullbackLeibler, MeanSquaredGroundTruth


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp((value - max(row)) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def mse_gt(output, logits, truth, gamma: float) -> float:
    """Eq. 11, element by element."""
    batch, classes = len(output), len(output[0])
    squares = sum((output[b][k] - logits[b][k]) ** 2 for b in range(batch) for k in range(classes))
    entropy = 0.0
    for b in range(batch):
        entropy -= sum(truth[b][k] * math.log(softmax(output[b])[k]) for k in range(classes))
    return squares / (batch * classes) + gamma * entropy / batch


def kl(output, logits, temperature: float) -> float:
    total = 0.0
    for ours, theirs in zip(output, logits, strict=True):
        p, q = softmax(theirs, temperature), softmax(ours, temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(output)


def batch(rows: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    output, logits = 3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    one, other = torch.randint(0, classes, (2, rows), generator=generator)
    share = torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    encode = lambda index: torch.nn.functional.one_hot(index, classes).double()  # noqa: E731
    return output, logits, share * encode(one) + (1 - share) * encode(other)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.floats(0, 2), st.floats(0.5, 30), st.integers(0, 999))
def test_equal_to_the_equations(rows, classes, gamma, temperature, seed):
    output, logits, truth = batch(rows, classes, seed)
    lists = [part.tolist() for part in (output, logits, truth)]
    loss = MeanSquaredGroundTruth(gamma=gamma).loss(output, logits, truth)
    assert loss.item() == pytest.approx(mse_gt(*lists, gamma), rel=1e-10, abs=1e-12)
    loss = KullbackLeibler(temperature=temperature).loss(output, logits, truth)
    assert loss.item() == pytest.approx(kl(*lists[:2], temperature), rel=1e-9, abs=1e-12)
    loss = KullbackLeibler(temperature=temperature, squared=True).loss(output, logits, truth)
    expected = temperature**2 * kl(*lists[:2], temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_gradients_equal_the_derivatives_by_hand():
    """2 (o - z) / BK + γ (softmax(o) - y) / B, and (softmax(o/T) - softmax(z/T)) / (T B)."""
    output, logits, truth = batch(4, 5, 0)
    output.requires_grad_()
    MeanSquaredGroundTruth(gamma=0.3).loss(output, logits, truth).backward()
    expected = 2 * (output - logits) / 20 + 0.3 * (output.softmax(1) - truth) / 4
    torch.testing.assert_close(output.grad, expected.detach())
    output.grad = None
    KullbackLeibler().loss(output, logits, truth).backward()
    expected = ((output / 20).softmax(1) - (logits / 20).softmax(1)) / (20 * 4)
    torch.testing.assert_close(output.grad, expected.detach())
    output.grad = None
    KullbackLeibler(squared=True).loss(output, logits, truth).backward()
    torch.testing.assert_close(output.grad, 400 * expected.detach())


def test_extreme_logits_stay_finite():
    output = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    for temperature in (0.1, 20):
        loss = KullbackLeibler(temperature=temperature).loss(output, -output.detach(), torch.eye(3)[:1])
        assert loss.isfinite()
    loss = KullbackLeibler().loss(output, output.detach(), torch.eye(3)[:1])
    assert loss.item() == 0


def test_defaults_are_the_papers():
    assert MeanSquaredGroundTruth().gamma == 0.15
    assert KullbackLeibler().temperature == 20
    with pytest.raises(ValidationError):
        KullbackLeibler(temperature=0)
