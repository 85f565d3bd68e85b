"""ShuffleNetV2's block in any memory layout. Imports torch: import it only to build one."""

from __future__ import annotations

from torch import Tensor, cat
from torch.nn import functional
from torchvision.models.shufflenetv2 import InvertedResidual


class ShufflingBlock(InvertedResidual):
    """torchvision's block, whose shuffle of the two branches' channels keeps them last where they are last.

    Float [B, inputs, H, W] to [B, outputs, ⌈H/stride⌉, ⌈W/stride⌉].
    """

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.stride == 1 else (self.branch1(x), x)
        return functional.channel_shuffle(cat([left, self.branch2(right)], 1), 2)
