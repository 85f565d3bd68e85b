"""Optimizers, as torch has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field, field_validator, model_validator

from gvbsm_registry import Component, Optimizer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer as TorchOptimizer


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""

    name = "sgd"

    momentum: float = Field(0.9, ge=0, lt=1, description="share of the step before that is taken again")
    weight_decay: float = Field(0.0, ge=0, description="what the weights are multiplied by in the gradient")
    nesterov: bool = Field(False, description="look ahead by the momentum (Nesterov)")

    @model_validator(mode="after")
    def _looks_ahead_by_something(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    def build(self, parameters: Iterable[Tensor], learning_rate: float) -> TorchOptimizer:
        from torch.optim import SGD

        return SGD(
            parameters,
            learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


class _Moments(Optimizer):
    betas: tuple[float, float] = Field(
        (0.9, 0.999), description="momentum of the gradient's mean, and of its square's"
    )

    @field_validator("betas")
    @classmethod
    def _momenta(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("must be two numbers from 0 to below 1")
        return betas


class Adam(_Moments):
    """Adam (arXiv:1412.6980); weight decay is added to the gradient."""

    name = "adam"

    weight_decay: float = Field(0.0, ge=0, description="what the weights are multiplied by in the gradient")

    def build(self, parameters: Iterable[Tensor], learning_rate: float) -> TorchOptimizer:
        from torch.optim import Adam

        return Adam(parameters, learning_rate, betas=self.betas, weight_decay=self.weight_decay)


class AdamW(_Moments):
    """Adam with decoupled weight decay (arXiv:1711.05101): learning rate × weight decay × weights a step."""

    name = "adamw"

    weight_decay: float = Field(0.01, ge=0, description="share of the weights, times the learning rate")

    def build(self, parameters: Iterable[Tensor], learning_rate: float) -> TorchOptimizer:
        from torch.optim import AdamW

        return AdamW(parameters, learning_rate, betas=self.betas, weight_decay=self.weight_decay)


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [SGD, Adam, AdamW]
