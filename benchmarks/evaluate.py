"""An epoch of a student on replayed views against one on ready tensors: python -m benchmarks.evaluate.

Replayed: the evaluate stage reads a label block, makes the epoch's views (crops, flips, CutMix) and the class
mixture, and trains. Ready: the same student, optimiser and loss on the same tensors, made beforehand.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import harness
from gvbsm.distilled.dataset import LabelBlocks
from gvbsm.estimate.trial import FakeData, Trial
from gvbsm.recipe import loading
from gvbsm.recipe.text import parse_component
from gvbsm.runtime.units import Unit, perform
from gvbsm.runtime.workspace import Workspace
from gvbsm.stages import evaluate, relabel
from gvbsm.stages.training import Batch, fit
from gvbsm_registry import discover
from gvbsm_registry.artifacts import read

SETS = ("distilled", "soft")


def ready_batches(workspace: Workspace, images: Unit) -> list[Batch]:
    """Make one epoch's views, and the losses on them, beforehand."""
    artifact = read(images.path, "distilled")
    pixels, labels = workspace.normalize(artifact.tensors["images"]), artifact.tensors["labels"]
    labelled = LabelBlocks(images.path.parent, artifact.key).epoch(0)
    objective, classes = workspace.recipe.evaluation.objective, len(workspace.classes)

    def loss_on(logits: torch.Tensor, truth: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda output: objective.loss(output, logits, truth)

    found: list[Batch] = []
    for index in torch.randperm(len(labels)).split(workspace.recipe.evaluation.batch):
        truth = labelled.views.truth(labels, index, classes, pixels.shape[-1])
        logits = labelled.logits[index].to(workspace.device)
        found.append((labelled.views.apply(pixels, index), loss_on(logits, truth.to(workspace.device))))
    return found


def ready(workspace: Workspace, unit: Unit) -> Callable[[], None]:
    """Return the training of the unit's student on ready tensors."""
    section = workspace.recipe.evaluation
    batches = ready_batches(workspace, unit.arguments["images"])

    def epoch(number: int) -> Iterable[Batch]:
        return batches

    def work() -> None:
        module = workspace.build(unit.arguments["student"])
        rate, decay = section.learning_rate, section.weight_decay
        optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=decay)
        fit(module, optimizer, section.schedule, section.epochs, epoch, lambda number, loss: None)

    return work


def compare(trial: Trial, count: int, rounds: int, clock: str) -> list[dict[str, Any]]:
    """Return seconds of `recipe.evaluation.epochs` epochs on `count` images, and their ratio, by student."""
    device = trial.whole.device
    workspace = trial.workspace(images=count)
    pictures = trial.pictures("distilled", count)
    labels = relabel.units(workspace, pictures, trial.backbones())
    for unit in labels:
        perform(workspace, unit)
    images = {"distilled": pictures, "random": pictures}
    planned = evaluate.units(workspace, images, {"distilled": labels, "random": labels})
    rows = []
    for unit in planned:
        if (unit.depends["set"], unit.depends["labels"]) != SETS:
            continue
        variants: dict[str, Callable[[], Any]] = {
            "ready": ready(workspace, unit),
            "replayed": lambda unit=unit: unit.work(workspace, unit),  # type: ignore[misc]
        }
        seconds = harness.medians(harness.interleave(variants, rounds, device, 1, clock))
        peak = {name: harness.peak_extra(work, device) for name, work in variants.items()}
        ratio = seconds["replayed"] / seconds["ready"]
        title = unit.arguments["student"].full_name
        rows.append({"student": title, "seconds": seconds, "peak_bytes": peak, "ratio": ratio})
    return rows


@click.command(help=__doc__)
@click.option("--student", multiple=True, help="NAME[:key=value,...]; repeatable. [default: convnet]")
@click.option("--image-size", default=32, show_default=True)
@click.option("--batch", default=50, show_default=True)
@click.option("--images", default=200, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@harness.clock_option
@harness.device_option
@harness.json_option
def main(
    student: tuple[str, ...],
    image_size: int,
    batch: int,
    images: int,
    epochs: int,
    rounds: int,
    clock: str,
    device: str,
    as_json: bool,
) -> None:
    """Compare both with each student."""
    place, registry = harness.choose_device(device), discover()
    tables = {
        "backbones": [{"use": "convnet", "width": 8}],
        "relabel": {"epochs": epochs, "epochs_per_file": epochs},
        "evaluation": {
            "students": [parse_component(name) for name in student or ("convnet",)],
            "epochs": epochs,
            "batch": batch,
            "test_every": epochs,
        },
    }
    made = loading.make(tables, registry, where="the benchmark")
    data = FakeData.like(images=images, tests=2, classes=10, image_size=image_size, channels=3)
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(made.model_copy(update={"data": data}), registry, place, Path(folder))
        rows = compare(trial, images, rounds, clock)
    report = {
        "benchmark": "evaluate",
        "image_size": image_size,
        "batch": batch,
        "images": images,
        "epochs": epochs,
        "rounds": rounds,
        "clock": clock,
        "rows": rows,
        "mean_ratio": statistics.fmean(row["ratio"] for row in rows),
        "machine": harness.machine(place),
    }
    title = f"{epochs} epochs of {images} images of {image_size}×{image_size}, batch {batch}, medians"
    harness.show(report, [harness.pairs(title, "student", ("ready", "replayed"), rows)], as_json)


if __name__ == "__main__":
    main()
