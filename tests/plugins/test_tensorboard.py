"""Scalars for TensorBoard: read back by TensorBoard's own reader from real files."""

from __future__ import annotations

import builtins
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from gvbsm.runtime.reporting import Reporter
from gvbsm_registry import StageFinished, StageStarted, Step, discover


def reporter(out: Path) -> Reporter:
    point = metadata.EntryPoint("tensorboard", "gvbsm_plugins.tensorboard", "gvbsm")
    return Reporter(out / "log.jsonl", discover([point]), quiet=True)


def tell(out: Path) -> None:
    told = reporter(out)
    told.emit(StageStarted("synthesize", 2, 1))
    for step in range(3):
        values = {"total": 2.0 - step, "bn": 0.5}
        told.emit(Step("synthesize", "batch-0000", step, 3, values, {"backbone": "convnet"}))
    told.emit(StageFinished("synthesize", 1.25, {"batch-0000": {"seconds": 1.0, "note": "text"}}))


def test_scalars_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("GVBSM_TENSORBOARD", "1")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="plugin")
        tell(tmp_path)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "synthesize/units",
        "synthesize/seconds",
        "synthesize/batch-0000/total",
        "synthesize/batch-0000/bn",
        "synthesize/batch-0000/seconds",
    }
    total = [(event.step, event.value) for event in events.Scalars("synthesize/batch-0000/total")]
    assert total == [(0, 2.0), (1, 1.0), (2, 0.0)]
    assert events.Scalars("synthesize/seconds")[0].value == 1.25


@pytest.mark.parametrize("value", [None, "", "0"])
def test_it_is_off_and_silent_unless_asked_for(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GVBSM_TENSORBOARD", raising=False)
    if value is not None:
        monkeypatch.setenv("GVBSM_TENSORBOARD", value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_what_to_install_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ImportError("No module named 'tensorboard'")
        return real(name, *rest)

    monkeypatch.setenv("GVBSM_TENSORBOARD", "1")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.warns(UserWarning, match=r'pip install "gvbsm\[tensorboard\]"') as caught:
        tell(tmp_path)
    assert len([w for w in caught if "hears no more of this run" in str(w.message)]) == 1


def test_a_step_costs_nothing_measurable_while_it_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both a listener that is off and none: below 20 µs, where a synthesis step takes milliseconds."""
    monkeypatch.delenv("GVBSM_TENSORBOARD", raising=False)
    event = Step("synthesize", "batch-0000", 1, 3, {"total": 1.0})
    for registry in (reporter(tmp_path).registry, discover([])):
        told = Reporter(None, registry, quiet=True)
        best = min(_seconds(told, event) for _ in range(5))
        assert best < 20e-6


def _seconds(told: Reporter, event: Step) -> float:
    started = time.perf_counter()
    for _ in range(1000):
        told.emit(event)
    return (time.perf_counter() - started) / 1000


def test_it_adds_no_component() -> None:
    registry = discover([metadata.EntryPoint("tensorboard", "gvbsm_plugins.tensorboard", "gvbsm")])
    assert registry.problems() == []
    assert registry.components() == []
