"""Kinds around a run: how labels are stored, where work runs, what a set is handed on as."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvbsm_registry.kinds.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from gvbsm_registry.finished import FinishedRun


Task = Callable[[Callable[[Any], None]], Any]
"""What an executor runs: a callable of one argument, a function that sends a message to the caller."""


class Codec(Component):
    """How soft labels are stored."""

    kind = "codec"

    @abstractmethod
    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """Return named tensors, each with leading axis B, that stand for finite logits, float32 [B, K].

        Every row is coded by itself, so that it does not matter how rows are split into blocks.
        """

    @abstractmethod
    def decode(self, parts: dict[str, Tensor], classes: int) -> Tensor:
        """Return finite logits, float32 [B, classes], from what `encode` returned."""


class Executor(Component):
    """Runs independent pieces of work somewhere."""

    kind = "executor"

    @abstractmethod
    def run(self, tasks: Sequence[Task], on_message: Callable[[Any], None]) -> Iterator[tuple[int, Any]]:
        """Run every task, yielding (its index, its result) as each ends.

        A task that raises ends the iteration with that error. A task is a picklable callable of one argument,
        `send`: each picklable message that it sends arrives at `on_message` in the calling process, those of
        one task in order and before its result is yielded.
        """


class Exporter(Component):
    """Writes a distilled set in someone else's format."""

    kind = "exporter"

    @abstractmethod
    def export(self, run: FinishedRun, destination: Path) -> None:
        """Write what `run` holds to `destination`, which does not exist yet.

        Raises GvbsmError if the run is not finished or the destination can't be written.
        """
