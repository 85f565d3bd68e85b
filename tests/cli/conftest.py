"""A recipe that runs in seconds, a finished run of it, and the store that runs share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cli_helpers
import pytest
import torch


@dataclass(frozen=True)
class Run:
    """A run folder, its store, and what the command printed."""

    out: Path
    store: Path
    output: str = ""
    errors: str = ""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Results are compared bit for bit, and the number of threads may change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(cli_helpers.TINY)
    return path


@pytest.fixture(scope="session")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run, made by the program itself. Only to be read: `copied` may be changed."""
    folder = tmp_path_factory.mktemp("finished")
    result = cli_helpers.program("run", tiny, "--out", folder / "out", "--store", folder / "store")
    assert result.returncode == 0, result.stderr
    return Run(folder / "out", folder / "store", result.stdout, result.stderr)


@pytest.fixture(scope="session")
def store(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that all tests share; what the finished run needs is in it."""
    return Path(shutil.copytree(finished.store, tmp_path_factory.mktemp("shared") / "store"))


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Run:
    """The finished run and its store, to be damaged."""
    shutil.copytree(finished.out, tmp_path / "copied" / "out")
    shutil.copytree(finished.store, tmp_path / "copied" / "store")
    return Run(tmp_path / "copied" / "out", tmp_path / "copied" / "store")
