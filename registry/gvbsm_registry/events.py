"""What a run emits to those who watch it, in the process that was started, wherever the work is done.

In each event `run` is the run folder, or "" if there is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageStarted:
    """`stage` begins with `units` units of work to do, `reused` more are done already.

    stage: pretrain, measure, synthesis, relabel or evaluation. A stage whose units need others of its own,
    such as the set that is put together of image batches, begins and ends once for each wave of them.
    """

    stage: str
    units: int
    reused: int
    run: str = ""


@dataclass(frozen=True)
class Step:
    """Step `step` of `steps` inside unit `unit` of `stage`; `values` are plain numbers by name.

    Synthesis emits it, every `synthesis.log_every` steps for each backbone and after the last one, for one
    image batch or several that share a step ("batch-0000 to batch-0003"). step: from 0. values: every term by
    itself, weighted, as added, the mean over these batches, by the component's name (`bn`, or `bn-1` and
    `bn-2` of two); `total`, their sum; `learning_rate`. labels: `backbone`, the names of the step's networks,
    joined by "+". Other stages may come to emit it, with values of their own.
    """

    stage: str
    unit: str
    step: int
    steps: int
    values: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    run: str = ""


@dataclass(frozen=True)
class StageFinished:
    """`stage` has ended after `seconds`; `summaries` maps each unit's name to what it reports of itself.

    That is `seconds`, and of a backbone or a student `top1`, 0 to 1. Units that were reused report nothing.
    """

    stage: str
    seconds: float
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    run: str = ""
