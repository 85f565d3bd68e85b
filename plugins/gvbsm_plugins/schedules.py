"""Learning-rate schedules."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from gvbsm_registry import Component, Schedule, hookimpl

Share = Annotated[float, Field(ge=0, le=1)]


class Cosine(Schedule):
    """½ (1 + cos(π step / steps)): from 1 towards 0, the paper's in synthesis and evaluation.

    With `warmup`, that share of the steps climbs linearly to 1 first and the cosine spans the rest. With
    `stretch` ζ it is ½ (1 + cos(π step / (ζ steps))), which ends before it is down (arXiv:2404.13733).
    """

    name = "cosine"

    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps that climb linearly to 1")
    stretch: float = Field(1.0, ge=1, description="ζ: how many times as long as the steps the cosine is")

    def factor(self, step: int, steps: int) -> float:
        climb = int(self.warmup * steps)
        if step < climb:
            return (step + 1) / climb
        return 0.5 * (1 + math.cos(math.pi * (step - climb) / (self.stretch * max(steps - climb, 1))))


class Linear(Schedule):
    """1 - step / steps: from 1 towards 0."""

    name = "linear"

    def factor(self, step: int, steps: int) -> float:
        return 1 - step / max(steps, 1)


class MultiStep(Schedule):
    """1, times `gamma` from each milestone on."""

    name = "multistep"

    milestones: tuple[Share, ...] = Field((0.5, 0.75), description="shares of the steps, 0 to 1")
    gamma: float = Field(0.1, gt=0, description="what the rate is multiplied by at each milestone")

    def factor(self, step: int, steps: int) -> float:
        passed = sum(step >= round(share * steps) for share in self.milestones)
        return float(self.gamma**passed)


class OneCycle(Schedule):
    """Half a cosine from `start` up to 1, the peak, and half a cosine down to `end` (arXiv:1708.07120).

    As torch's OneCycleLR of two phases, relative to its peak; its defaults, too.
    """

    name = "one_cycle"

    peak: float = Field(0.3, ge=0, le=1, description="share of the steps that climb")
    start: float = Field(0.04, ge=0, le=1, description="factor of the first step")
    end: float = Field(4e-6, ge=0, le=1, description="factor of the last step")

    def factor(self, step: int, steps: int) -> float:
        top, last = self.peak * steps - 1, steps - 1
        if step <= top:
            return _half_cosine(self.start, 1.0, step / top if top else 1.0)
        return _half_cosine(1.0, self.end, (step - top) / (last - top))


def _half_cosine(first: float, last: float, share: float) -> float:
    """Return the value at `share`, 0 to 1, of half a cosine from `first` to `last`."""
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))


class Constant(Schedule):
    """Always 1."""

    name = "constant"

    def factor(self, step: int, steps: int) -> float:
        return 1.0


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [Cosine, Linear, MultiStep, OneCycle, Constant]
