"""Gram matrices for gvbsm: of the channels of activations, and of the images of a class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gvbsm_registry import Activation, Component, Matcher, Regularizer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

requires_contract = ">=2,<3"


class Gram(Matcher):
    """Gram matrix of the channels entering each convolution: mean x xᵀ over batch and space, [C, C]."""

    name = "gram"

    def sites(self, model: Module) -> list[str]:
        from torch.nn import Conv2d

        return [name for name, module in model.named_modules() if isinstance(module, Conv2d)]

    def statistics(self, activation: Activation) -> dict[str, Tensor]:
        pixels = activation.tensor.float().transpose(0, 1).flatten(1)
        return {"gram": pixels @ pixels.T / pixels.shape[1]}


class GramDiversity(Regularizer):
    """The mean squared cosine between two images of one class: 0 where all are at right angles."""

    name = "gram_diversity"

    def penalty(self, images: Tensor, labels: Tensor) -> Tensor:
        from torch.nn.functional import normalize

        rows = normalize(images.float().flatten(1), dim=1)
        pairs = (labels[:, None] == labels).triu(1)
        return ((rows @ rows.T).square() * pairs).sum() / pairs.sum().clamp(min=1)


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [Gram, GramDiversity]
