"""Tells the log file, the listening plugins and the terminal what a run does."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from gvbsm_registry import GvbsmError, Registry, StageFinished, StageStarted, Step

Event = StageStarted | Step | StageFinished
HOOKS = {StageStarted: "gvbsm_stage_started", Step: "gvbsm_step", StageFinished: "gvbsm_stage_finished"}


class Reporter:
    """Use as a context around a run. With `quiet`, or where the output is no terminal, there are no bars."""

    def __init__(self, log: Path | None, registry: Registry, quiet: bool = False) -> None:
        self.registry = registry
        self.log = log
        self._muted: set[str] = set()
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeLeft(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._bars: dict[str, Any] = {}
        self._drawn = 0.0

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def tell(self, event: Event) -> None:
        """Log an event and pass it on to the plugins that listen."""
        name = HOOKS[type(event)]
        if self.log is not None:
            told = {key: value for key, value in asdict(event).items() if key != "run"}
            line = json.dumps({"event": name.removeprefix("gvbsm_"), "time": time.time(), **told})
            _append(self.log, line)
        self._notify(name, event)

    def _notify(self, name: str, event: Event) -> None:
        listeners = getattr(self.registry.manager.hook, name).get_hookimpls()
        if listeners and self.log is not None:
            event = replace(event, run=str(self.log.parent))
        for implementation in listeners:
            plugin = implementation.plugin_name
            if plugin in self._muted:
                continue
            try:
                implementation.function(event)
            except Exception as error:  # a listener must not stop the run that it watches
                self._muted.add(plugin)
                warnings.warn(
                    f"plugin {plugin} failed to take {name} ({type(error).__name__}: {error}); "
                    "it is told no more of this run",
                    stacklevel=2,
                )

    def progress(self, name: str, done: int, total: int) -> None:
        """Move the bar `name` to `done` of `total` steps; a finished bar disappears."""
        if self._progress.disable:
            return
        now = time.monotonic()
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total)
        elif done < total and now - self._drawn < 0.1:
            return
        self._drawn = now
        self._progress.update(self._bars[name], completed=done, total=total)
        if done >= total:
            self._progress.remove_task(self._bars.pop(name))

    def say(self, text: str) -> None:
        """Print a line for the user, on standard error, above the bars."""
        if self._progress.disable:
            print(text, file=sys.stderr)
        else:
            self._progress.console.print(text, markup=False, highlight=False)


def _append(path: Path, line: str) -> None:
    """Add a line to a text file; raises GvbsmError if it can't be written, leaving no half line behind."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            end = file.seek(0, 2)
            data = (line + "\n").encode()
            if file.write(data) != len(data):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise GvbsmError(
            f"{path}: can't be written ({error.strerror}); free some space there or check its permissions, "
            "and run again: finished work is kept"
        ) from error
