"""Objectives: the student's loss on stored logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_registry import Component, Objective, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class MeanSquaredGroundTruth(Objective):
    """MSE + γ×GT (Eq. 11): mean (output - logits)² over all elements, + γ cross-entropy with the truth."""

    name = "mse_gt"

    gamma: float = Field(0.15, ge=0, description="γ: weight of the cross-entropy with the true classes")

    def loss(self, output: Tensor, logits: Tensor, truth: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy, mse_loss

        return mse_loss(output, logits) + self.gamma * cross_entropy(output, truth)


class KullbackLeibler(Objective):
    """KL( softmax(logits / T) ‖ softmax(output / T) ), the mean over the batch.

    SRe2L's objective, which is not multiplied by T²; with `squared` it is, as Hinton's (arXiv:1503.02531), so
    that gradients keep their size whatever T is. The truth is not used.
    """

    name = "kl"

    temperature: float = Field(20.0, gt=0, description="T: divides both sides' logits")
    squared: bool = Field(False, description="multiply by T²")

    def loss(self, output: Tensor, logits: Tensor, truth: Tensor) -> Tensor:
        from torch.nn.functional import kl_div

        student = (output / self.temperature).log_softmax(1)
        teacher = (logits / self.temperature).log_softmax(1)
        divergence = kl_div(student, teacher, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2 if self.squared else divergence


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [MeanSquaredGroundTruth, KullbackLeibler]
