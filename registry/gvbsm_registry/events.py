"""What a run emits to those who watch it. In each event `run` is the run folder, or "" if there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageStarted:
    """`stage` begins with `units` units of work to do, `reused` more are done already."""

    stage: str
    units: int
    reused: int
    run: str = ""


@dataclass(frozen=True)
class Step:
    """Step `step` of `steps` inside unit `unit` of `stage`; `values` are plain numbers by name.

    In synthesis `values` holds every loss term by itself (weighted, as added) and `labels["backbone"]` says
    which backbone the step used.
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
    """`stage` has ended after `seconds`; `summaries` maps each unit's name to what it reports of itself."""

    stage: str
    seconds: float
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    run: str = ""
