"""What the benchmarks share: interleaved timing, tables, JSON, and what they ran on."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from gvbsm.estimate.memory import Peak

WIDTH = 150
Work = Callable[[], Any]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CIFAR_BACKBONES = ("resnet18_small", "convnet", "mobilenet_v2_small", "wrn_16_2", "shufflenet_v2_small")
IMAGENET_BACKBONES = tuple(
    f"torchvision/{name}" for name in ("resnet18", "mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x0_5")
)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    variants: Mapping[str, Work],
    rounds: int,
    device: torch.device | None = None,
    warmup: int = 2,
    clock: str = "wall",
) -> dict[str, list[float]]:
    """Time the variants in turn, `rounds` times, after `warmup` untimed rounds: seconds by variant.

    Every round begins with another variant, so that none always follows the same one. clock: a key of CLOCKS.
    """
    now = CLOCKS[clock]
    device = device or torch.device("cpu")
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            synchronize(device)
            started = now()
            variants[name]()
            synchronize(device)
            if turn >= warmup:
                seconds[name].append(now() - started)
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median by variant."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_extra(work: Work, device: torch.device) -> int | None:
    """Return how many bytes `work`, done before, takes beyond what is in use; None where nobody tells."""
    with Peak(device) as peak:
        work()
    return peak.extra


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return p of the best fit seconds = a · size^p: the slope by least squares of the logarithms."""
    across, up = [math.log(size) for size in sizes], [math.log(value) for value in seconds]
    return statistics.linear_regression(across, up).slope


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures hold for: processor, threads, device, versions and the date."""
    found: dict[str, Any] = {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "device": str(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def show(report: dict[str, Any], tables: Sequence[Table], as_json: bool) -> None:
    """Print one JSON object, or the tables and what they were measured on."""
    if as_json:
        print(json.dumps(report, indent=1))
        return
    console = Console(width=max(Console().width, WIDTH))
    for made in tables:
        console.print(made, markup=False)
    where = report["machine"]
    console.print(
        f"{where.get('gpu', where['cpu'])}, {where['threads']} threads, load {where['load']}, "
        f"torch {where['torch']}, {where['date']}",
        markup=False,
        highlight=False,
    )


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table whose first column is text and whose others are figures."""
    made = Table(title=title)
    for position, column in enumerate(columns):
        made.add_column(column, justify="right" if position else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(cell(value) for value in row))
    return made


def pairs(title: str, what: str, names: tuple[str, str], rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of rows that compare two variants, whose "ratio" is the second to the first."""
    columns = [what, *(f"{name} ms" for name in names), *(f"{name} MiB" for name in names), "ratio"]
    lines = [
        [
            row[what],
            *(milliseconds(row["seconds"][name]) for name in names),
            *(mebibytes(row["peak_bytes"][name]) for name in names),
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    lines.append(["mean", *[None] * 4, f"{statistics.fmean(row['ratio'] for row in rows):.2f}"])
    return table(title, columns, lines)


def cell(value: Any) -> str:
    """Return a figure with three digits, a dash for None, or the text itself."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def milliseconds(seconds: float | None) -> str | None:
    """Return seconds as a text in milliseconds."""
    return None if seconds is None else f"{1000 * seconds:.1f}"


def mebibytes(size: int | None) -> str | None:
    """Return bytes as a text in MiB."""
    return None if size is None else f"{size / 2**20:.1f}"


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, no table.")
clock_option = click.option(
    "--clock",
    type=click.Choice(list(CLOCKS)),
    default="wall",
    show_default=True,
    help="wall, or cpu: the processor's seconds, for a machine that is busy with other work.",
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
