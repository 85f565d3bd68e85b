"""The hooks a plugin module may define: plain functions, marked with `gvbsm_registry.hookimpl`."""

from __future__ import annotations

from pathlib import Path

from gvbsm_registry.events import StageFinished, StageStarted, Step
from gvbsm_registry.kinds import Component


def gvbsm_components() -> list[type[Component]]:  # type: ignore[empty-body]
    """Return the component classes that this plugin adds."""


def gvbsm_recipes() -> list[Path]:  # type: ignore[empty-body]
    """Return the recipe files (TOML) that this plugin ships, and folders of such files.

    A recipe is named by its file name, in a folder by its path below that: methods/mine. Names below `sets`,
    `methods` and `protocols` are parts that recipes extend, those below `sweeps` are sweep files.
    """


def gvbsm_stage_started(event: StageStarted) -> None:
    """A stage begins: which, and how many units of work it has left to do."""


def gvbsm_step(event: Step) -> None:
    """A step inside a unit of work has been taken: its losses, learning rate and progress."""


def gvbsm_stage_finished(event: StageFinished) -> None:
    """A stage has ended: how long it took and what its units report."""
