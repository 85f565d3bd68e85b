"""Writes what a run reports as scalars for TensorBoard, into the folder `tensorboard` of the run.

Off unless the environment variable GVBSM_TENSORBOARD is set to something other than 0. Needs the package
`tensorboard` (`pip install "gvbsm[tensorboard]"`) only then. Look at them by `tensorboard --logdir OUT`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gvbsm_registry import GvbsmError, StageFinished, StageStarted, Step, hookimpl

VARIABLE = "GVBSM_TENSORBOARD"
_writers: dict[str, Any] = {}


def _enabled(run: str) -> bool:
    return bool(run) and os.environ.get(VARIABLE, "0") not in ("", "0")


def _writer(run: str) -> Any:
    """Return the open writer of a run; raises GvbsmError if TensorBoard is not installed."""
    if run not in _writers:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise GvbsmError(
                f'{VARIABLE} is set but tensorboard is not installed; pip install "gvbsm[tensorboard]"'
            ) from error
        _writers[run] = SummaryWriter(str(Path(run, "tensorboard")))
    return _writers[run]


@hookimpl
def gvbsm_stage_started(event: StageStarted) -> None:
    if _enabled(event.run):
        _writer(event.run).add_scalar(f"{event.stage}/units", event.units, 0)


@hookimpl
def gvbsm_step(event: Step) -> None:
    if _enabled(event.run):
        writer = _writer(event.run)
        for name, value in event.values.items():
            writer.add_scalar("/".join([event.stage, event.unit, name]), value, event.step)


@hookimpl
def gvbsm_stage_finished(event: StageFinished) -> None:
    if not _enabled(event.run):
        return
    writer = _writer(event.run)
    writer.add_scalar(f"{event.stage}/seconds", event.seconds, 0)
    for unit, summary in event.summaries.items():
        for name, value in summary.items():
            if isinstance(value, int | float):
                writer.add_scalar(f"{event.stage}/{unit}/{name}", value, 0)
    _writers.pop(event.run).close()
