"""An epoch of a student on replayed views against one on ready tensors: python -m benchmarks.evaluate.

Replayed: the evaluation stage reads a label block, makes the epoch's views (crops, flips, CutMix) and the
class mixture, and trains. Ready: the same student, optimiser and loss on the same tensors, made beforehand.
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
from gvbsm.distilled.dataset import DistilledDataset
from gvbsm.estimate.fake_data import FakeData
from gvbsm.estimate.trial import Trial
from gvbsm.recipe import loading
from gvbsm.recipe.text import parse_component
from gvbsm.runtime.data import open_data
from gvbsm.runtime.environment import choose_device
from gvbsm.stages.training import Batch, fit
from gvbsm_registry import Backbone, discover

SETS = ("distilled", "soft")


def ready_batches(trial: Trial) -> list[Batch]:
    """Make one epoch's views, and the losses on them, beforehand."""
    section = trial.recipe.evaluation
    dataset = DistilledDataset(trial.pictures.path.parent, trial.context.registry)
    parts = torch.randperm(len(dataset)).split(section.batch)

    def loss_on(logits: torch.Tensor, truth: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda output: section.objective.loss(output, logits, truth)

    labelled = dataset.labelled(0, parts, trial.context.device)
    return [(views, loss_on(logits, truth)) for views, logits, truth in labelled]


def ready(trial: Trial, student: Backbone) -> Callable[[], None]:
    """Return the training of a student on ready tensors."""
    section = trial.recipe.evaluation
    batches = ready_batches(trial)

    def epoch(number: int) -> Iterable[Batch]:
        return batches

    def work() -> None:
        module = trial.context.build(student)
        optimizer = section.optimizer.build(module.parameters(), section.learning_rate)
        fit(
            module,
            optimizer,
            section.schedule,
            section.epochs,
            len(batches),
            epoch,
            lambda number, loss: None,
        )

    return work


def compare(trial: Trial, rounds: int, clock: str) -> list[dict[str, Any]]:
    """Return seconds of `recipe.evaluation.epochs` epochs, and their ratio, by student."""
    context = trial.context
    trial.make([trial.pictures])
    trial.make_untrained()
    trial.make(trial.plan.labels["distilled"])
    rows = []
    for unit in trial.plan.students:
        if (unit.options["set"], unit.options["labels"]) != SETS:
            continue
        student = context.create(Backbone, unit.options["student"])
        variants: dict[str, Callable[[], Any]] = {
            "ready": ready(trial, student),
            "replayed": lambda unit=unit: unit.work(context, unit),  # type: ignore[misc]
        }
        seconds = harness.medians(harness.interleave(variants, rounds, context.device, 1, clock))
        peak = {name: harness.peak_extra(work, context.device) for name, work in variants.items()}
        ratio = seconds["replayed"] / seconds["ready"]
        rows.append({"student": student.full_name, "seconds": seconds, "peak_bytes": peak, "ratio": ratio})
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
    place, registry = choose_device(device), discover()
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
        opened = open_data(data, Path(folder) / "data")
        trial = Trial(made, opened, registry, place, Path(folder), images=10, pictures=images)
        rows = compare(trial, rounds, clock)
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
