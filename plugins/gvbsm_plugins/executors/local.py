"""The executor that needs nothing: this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gvbsm_registry import Executor, Task


class Local(Executor):
    """Runs the tasks one after another, in order, in this process.

    A task starts only when the result before it has been taken.
    """

    name = "local"

    def run(self, tasks: Sequence[Task], on_message: Callable[[Any], None]) -> Iterator[tuple[int, Any]]:
        for index, task in enumerate(tasks):
            yield index, task(on_message)
