from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gvbsm_plugins.ensemblers import Mean, Normalized


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
    assert Mean().combine(logits).shape == (batch, classes)
    np.testing.assert_allclose(Mean().combine(logits), by_loops(logits.numpy(), False), atol=1e-12)
    np.testing.assert_allclose(Normalized().combine(logits), by_loops(logits.numpy(), True), atol=1e-12)


def test_gradients():
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Mean().combine, logits)
    assert torch.autograd.gradcheck(Normalized().combine, logits)


def test_a_silent_backbone_gives_no_nan():
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 4, dtype=torch.float64)
    logits[1] = 0
    np.testing.assert_allclose(Normalized().combine(logits), by_loops(logits.numpy(), True), atol=1e-12)
    assert torch.equal(Normalized().combine(torch.zeros(2, 3, 4)), torch.zeros(3, 4))


def test_half_precision_does_not_overflow():
    logits = torch.full((2, 100, 1000), 300.0, dtype=torch.float16)
    combined = Normalized().combine(logits)
    assert combined.dtype == torch.float16
    assert torch.equal(combined, logits[0])


@pytest.mark.parametrize("ensembler", [Mean(), Normalized()])
def test_one_backbone_is_itself(ensembler):
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(ensembler.combine(logits), logits[0])
