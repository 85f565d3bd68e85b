"""Backbones: the paper's small-image networks, and any classifier of torchvision or timm."""

from __future__ import annotations

from gvbsm_plugins.backbones.convnet import ConvNet
from gvbsm_plugins.backbones.providers import Timm, Torchvision
from gvbsm_plugins.backbones.small import WRN162, MobileNetV2Small, ResNet18Small, ShuffleNetV2Small
from gvbsm_registry import Component, hookimpl


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    """Return the backbones of this plugin."""
    return [ConvNet, MobileNetV2Small, ResNet18Small, ShuffleNetV2Small, Timm, Torchvision, WRN162]
