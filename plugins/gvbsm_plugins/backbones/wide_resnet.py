"""Wide residual networks with pre-activation blocks. Imports torch: import it only to build one."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional


class PreActivationBlock(nn.Module):
    """Twice [BatchNorm, ReLU, 3×3 convolution] beside a shortcut.

    Float [B, inputs, H, W] to [B, outputs, ⌈H/stride⌉, ⌈W/stride⌉].
    Where the shape changes, the shortcut is a 1×1 convolution of the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.bn1(x))
        residual = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(depth: int, widen: int, classes: int, channels: int) -> nn.Module:
    """Return WRN-`depth`-`widen`: stem of 16 channels, three groups of 16, 32, 64 times `widen`, classifier.

    `depth` is 6n + 4 for n blocks in a group; the second and third group halve the map.
    """
    blocks = (depth - 4) // 6
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
    inputs = 16
    for group, (outputs, stride) in enumerate(((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)), start=1):
        first = PreActivationBlock(inputs, outputs, stride)
        rest = [PreActivationBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        layers[f"group{group}"] = nn.Sequential(first, *rest)
        inputs = outputs
    layers["bn"] = nn.BatchNorm2d(inputs)
    layers["relu"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(inputs, classes)
    model = nn.Sequential(layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layers["classifier"].bias)  # type: ignore[arg-type]
    return model
