"""Virtual environments that borrow everything but gvbsm from this one: fresh, and nothing to download."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("gvbsm", "registry", "plugins", "pyproject.toml", "README.md", "LICENSE")


class Venv:
    """A virtual environment at `folder`; `run` runs a command line in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        base = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(base, check=True, capture_output=True)
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            ours = "gvbsm" in entry.name.lower()
            if not ours and entry.suffix != ".pth":
                (borrowed / entry.name).symlink_to(entry)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "borrowed.pth").write_text(f"{borrowed}\n")
        for script in ("pytest", "pip"):
            path = folder / "bin" / script
            path.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {script} "$@"\n')
            path.chmod(0o755)

    def run(self, command: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell command line with this environment's programs first on the path."""
        left_out = ("PYTHONPATH", "GVBSM_PLUGINS", "VIRTUAL_ENV", "PYTHONHOME")
        environment = {key: value for key, value in os.environ.items() if key not in left_out}
        environment |= {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this variable the other way round
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "COLUMNS": "110",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        if check:
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done


def wheel(project: Path, folder: Path) -> Path:
    """Build a project's wheel from a copy of its sources; return the wheel's path."""
    copy = folder / f"source-{project.name}"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    if project == ROOT:
        copy.mkdir(parents=True)
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=ignored)
            else:
                shutil.copy(source, copy / name)
    else:
        shutil.copytree(project, copy, ignore=ignored)
    out = folder / f"wheel-{project.name}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(copy),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built
