"""A synthesis step against the bare step and the textbook step: python -m benchmarks.step.

All three matchers and L_DD, every site, nothing dropped, random weights; no data set is needed.
"""

from __future__ import annotations

import statistics
from typing import Any

import click
import torch
from rich.table import Table

from benchmarks import harness
from benchmarks.setting import BY_CLASS, VARIANTS, Setting
from gvbsm.matching.forward import Precision, can_compile
from gvbsm.runtime.environment import choose_device

RATIOS = {
    "eager/bare": ("eager", "bare"),
    "compiled/bare": ("compiled", "bare"),
    "textbook/eager": ("textbook", "eager"),
    "textbook/compiled": ("textbook", "compiled"),
    "by_class/eager": ("by_class", "eager"),
    "by_class_compiled/compiled": ("by_class_compiled", "compiled"),
}
MEMORY_RATIOS = {"eager/bare memory": ("eager", "bare"), "compiled/bare memory": ("compiled", "bare")}


def measure(
    setting: Setting, variants: list[str], rounds: int, clock: str, precision: Precision
) -> dict[str, Any]:
    """Return seconds, their ratios, peak bytes beyond the model's and losses, by variant, of a backbone."""
    device = setting.images.device
    functions = {name: setting.loss(name, precision) for name in variants}
    # with the gradient wanted, or the compiled variant would be compiled for this alone
    images = setting.images.clone().requires_grad_(True)
    losses = {name: float(loss(images).detach()) for name, loss in functions.items()}
    steps = {name: setting.step(loss) for name, loss in functions.items()}
    seconds = harness.medians(harness.interleave(steps, rounds, device, clock=clock))
    peak = {name: harness.peak_extra(step, device) for name, step in steps.items()}
    return {
        "seconds": seconds,
        "peak_bytes": peak,
        "losses": losses,
        "ratios": _ratios(RATIOS, seconds) | _ratios(MEMORY_RATIOS, peak),
    }


def _ratios(wanted: dict[str, tuple[str, str]], values: dict[str, Any]) -> dict[str, float]:
    return {
        name: values[above] / values[below]
        for name, (above, below) in wanted.items()
        if values.get(above) and values.get(below)
    }


def average(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of each ratio over the backbones."""
    return {name: statistics.fmean(row["ratios"][name] for row in rows) for name in rows[0]["ratios"]}


def _tables(report: dict[str, Any]) -> list[Table]:
    variants = report["variants"]
    shown = list(report["mean_ratios"])
    columns = ["backbone", *(f"{name} ms" for name in variants), *(f"{name} MiB" for name in variants)]
    rows: list[list[Any]] = []
    for row in report["rows"]:
        times = [harness.milliseconds(row["seconds"][name]) for name in variants]
        memory = [harness.mebibytes(row["peak_bytes"][name]) for name in variants]
        rows.append([row["backbone"], *times, *memory])
    title = f"a step of {report['batch']} images of {report['image_size']}×{report['image_size']}, medians"
    every = [*report["rows"], {"backbone": "mean", "ratios": report["mean_ratios"]}]
    lines = [[row["backbone"], *(f"{row['ratios'][name]:.2f}" for name in shown)] for row in every]
    return [
        harness.table(title, columns, rows),
        harness.table("ratios", ["backbone", *shown], lines),
    ]


@click.command(help=__doc__)
@click.option("--backbone", multiple=True, help="NAME[:key=value,...]; repeatable. [default: the five small]")
@click.option("--imagenet", is_flag=True, help="Four networks of torchvision, 224 pixels, 20 images.")
@click.option("--image-size", type=int, help="Pixels. [default: 32]")
@click.option("--batch", type=int, help="Images. [default: 50]")
@click.option("--classes", type=int, default=10, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--compile/--no-compile", "compiled", default=None, help="[default: where the engine can]")
@click.option(
    "--by-class", type=click.FloatRange(0, 1), help="Also steps with this share of the terms by class."
)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", help="Of ours.")
@harness.clock_option
@harness.device_option
@harness.json_option
def main(
    backbone: tuple[str, ...],
    imagenet: bool,
    image_size: int | None,
    batch: int | None,
    classes: int,
    rounds: int,
    compiled: bool | None,
    by_class: float | None,
    precision: Precision,
    clock: str,
    device: str,
    as_json: bool,
) -> None:
    """Compare the variants on each backbone."""
    place = choose_device(device)
    backbones = backbone or (harness.IMAGENET_BACKBONES if imagenet else harness.CIFAR_BACKBONES)
    image_size, batch = image_size or (224 if imagenet else 32), batch or (20 if imagenet else 50)
    compiled = can_compile(place) if compiled is None else compiled
    wanted = [*VARIANTS, *(BY_CLASS if by_class else {})]
    variants = [name for name in wanted if compiled or not name.endswith("compiled")]
    rows = []
    for name in backbones:
        setting = Setting.make(name, image_size, batch, classes, device=place)
        setting.by_class = by_class or 0.0
        rows.append({"backbone": name, **measure(setting, variants, rounds, clock, precision)})
        torch._dynamo.reset()  # or the graphs of all backbones stay in memory
    report = {
        "benchmark": "step",
        "image_size": image_size,
        "batch": batch,
        "rounds": rounds,
        "clock": clock,
        "precision": precision,
        "variants": variants,
        "rows": rows,
        "mean_ratios": average(rows),
        "machine": harness.machine(place),
    }
    harness.show(report, _tables(report), as_json)


if __name__ == "__main__":
    main()
