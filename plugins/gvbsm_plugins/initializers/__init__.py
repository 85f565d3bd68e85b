"""Initializers: noise, four ways to choose real images, mosaics of crops, and pictures from a folder."""

from __future__ import annotations

from gvbsm_plugins.initializers.coresets import Forgetting, Herding, KCenter, RealImages
from gvbsm_plugins.initializers.folder import FolderImages
from gvbsm_plugins.initializers.mosaic import Mosaic
from gvbsm_plugins.initializers.noise import Noise
from gvbsm_registry import Component, hookimpl


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [Noise, RealImages, Herding, KCenter, Forgetting, Mosaic, FolderImages]
