"""Checkpoints of long units: where synthesis goes on after it was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from gvbsm.runtime.units import Unit
from gvbsm.synthesis.loop import SynthesisLoop
from gvbsm_registry import Artifact, GvbsmError
from gvbsm_registry.artifacts import digest, read, write

KIND = "checkpoint"


class Checkpoint:
    """The saved state of image batches that are optimised together; it lies beside their artifacts."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.key = digest([unit.key for unit in units])
        self.path = units[0].path.with_name(f"{units[0].key}.{KIND}.safetensors")
        self._every = 60 * units[0].how["checkpoint_minutes"]
        self._saved = monotonic()

    def restore(self, loop: SynthesisLoop) -> None:
        """Go on from the saved state if there is one, whole and of these units; else from the start."""
        try:
            artifact = read(self.path, KIND)
        except GvbsmError:  # none, or damaged: what is lost is time
            return
        if artifact.key == self.key:
            loop.restore(artifact.meta["taken"], artifact.tensors)

    def save(self, loop: SynthesisLoop) -> None:
        """Save the state, if the last time was long enough ago."""
        if self._due():
            write(self.path, Artifact(KIND, self.key, loop.state(), {"taken": loop.taken}))
            self._saved = monotonic()

    def _due(self) -> bool:
        return monotonic() - self._saved >= self._every

    def remove(self) -> None:
        """Forget the state: the units are done."""
        self.path.unlink(missing_ok=True)
