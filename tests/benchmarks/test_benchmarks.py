"""Every benchmark at its smallest: it runs, and prints one JSON object of the promised shape."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import harness
from benchmarks.setting import VARIANTS, Setting

Report = dict[str, Any]
NET = "convnet:width=4,depth=1"
SMALL: dict[str, list[str]] = {
    "step": ["--backbone", NET, "--image-size", "8", "--batch", "4", "--no-compile"],
    "measure": ["--backbone", NET, "--image-size", "8", "--batch", "4", "--images", "8"],
    "evaluate": ["--student", NET, "--image-size", "8", "--batch", "4", "--images", "8", "--epochs", "1"],
    "startup": [],
    "growth": ["--backbone", NET, "--image-size", "8", "--axis", "backbones", "--sizes", "1,2"],
}


def _report(name: str, *more: str) -> Report:
    command = importlib.import_module(f"benchmarks.{name}").main
    done = CliRunner().invoke(command, [*SMALL[name], "--rounds", "1", *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.output) if "--json" in more else {"text": done.output}


def test_every_benchmark_is_tried() -> None:
    folder = Path(harness.__file__).parent
    runnable = {path.stem for path in folder.glob("*.py") if "harness.json_option" in path.read_text()}
    assert runnable == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_json_is_one_object(name: str) -> None:
    report = _report(name, "--json")
    assert json.dumps(report, allow_nan=False)
    assert report["benchmark"] == name
    assert report["rows"]
    assert {"cpu", "threads", "torch", "date", "load", "device"} <= set(report["machine"])


def test_step_compares_the_variants() -> None:
    (row,) = _report("step", "--json")["rows"]
    assert set(row["seconds"]) == {"bare", "textbook", "eager"}
    assert row["ratios"]["eager/bare"] == pytest.approx(row["seconds"]["eager"] / row["seconds"]["bare"])
    assert row["ratios"]["textbook/eager"] == pytest.approx(
        row["seconds"]["textbook"] / row["seconds"]["eager"]
    )
    assert row["losses"]["eager"] == pytest.approx(row["losses"]["textbook"], rel=1e-4)
    assert row["losses"]["bare"] < row["losses"]["eager"]


def test_measure_and_evaluate_tell_the_ratio() -> None:
    for name, above, below in (("measure", "measure", "inference"), ("evaluate", "replayed", "ready")):
        report = _report(name, "--json")
        (row,) = report["rows"]
        assert row["ratio"] == pytest.approx(row["seconds"][above] / row["seconds"][below])
        assert report["mean_ratio"] == pytest.approx(row["ratio"])


def test_tables_say_what_they_were_measured_on() -> None:
    text = _report("step")["text"]
    assert "textbook/eager" in text
    assert torch.__version__ in text


def test_exponent_of_known_laws() -> None:
    sizes = [10, 50, 400]
    for power in (0.0, 1.0, 2.5):
        seconds = [0.3 * size**power for size in sizes]
        assert harness.exponent(sizes, seconds) == pytest.approx(power, abs=1e-9)


def test_interleaving_takes_turns() -> None:
    calls: list[str] = []

    def caller(name: str) -> Callable[[], None]:
        return lambda: calls.append(name)

    seconds = harness.interleave({"a": caller("a"), "b": caller("b")}, rounds=2, warmup=1)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert calls == ["a", "b", "b", "a", "a", "b"]


def test_peak_counts_what_work_allocates() -> None:
    size = 64 * 2**20
    peak = harness.peak_extra(lambda: torch.ones(size // 4).sum(), torch.device("cpu"))
    if peak is None:
        pytest.skip("this system does not tell")
    assert 0.9 * size < peak < 1.5 * size


@pytest.mark.slow
def test_all_variants_have_the_textbook_loss() -> None:
    setting = Setting.make("convnet:width=4,depth=2", image_size=8, batch=20, classes=2)
    losses = {name: float(setting.loss(name)(setting.images)) for name in VARIANTS if name != "bare"}
    assert all(math.isclose(loss, losses["textbook"], rel_tol=1e-4) for loss in losses.values())
