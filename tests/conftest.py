"""What several tests share: a registry with toy components, and workspaces that run whole stages on them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from gvbsm import pipeline
from gvbsm.recipe import loading
from gvbsm.runtime.reporting import Reporter
from gvbsm.runtime.units import Unit, execute
from gvbsm.runtime.workspace import Workspace
from gvbsm.stages import measure, pretrain, synthesize
from gvbsm_registry import Executor, Registry, discover

# Reports have tests of their own; every other run is spared the seconds that one takes.
os.environ.setdefault("GVBSM_REPORT", "0")

TABLES: dict[str, Any] = {
    "data": {"use": "toy_data"},
    "backbones": [{"use": "toy_net"}, {"use": "toy_net", "width": 8}],
    "pretrain": {"epochs": 6, "batch": 8, "augmentation": "none"},
    "measure": {"batch": 10, "augmentation": "none"},
    "synthesis": {
        "ipc": 2,
        "iterations": 6,
        "batch": 4,
        "log_every": 1,
        "augmentation": {"use": "crop_flip_roll", "padding": 1},
    },
    "relabel": {"epochs": 4, "epochs_per_file": 2, "batch": 4},
    "evaluation": {"students": [{"use": "toy_net"}], "epochs": 2, "batch": 4, "test_every": 1},
}


@pytest.fixture(scope="module")
def toy_tables() -> dict[str, Any]:
    """The toy recipe's tables, to be changed."""
    return copy.deepcopy(TABLES)


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The installed plugins and the toys."""
    toys = metadata.EntryPoint("toys", "toys", "gvbsm")
    return discover([*metadata.entry_points(group="gvbsm"), toys])


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for the whole session: equal backbones are trained once."""
    return tmp_path_factory.mktemp("store")


Make = Callable[..., Workspace]


@pytest.fixture
def make_workspace(registry: Registry, shared_store: Path, tmp_path: Path) -> Make:
    """make(("dotted.key", value), …, out="out", store=None): a workspace on the toy recipe, changed."""

    def make(*changes: tuple[str, Any], out: str = "out", store: Path | None = None) -> Workspace:
        tables = copy.deepcopy(TABLES)
        for key, value in changes:
            loading.override(tables, key, value)
        made = loading.make(tables, registry, where="toy")
        reporter = Reporter(tmp_path / out / "log.jsonl", registry, quiet=True)
        runner = registry.create(Executor, "local")
        where = torch.device("cpu")
        return Workspace(made, registry, tmp_path / out, store or shared_store, where, reporter, runner)

    return make


class Stages:
    """Runs the stages of a workspace and returns their units."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def run(self, until: str) -> Workspace:
        pipeline.run_stages(self.workspace, until)
        return self.workspace

    def backbones(self) -> list[Unit]:
        planned = pretrain.units(self.workspace)
        execute(self.workspace, "pretrain", planned)
        return planned

    def statistics(self) -> list[Unit]:
        planned = measure.units(self.workspace, self.backbones())
        execute(self.workspace, "measure", planned)
        return planned

    def batches(self) -> list[Unit]:
        """The synthesis units, planned but not run."""
        return synthesize.units(self.workspace, self.backbones(), self.statistics())

    def synthesized(self) -> list[Unit]:
        planned = self.batches()
        execute(self.workspace, "synthesize", planned)
        return planned


@pytest.fixture(scope="session")
def stages() -> type[Stages]:
    return Stages
