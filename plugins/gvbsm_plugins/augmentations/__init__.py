"""Augmentations: crops, DSA's and RandAugment's; all are views, differentiable and replayed exactly."""

from __future__ import annotations

from gvbsm_plugins.augmentations.crops import CropFlipRoll, ResizedCrop, WholeImage
from gvbsm_plugins.augmentations.dsa import Dsa
from gvbsm_plugins.augmentations.rand_augment import RandAugment
from gvbsm_registry import Component, hookimpl


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [WholeImage, CropFlipRoll, ResizedCrop, Dsa, RandAugment]
