"""Matchers: BatchNorm's own statistics, and channel and patch statistics of every convolution.

Each observes the input of its sites. Statistics are called `mean` and `var`; variances are biased.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_registry import Activation, Component, Matcher, hookimpl

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


def _named(model: Module, kind: type[Module]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


class BatchNormMatcher(Matcher):
    """L_BN (Eqs. 1, 14): mean and variance of what enters each BatchNorm, float [C] each.

    The targets are the module's running statistics; a BatchNorm that keeps none is measured.
    """

    name = "bn"

    variance_weight: float = Field(1.0, ge=0, description="factor on variances (11 in DWA, arXiv 2409.17612)")

    def sites(self, model: Module) -> list[str]:
        from torch.nn.modules.batchnorm import _BatchNorm

        return _named(model, _BatchNorm)

    def statistics(self, activation: Activation) -> dict[str, Tensor]:
        mean, var = activation.channel_moments()
        return {"mean": mean, "var": self._weighed(var)}

    def targets(self, module: Module) -> dict[str, Tensor] | None:
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if mean is None or var is None:
            return None
        return {"mean": mean.detach(), "var": self._weighed(var.detach())}

    def _weighed(self, var: Tensor) -> Tensor:
        return var if self.variance_weight == 1 else var * self.variance_weight


class ConvChannelMatcher(Matcher):
    """The channel half of L_Conv (Eqs. 9, 10): CM and CV of each convolution's input, float [C] each."""

    name = "conv_channel"

    def sites(self, model: Module) -> list[str]:
        from torch.nn import Conv2d

        return _named(model, Conv2d)

    def statistics(self, activation: Activation) -> dict[str, Tensor]:
        mean, var = activation.channel_moments()
        return {"mean": mean, "var": var}


class ConvPatchMatcher(Matcher):
    """The patch half of L_Conv (Eqs. 9, 10): PM and PV of each convolution's input.

    float [⌈H/patch_size⌉, ⌈W/patch_size⌉] each, over batch, channels and the pixels of a patch.
    """

    name = "conv_patch"

    patch_size: int = Field(4, ge=1, description="N_p: patch side in pixels of the site's map")

    def sites(self, model: Module) -> list[str]:
        from torch.nn import Conv2d

        return _named(model, Conv2d)

    def statistics(self, activation: Activation) -> dict[str, Tensor]:
        mean, var = activation.patch_moments(self.patch_size)
        return {"mean": mean, "var": var}


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [BatchNormMatcher, ConvChannelMatcher, ConvPatchMatcher]
