"""The log of a run folder: one JSON object a line, appended to the one regular file that it is."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gvbsm_registry import GvbsmError, StageFinished, StageStarted, Step

NEVER_ELSEWHERE = os.O_NOFOLLOW | os.O_NONBLOCK
"""A link leads out of the run folder, and opening a pipe waits for somebody at its other end."""


def append(path: Path, event: dict[str, Any]) -> None:
    """Add a line to a log; raises GvbsmError if it can't be written, leaving no half line behind."""
    data = (json.dumps(event) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(_opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if file.write(data) != len(data):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise GvbsmError(
            f"{path}: can't be written ({error.strerror}); free some space there or check its permissions, "
            "and run again: finished work is kept"
        ) from error


def events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what a log tells, without lines that are no events, such as one that a killed process left half.

    Raises GvbsmError if there is something else in its place.
    """
    shapes: dict[str, TypeAdapter[Any]] = {
        "stage_started": TypeAdapter(StageStarted),
        "step": TypeAdapter(Step),
        "stage_finished": TypeAdapter(StageFinished),
    }
    try:
        with os.fdopen(_opened(path, os.O_RDONLY), encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
                    event = json.loads(line)
                    if isinstance(event["event"], str):
                        shape = shapes.get(event["event"])
                        yield {**event, **(vars(shape.validate_python(event)) if shape else {})}
    except FileNotFoundError:
        return
    except OSError as error:
        raise GvbsmError(f"{path}: can't be read ({error.strerror}); remove it") from error


def _opened(path: Path, flags: int) -> int:
    """Open a regular file of that very name; raises OSError if it is anything else."""
    try:
        handle = os.open(path, flags | NEVER_ELSEWHERE, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise OSError(error.errno, "is a link, or a pipe, not the log") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is no regular file")
    return handle
