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
from gvbsm.estimate.trial import FakeData, Trial
from gvbsm.recipe import loading
from gvbsm.recipe.text import parse_component
from gvbsm.runtime.units import Unit
from gvbsm.runtime.workspace import Workspace
from gvbsm.stages import measure, pretrain
from gvbsm_registry import discover


def inference(workspace: Workspace, backbone: Unit, seed: int) -> Callable[[], None]:
    """Return a plain pass over the training split."""
    section = workspace.recipe.measure
    train = workspace.train

    @torch.no_grad()
    def work() -> None:
        module = pretrain.load(workspace, backbone)
        generator = torch.Generator().manual_seed(seed)
        lots = torch.randperm(len(train), generator=generator).split(section.batch)
        for images, _ in workspace.batches(train, lots):
            view = section.augmentation.draw(len(images), train.image_size, generator)
            module(view.apply(images))

    return work


def compare(trial: Trial, images: int, rounds: int, clock: str) -> list[dict[str, Any]]:
    """Return seconds, peak bytes and the ratio by backbone of the trial's recipe."""
    device = trial.whole.device
    workspace = trial.workspace(images=images)
    rows = []
    backbones = trial.backbones()
    for backbone, unit in zip(backbones, measure.units(workspace, backbones), strict=True):
        variants: dict[str, Callable[[], Any]] = {
            "inference": inference(workspace, backbone, unit.seed),
            "measure": lambda unit=unit: unit.work(workspace, unit),  # type: ignore[misc]
        }
        seconds = harness.medians(harness.interleave(variants, rounds, device, 1, clock))
        peak = {name: harness.peak_extra(work, device) for name, work in variants.items()}
        ratio = seconds["measure"] / seconds["inference"]
        rows.append({"backbone": backbone.name, "seconds": seconds, "peak_bytes": peak, "ratio": ratio})
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
    place, registry = harness.choose_device(device), discover()
    chosen = [parse_component(name) for name in backbone or harness.CIFAR_BACKBONES]
    tables = {"backbones": chosen, "measure": {"batch": batch}}
    made = loading.make(tables, registry, where="the benchmark")
    data = FakeData.like(images=images, tests=10, classes=10, image_size=image_size, channels=3)
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(made.model_copy(update={"data": data}), registry, place, Path(folder))
        rows = compare(trial, images, rounds, clock)
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
