"""Measuring a data set against plain inference over the same loader: python -m benchmarks.measure.

The data are noise, the networks untrained; both variants crop and flip every image alike.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import harness
from gvbsm.estimate.fake_data import FakeData
from gvbsm.estimate.trial import Trial
from gvbsm.recipe import loading
from gvbsm.recipe.text import parse_component
from gvbsm.runtime.data import open_data
from gvbsm.runtime.environment import choose_device
from gvbsm.runtime.units import Unit
from gvbsm.stages.pretrain import load_backbone
from gvbsm_registry import discover


def inference(trial: Trial, backbone: Unit) -> Callable[[], None]:
    """Return a plain pass over the training split."""
    section, context = trial.recipe.measure, trial.context
    train = context.data.train

    @torch.no_grad()
    def work() -> None:
        module = load_backbone(context, backbone)
        generator = torch.Generator().manual_seed(0)
        batches = torch.randperm(len(train), generator=generator).split(section.batch)
        for images, _ in context.batches(train, batches):
            view = section.augmentation.draw(len(images), train.image_size, generator)
            module(view.apply(images))

    return work


def compare(trial: Trial, rounds: int, clock: str) -> list[dict[str, Any]]:
    """Return seconds, peak bytes and the ratio by backbone of the trial's recipe."""
    context = trial.context
    trial.make_untrained()
    rows = []
    for unit in trial.plan.statistics:
        variants: dict[str, Callable[[], Any]] = {
            "inference": inference(trial, unit.input("backbone")),
            "measure": lambda unit=unit: unit.work(context, unit),  # type: ignore[misc]
        }
        seconds = harness.medians(harness.interleave(variants, rounds, context.device, 1, clock))
        peak = {name: harness.peak_extra(work, context.device) for name, work in variants.items()}
        ratio = seconds["measure"] / seconds["inference"]
        rows.append({"backbone": unit.name, "seconds": seconds, "peak_bytes": peak, "ratio": ratio})
    return rows


@click.command(help=__doc__)
@click.option("--backbone", multiple=True, help="NAME[:key=value,...]; repeatable. [default: the five small]")
@click.option("--image-size", default=32, show_default=True)
@click.option("--batch", default=64, show_default=True)
@click.option("--images", default=1024, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@harness.clock_option
@harness.device_option
@harness.json_option
def main(
    backbone: tuple[str, ...],
    image_size: int,
    batch: int,
    images: int,
    rounds: int,
    clock: str,
    device: str,
    as_json: bool,
) -> None:
    """Compare both on each backbone."""
    place, registry = choose_device(device), discover()
    chosen = [parse_component(name) for name in backbone or harness.CIFAR_BACKBONES]
    tables = {"backbones": chosen, "measure": {"batch": batch}}
    made = loading.make(tables, registry, where="the benchmark")
    data = FakeData.like(images=images, tests=10, classes=10, image_size=image_size, channels=3)
    with tempfile.TemporaryDirectory() as folder:
        opened = open_data(data, Path(folder) / "data")
        trial = Trial(made, opened, registry, place, Path(folder), images)
        rows = compare(trial, rounds, clock)
    report = {
        "benchmark": "measure",
        "image_size": image_size,
        "batch": batch,
        "images": images,
        "rounds": rounds,
        "clock": clock,
        "rows": rows,
        "mean_ratio": statistics.fmean(row["ratio"] for row in rows),
        "machine": harness.machine(place),
    }
    title = f"measuring {images} images of {image_size}×{image_size}, batch {batch}, medians"
    harness.show(report, [harness.pairs(title, "backbone", ("inference", "measure"), rows)], as_json)


if __name__ == "__main__":
    main()
