"""Data-parallel training under torchrun, with two gloo processes on the CPU, against one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gvbsm import pipeline
from gvbsm_registry import Artifact
from gvbsm_registry.artifacts import read

pytestmark = pytest.mark.slow

RECIPE = """
data = "digits"

[[backbones]]
use = "convnet"
width = 16
depth = 2

[pretrain]
batch = 50  # 1347 images: no remainder that two processes would add to the batch before
epochs = 2
learning_rate = 0.01
augmentation = { use = "crop_flip_roll", padding = 1, flip = 0.0 }

[synthesis]
ipc = 2
iterations = 1

[relabel]
epochs = 4

[evaluation]
students = [{ use = "convnet", width = 16, depth = 2 }]
epochs = 20
batch = 8
optimizer = { use = "sgd", weight_decay = 0.01 }
learning_rate = 0.1
"""


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run gvbsm in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    gvbsm = shutil.which("gvbsm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert gvbsm is not None
    command = [*launcher, gvbsm, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def only(folder: Path) -> Artifact:
    (path,) = folder.glob("*.safetensors")
    return read(path)


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE)
    one, two = tmp_path / "one", tmp_path / "two"
    pipeline.run(recipe, out=one / "out", store=one / "store", report=False)
    result = torchrun("run", recipe, "--out", two / "out", "--store", two / "store", "--no-report", "--quiet")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Top-1 on the real test split") == 1, "rank 0 alone reports"
    alone, together = (only(folder / "store" / "backbones") for folder in (one, two))
    assert together.key == alone.key
    for name, tensor in alone.tensors.items():
        torch.testing.assert_close(together.tensors[name], tensor, rtol=0, atol=1e-3)
    assert together.meta["top1"] == pytest.approx(alone.meta["top1"], abs=0.02)
    curves = [
        {
            (r["set"], r["labels"]): r["top1"]
            for r in json.loads((folder / "out" / "results.json").read_text())["records"]
        }
        for folder in (one, two)
    ]
    assert curves[0].keys() == curves[1].keys()
    for which, top1 in curves[0].items():
        assert curves[1][which] == pytest.approx(top1, abs=0.06)


def test_a_batch_that_cannot_be_shared_is_refused_by_rank_0(tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE)
    options = ("--out", tmp_path / "out", "--store", tmp_path / "store", "--quiet")
    result = torchrun("run", recipe, *options, "--set", "evaluation.batch=1")
    assert result.returncode != 0
    assert result.stderr.count("gvbsm: 2 processes can't share a batch of 1") == 1
