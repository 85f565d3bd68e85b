"""A run that is killed, at any moment, and started again ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import cli_helpers
import pytest
from cli_helpers import Run, artifacts, done, leftovers, meaning, product

pytestmark = pytest.mark.usefixtures("one_thread")


def wait_for(what: str, count: int, out: Path, store: Path, alive: object) -> None:
    """Return when there are `count` artifacts or temporary files, or the process has ended by itself."""
    while alive():  # type: ignore[operator]
        seen = len(artifacts(out, store)) if what == "artifacts" else len(leftovers(out, store))
        if seen >= count:
            return
        time.sleep(0.0005)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_again_and_again(seed: int, tiny: Path, finished: Run, tmp_path: Path) -> None:
    """Each time after some more artifacts and a random delay, from the first stage to the last."""
    out, store = tmp_path / "out", tmp_path / "store"
    moments = random.Random(seed)
    killed = 0
    targets = sorted(moments.sample(range(cli_helpers.UNITS), 7))
    for target in targets:
        process = cli_helpers.start("run", tiny, "--out", out, "--store", store, errors=tmp_path / "errors")
        wait_for("artifacts", target, out, store, process.is_alive)
        time.sleep(moments.random() * (1.0 if target < 2 else 0.03))
        assert process.pid is not None
        kill(process.pid)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        before = artifacts(out, store)
        assert (tmp_path / "errors").read_text() == ""
    assert killed >= len(targets) - 1  # the last one may end before it is killed
    done("run", tiny, "--out", out, "--store", store)
    after = artifacts(out, store)
    assert {path: after[path] for path in before} == before
    assert product(out) == product(finished.out)
    assert meaning(store) == meaning(finished.store)
    assert not leftovers(out, store)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4, 8])
def test_finished_units_survive_one_kill(count: int, tiny: Path, finished: Run, tmp_path: Path) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    process = cli_helpers.start("run", tiny, "--out", out, "--store", store, errors=tmp_path / "errors")
    wait_for("artifacts", count, out, store, process.is_alive)
    assert process.pid is not None
    kill(process.pid)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before, told = artifacts(out, store), len(cli_helpers.events(out))
    assert count <= len(before) < cli_helpers.UNITS
    done("run", tiny, "--out", out, "--store", store)
    after = artifacts(out, store)
    assert {path: after[path] for path in before} == before
    again = [event for event in cli_helpers.events(out)[told:] if event["event"] == "stage_started"]
    assert sum(event["reused"] for event in again) == len(before)
    assert sum(event["units"] for event in again) == cli_helpers.UNITS - len(before)
    assert product(out) == product(finished.out)


@pytest.mark.slow
def test_killed_while_a_file_is_being_written(tiny: Path, finished: Run, tmp_path: Path) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    for _ in range(4):
        process = cli_helpers.start("run", tiny, "--out", out, "--store", store, errors=tmp_path / "errors")
        wait_for("temporary files", 1, out, store, process.is_alive)
        assert process.pid is not None
        kill(process.pid)
        process.join()
    done("run", tiny, "--out", out, "--store", store)
    assert product(out) == product(finished.out)
    assert not leftovers(out, store)


@pytest.mark.slow
def test_the_program_itself_killed(tiny: Path, finished: Run, tmp_path: Path) -> None:
    """As a user's machine would: the command as installed, in a process of its own."""
    out, store = tmp_path / "out", tmp_path / "store"
    command = cli_helpers.command("run", tiny, "--out", out, "--store", store)
    for count in (1, 6):
        with subprocess.Popen(command, env=cli_helpers.environment(), stdout=subprocess.DEVNULL) as process:
            wait_for("artifacts", count, out, store, lambda process=process: process.poll() is None)
            kill(process.pid)
        assert process.returncode == -signal.SIGKILL
    before = artifacts(out, store)
    done("run", tiny, "--out", out, "--store", store)
    after = artifacts(out, store)
    assert {path: after[path] for path in before} == before
    assert product(out) == product(finished.out)


def test_a_stage_alone_goes_on_where_a_run_was_killed(tiny: Path, copied: Run, finished: Run) -> None:
    """Stands for a kill between any two units: whatever is missing is made anew, and nothing else."""
    gone = [path for path in artifacts(copied.out) if path.parent.name == "synthesis"][::2]
    gone += [copied.out / "distilled" / "images.safetensors", copied.out / "results.json"]
    for path in gone:
        path.unlink()
    before = artifacts(copied.out, copied.store)
    done("evaluation", copied.out, "--store", copied.store)
    after = artifacts(copied.out, copied.store)
    assert {path: after[path] for path in before} == before
    assert product(copied.out) == product(finished.out)


def test_leftovers_are_removed_but_nobody_elses_files(tiny: Path, copied: Run, tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    here = own_temporary(tmp_path).split("-")[1]
    folders = [copied.out / "units" / "synthesis", copied.out / "distilled", copied.out]
    folders += [copied.store, copied.store / "backbones", copied.store / "statistics"]
    name = "x.safetensors"
    dead = [folder / f".{name}.{ended.pid}-{here}-0123abcd.tmp" for folder in folders]
    old = [folder / f".{name}.1-ffffffff-0123abcd.tmp" for folder in folders]
    kept = [
        path
        for folder in folders
        for path in (
            folder / f".{name}.{os.getppid()}-{here}-0123abcd.tmp",  # of a process that lives
            folder / f".{name}.1-eeeeeeee-0123abcd.tmp",  # of another machine, just now
            folder / ".notes.tmp",
            folder / f"{name}.tmp",
        )
    ]
    for path in (*dead, *old, *kept):
        path.write_bytes(b"half")
    for path in old:
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    done("run", tiny, "--out", copied.out, "--store", copied.store)
    assert not [path for path in (*dead, *old) if path.exists()]
    assert all(path.exists() for path in kept)


def own_temporary(folder: Path) -> str:
    """Return the name of a temporary file of this process, without the dot and the file's own name."""
    from gvbsm_registry.artifacts import replacing

    with replacing(folder / "x") as temporary:
        temporary.write_bytes(b"")
        return temporary.name.removeprefix(".x.")


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tiny: Path, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = cli_helpers.start(
        "run", tiny, "--out", out, "--store", store, "--set", "synthesis.iterations=500",
        errors=tmp_path / "errors",
    )  # fmt: skip
    wait_for("artifacts", 1, out, tmp_path, process.is_alive)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert (tmp_path / "errors").read_text() == "stopped; the same command goes on from here\n"
    assert artifacts(out)
    assert not leftovers(out)
