"""What really happens: after each fault the right error or a finished run, equal bit for bit, nothing lost.

`make faults` tries every fault many times (FAULTS=50); `make check` a few times. `python -m pytest
tests/faults -s` prints the table of docs/reliability.md.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cli_helpers
import pytest
import torch
from cli_helpers import Run, artifacts, done, events, invoke, leftovers, meaning, product

from gvbsm.matching.forward import MatchedBackbone
from gvbsm.runtime import execution
from gvbsm_plugins.regularizers import gvbsm_components
from gvbsm_registry import Regularizer
from gvbsm_registry.artifacts import read

FAULTS = int(os.environ.get("FAULTS", "3"))
TABLE: list[str] = []
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module", autouse=True)
def _table() -> Iterator[None]:
    yield
    print("\n| fault | tried | outcome |\n| --- | --- | --- |", *TABLE, sep="\n")


def tell(fault: str, tried: int, outcome: str) -> None:
    TABLE.append(f"| {fault} | {tried} | {outcome} |")


def paths(folder: Path) -> tuple[str, Path, str, Path]:
    return "--out", folder / "out", "--store", folder / "store"


def assert_equal(folder: Path, finished: Run) -> None:
    assert product(folder / "out") == product(finished.out)
    assert not leftovers(folder / "out", folder / "store")


def stage_of(out: Path) -> str:
    """The stage that a killed run was in, by its log."""
    try:
        found = [event["stage"] for event in events(out) if event["event"] == "stage_started"]
    except FileNotFoundError:
        found = []
    return found[-1] if found else "before the first"


def test_sigkill_at_random_moments(tiny: Path, finished: Run, tmp_path: Path) -> None:
    moments = random.Random(0)
    killed, rounds = Counter[str](), 0
    units = len(artifacts(finished.folder))
    folder = tmp_path / "round0"
    while killed.total() < FAULTS:
        before = artifacts(folder)
        if before and moments.random() < 0.4:  # enough of this one: it must end well, and another begins
            done("run", tiny, *paths(folder), "--quiet")
            assert_equal(folder, finished)
            rounds += 1
            folder, before = tmp_path / f"round{rounds}", {}
        target = max(len(before), moments.randrange(len(before) - 4, units))  # pretraining is long
        process = cli_helpers.start("run", tiny, *paths(folder), errors=tmp_path / "errors")
        while process.is_alive() and len(artifacts(folder)) < target:
            time.sleep(0.001)
        process.join(moments.random() * (2.5 if target < 2 else 0.1))
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed[stage_of(folder / "out")] += 1
            after = artifacts(folder)
            assert {path: after.get(path) for path in before} == before
        else:
            assert process.exitcode == 0, (tmp_path / "errors").read_text()
            assert_equal(folder, finished)
            rounds += 1
            folder = tmp_path / f"round{rounds}"
    done("run", tiny, *paths(folder))
    assert_equal(folder, finished)
    stages = ", ".join(f"{count} in {stage}" for stage, count in sorted(killed.items()))
    tell(
        "SIGKILL at a random moment",
        killed.total(),
        f"{rounds + 1} runs finished, equal bit for bit ({stages})",
    )


@pytest.mark.parametrize("shared_out", [False, True])
def test_two_runs_on_one_store_at_once(shared_out: bool, tiny: Path, finished: Run, tmp_path: Path) -> None:
    times = max(1, FAULTS // 10)
    for number in range(times):
        base = tmp_path / str(number)
        outs = [base / "out", base / "out"] if shared_out else [base / "one", base / "two"]
        running = [
            cli_helpers.start(
                "run", tiny, "--out", out, "--store", base / "store", errors=base.with_name(f"errors{place}")
            )
            for place, out in enumerate(outs)
        ]
        for process in running:
            process.join()
            assert process.exitcode == 0
        for out in outs:
            assert product(out) == product(finished.out)
        assert not leftovers(base)
    what = "into one folder" if shared_out else "on one store"
    tell(f"two runs {what} at once", times, "both finish, equal bit for bit")


def test_a_clock_that_goes_backwards(
    tiny: Path, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    done("run", tiny, *paths(tmp_path), "--quiet")
    assert_equal(tmp_path, finished)
    for path in (tmp_path / "out").rglob("*"):
        os.utime(path, (4e9, 4e9))  # made in the future
    before = artifacts(tmp_path / "out", tmp_path / "store")
    done("run", tiny, *paths(tmp_path), "--quiet")
    assert artifacts(tmp_path / "out", tmp_path / "store") == before
    tell(
        "clock going backwards, files from the future",
        2,
        "finished run equal bit for bit, nothing done twice",
    )


def _cut(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.randrange(len(data))])


def _flip(data: bytearray, chance: random.Random) -> bytes:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("damage", [_cut, _flip])
def test_every_artifact_damaged(
    damage: Callable[[bytearray, random.Random], bytes], tiny: Path, finished: Run, copied: Run
) -> None:
    """Refused by name, and made anew once it is deleted; what an unread file holds harms nobody."""
    chance = random.Random(1)
    every = sorted(copied.folder.rglob("*.safetensors"))
    victims = every if FAULTS > 10 else chance.sample(every, FAULTS)
    refused = 0
    for victim in victims:
        good = victim.read_bytes()
        victim.write_bytes(damage(bytearray(good), chance))
        result = invoke("run", tiny, *paths(copied.folder), "--quiet")
        if result.exit_code:
            cli_helpers.refused(result, victim)
            refused += 1
            victim.unlink()
            done("run", tiny, *paths(copied.folder), "--quiet")
        assert_equal(copied.folder, finished)
    what = "cut short" if damage is _cut else "with one bit flipped"
    tell(
        f"an artifact {what}", len(victims), f"refused by name {refused} times; made anew, equal bit for bit"
    )


class Trouble:
    """Makes the loss DD behave in a bad way from its n-th call on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, what: Callable[[], Any]) -> None:
        component: Any = next(c for c in gvbsm_components() if c.name == "dd")
        assert issubclass(component, Regularizer)
        real, calls = component.loss, itertools.count()

        def loss(self: Any, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            value = real(self, images, labels)
            return value if next(calls) < at else value + what()

        monkeypatch.setattr(component, "loss", loss)


def _no_memory() -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def _no_machine_memory() -> Any:
    return torch.empty(2**62, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "what", "said"),
    [
        ("NaN in a loss", lambda: float("nan"), "the loss is nan"),
        ("infinity in a loss", lambda: float("inf"), "the loss is inf"),
        ("out of memory on a GPU", _no_memory, "out of memory on cpu"),
        ("out of memory on the machine", _no_machine_memory, "out of memory on cpu"),
    ],
)
def test_a_unit_that_fails(
    name: str, what: Callable[[], Any], said: str, tiny: Path, finished: Run, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Trouble(patch, 11, what)
        message = cli_helpers.refused(invoke("run", tiny, *paths(tmp_path), "--quiet"), said)
    assert "batch-" in message
    before = artifacts(tmp_path / "out" / "units", tmp_path / "store")
    assert before  # what was finished is kept
    done("run", tiny, *paths(tmp_path), "--quiet")
    after = artifacts(tmp_path / "out" / "units", tmp_path / "store")
    assert {path: after[path] for path in before} == before
    assert product_without_last_good(tmp_path / "out") == product(finished.out)
    tell(
        name, 1, "one line that names batch and step; finished work kept; the next run ends equal bit for bit"
    )


def product_without_last_good(out: Path) -> dict[str, Any]:
    return {name: what for name, what in product(out).items() if "last-good" not in name}


@pytest.mark.filterwarnings("ignore:.*halving")
def test_a_group_that_finds_no_memory_is_halved(
    tiny: Path, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five batches of four images; only five images at a time find room, in the first step or later."""
    sizes: list[int] = []
    observe = MatchedBackbone.observe

    def little_room(self: MatchedBackbone, images: torch.Tensor, uniforms: torch.Tensor, *labels: Any) -> Any:
        sizes.append(len(images))
        if len(images) > 5 and len(sizes) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return observe(self, images, uniforms)

    monkeypatch.setattr(MatchedBackbone, "observe", little_room)
    done("run", tiny, *paths(tmp_path), "--set", "synthesis.batches_per_step=5", "--quiet")
    assert list(dict.fromkeys(sizes)) == [20, 8, 4, 12]
    whole, alone = (
        read(folder / "out" / "distilled" / "images.safetensors") for folder in (tmp_path, finished.folder)
    )
    assert torch.equal(whole.tensors["images"], alone.tensors["images"])
    tell("a group of image batches that finds no memory", 1, "halved until it does; images equal bit for bit")


def test_out_of_memory_is_told_from_other_errors() -> None:
    assert execution.out_of_memory(MemoryError())
    assert execution.out_of_memory(torch.OutOfMemoryError("x"))
    assert not execution.out_of_memory(RuntimeError("shapes do not match"))
    assert not execution.out_of_memory(KeyError("can't allocate memory"))


def test_a_plugin_that_hangs_can_be_stopped(
    tiny: Path, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no time limit (nobody knows how long a plugin may take): Ctrl-C ends it."""
    # a background job of a shell without job control is started with Ctrl-C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        Trouble(patch, 9, lambda: time.sleep(600))

        def interrupt() -> None:
            while not artifacts(tmp_path / "out" / "units"):
                time.sleep(0.02)
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(0, interrupt)
        timer.daemon = True
        timer.start()
        result = invoke("run", tiny, *paths(tmp_path), "--quiet")
    signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert "the same command goes on from here" in result.stderr
    done("run", tiny, *paths(tmp_path), "--quiet")
    assert_equal(tmp_path, finished)
    assert meaning(tmp_path / "store") == meaning(finished.store)
    tell("a plugin that hangs", 1, "Ctrl-C ends it with exit code 130; the next run ends equal bit for bit")
