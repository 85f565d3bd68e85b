"""Units of work: pure, independent, idempotent; each makes one artifact, named by all it depends on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvbsm_registry import Artifact, GvbsmError, StageFinished, StageStarted
from gvbsm_registry.artifacts import digest, peek, read, write

if TYPE_CHECKING:
    from torch import Tensor

    from gvbsm.workspace import Workspace

Payload = tuple[dict[str, "Tensor"], dict[str, Any]]


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    stage, name: what the user is told; name is unique within the stage.
    kind: of its artifact. place: the artifact's path, or the folder where it is named by its key.
    depends: JSON values that, with stage and kind, determine the result: options, seed, keys of inputs.
    work: a module-level function (workspace, unit) to (tensors, meta).
    arguments: what `work` needs beside the workspace; picklable, and implied by `depends`.
    """

    stage: str
    name: str
    kind: str
    place: Path
    depends: dict[str, Any]
    work: Callable[[Workspace, Unit], Payload]
    arguments: dict[str, Any] = field(default_factory=dict)

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
    todo = [unit for unit in units if not unit.done()]
    reporter = workspace.reporter
    reporter.tell(StageStarted(stage, len(todo), len(units) - len(todo)))
    started = time.monotonic()
    summaries = {}
    tasks = [partial(perform, workspace, unit) for unit in todo]
    for position, summary in workspace.executor.run(tasks) if tasks else ():
        summaries[todo[position].name] = summary
        reporter.progress(stage, len(summaries), len(todo))
    reporter.tell(StageFinished(stage, time.monotonic() - started, summaries))


def perform(workspace: Workspace, unit: Unit) -> dict[str, Any]:
    """Do one unit's work and write its artifact; return a summary (seconds, and what the work reports)."""
    import torch

    started = time.monotonic()
    with torch.random.fork_rng(devices=_devices(workspace)):
        torch.manual_seed(unit.seed)
        tensors, meta = unit.work(workspace, unit)
    summary = meta.pop("summary", {})
    meta["provenance"] = {**workspace.provenance, "stage": unit.stage, "unit": unit.name}
    write(unit.path, Artifact(unit.kind, unit.key, tensors, meta))
    return {"seconds": time.monotonic() - started, **summary}


def _devices(workspace: Workspace) -> list[Any]:
    return [workspace.device] if workspace.device.type == "cuda" else []
