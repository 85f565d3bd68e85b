"""How long the command takes to say what it can do: python -m benchmarks.startup.

Each is a process of its own; `python -c pass` is what no Python program can be quicker than.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import torch

from benchmarks import harness

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "gvbsm --help": [
        "-c",
        "import sys; sys.argv = ['gvbsm', '--help']; from gvbsm.cli.main import main; main()",
    ],
    "gvbsm run --help": [
        "-c",
        "import sys; sys.argv = ['gvbsm', 'run', '--help']; from gvbsm.cli.main import main; main()",
    ],
    "import gvbsm": ["-c", "import gvbsm"],
    "import torch": ["-c", "import torch"],
}


def process(arguments: list[str]) -> Callable[[], None]:
    """Return a function that runs Python with `arguments`."""

    def work() -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    return work


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@harness.json_option
def main(rounds: int, as_json: bool) -> None:
    """Compare the commands."""
    works = {name: process(arguments) for name, arguments in COMMANDS.items()}
    seconds = harness.medians(harness.interleave(works, rounds, warmup=min(1, rounds - 1)))
    floor = seconds["python -c pass"]
    rows: list[dict[str, Any]] = [
        {"command": name, "seconds": value, "ratio": value / floor} for name, value in seconds.items()
    ]
    report = {
        "benchmark": "startup",
        "rounds": rounds,
        "rows": rows,
        "machine": harness.machine(torch.device("cpu")),
    }
    lines = [[row["command"], harness.milliseconds(row["seconds"]), f"{row['ratio']:.1f}"] for row in rows]
    made = harness.table("processes, medians", ["command", "ms", "× python -c pass"], lines)
    harness.show(report, [made], as_json)


if __name__ == "__main__":
    main()
