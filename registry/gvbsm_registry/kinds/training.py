"""Kinds that say how something is learnt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gvbsm_registry.kinds.component import Component

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Schedule(Component):
    """The learning rate over the steps."""

    kind = "schedule"

    @abstractmethod
    def factor(self, step: int, steps: int) -> float:
        """Return what the base learning rate is multiplied by at `step` (0 to steps - 1)."""


class Optimizer(Component):
    """Takes the steps: of backbones and students on their weights, of synthesis on the images."""

    kind = "optimizer"

    @abstractmethod
    def build(self, parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        """Return a torch optimizer of all `parameters`, which may be an iterator.

        Every group's `lr` is `learning_rate`; the engine multiplies it by the schedule's factor. All that the
        optimizer remembers is in its `state_dict`, from which an interrupted run goes on.
        """
