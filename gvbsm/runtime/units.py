"""Units of work: pure, independent, idempotent; each makes one artifact, named by all it depends on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvbsm.runtime.reporting import MessageReporter
from gvbsm_registry import Artifact, GvbsmError, StageFinished, StageStarted
from gvbsm_registry.artifacts import digest, peek, read, write

if TYPE_CHECKING:
    from torch import Tensor

    from gvbsm.runtime.workspace import Workspace

Payload = tuple[dict[str, "Tensor"], dict[str, Any]]


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    stage, name: what the user is told; name is unique within the stage.
    kind: of its artifact. place: the artifact's path, or the folder where it is named by its key.
    depends: JSON values that, with stage and kind, determine the result: options, seed, keys of inputs.
    work: a module-level function (workspace, unit) to (tensors, meta).
    arguments: what `work` needs beside the workspace; picklable, and implied by `depends`.
    shared: done by all processes that torchrun started together (see
        `gvbsm.runtime.distributed`); or by this one alone.
    """

    stage: str
    name: str
    kind: str
    place: Path
    depends: dict[str, Any]
    work: Callable[[Workspace, Unit], Payload]
    arguments: dict[str, Any] = field(default_factory=dict)
    shared: bool = False

    @property
    def key(self) -> str:
        """The digest of everything that the artifact depends on."""
        return digest({"stage": self.stage, "kind": self.kind, "depends": self.depends})

    @property
    def path(self) -> Path:
        """Where the artifact lies."""
        return self.place if self.place.suffix else self.place / f"{self.key}.safetensors"

    @property
    def seed(self) -> int:
        """A seed from the key: results do not depend on order, executor or interruption."""
        return int(self.key[:15], 16)

    def done(self) -> bool:
        """Whether the artifact exists and was made from the same inputs.

        Raises GvbsmError if there is a file that can't be read.
        """
        return self.path.exists() and peek(self.path)["key"] == self.key

    def read(self) -> Artifact:
        """Return the verified artifact; raises GvbsmError if it is missing, broken or of other inputs."""
        artifact = read(self.path, self.kind)
        if artifact.key != self.key:
            raise GvbsmError(
                f"{self.path}: was made with other options or inputs; run the {self.stage} stage again"
            )
        return artifact


def seed_of(*parts: object) -> int:
    """Return a seed from any values that have a faithful `repr` (numbers and strings)."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:15], 16)


def execute(workspace: Workspace, stage: str, units: Sequence[Unit]) -> None:
    """Run the units whose artifacts do not exist yet, on the workspace's executor."""
    todo = []
    for unit in units:
        if fetch(workspace, unit):
            unit.read()  # verified now, so that a run never ends well over a damaged result
        else:
            todo.append(unit)
    reporter = workspace.reporter
    reporter.emit(StageStarted(stage, len(todo), len(units) - len(todo)))
    started = time.monotonic()
    summaries = {}
    tasks = [partial(run_task, workspace, unit) for unit in todo]
    for position, summary in workspace.executor.run(tasks, reporter.receive) if tasks else ():
        fetch(workspace, todo[position])  # another machine may have made it
        summaries[todo[position].name] = summary
        reporter.progress(stage, len(summaries), len(todo))
    reporter.emit(StageFinished(stage, time.monotonic() - started, summaries))


def fetch(workspace: Workspace, unit: Unit) -> bool:
    """Bring a unit's artifact here if only the store at a URL has it; tell whether it is here."""
    if unit.done():
        return True
    return workspace.remote is not None and workspace.remote.pull(unit.kind, unit.key, unit.path)


def inputs(arguments: object) -> Iterator[Unit]:
    """Yield the units among a unit's arguments: those whose artifacts it reads."""
    if isinstance(arguments, Unit):
        yield arguments
    elif isinstance(arguments, dict):
        yield from inputs(list(arguments.values()))
    elif isinstance(arguments, (list, tuple)):
        for item in arguments:
            yield from inputs(item)


def run_task(workspace: Workspace, unit: Unit, send: Callable[[Any], None]) -> dict[str, Any]:
    """Do one unit's work, wherever the executor has brought it; what a worker reports goes by `send`."""
    if isinstance(workspace.reporter, MessageReporter):
        workspace.reporter = MessageReporter(send)
    return perform(workspace, unit)


def perform(workspace: Workspace, unit: Unit) -> dict[str, Any]:
    """Do one unit's work and write its artifact; return a summary (seconds, and what the work reports)."""
    from gvbsm.runtime.distributed import together

    started = time.monotonic()
    if workspace.remote is not None:
        for needed in inputs(unit.arguments):
            fetch(workspace, needed)
    try:
        tensors, meta = together(seeded, workspace, unit) if unit.shared else seeded(workspace, unit)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise GvbsmError(
            f"{unit.stage} {unit.name}: out of memory on {workspace.device}; lower the batch of that stage "
            "(see its table in the recipe) and run again: finished work is kept"
        ) from error
    summary = meta.pop("summary", {})
    meta["provenance"] = {**workspace.provenance, "stage": unit.stage, "unit": unit.name}
    write(unit.path, Artifact(unit.kind, unit.key, tensors, meta))
    if workspace.remote is not None:
        workspace.remote.push(unit.kind, unit.key, unit.path)
    return {"seconds": time.monotonic() - started, **summary}


def seeded(workspace: Workspace, unit: Unit) -> Payload:
    """Do a unit's work with torch's random numbers seeded by its key, and put them back afterwards."""
    import torch

    with torch.random.fork_rng(devices=_devices(workspace)):
        torch.manual_seed(unit.seed)
        return unit.work(workspace, unit)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device, or this machine, has no memory left."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _devices(workspace: Workspace) -> list[Any]:
    return [workspace.device] if workspace.device.type == "cuda" else []
