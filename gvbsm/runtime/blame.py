"""Names the component that fails inside a run, in one line: whose it is, what it did, what the contract asks.

The engine calls a component inside `calling`, and checks what it is given with `returned` or `refuse`.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from gvbsm.runtime.log import append
from gvbsm_registry import Component, GvbsmError
from gvbsm_registry.admission import origin

GROUP, ENGINE = "gvbsm", "gvbsm"


class ComponentError(GvbsmError):
    """A component raised something, or returned what the contract does not allow.

    traceback: of what it raised, which `keep` writes to where the user can read it; "" if there is none.
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.traceback)

    def keep(self, log: Path | None = None) -> None:
        """Write the traceback, once: to the run's log if its folder is there, or else to a file of its own.

        The message then says where it is.
        """
        if not self.traceback:
            return
        text, self.traceback = self.traceback, ""
        try:
            if log is not None and log.parent.is_dir():
                event = {"event": "component_failed", "time": time.time(), "error": str(self)}
                append(log, {**event, "traceback": text})
                where = log
            else:
                handle, name = tempfile.mkstemp(prefix="gvbsm-", suffix=".txt", text=True)
                where = Path(name)
                with open(handle, "w", encoding="utf-8") as file:
                    file.write(text)
        except (OSError, GvbsmError):  # the line alone has to do
            return
        self.args = (f"{self}; the traceback is in {where}",)


@contextmanager
def calling(component: Component, method: str, asks: str) -> Iterator[None]:
    """Turn what a component's `method` raises inside into a ComponentError that says what the contract asks.

    A GvbsmError is the component's own line to the user and passes; so do a lack of memory, which the engine
    deals with, and what the engine's own code raises without the component's taking part.
    """
    try:
        yield
    except GvbsmError:
        raise
    except (Exception, SystemExit) as error:
        place = None if out_of_memory(error) else _place(error, component)
        if place is None:
            raise
        told = (
            f"raised {type(error).__name__}: {error} ({place})"
            if str(error)
            else (f"raised {type(error).__name__} ({place})")
        )
        message = f"{described(component)}: {method} {told}; the contract asks for {asks}"
        raise ComponentError(message, "".join(traceback.format_exception(error))) from error


def refuse(component: Component, method: str, what: str, asks: str) -> ComponentError:
    """Return the error that a component's `method` returned `what`, where the contract asks for `asks`."""
    return ComponentError(f"{described(component)}: {method} returned {what}; the contract asks for {asks}")


def returned(
    component: Component,
    method: str,
    value: object,
    asks: str,
    *,
    shape: Sequence[int | None] | None = None,
    dtype: torch.dtype | None = None,
    finite: bool = False,
) -> Tensor:
    """Return `value` if it is the tensor that the contract asks for; raises ComponentError if not.

    shape: None stands for any number, as of an axis. dtype: None stands for any floating-point type.
    finite: every number has to be, which is looked at, and on a GPU waited for.
    """
    if not isinstance(value, Tensor):
        raise refuse(component, method, f"{type(value).__name__}, not a tensor", asks)
    fits = shape is None or (
        value.ndim == len(shape)
        and all(due is None or due == size for due, size in zip(shape, value.shape, strict=True))
    )
    typed = value.is_floating_point() if dtype is None else value.dtype == dtype
    if not (fits and typed):
        raise refuse(component, method, describe_tensor(value), asks)
    if finite and not bool(value.isfinite().all()):
        raise refuse(component, method, f"numbers that are not finite, in {describe_tensor(value)}", asks)
    return value


def describe_tensor(value: object) -> str:
    """Say what a value is, in a few words: a tensor by its type and shape."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__


def described(component: Component) -> str:
    """Name a component and whose it is: KIND 'NAME' of DISTRIBUTION VERSION, or of its module."""
    package = type(component).__module__.split(".")[0]
    for point in metadata.entry_points(group=GROUP):
        if point.value.split(":")[0].split(".")[0] == package:
            return f"{component.kind} {component.full_name!r} of {' '.join(origin(point))}"
    return f"{component.kind} {component.full_name!r} of the module {type(component).__module__}"


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device, or this machine, has no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _place(error: BaseException, component: Component) -> str | None:
    """Return the file and line where a component's failure came up; None if it had no part in it.

    It had if its package's code came last, and not the engine's that it called or that was called before.
    """
    package = type(component).__module__.split(".")[0]
    frames: list[tuple[FrameType, int]] = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") != __name__:
            again = bool(frames) and frames[-1][0] is frame  # raised once more there
            frames[len(frames) - again :] = [(frame, line)]
    rooms = [str(frame.f_globals.get("__name__", "")).split(".")[0] for frame, _ in frames]
    near = [number for number, room in enumerate(rooms) if room in (package, ENGINE)]
    last = near[-1] if near else 0
    if last > 0 and rooms[last] != package:
        return None
    frame, line = frames[last]
    return f"{Path(frame.f_code.co_filename).name}:{line}"
