"""A unit of synthesis that was stopped goes on from its last checkpoint, equal to the bit."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import cli_helpers
import pytest
import torch

from gvbsm.stages.checkpoints import Checkpoint
from gvbsm.synthesis.loop import SynthesisLoop
from gvbsm_registry.artifacts import read

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_BATCH = [("synthesis.batch", 6), ("synthesis.iterations", 10)]
CASES = {
    "plain": [],
    "random networks, several a step": [
        ("synthesis.population", {"use": "pretrained", "order": "random", "per_step": 2, "by_accuracy": 5})
    ],
    "weights that climbed": [("synthesis.population", {"use": "pretrained", "ascend": 2})],
    "a term that remembers": [("synthesis.terms", ["cross_entropy", "flatness"])],
    "dropped sites, by class": [
        ("synthesis.matchers", [{"use": "conv_channel", "by_class": 0.5, "drop_rate": 0.4}, "bn"])
    ],
    "another optimizer": [("synthesis.optimizer", {"use": "sgd", "momentum": 0.9})],
    "untrained networks and real images": [
        ("synthesis.population", {"use": "fresh", "every": 4}),
        ("synthesis.terms", ["mean_features", {"use": "mean_features", "real": 3, "same_view": False}]),
        ("synthesis.matchers", []),
        ("synthesis.augmentation", "dsa"),
    ],
    "callbacks": [
        (
            "synthesis.callbacks",
            [
                {"use": "fuse_real", "every": 3, "real": "random"},
                {"use": "early_late", "rounds": 2},
                {"use": "image_average", "momentum": 0.5},
            ],
        )
    ],
}


class Stopped(Exception):
    """Stands for a kill."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Save the state after every step, and stop after `step` of them, before that one is saved."""
    save = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "_due", lambda self: True)

    def stopping(self: Checkpoint, loop: SynthesisLoop) -> None:
        if loop.taken == step:
            raise Stopped
        save(self, loop)

    monkeypatch.setattr(Checkpoint, "save", stopping)


@pytest.mark.parametrize("stopped_at", [1, 6, 10])
@pytest.mark.parametrize("case", CASES)
def test_goes_on_equal_to_the_bit(make_run, monkeypatch, case: str, stopped_at: int) -> None:
    changes = [*ONE_BATCH, *CASES[case]]
    (whole,) = make_run(*changes, out="whole").synthesized()
    run = make_run(*changes, out="stopped")
    run.statistics()
    with monkeypatch.context() as patch:
        stop_at(patch, stopped_at)
        with pytest.raises(Stopped):
            run.synthesized()
    folder = run.plan.image_batches[0].path.parent
    assert len(list(folder.glob("*.checkpoint.safetensors"))) == (stopped_at > 1)
    told = len((run.out / "log.jsonl").read_text().splitlines())
    (unit,) = run.synthesized()
    assert torch.equal(unit.read().tensors["images"], whole.read().tensors["images"])
    assert not list(folder.glob("*.checkpoint.safetensors"))
    later = map(json.loads, (run.out / "log.jsonl").read_text().splitlines()[told:])
    steps = [event["step"] for event in later if event["event"] == "step"]
    assert steps == list(range(stopped_at - 1, 10))  # what was saved is not done again


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_checkpoint_that_is_damaged_or_anothers_costs_time_alone(
    make_run, monkeypatch, damage: str
) -> None:
    (whole,) = make_run(*ONE_BATCH, out="whole").synthesized()
    run = make_run(*ONE_BATCH, out="stopped")
    run.statistics()
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Stopped):
            run.synthesized()
    (path,) = run.plan.image_batches[0].path.parent.glob("*.checkpoint.safetensors")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        other = make_run(*ONE_BATCH, ("seed", 5), out="other")
        other.statistics()
        with monkeypatch.context() as patch:
            stop_at(patch, 5)
            with pytest.raises(Stopped):
                other.synthesized()
        (theirs,) = other.plan.image_batches[0].path.parent.glob("*.checkpoint.safetensors")
        path.write_bytes(theirs.read_bytes())
    (unit,) = run.synthesized()
    assert torch.equal(unit.read().tensors["images"], whole.read().tensors["images"])


def test_saves_as_often_as_the_recipe_says(make_run, monkeypatch) -> None:
    saved = []
    run = make_run(*ONE_BATCH, ("synthesis.checkpoint_minutes", 0.5))
    run.statistics()
    now = iter(range(0, 1000, 10))  # seconds, whenever somebody asks
    monkeypatch.setattr("gvbsm.stages.checkpoints.write", lambda path, artifact: saved.append(artifact.meta))
    monkeypatch.setattr("gvbsm.stages.checkpoints.monotonic", lambda: next(now))
    run.synthesized()
    assert [meta["taken"] for meta in saved] == [3, 6, 9]


@pytest.mark.slow
def test_the_program_killed_in_the_middle_of_a_unit(
    tiny: Path, finished: cli_helpers.Run, tmp_path: Path
) -> None:
    """A process of its own, killed after its first checkpoint; the same command ends with the same images."""
    steps = ("--set", "synthesis.iterations=400", "--set", "synthesis.batch=20")
    often = ("--set", "synthesis.checkpoint_minutes=0.0001", "--set", "synthesis.compile=false")
    out, store = tmp_path / "out", tmp_path / "store"
    command = cli_helpers.command("run", tiny, "--out", out, "--store", store, *steps, *often)
    with subprocess.Popen(command, env=cli_helpers.environment(), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            found = list((out / "units" / "synthesis").glob("*.checkpoint.safetensors"))
            if found:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.001)
    assert process.returncode == -signal.SIGKILL
    taken = read(found[0], "checkpoint").meta["taken"]
    assert 0 < taken < 400
    cli_helpers.done("run", tiny, "--out", out, "--store", store, *steps, *often)
    whole = tmp_path / "whole"
    cli_helpers.done("run", tiny, "--out", whole, "--store", store, *steps, *often)
    images = [read(path / "distilled" / "images.safetensors").tensors["images"] for path in (out, whole)]
    assert torch.equal(*images)
