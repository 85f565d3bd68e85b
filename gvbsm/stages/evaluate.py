"""Evaluate: train students from scratch on the condensed set and its baselines, test on real images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from gvbsm.distilled.dataset import DistilledDataset
from gvbsm.recipe.schema import Evaluation, Pretrain
from gvbsm.runtime import distributed
from gvbsm.runtime.asking import built_optimizer, student_loss
from gvbsm.runtime.context import Context
from gvbsm.runtime.data import check_classes
from gvbsm.runtime.seeds import generator_of, seed_of
from gvbsm.runtime.units import Payload, Unit
from gvbsm.stages.training import (
    AveragedWeights,
    Batch,
    Loss,
    accuracy,
    batches_of,
    diverging,
    fit,
    fit_real,
    hard_loss,
    own_view,
    split_batches,
    test,
)
from gvbsm_registry import Augmentation, Backbone, GvbsmError, Objective

TRAINING_KEYS = (
    "students",
    "seeds",
    "soft",
    "distilled_hard",
    "full_baseline",
    "without_augmentation",
    "random_baseline",
)
"""Keys that say which trainings there are, and not how one is done."""
HARD_ALONE = "evaluation.soft is false: students see hard labels alone"


def trainings(section: Evaluation) -> list[tuple[str, str, bool]]:
    """Return what every student is trained on: (set, kind of labels, whether with augmentation)."""
    soft, random = section.soft, section.random_baseline
    planned = [("distilled", "soft", True)] if soft else []
    planned += [("random", "hard", True)] if random else []
    planned += [("random", "soft", True)] if random and soft else []
    planned += [("distilled", "hard", True)] if section.distilled_hard or not soft else []
    if section.without_augmentation:
        planned += [("distilled", "hard", False)]
        planned += [("random", "hard", False)] if section.random_baseline else []
    planned += [("full", "hard", True)] if section.full_baseline else []
    return planned


def train_student(context: Context, unit: Unit) -> Payload:
    """Train and test one student; the artifact's meta holds one record of results.json.

    Tensors: epochs int64 [T] and top1 float32 [T], the T tests; confusion int64 [M, 3], of the last test:
    (true class, predicted class, how many images) where there are any.
    """
    student, seed = context.create(Backbone, unit.options["student"]), unit.options["student_seed"]
    torch.manual_seed(seed_of("student", seed))  # the same start for every set that a seed is trained on
    module = context.build(student)
    order = generator_of("order", seed)
    dataset = None if unit.options["set"] == "full" else open_set(context, unit)
    with diverging(unit, "evaluation" if dataset else "pretrain"):
        curve, predicted, labels = (
            _train_on_all(context, unit, module, order)
            if dataset is None
            else _train_on_set(context, unit, dataset, module, order)
        )
    cells, per_class = confusion(predicted, labels, len(context.data.classes))
    record = {**_record(context, unit, dataset, student, curve), "per_class": per_class}
    tensors = {
        "epochs": torch.tensor([epoch for epoch, _ in curve]),
        "top1": torch.tensor([reached for _, reached in curve]),
        "confusion": cells,
    }
    meta = {"classes": list(context.data.classes), "record": record, "summary": {"top1": curve[-1][1]}}
    return tensors, meta


def open_set(context: Context, unit: Unit) -> DistilledDataset:
    """Open the set that a student is trained on; raises GvbsmError unless it is the planned one.

    Another run may have put another set in its place: a student of it would be recorded as one of this.
    """
    images, labels = unit.input("images"), unit.input_list("labels")
    opened = DistilledDataset(images.path.parent, context.registry)
    check_classes(opened.classes, context.data.classes, str(images.path))
    if opened.key != images.key or (labels and opened.label_keys != [block.key for block in labels]):
        raise GvbsmError(
            f"{images.path.parent}: holds other images or labels than this run made; is another run at work "
            "there? Let it end, and run again"
        )
    return opened


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, list[float | None]]:
    """Return the confusion matrix's cells that are not 0, and each class's Top-1, None where it has no image.

    Cells: int64 [M, 3], (true class, predicted class, how many).
    """
    counts = confusion_matrix(labels, predicted, labels=range(classes))
    cells, sizes = counts.nonzero(), counts.sum(1)
    per_class = [
        float(hits / size) if size else None for hits, size in zip(counts.diagonal(), sizes, strict=True)
    ]
    return torch.from_numpy(np.stack([*cells, counts[cells]], 1)), per_class


Tested = tuple[list[tuple[int, float]], Tensor, Tensor]
"""The tests' (epoch, accuracy), and the last one's predictions and labels, int64 [N]."""


def _train_on_all(context: Context, unit: Unit, module: nn.Module, generator: torch.Generator) -> Tested:
    """Train on the whole data set, as backbones are."""
    section = context.section(Pretrain, unit.options["protocol"])
    fit_real(context, section, module, generator, _progress(context, unit))
    predicted, labels = test(context, module)
    return [(section.epochs, accuracy(predicted, labels))], predicted, labels


def _progress(context: Context, unit: Unit) -> Callable[[int, int], None]:
    return lambda done, total: context.reporter.progress(f"evaluation {unit.name}", done, total)


def _train_on_set(
    context: Context, unit: Unit, dataset: DistilledDataset, module: nn.Module, generator: torch.Generator
) -> Tested:
    """Train on a small set: on replayed views with soft labels, or on fresh ones with true labels."""
    section = context.section(Evaluation, unit.options["protocol"])
    progress = _progress(context, unit)
    curve: list[tuple[int, float]] = []
    last: list[tuple[Tensor, Tensor]] = []

    averaged = AveragedWeights(module, section.ema) if section.ema else None

    def on_step() -> None:
        if averaged:
            averaged.update()

    def after(epoch: int, loss: float) -> None:
        done = epoch + 1
        if done % section.test_every == 0 or done == section.epochs:
            last[:] = [test(context, averaged.module() if averaged else module)]
            curve.append((done, accuracy(*last[0])))
        progress(done, section.epochs)

    optimizer = built_optimizer(section.optimizer, module.parameters(), section.learning_rate)
    make = _soft_batches if unit.options["labels"] == "soft" else _hard_batches
    batches = make(context, unit, dataset, section, generator)
    steps = batches_of(len(dataset), section.batch)
    fit(module, optimizer, section.schedule, section.epochs, steps, batches, after, on_step)
    return curve, *last[0]


def _soft_batches(
    context: Context,
    unit: Unit,
    dataset: DistilledDataset,
    section: Evaluation,
    generator: torch.Generator,
) -> Callable[[int], Iterable[Batch]]:
    draws = _epochs(dataset, section.batch, generator)

    def batches(epoch: int) -> Iterable[Batch]:
        drawn = next(draws)
        parts = [distributed.local_shard(batch) for batch in drawn]
        pooled = dataset.pool is not None
        labelled = (
            dataset.pooled(parts, context.device)
            if pooled
            else dataset.labelled(epoch, parts, context.device)
        )
        for batch, (views, logits, truth) in zip(drawn, labelled, strict=True):
            yield views, _soft_loss(section.objective, logits, truth, len(batch))

    return batches


def _epochs(dataset: DistilledDataset, size: int, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """Yield the batches of each epoch: of the images' views, or where labels are a pool, drawn from that."""
    pool = dataset.pool
    if pool is None:
        while True:
            yield split_batches(torch.randperm(len(dataset), generator=generator), size)
    if pool.pruning == "batches":
        stream, steps = pool.draw_batches(generator), batches_of(len(dataset), size)
        while True:
            yield list(islice(stream, steps))
    for order in pool.draw_epochs(generator):
        yield split_batches(order, size)


def _soft_loss(objective: Objective, logits: Tensor, truth: Tensor, batch: int) -> Loss:
    weight = distributed.shard_weight(len(logits), batch)
    return lambda output: student_loss(objective, output, logits, truth) * weight


def _hard_batches(
    context: Context,
    unit: Unit,
    dataset: DistilledDataset,
    section: Evaluation,
    generator: torch.Generator,
) -> Callable[[int], Iterable[Batch]]:
    images, labels = dataset.lazily_normalized(context.device), dataset.labels
    table = unit.options["augmentation"]
    augmentation = None if table is None else context.create(Augmentation, table)

    def batches(epoch: int) -> Iterable[Batch]:
        drawn = split_batches(torch.randperm(len(labels), generator=generator), section.batch)
        for step, batch in enumerate(drawn):
            index = distributed.local_shard(batch)
            seen = images[index]
            if augmentation is not None:
                share = (epoch + step / len(drawn)) / section.epochs
                view = own_view(augmentation, len(batch), images.shape[-1], generator, share)
                seen = view.apply(seen)
            yield seen, hard_loss(labels[index].to(context.device), len(batch))

    return batches


def _record(
    context: Context,
    unit: Unit,
    dataset: DistilledDataset | None,
    student: Backbone,
    curve: list[tuple[int, float]],
) -> dict[str, Any]:
    """Return one record of results.json: accuracies as fractions, bytes, and the protocol."""
    options, train = unit.options, context.data.train
    if dataset is None:
        ipc, image_bytes, label_bytes = (
            None,
            len(train) * train.channels * train.image_size**2,
            8 * len(train),
        )
    else:
        ipc, image_bytes = dataset.meta["ipc"], unit.input("images").path.stat().st_size
        label_bytes = dataset.label_bytes if options["labels"] == "soft" else 8 * len(dataset)
    return {
        "set": options["set"],
        "labels": options["labels"],
        "augmented": options.get("augmentation", "as always") is not None,
        "ipc": ipc,
        "student": student.full_name,
        "student_options": options["student"],
        "seed": options["student_seed"],
        "top1": curve[-1][1],
        "best_top1": max(reached for _, reached in curve),
        "epochs": curve[-1][0],
        "image_bytes": image_bytes,
        "label_bytes": label_bytes,
        "protocol": options["protocol"],
    }
