"""Executors: where independent units of work run."""

from __future__ import annotations

from gvbsm_plugins.executors.local import Local
from gvbsm_plugins.executors.ray import Ray
from gvbsm_registry import Component, hookimpl


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [Local, Ray]
