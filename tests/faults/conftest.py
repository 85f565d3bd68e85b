"""The fault suite borrows the command-line tests' recipe, and their finished run of it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

import cli_helpers
import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    """Results are compared bit for bit."""
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
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `out` and `store` of a run that nothing disturbed; only to be read."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finished")
    cli_helpers.done("run", tiny, "--out", folder / "out", "--store", folder / "store")
    torch.set_num_threads(threads)
    return folder
