from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gvbsm_plugins.ensemblers import ByAccuracy, Mean, Normalized
from gvbsm_registry import Member

ANY = [Member("any", 0.5)] * 5
"""Of those that do not count."""


def by_loops(logits: np.ndarray, normalise: bool) -> np.ndarray:
    """Eq. 8, element by element."""
    backbones, batch, classes = logits.shape
    norms = [math.sqrt(sum(float(v) ** 2 for v in matrix.reshape(-1))) for matrix in logits]
    factors = [(sum(norms) / backbones / norm if norm else 0.0) if normalise else 1.0 for norm in norms]
    out = np.zeros((batch, classes))
    for s in range(backbones):
        for b in range(batch):
            for k in range(classes):
                out[b, k] += factors[s] * logits[s, b, k] / backbones
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.integers(0, 999), st.floats(0, 50))
def test_equal_to_equation_8(backbones, batch, classes, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(backbones, batch, classes, generator=generator, dtype=torch.float64)
    logits *= 1 + spread * torch.rand(backbones, 1, 1, generator=generator, dtype=torch.float64)
    assert Mean().combine(logits, ANY).shape == (batch, classes)
    np.testing.assert_allclose(Mean().combine(logits, ANY), by_loops(logits.numpy(), False), atol=1e-12)
    np.testing.assert_allclose(Normalized().combine(logits, ANY), by_loops(logits.numpy(), True), atol=1e-12)


def test_gradients():
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Mean().combine(x, ANY), logits)
    assert torch.autograd.gradcheck(lambda x: Normalized().combine(x, ANY), logits)


def test_a_silent_backbone_gives_no_nan():
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 4, dtype=torch.float64)
    logits[1] = 0
    np.testing.assert_allclose(Normalized().combine(logits, ANY), by_loops(logits.numpy(), True), atol=1e-12)
    assert torch.equal(Normalized().combine(torch.zeros(2, 3, 4), ANY), torch.zeros(3, 4))


def test_half_precision_does_not_overflow():
    logits = torch.full((2, 100, 1000), 300.0, dtype=torch.float16)
    combined = Normalized().combine(logits, ANY)
    assert combined.dtype == torch.float16
    assert torch.equal(combined, logits[0])


@pytest.mark.parametrize("ensembler", [Mean(), Normalized(), ByAccuracy()])
def test_one_backbone_is_itself(ensembler):
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(ensembler.combine(logits, ANY[:1]), logits[0])


@pytest.mark.parametrize("temperature", [0.01, 0.05, 2.0])
def test_by_accuracy_is_a_softmax_of_accuracies(temperature):
    torch.manual_seed(0)
    accuracies = [0.31, 0.352, 0.3, 0.45]
    logits = torch.randn(4, 3, 5, dtype=torch.float64)
    members = [Member(str(number), accuracy) for number, accuracy in enumerate(accuracies)]
    weights = np.exp(np.array(accuracies) / temperature)
    expected = np.einsum("s,sbk->bk", weights / weights.sum(), logits.numpy())
    combined = ByAccuracy(temperature=temperature).combine(logits, members)
    np.testing.assert_allclose(combined, expected, atol=1e-12)
    leaf = logits.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: ByAccuracy(temperature=temperature).combine(x, members), leaf)


def test_by_accuracy_counts_percent_by_fives():
    members = [Member("a", 0.40), Member("b", 0.45)]
    logits = torch.eye(2, dtype=torch.float64)[:, None]
    assert ByAccuracy().combine(logits, members)[0].tolist() == pytest.approx(
        [1 / (1 + math.e), math.e / (1 + math.e)]
    )


def test_equal_members_give_the_mean_even_if_all_are_useless():
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 4)
    members = [Member("a", 0.0)] * 3
    torch.testing.assert_close(ByAccuracy(temperature=1e-9).combine(logits, members), logits.mean(0))
