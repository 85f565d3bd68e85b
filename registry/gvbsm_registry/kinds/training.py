"""Kinds that say how something is learnt."""

from __future__ import annotations

from abc import abstractmethod

from gvbsm_registry.kinds.component import Component


class Schedule(Component):
    """The learning rate over the steps."""

    kind = "schedule"

    @abstractmethod
    def factor(self, step: int, steps: int) -> float:
        """Return what the base learning rate is multiplied by at `step` (0 to steps - 1)."""
