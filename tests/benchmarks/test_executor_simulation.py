"""The simulation of the executor, against what can be said without it."""

from __future__ import annotations

import random

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.executor_simulation import SCALES, Costs, Faults, label_bytes, main, makespan, simulate

NONE = Faults(straggle=0, slow=1, lost=0)
UNITS = st.lists(st.floats(0.1, 100), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(UNITS, st.integers(1, 10))
def test_without_faults_it_is_within_grahams_bound(units: list[float], workers: int) -> None:
    found = makespan(units, workers, NONE, random.Random(0))
    least = max(max(units), sum(units) / workers)
    assert least - 1e-6 <= found <= sum(units) / workers + max(units) + 1e-6


@settings(max_examples=30, deadline=None)
@given(UNITS)
def test_one_worker_takes_the_sum_and_faults_take_longer(units: list[float]) -> None:
    assert makespan(units, 1, NONE, random.Random(0)) == pytest.approx(sum(units))
    assert makespan(units, 1, Faults(1, 3, 0), random.Random(0)) == pytest.approx(3 * sum(units))
    assert makespan(units, 1, Faults(0, 1, 20), random.Random(0)) >= sum(units) - 1e-6


def test_more_workers_are_not_slower() -> None:
    hours = [simulate(SCALES[0], Costs(), Faults(), workers, rounds=5) for workers in (1, 8, 64)]
    assert hours[0] > hours[1] > hours[2]


def test_label_bytes_of_imagenet_are_near_the_published_ones() -> None:
    """Full labels of ImageNet-1k at IPC 10 are published as 5.67 GB, that is GiB of float16 and views."""
    assert label_bytes(SCALES[0], 2000, view=33) / 2**30 == pytest.approx(5.67, rel=0.01)


def test_the_command_prints_both_tables() -> None:
    result = CliRunner().invoke(main, ["--lost", "0", "--straggle", "0"])
    assert result.exit_code == 0
    assert result.output.count("ImageNet-1k") == 6
