"""The paper's networks for small images (32×32): variants of well-known ones that shrink the image later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_plugins.backbones.base import WeightedBackbone

if TYPE_CHECKING:
    from torch.nn import Module


class ResNet18Small(WeightedBackbone):
    """ResNet18 with a 3×3 stride-1 stem and no max-pool."""

    name = "resnet18_small"

    def fresh(self, classes: int, image_size: int, channels: int) -> Module:
        """Return the network; any size, for it ends in average pooling over the whole map."""
        from torch import nn
        from torchvision.models import resnet18

        model: nn.Module = resnet18(num_classes=classes)
        stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        model.conv1, model.maxpool = stem, nn.Identity()
        return model


class WRN162(WeightedBackbone):
    """WRN-16-2: wide ResNet of 16 layers, twice as wide as ResNet, with pre-activation blocks."""

    name = "wrn_16_2"

    def fresh(self, classes: int, image_size: int, channels: int) -> Module:
        """Return the network; any size, for it ends in average pooling over the whole map."""
        from gvbsm_plugins.backbones.wide_resnet import wide_resnet

        return wide_resnet(depth=16, widen=2, classes=classes, channels=channels)


class MobileNetV2Small(WeightedBackbone):
    """MobileNetV2 (expansion t = 6) for small images: 17 blocks, width 0.5.

    The stem has stride 2, as in the original; the first block of 24·width channels keeps the resolution, as
    is usual at 32×32, so that the last map has 2×2 pixels there. There is no dropout.
    """

    name = "mobilenet_v2_small"

    width: float = Field(0.5, gt=0, description="factor on the channels of every block")

    def fresh(self, classes: int, image_size: int, channels: int) -> Module:
        """Return the network; any size, for it ends in average pooling over the whole map."""
        from torch import nn
        from torchvision.models import MobileNetV2

        # expansion t, channels c, blocks n, stride s of the first
        blocks = [
            [1, 16, 1, 1],
            [6, 24, 2, 1],
            [6, 32, 3, 2],
            [6, 64, 4, 2],
            [6, 96, 3, 1],
            [6, 160, 3, 2],
            [6, 320, 1, 1],
        ]
        model: nn.Module = MobileNetV2(
            num_classes=classes,
            width_mult=self.width,
            inverted_residual_setting=blocks,
            round_nearest=1,
            dropout=0.0,
        )
        stem: nn.Sequential = model.get_submodule("features.0")  # type: ignore[assignment]
        out = stem[0].out_channels
        assert isinstance(out, int)
        conv = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")
        stem[0] = conv
        return model


class ShuffleNetV2Small(WeightedBackbone):
    """ShuffleNetV2-0.5 with a 1×1 stem and no max-pool.

    Three stages of 48, 96 and 192 channels, each a halving block and 3, 7, 3 more; then 1024 channels.
    """

    name = "shufflenet_v2_small"

    def fresh(self, classes: int, image_size: int, channels: int) -> Module:
        """Return the network; any size, for it ends in average pooling over the whole map."""
        from torch import nn
        from torchvision.models import ShuffleNetV2

        from gvbsm_plugins.backbones.shuffling import ShufflingBlock

        widths = [24, 48, 96, 192, 1024]
        model: nn.Module = ShuffleNetV2([4, 8, 4], widths, classes, inverted_residual=ShufflingBlock)
        stem: nn.Sequential = model.get_submodule("conv1")  # type: ignore[assignment]
        stem[0] = nn.Conv2d(channels, 24, 1, bias=False)
        model.maxpool = nn.Identity()
        return model
