"""Reports what a run does: to its log file, to the plugins that listen and to the terminal."""

from __future__ import annotations

import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType, FunctionType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from gvbsm.runtime import log as logs
from gvbsm.runtime.blame import ComponentError
from gvbsm_registry import Registry, StageFinished, StageStarted, Step

Event = StageStarted | Step | StageFinished
HOOKS = {StageStarted: "gvbsm_stage_started", Step: "gvbsm_step", StageFinished: "gvbsm_stage_finished"}
EVERY = 0.5  # seconds between two messages about the progress of one unit


class Reporter:
    """Use as a context around a run. There are no bars if `quiet`, or where the output is not a terminal."""

    def __init__(self, log: Path | None, registry: Registry, quiet: bool = False) -> None:
        self.registry = registry
        self.log = log
        self._muted: list[Any] = []  # plugins
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
        if isinstance(error, ComponentError):
            error.keep(self.log)

    def emit(self, event: Event) -> None:
        """Log an event and pass it on to the plugins that listen.

        A listener that fails does not stop the run: a warning names it, and it hears no more of this run.
        Raises GvbsmError if the log can't be written.
        """
        name = HOOKS[type(event)]
        if self.log is not None:
            fields = {key: value for key, value in asdict(event).items() if key != "run"}
            line = {"event": name.removeprefix("gvbsm_"), "time": time.time(), **fields}
            logs.append(self.log, line)
            event = replace(event, run=str(self.log.parent))
        heard: list[Any] = []  # plugins that must not hear this event again
        while True:
            hook = self.registry.manager.subset_hook_caller(name, [*self._muted, *heard])
            try:
                hook(event=event)
                return
            except (Exception, SystemExit) as error:
                listeners = hook.get_hookimpls()  # pluggy calls the last one first
                failed = _failed(error, listeners)
                self._muted += [listener.plugin for listener in failed]
                who = " and ".join(listener.plugin_name for listener in failed)
                warnings.warn(
                    f"plugin {who} failed to take {name} ({type(error).__name__}: {error}); "
                    "it hears no more of this run",
                    stacklevel=2,
                )
                if any(listener.wrapper or listener.hookwrapper for listener in failed):
                    return
                heard += [listener.plugin for listener in listeners[listeners.index(failed[0]) :]]

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

    def print(self, text: str) -> None:
        """Print a line for the user, on standard error, above the bars."""
        if self._progress.disable:
            print(text, file=sys.stderr)
        else:
            self._progress.console.print(text, markup=False, highlight=False)

    def receive(self, message: tuple[str, tuple[Any, ...]]) -> None:
        """Report what the `MessageReporter` of a worker sent."""
        method, arguments = message
        getattr(self, method)(*arguments)


class MessageReporter(Reporter):
    """A worker's reporter: it sends all that is reported, for another process's reporter to `receive`."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._sent: dict[str, float] = {}

    def emit(self, event: Event) -> None:
        self._send(("emit", (event,)))

    def progress(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._sent.get(name, -EVERY) < EVERY:
            return
        self._sent[name] = now
        if done >= total:
            del self._sent[name]
        self._send(("progress", (name, done, total)))

    def print(self, text: str) -> None:
        self._send(("print", (text,)))


def _failed(error: BaseException, listeners: list[Any]) -> list[Any]:
    """Return the listener that raised `error`: of those in its traceback, the innermost; else all of them."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        if failed := [each for each in listeners if _is_call(frame, each.function)]:
            return failed
    return listeners


def _is_call(frame: FrameType, function: FunctionType) -> bool:
    """Tell whether a frame is a call of a function: of its code, with the variables that it encloses."""
    names, cells = function.__code__.co_freevars, function.__closure__ or ()
    return frame.f_code is function.__code__ and all(
        frame.f_locals.get(name) is cell.cell_contents for name, cell in zip(names, cells, strict=True)
    )
