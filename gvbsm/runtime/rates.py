"""Learning rates as a schedule says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gvbsm_registry import GvbsmError

if TYPE_CHECKING:
    import torch

    from gvbsm_registry import Schedule


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return the schedule's factor; raises GvbsmError, naming it, if that is not a number of 0 or more."""
    factor: object = schedule.factor(step, steps)
    if not (isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0):
        raise GvbsmError(
            f"schedule {schedule.full_name!r} gives {factor!r} at step {step} of {steps}, where a number of "
            "0 or more is due; use another schedule, or ask its author to correct it"
        )
    return float(factor)


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float], factor: float) -> None:
    """Set the learning rate of each of the optimizer's groups to its one of `rates`, times `factor`."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
