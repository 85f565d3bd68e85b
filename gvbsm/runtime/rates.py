"""Learning rates as a schedule says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gvbsm.runtime.blame import calling, refuse

if TYPE_CHECKING:
    import torch

    from gvbsm_registry import Schedule

FACTOR = "a finite number of 0 or more"


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return a schedule's factor; raises ComponentError, naming it, if it is not a number of 0 or more."""
    with calling(schedule, "factor", FACTOR):
        factor: object = schedule.factor(step, steps)
    if not (isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0):
        raise refuse(schedule, "factor", f"{factor!r} at step {step} of {steps}", FACTOR)
    return float(factor)


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float], factor: float) -> None:
    """Set the learning rate of each of the optimizer's groups to its one of `rates`, times `factor`."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
