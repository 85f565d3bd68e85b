from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.optim import lr_scheduler

from gvbsm_plugins.schedules import Constant, Cosine, Linear, MultiStep, OneCycle


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


@pytest.mark.parametrize("stretch", [1.0, 1.5, 2.0])
def test_a_stretched_cosine_is_the_papers(stretch):
    for step in range(40):
        expected = (1 + math.cos(math.pi * step / (stretch * 40))) / 2
        assert Cosine(stretch=stretch).factor(step, 40) == pytest.approx(expected, abs=1e-15)
    long = Cosine(stretch=2.0, warmup=0.2)
    assert [long.factor(step, 50) for step in range(10)] == [(step + 1) / 10 for step in range(10)]
    assert long.factor(30, 50) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    with pytest.raises(ValidationError):
        Cosine(stretch=0.5)


@pytest.mark.parametrize(
    ("milestones", "gamma", "steps"),
    [
        ((0.5, 0.75), 0.1, 20),
        ((0.75, 0.5), 0.1, 20),
        ((1 / 3, 2 / 3), 0.2, 300),
        ((), 0.1, 5),
        ((0.0,), 0.5, 3),
    ],
)
def test_multistep_equals_torch(milestones, gamma, steps):
    at = [round(share * steps) for share in milestones]
    factors = torch_factors(lambda o: lr_scheduler.MultiStepLR(o, at, gamma), steps)
    ours = MultiStep(milestones=milestones, gamma=gamma)
    assert [ours.factor(step, steps) for step in range(steps)] == pytest.approx(factors)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize(("peak", "div", "final"), [(0.3, 25.0, 1e4), (0.4, 10.0, 100.0), (0.0, 5.0, 7.0)])
def test_one_cycle_equals_torch(steps, peak, div, final):
    options = {"total_steps": steps, "pct_start": peak, "div_factor": div, "final_div_factor": final}
    factors = torch_factors(lambda o: Untold(o, 1.0, cycle_momentum=False, **options), steps)
    ours = OneCycle(peak=peak, start=1 / div, end=1 / div / final)
    assert [ours.factor(step, steps) for step in range(steps)] == pytest.approx(factors)
    assert OneCycle() == OneCycle(peak=0.3, start=1 / 25, end=1 / 25 / 1e4)


class Untold(lr_scheduler.OneCycleLR):
    """OneCycleLR, of which one step more than there are may be asked."""

    def get_lr(self) -> list[float]:
        return super().get_lr() if self.last_epoch < self.total_steps else [0.0]


def test_one_cycle_climbs_in_its_first_step_or_to_its_last():
    assert OneCycle(peak=0.1).factor(0, 10) == 1  # where torch divides by 0
    assert OneCycle(peak=1.0).factor(9, 10) == 1


@given(st.integers(1, 500), st.floats(0, 0.99), st.floats(1, 9))
def test_within_zero_and_one(steps, warmup, stretch):
    for schedule in (Cosine(warmup=warmup, stretch=stretch), Linear(), Constant()):
        factors = [schedule.factor(step, steps) for step in range(steps)]
        assert all(0 < factor <= 1 for factor in factors)
        assert max(factors) == 1
