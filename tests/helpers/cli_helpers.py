"""Runs the command line: in this process, as a program, and forked from a process that has imported torch."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner, Result

from gvbsm.cli.main import main
from gvbsm_registry import artifacts as artifact_files

TINY = """
data = "digits"

[[backbones]]
use = "convnet"
width = 8
depth = 1

[[backbones]]
use = "timm/test_resnet"

[pretrain]
epochs = 4
learning_rate = 0.1
augmentation = { use = "crop_flip_roll", padding = 1, flip = 0.0 }

[synthesis]
ipc = 2
iterations = 8
batch = 4
log_every = 2

[relabel]
epochs = 6
epochs_per_file = 2

[evaluation]
students = [{ use = "convnet", width = 8, depth = 1 }]
epochs = 6
batch = 20
test_every = 3
"""
UNITS = 20  # 2 backbones, 2 statistics, 5 image batches, 2 image sets, 2 × 3 label blocks, 3 students

_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload(
    ["gvbsm.cli.main", "gvbsm.pipeline", "torch._dynamo", "sklearn.datasets", "timm"]
)


@dataclass(frozen=True)
class Run:
    """A folder with a run (`out`) and its store, and what the command printed."""

    folder: Path
    output: str = ""
    errors: str = ""

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def store(self) -> Path:
        return self.folder / "store"


def invoke(*args: str | Path | int) -> Result:
    """Run a command in this process; standard output and error are kept apart."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def done(*args: str | Path | int) -> Result:
    """Run a command in this process that must end well."""
    result = invoke(*args)
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    return result


def program(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as a user's shell does."""
    return subprocess.run(
        command(*args), capture_output=True, text=True, timeout=500, env=environment(), **options
    )


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "gvbsm", *map(str, args)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def start(*args: str | Path, errors: Path, largest: int | None = None) -> BaseProcess:
    """Start a command in a process of its own that need not import torch first.

    errors: the file that gets its standard error. largest: bytes beyond which it can write no file.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    process = _FORK.Process(target=_forked, args=([str(arg) for arg in args], errors, largest))
    process.start()
    return process


def _forked(args: list[str], errors: Path, largest: int | None) -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit "ignore"
    file = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    main(args)


def refused(result: Any, *named: str | Path) -> str:
    """Check that a command was refused as a user may expect, its line naming all of `named`; return it."""
    code = result.exit_code if isinstance(result, Result) else result.returncode
    assert code == 2, f"exit code {code}: {result.stderr}\n{getattr(result, 'exception', '')!r}"
    return refusal(result.stderr, *named)


def refusal(errors: str, *named: str | Path) -> str:
    assert "Traceback" not in errors
    assert errors.startswith("gvbsm: "), errors
    assert errors.count("\n") == 1, errors
    assert errors.endswith("\n")
    for part in named:
        assert str(part) in errors, f"{part!s} is not in: {errors}"
    return errors


def artifacts(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Return every artifact's inode and time of change, which tell whether it has been written again."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*.safetensors"):
            status = path.stat()
            found[path] = (status.st_ino, status.st_mtime_ns)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def product(folder: Path) -> dict[str, Any]:
    """Return what a run is for: images, labels, students, results and recipe, bit for bit."""
    keep = ("distilled/", "baselines/", "units/", "results.json", "recipe.toml")
    return {name: what for name, what in meaning(folder).items() if name.startswith(keep)}


def meaning(folder: Path) -> dict[str, Any]:
    """Return what every file below a folder says, for artifacts: header and the bytes of each tensor.

    Not the files' own bytes: safetensors writes the entries of a header in any order.
    """
    found: dict[str, Any] = dict(contents(folder))
    for name in found:
        if name.endswith(".safetensors"):
            artifact = artifact_files.read(folder / name)
            tensors = {
                key: (str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes())
                for key, tensor in artifact.tensors.items()
            }
            found[name] = (artifact.kind, artifact.key, artifact.meta, tensors)
    return found


def events(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if kind in (None, event["event"])]


def leftovers(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob(".*.tmp")]


def flags() -> str:
    """Return every command with its arguments and options, a line each."""
    context = click.Context(main, info_name="gvbsm")
    lines = []
    for name in main.list_commands(context):
        found = main.get_command(context, name)
        assert found is not None
        for parameter in found.params:
            names = "/".join(sorted(parameter.opts, key=len)) if parameter.opts else str(parameter.name)
            kind = "flag" if getattr(parameter, "is_flag", False) else parameter.type.name
            many = " repeatable" if getattr(parameter, "multiple", False) else ""
            lines.append(f"{name} {names} {kind}{many}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(flags(), end="")
