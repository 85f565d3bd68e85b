"""What the contract asks of executors and exporters."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gvbsm_registry.testing.requirements import Context, fail, require, require_error, requirement
from gvbsm_registry.testing.samples import SampleRun, close


def _square(number: int, send: Callable[[Any], None]) -> int:
    send(("first", number))
    send(("second", number))
    return number * number


def _broken(send: Callable[[Any], None]) -> None:
    raise ZeroDivisionError("on purpose")


def _ignore(message: Any) -> None:
    """Take a message of a task, and do nothing."""


@requirement("executor")
def _runs_every_task_once(context: Context) -> None:
    """`run` yields (index, result) once for each task, in any order; one task and none too."""
    for count in (5, 1, 0):
        tasks = [partial(_square, number) for number in range(count)]
        results = list(context.component.run(tasks, _ignore))
        expected = [(number, number * number) for number in range(count)]
        require(sorted(results) == expected, f"{count} tasks give {results}, not {expected}")


@requirement("executor")
def _messages_arrive_before_the_result(context: Context) -> None:
    """what a task sends arrives at `on_message`, in order and before its result is yielded."""
    messages: list[Any] = []
    for number, _ in context.component.run(
        [partial(_square, number) for number in range(3)], messages.append
    ):
        arrived = [message for message in messages if message[1] == number]
        expected = [("first", number), ("second", number)]
        require(arrived == expected, f"of {expected} there arrive {arrived} before the result")


@requirement("executor")
def _runs_again(context: Context) -> None:
    """an executor can be used again, with as many tasks as one likes."""
    for _ in range(2):
        results = list(context.component.run([partial(_square, number) for number in range(20)], _ignore))
        require(sorted(results) == [(n, n * n) for n in range(20)], f"20 tasks give {sorted(results)}")


@requirement("executor")
def _ends_with_a_tasks_error(context: Context) -> None:
    """a task that raises ends the iteration with that error, of the same type."""
    try:
        for _ in context.component.run([partial(_square, 2), _broken, partial(_square, 3)], _ignore):
            pass
    except ZeroDivisionError as error:
        require("on purpose" in str(error), f"the error's message is lost: {error}")
    else:
        fail("a task that raises ZeroDivisionError raised nothing")


@requirement("exporter")
def _writes_the_set(context: Context) -> None:
    """`export(run, destination)` writes a finished run's set, colour or grey, to a destination that does not
    exist yet, and leaves the run as it was."""
    for channels in (3, 1):
        with tempfile.TemporaryDirectory() as folder:
            run, untouched = (SampleRun(Path(folder), channels) for _ in range(2))
            destination = Path(folder, "new", "export")
            context.component.export(run, destination)
            written = [destination, *destination.rglob("*")]
            size = sum(path.stat().st_size for path in written if path.is_file())
            require(size > 0, "nothing is written to the destination")
            same = close(run.images, untouched.images, 0) and close(run.labels, untouched.labels, 0)
            require(same, "it changes the run's images or labels")
            require(run.recipe == untouched.recipe and run.meta == untouched.meta, "it changes the run")


@requirement("exporter")
def _refuses_an_unfinished_run(context: Context) -> None:
    """a run without distilled images raises a GvbsmError, and nothing is written."""
    with tempfile.TemporaryDirectory() as folder:
        run, destination = SampleRun(Path(folder), finished=False), Path(folder, "export")
        require_error(lambda: context.component.export(run, destination), "a run that is not finished")
        require(not destination.exists(), "something is written nevertheless")


@requirement("exporter")
def _refuses_a_destination_that_cannot_be(context: Context) -> None:
    """a destination that can't be written (a file where a folder is needed) raises a GvbsmError."""
    with tempfile.TemporaryDirectory() as folder:
        run, blocked = SampleRun(Path(folder)), Path(folder, "file")
        blocked.write_text("not a folder", encoding="utf-8")
        require_error(lambda: context.component.export(run, blocked / "export"), "a destination below a file")
