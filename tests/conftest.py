"""What several tests share: seeds, toy components and workspaces on them, a finished run of the program."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import cli_helpers
import numpy as np
import pytest
import torch
from cli_helpers import Run
from filelock import FileLock
from hypothesis import settings

from gvbsm import pipeline
from gvbsm.recipe import loading
from gvbsm.runtime.execution import execute
from gvbsm.runtime.reporting import Reporter
from gvbsm.runtime.units import Unit
from gvbsm_registry import Executor, Registry, discover

# Reports have tests of their own; every other run is spared the seconds that one takes.
os.environ.setdefault("GVBSM_REPORT", "0")

# Random inputs never decide whether a test passes; `make seeds` looks for those that might.
SEED = int(os.environ.get("GVBSM_TEST_SEED", "0"))
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("searching", database=None, deadline=None)
settings.load_profile("searching" if SEED else "repeatable")

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


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test begins with the same random numbers, alone or among others."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For results compared bit for bit: the number of threads may change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session; where several processes share the tests, the same for all of them."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file of two backbones that runs in seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(cli_helpers.TINY)
    return path


@pytest.fixture(scope="session")
def finished(tiny: Path, common: Path) -> Run:
    """An uninterrupted run of `tiny`, made by the program. Only to be read; `copied` may be changed."""
    folder, printed = common / "finished", common / "finished.json"
    with FileLock(common / "finished.lock"):
        if not printed.exists():
            result = cli_helpers.program("run", tiny, "--out", folder / "out", "--store", folder / "store")
            assert result.returncode == 0, result.stderr
            printed.write_text(json.dumps([result.stdout, result.stderr]))
    return Run(folder, *json.loads(printed.read_text()))


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Run:
    """The finished run and its store, to be damaged."""
    return Run(Path(shutil.copytree(finished.folder, tmp_path / "copied")))


@pytest.fixture(scope="session")
def store(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that tests share; what the finished run needs is in it."""
    return Path(shutil.copytree(finished.store, tmp_path_factory.mktemp("shared") / "store"))


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


class ToyRun:
    """A run of the toy recipe: its plan and context, and stages done when they are asked for."""

    def __init__(self, opened: pipeline.Run) -> None:
        self.opened = opened
        self.plan, self.context, self.data = opened.plan, opened.context, opened.context.data
        self.recipe, self.out, self.store = opened.plan.recipe, opened.plan.out, opened.plan.store

    def until(self, stage: str) -> ToyRun:
        """Run all stages up to `stage`."""
        pipeline.run_stages(self.opened, stage)
        return self

    def execute(self, units: list[Unit], executor: Executor | None = None) -> list[Unit]:
        """Run units that are not done yet; return them."""
        execute(self.context, "stage", units, executor or self.opened.executor, self.opened.storing)
        return units

    def backbones(self) -> list[Unit]:
        """The pretrained backbones' finished units."""
        return self.execute(self.plan.backbones)

    def statistics(self) -> list[Unit]:
        """The measured statistics' finished units."""
        self.backbones()
        self.execute(self.plan.shards)
        return self.execute(self.plan.statistics)

    def synthesized(self) -> list[Unit]:
        """The image batches' finished units."""
        self.statistics()
        return self.execute(self.plan.image_batches)


MakeRun = Callable[..., ToyRun]


@pytest.fixture
def make_run(registry: Registry, shared_store: Path, tmp_path: Path) -> MakeRun:
    """make(("dotted.key", value), …, out="out", store=None): a run of the toy recipe, changed."""

    def make(*changes: tuple[str, Any], out: str = "out", store: Path | str | None = None) -> ToyRun:
        tables = copy.deepcopy(TABLES)
        for key, value in changes:
            loading.override(tables, key, value)
        made = loading.make(tables, registry, where="toy")
        reporter = Reporter(tmp_path / out / "log.jsonl", registry, quiet=True)
        where = store or shared_store
        return ToyRun(pipeline.open_recipe(made, registry, tmp_path / out, where, "cpu", reporter))

    return make
