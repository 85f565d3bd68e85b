"""Writes what a run reports as scalars for TensorBoard, into the folder `tensorboard` of the run.

Off unless the environment variable GVBSM_TENSORBOARD is set to something other than 0. Needs the package
`tensorboard` (`pip install "gvbsm[tensorboard]"`) only then. Look at them by `tensorboard --logdir OUT`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gvbsm_registry import GvbsmError, StageFinished, StageStarted, Step, hookimpl

VARIABLE = "GVBSM_TENSORBOARD"
FILE = "events.out.tfevents.gvbsm"  # TensorBoard reads files whose names contain "tfevents"


@hookimpl
def gvbsm_stage_started(event: StageStarted) -> None:
    _write(event.run, {f"{event.stage}/units": event.units}, 0)


@hookimpl
def gvbsm_step(event: Step) -> None:
    _write(
        event.run, {f"{event.stage}/{event.unit}/{name}": v for name, v in event.values.items()}, event.step
    )


@hookimpl
def gvbsm_stage_finished(event: StageFinished) -> None:
    scalars: dict[str, Any] = {f"{event.stage}/seconds": event.seconds}
    for unit, summary in event.summaries.items():
        scalars |= {f"{event.stage}/{unit}/{name}": value for name, value in summary.items()}
    _write(event.run, scalars, 0)


def _write(run: str, values: Mapping[str, Any], step: int) -> None:
    """Append the numbers among `values`, by tag, to the event file of a run, if this is turned on.

    Raises GvbsmError if TensorBoard is not installed.
    """
    if not run or os.environ.get(VARIABLE, "0") in ("", "0"):
        return
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise GvbsmError(
            f'{VARIABLE} is set but tensorboard is not installed; pip install "gvbsm[tensorboard]"'
        ) from error
    scalars = [
        Summary.Value(tag=tag, simple_value=value)
        for tag, value in values.items()
        if isinstance(value, int | float)
    ]
    path = Path(run, "tensorboard", FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        records = RecordWriter(file)
        if file.tell() == 0:
            records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
        records.write(event.SerializeToString())
