"""ConvNet, the plain network of the condensation literature."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_plugins.backbones.base import WeightedBackbone
from gvbsm_registry import GvbsmError

if TYPE_CHECKING:
    from torch.nn import Module

# A pool is left out where the next block would see a smaller map than this: GroupNorm over the few pixels of
# such a map wipes out what they say. 8×8 digits, trained on 100 of them: 53 % right with 2×2, 91 % with 4×4.
SMALLEST_MAP = 4


class ConvNet(WeightedBackbone):
    """The paper's ConvNet-W128: `depth` blocks and one linear layer.

    A block is a 3×3 convolution, GroupNorm with one group per channel (affine), ReLU and 2×2 average pooling
    (rounding down). It has no BatchNorm, so only the statistics of convolutions apply to it.
    """

    name = "convnet"

    width: int = Field(128, ge=1, description="channels of every block")
    depth: int = Field(3, ge=1, description="number of blocks")

    def fresh(self, classes: int, image_size: int, channels: int) -> Module:
        """Return the network. On images with a side below 2^(depth + 1) pixels some pools are left out.

        Raises GvbsmError for images of less than 2×2 pixels.
        """
        from torch import nn

        if image_size < 2:
            raise GvbsmError(
                f"{self.full_name}: needs images of at least 2×2 pixels, not {image_size}×{image_size}"
            )
        # Named, so that a pool left out changes no other layer's name.
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for block in range(1, self.depth + 1):
            layers[f"conv{block}"] = nn.Conv2d(channels, self.width, 3, padding=1)
            layers[f"norm{block}"] = nn.GroupNorm(self.width, self.width)
            layers[f"relu{block}"] = nn.ReLU()
            if image_size // 2 >= SMALLEST_MAP or block == self.depth:
                layers[f"pool{block}"] = nn.AvgPool2d(2)
                image_size //= 2
            channels = self.width
        classifier = nn.Linear(self.width * image_size * image_size, classes)
        parts = {"features": nn.Sequential(layers), "flatten": nn.Flatten(), "classifier": classifier}
        return nn.Sequential(OrderedDict(parts))
