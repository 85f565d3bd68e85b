"""Learning-rate schedules."""

from __future__ import annotations

import math

from pydantic import Field

from gvbsm_registry import Component, Schedule, hookimpl


class Cosine(Schedule):
    """½ (1 + cos(π step / steps)): from 1 towards 0, the paper's in synthesis and evaluation.

    With `warmup`, that share of the steps climbs linearly to 1 first and the cosine spans the rest.
    """

    name = "cosine"

    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps that climb linearly to 1")

    def factor(self, step: int, steps: int) -> float:
        climb = int(self.warmup * steps)
        if step < climb:
            return (step + 1) / climb
        return 0.5 * (1 + math.cos(math.pi * (step - climb) / max(steps - climb, 1)))


class Linear(Schedule):
    """1 - step / steps: from 1 towards 0."""

    name = "linear"

    def factor(self, step: int, steps: int) -> float:
        return 1 - step / max(steps, 1)


class Constant(Schedule):
    """Always 1."""

    name = "constant"

    def factor(self, step: int, steps: int) -> float:
        return 1.0


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [Cosine, Linear, Constant]
