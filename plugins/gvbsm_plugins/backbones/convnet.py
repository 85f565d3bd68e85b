"""ConvNet, the plain network of the condensation literature."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_plugins.backbones.base import WeightedBackbone
from gvbsm_registry import GvbsmError

if TYPE_CHECKING:
    from torch.nn import Module


class ConvNet(WeightedBackbone):
    """The paper's ConvNet-W128: `depth` blocks and one linear layer.

    A block is a 3×3 convolution, GroupNorm with one group per channel (affine), ReLU and 2×2 average pooling
    (rounding down). It has no BatchNorm, so only the statistics of convolutions apply to it.
    """

    name = "convnet"

    width: int = Field(128, ge=1, description="channels of every block")
    depth: int = Field(3, ge=1, description="number of blocks")

    def fresh(self, classes: int, side: int, channels: int) -> Module:
        """Return the network. A pool is left out where the next block would get a map of one pixel.

        There, one pixel is all that GroupNorm would see of a channel: its output would be the same for every
        input.
        Raises GvbsmError for images of less than 2×2 pixels.
        """
        from torch import nn

        if side < 2:
            raise GvbsmError(f"{self.title}: needs images of at least 2×2 pixels, not {side}×{side}")
        layers: list[nn.Module] = []
        for block in range(self.depth):
            layers.append(nn.Conv2d(channels, self.width, 3, padding=1))
            layers.append(nn.GroupNorm(self.width, self.width))
            layers.append(nn.ReLU())
            if side // 2 > 1 or block == self.depth - 1:
                layers.append(nn.AvgPool2d(2))
                side //= 2
            channels = self.width
        classifier = nn.Linear(self.width * side * side, classes)
        parts = {"features": nn.Sequential(*layers), "flatten": nn.Flatten(), "classifier": classifier}
        return nn.Sequential(OrderedDict(parts))
