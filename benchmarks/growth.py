"""How the cost of synthesis grows: python -m benchmarks.growth.

Images, classes, backbones and iterations: seconds of the synthesis stage itself on a small network. Pixels
and batch: seconds of one step. p is the exponent of the best fit seconds = a · size^p.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import harness
from benchmarks.setting import Setting
from gvbsm.estimate.fake_data import FakeData
from gvbsm.estimate.trial import Trial
from gvbsm.recipe import loading
from gvbsm.recipe.text import parse_component
from gvbsm.runtime.data import open_data
from gvbsm.runtime.environment import choose_device
from gvbsm_registry import discover

SIZES: dict[str, tuple[int, ...]] = {
    "images": (10, 20, 40),
    "classes": (5, 10, 20),
    "backbones": (1, 2, 4),
    "iterations": (4, 8, 16),
    "pixels": (32, 64, 224),
    "batch": (10, 50, 100, 400),
}
CLASSES, IPC, ITERATIONS = 5, 2, 4


def stage_seconds(
    axis: str, size: int, backbone: str, image_size: int, device: torch.device, rounds: int, clock: str
) -> float:
    """Return the seconds of all units of the synthesis stage, once it is warm.

    images: the number of images, of CLASSES classes. classes: with IPC images each. backbones: each gets
    ITERATIONS iterations.
    """
    registry = discover()
    classes = size if axis == "classes" else CLASSES
    iterations = size if axis == "iterations" else ITERATIONS
    count = size if axis == "backbones" else 1
    tables = {
        "backbones": [parse_component(backbone) for _ in range(count)],
        "synthesis": {
            "ipc": size // CLASSES if axis == "images" else IPC,
            "iterations": iterations * count,
            "batch": CLASSES * IPC,
        },
    }
    made = loading.make(tables, registry, where="the benchmark")
    data = FakeData.like(images=40, tests=2, classes=classes, image_size=image_size, channels=3)
    with tempfile.TemporaryDirectory() as folder:
        opened = open_data(data, Path(folder) / "data")
        trial = Trial(made, opened, registry, device, Path(folder), images=40)
        trial.make_untrained()
        trial.make(trial.plan.statistics)

        def work() -> None:
            for unit in trial.plan.image_batches:
                unit.work(trial.context, unit)

        return _median(work, device, rounds, clock)


def step_seconds(
    axis: str,
    size: int,
    backbone: str,
    image_size: int,
    device: torch.device,
    rounds: int,
    clock: str,
) -> float:
    """Return the seconds of an eager step: of 10 images of `size` pixels, or of `size` images."""
    setting = Setting.make(
        backbone, size if axis == "pixels" else image_size, size if axis == "batch" else 10, device=device
    )
    return _median(setting.step(setting.loss("eager")), device, rounds, clock)


def _median(work: Callable[[], None], device: torch.device, rounds: int, clock: str) -> float:
    return harness.medians(harness.interleave({"it": work}, rounds, device, 1, clock))["it"]


@click.command(help=__doc__)
@click.option("--axis", "axes", multiple=True, type=click.Choice(list(SIZES)), help="[default: all]")
@click.option("--sizes", help="A,B,...: other sizes, for one axis.")
@click.option("--backbone", default="convnet:width=16", show_default=True)
@click.option("--image-size", default=32, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@harness.clock_option
@harness.device_option
@harness.json_option
def main(
    axes: Sequence[str],
    sizes: str | None,
    backbone: str,
    image_size: int,
    rounds: int,
    clock: str,
    device: str,
    as_json: bool,
) -> None:
    """Measure along each axis."""
    place = choose_device(device)
    axes = axes or tuple(SIZES)
    if sizes and len(axes) != 1:
        raise click.UsageError("--sizes needs exactly one --axis")
    rows: list[dict[str, Any]] = []
    for axis in axes:
        steps = tuple(int(size) for size in sizes.split(",")) if sizes else SIZES[axis]
        seconds_of = step_seconds if axis in ("pixels", "batch") else stage_seconds
        seconds = [seconds_of(axis, size, backbone, image_size, place, rounds, clock) for size in steps]
        exponent = harness.exponent(steps, seconds)
        rows.append({"axis": axis, "sizes": list(steps), "seconds": seconds, "exponent": exponent})
    report = {
        "benchmark": "growth",
        "backbone": backbone,
        "image_size": image_size,
        "rounds": rounds,
        "clock": clock,
        "rows": rows,
        "machine": harness.machine(place),
    }
    lines = [
        [
            row["axis"],
            " → ".join(str(size) for size in row["sizes"]),
            " → ".join(f"{1000 * value:.1f}" for value in row["seconds"]),
            f"{row['exponent']:.2f}",
        ]
        for row in rows
    ]
    made = harness.table(f"growth with {backbone}, medians", ["axis", "sizes", "ms", "p"], lines)
    harness.show(report, [made], as_json)


if __name__ == "__main__":
    main()
