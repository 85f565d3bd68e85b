"""Runs units of work: those whose artifacts are not there yet, on an executor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from gvbsm.runtime.blame import calling, out_of_memory, refuse
from gvbsm.runtime.context import Context
from gvbsm.runtime.distributed import run_on_all_ranks
from gvbsm.runtime.remote_store import RemoteStore
from gvbsm.runtime.reporting import MessageReporter
from gvbsm.runtime.seeds import seed_of
from gvbsm.runtime.units import Payload, Unit
from gvbsm_registry import Artifact, Executor, GvbsmError, StageFinished, StageStarted
from gvbsm_registry.artifacts import write
from gvbsm_registry.kinds.running import Task

RESULTS = "each task's number and result, once"
IN_TASK = "raised_in_task"
"""What an error is marked with that a task raised, and not the executor that ran it."""


@dataclass(frozen=True)
class Storing:
    """What a worker needs to keep artifacts: who makes them, and a store at a URL that holds copies."""

    provenance: Mapping[str, Any] = field(default_factory=dict)
    remote: RemoteStore | None = None

    def fetch(self, unit: Unit) -> bool:
        """Bring a unit's artifact here if only the store at a URL has it; tell whether it is here."""
        if unit.done():
            return True
        return self.remote is not None and self.remote.pull(unit.kind, unit.key, unit.path)

    def keep(self, unit: Unit, payload: Payload) -> dict[str, Any]:
        """Write a unit's artifact; return what it tells of itself."""
        tensors, meta = payload
        summary: dict[str, Any] = meta.pop("summary", {})
        meta["provenance"] = {**self.provenance, "stage": unit.stage, "unit": unit.name}
        write(unit.path, Artifact(unit.kind, unit.key, tensors, meta))
        if self.remote is not None:
            self.remote.push(unit.kind, unit.key, unit.path)
        return summary


def execute(
    context: Context,
    stage: str,
    units: Sequence[Unit],
    executor: Executor,
    storing: Storing,
    at_once: int = 1,
) -> None:
    """Run the units of a wave whose artifacts do not exist yet, `at_once` together where they can be."""
    todo = []
    for unit in units:
        if storing.fetch(unit):
            unit.read()  # verified now, so that a run never ends well over a damaged result
        else:
            todo.append(unit)
    reporter = context.reporter
    reporter.emit(StageStarted(stage, len(todo), len(units) - len(todo)))
    started = time.monotonic()
    summaries: dict[str, Any] = {}
    size = at_once if todo and todo[0].together is not None else 1
    groups = [todo[first : first + size] for first in range(0, len(todo), size)]
    tasks = [partial(_perform_elsewhere, context, storing, group) for group in groups]
    for position, told in _results(executor, tasks, reporter.receive):
        for unit in groups[position]:
            storing.fetch(unit)  # another machine may have made it
        summaries |= told
        reporter.progress(stage, len(summaries), len(todo))
    reporter.emit(StageFinished(stage, time.monotonic() - started, summaries))


def _results(
    executor: Executor, tasks: Sequence[Task], on_message: Callable[[Any], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield what an executor yields, checked: each task once, and none lost.

    What a task raises is not the executor's failure, and passes.
    """
    if not tasks:
        return
    results = iter(_asked(executor, partial(executor.run, tasks, on_message)))
    waiting = set(range(len(tasks)))
    while (result := _asked(executor, partial(next, results, None))) is not None:
        fits = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
        if not fits or result[0] not in waiting:
            raise refuse(executor, "run", f"{str(result)[:60]!r} with {len(waiting)} tasks left", RESULTS)
        waiting.remove(result[0])
        yield result
    if waiting:
        lost = ", ".join(str(number) for number in sorted(waiting)[:5])
        raise refuse(executor, "run", f"no result of {len(waiting)} of {len(tasks)} tasks ({lost})", RESULTS)


def _asked(executor: Executor, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:
        if getattr(error, IN_TASK, False):
            raise
        with calling(executor, "run", RESULTS):
            raise


def _perform_elsewhere(
    context: Context, storing: Storing, units: Sequence[Unit], send: Callable[[Any], None]
) -> dict[str, Any]:
    try:
        return perform(replace(context, reporter=MessageReporter(send)), units, storing)
    except Exception as error:
        with suppress(AttributeError):
            setattr(error, IN_TASK, True)  # goes with it to the process that waits for it
        raise


def perform(context: Context, units: Sequence[Unit], storing: Storing = Storing()) -> dict[str, Any]:
    """Do the work of units and write their artifacts; return a summary by name (seconds, and what they tell).

    Several are done together, if they can be. Raises GvbsmError if there is no memory for them.
    """
    started = time.monotonic()
    if storing.remote is not None:
        for needed in (needed for unit in units for needed in unit.each_input()):
            storing.fetch(needed)
    try:
        payloads = _payloads(context, units)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise GvbsmError(
            f"{units[0].stage} {units[0].name}: out of memory on {context.device}; lower the batch of that "
            "stage (see its table in the recipe) and run again: finished work is kept"
        ) from error
    seconds = (time.monotonic() - started) / len(units)
    return {
        unit.name: {"seconds": seconds, **storing.keep(unit, payload)}
        for unit, payload in zip(units, payloads, strict=True)
    }


def _payloads(context: Context, units: Sequence[Unit]) -> list[Payload]:
    if len(units) > 1 and units[0].together is not None:
        return seeded(context, units[0], units[0].together, context, units)
    return [
        run_on_all_ranks(seeded, context, unit, unit.work, context, unit)
        if unit.data_parallel
        else seeded(context, unit, unit.work, context, unit)
        for unit in units
    ]


def seeded(context: Context, unit: Unit, work: Callable[..., Any], *arguments: Any) -> Any:
    """Call `work` with torch's random numbers seeded for the unit, and put them back afterwards."""
    devices = [context.device] if context.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed_of(unit.stage, unit.kind, unit.options.get("seed", 0)))
        return work(*arguments)
