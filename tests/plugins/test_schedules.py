from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.optim import lr_scheduler

from gvbsm_plugins.schedules import Constant, Cosine, Linear


def torch_factors(make, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return factors


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_equal_to_torch(steps):
    cosine = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, steps), steps)
    assert [Cosine().factor(step, steps) for step in range(steps)] == pytest.approx(cosine)
    linear = torch_factors(lambda o: lr_scheduler.LinearLR(o, 1.0, 1e-12, steps), steps)
    assert [Linear().factor(step, steps) for step in range(steps)] == pytest.approx(linear)
    assert [Constant().factor(step, steps) for step in range(steps)] == [1.0] * steps


def test_cosine_warms_up():
    factors = [Cosine(warmup=0.25).factor(step, 16) for step in range(16)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == [Cosine().factor(step, 12) for step in range(12)]
    with pytest.raises(ValidationError):
        Cosine(warmup=1)


@given(st.integers(1, 500), st.floats(0, 0.99))
def test_within_zero_and_one(steps, warmup):
    for schedule in (Cosine(warmup=warmup), Linear(), Constant()):
        factors = [schedule.factor(step, steps) for step in range(steps)]
        assert all(0 < factor <= 1 for factor in factors)
        assert max(factors) == 1
