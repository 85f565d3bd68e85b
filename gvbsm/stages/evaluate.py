"""Evaluate: train students from scratch on the condensed set and its baselines, test on real images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gvbsm.distilled.dataset import LabelBlocks
from gvbsm.distilled.normalized import Normalized
from gvbsm.recipe.schema import Evaluation
from gvbsm.results.records import labels_of, student_names
from gvbsm.runtime import distributed as parallel
from gvbsm.runtime.units import Payload, Unit, seed_of
from gvbsm.runtime.workspace import Workspace
from gvbsm.stages.training import (
    Batch,
    Loss,
    accuracy,
    fit,
    fit_real,
    hard_loss,
    own_view,
    sgd,
    split_batches,
    test,
)
from gvbsm_registry.artifacts import read

STAGE = "evaluate"


def units(workspace: Workspace, images: dict[str, Unit], labels: dict[str, list[Unit]]) -> list[Unit]:
    """Plan one unit for each (set, kind of labels, augmented or not, student, seed).

    images, labels: the units that make each set's images and soft labels, by set.
    """
    recipe = workspace.recipe
    section = recipe.evaluation
    options = recipe.model_dump(mode="json", include={"evaluation", "pretrain", "relabel"})
    for name in (
        "students",
        "seeds",
        "distilled_hard",
        "full_baseline",
        "without_augmentation",
        "random_baseline",
    ):
        options["evaluation"].pop(name)
    planned = []
    names = student_names([student.to_recipe() for student in section.students])
    for which, kind, augmented in trainings(section):
        for student, student_name in zip(section.students, names, strict=True):
            for seed in section.seeds:
                inputs = [images[which].key] if which in images else []
                inputs += [unit.key for unit in labels[which]] if kind == "soft" else []
                depends = {
                    "options": options["pretrain"] if which == "full" else options,
                    "data": workspace.data_key,
                    "inputs": inputs,
                    "set": which,
                    "labels": kind,
                    "student": student.to_recipe(),
                    "seed": seed,
                }
                if not augmented:
                    depends["augmented"] = False
                arguments = {
                    "student": student,
                    "images": images.get(which),
                    "labels": labels[which] if kind == "soft" else [],
                }
                place = workspace.out / "units" / STAGE
                labels_name = labels_of({"labels": kind, "augmented": augmented})
                name = f"{which}/{labels_name} {student_name} seed {seed}"
                planned.append(
                    Unit(STAGE, name, "accuracy", place, depends, train_student, arguments, shared=True)
                )
    return planned


def trainings(section: Evaluation) -> list[tuple[str, str, bool]]:
    """Return what every student is trained on: (set, kind of labels, whether with augmentation)."""
    found = [("distilled", "soft", True)]
    found += [("random", "hard", True), ("random", "soft", True)] if section.random_baseline else []
    found += [("distilled", "hard", True)] if section.distilled_hard else []
    found += [("distilled", "hard", False)] if section.without_augmentation else []
    found += [("random", "hard", False)] if section.without_augmentation and section.random_baseline else []
    found += [("full", "hard", True)] if section.full_baseline else []
    return found


def train_student(workspace: Workspace, unit: Unit) -> Payload:
    """Train and test one student; the artifact's meta holds one record of results.json.

    Tensors: epochs int64 [T] and top1 float32 [T], the T tests; confusion int64 [M, 3], of the last test:
    (true class, predicted class, how many images) where there are any.
    """
    student = unit.arguments["student"]
    seed, which = unit.depends["seed"], unit.depends["set"]
    torch.manual_seed(seed_of("student", seed))  # the same start for every set that a seed is trained on
    module = workspace.build(student)
    generator = torch.Generator().manual_seed(seed_of("order", seed))
    curve: list[tuple[int, float]] = []
    if which == "full":
        fit_real(workspace, module, generator, _progress(workspace, unit))
        predicted, labels = test(workspace, module)
        curve.append((workspace.recipe.pretrain.epochs, accuracy(predicted, labels)))
    else:
        predicted, labels = _train_on_set(workspace, unit, module, generator, curve)
    record = _record(workspace, unit, curve)
    record["per_class"] = per_class(predicted, labels, len(workspace.classes))
    tensors = {
        "epochs": torch.tensor([e for e, _ in curve]),
        "top1": torch.tensor([a for _, a in curve]),
        "confusion": confusion(predicted, labels),
    }
    return tensors, {"classes": list(workspace.classes), "record": record, "summary": {"top1": curve[-1][1]}}


def per_class(predicted: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """Return each class's share of rightly classified test images, 0 to 1; None where it has no image."""
    counts = torch.bincount(labels, minlength=classes).tolist()
    right = torch.bincount(labels[predicted == labels], minlength=classes).tolist()
    return [hits / count if count else None for hits, count in zip(right, counts, strict=True)]


def confusion(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return the confusion matrix's non-zero cells, int64 [M, 3]: (true class, predicted class, count)."""
    cells, counts = torch.stack([labels, predicted], 1).unique(dim=0, return_counts=True)
    return torch.cat([cells, counts[:, None]], 1)


def _progress(workspace: Workspace, unit: Unit) -> Callable[[int, int], None]:
    return lambda done, total: workspace.reporter.progress(f"evaluate {unit.name}", done, total)


def _train_on_set(
    workspace: Workspace,
    unit: Unit,
    module: nn.Module,
    generator: torch.Generator,
    curve: list[tuple[int, float]],
) -> tuple[Tensor, Tensor]:
    """Train `module` in place, add the tests to `curve`, and return the last one's predictions and labels."""
    section = workspace.recipe.evaluation
    progress = _progress(workspace, unit)
    last: list[tuple[Tensor, Tensor]] = []

    def after(epoch: int, loss: float) -> None:
        done = epoch + 1
        if done % section.test_every == 0 or done == section.epochs:
            last[:] = [test(workspace, module)]
            curve.append((done, accuracy(*last[0])))
        progress(done, section.epochs)

    if section.optimizer == "sgd":
        optimizer = sgd(module, section)
    else:
        optimizer = torch.optim.AdamW(
            module.parameters(), section.learning_rate, weight_decay=section.weight_decay
        )
    batches = _batches(workspace, unit, generator)
    fit(module, optimizer, section.schedule, section.epochs, batches, after)
    return last[0]


def _batches(
    workspace: Workspace, unit: Unit, generator: torch.Generator
) -> Callable[[int], Iterable[Batch]]:
    """Return the batches of an epoch: replayed views with soft labels, or cropped, flipped real labels."""
    recipe = workspace.recipe
    path = unit.arguments["images"].path
    artifact = read(path, "distilled")
    workspace.check(artifact, str(path))
    images = Normalized(artifact.tensors["images"], workspace.normalize)
    labels = artifact.tensors["labels"]
    blocks = LabelBlocks(path.parent, artifact.key)
    classes, image_size = len(workspace.classes), images.shape[-1]
    device = workspace.device

    def soft(epoch: int) -> Iterable[Batch]:
        labelled = blocks.epoch(epoch)
        for lot in split_batches(torch.randperm(len(labels), generator=generator), recipe.evaluation.batch):
            index = parallel.mine(lot)
            truth = labelled.views.truth(labels, index, classes, image_size)
            logits = labelled.logits[index].to(device)
            loss = _soft_loss(recipe.evaluation.objective, logits, truth.to(device), len(lot))
            yield labelled.views.apply(images, index), loss

    def hard(epoch: int) -> Iterable[Batch]:
        for lot in split_batches(torch.randperm(len(labels), generator=generator), recipe.evaluation.batch):
            index = parallel.mine(lot)
            seen = images[index]
            if unit.depends.get("augmented", True):
                seen = own_view(recipe.relabel.augmentation, len(lot), image_size, generator).apply(seen)
            yield seen, hard_loss(labels[index].to(device), len(lot))

    return soft if unit.depends["labels"] == "soft" else hard


def _soft_loss(objective: Any, logits: Tensor, truth: Tensor, whole: int) -> Loss:
    return lambda output: objective.loss(output, logits, truth) * parallel.share(len(logits), whole)


def _record(workspace: Workspace, unit: Unit, curve: list[tuple[int, float]]) -> dict[str, Any]:
    """Return one record of results.json: accuracies as fractions, bytes, and the protocol."""
    recipe = workspace.recipe
    which, kind = unit.depends["set"], unit.depends["labels"]
    full = which == "full"
    images = unit.arguments["images"]
    size = images.path.stat().st_size if images else _bytes_of_real(workspace)
    labels = LabelBlocks(images.path.parent, images.key).bytes if kind == "soft" else 8 * len(workspace.train)
    if kind == "hard" and not full:
        labels = 8 * recipe.synthesis.ipc * len(workspace.classes)
    return {
        "set": which,
        "labels": kind,
        "augmented": unit.depends.get("augmented", True),
        "ipc": None if full else recipe.synthesis.ipc,
        "student": unit.arguments["student"].full_name,
        "student_options": unit.arguments["student"].to_recipe(),
        "seed": unit.depends["seed"],
        "top1": curve[-1][1],
        "best_top1": max(accuracy for _, accuracy in curve),
        "epochs": curve[-1][0],
        "image_bytes": size,
        "label_bytes": labels,
        "protocol": unit.depends["options"],
    }


def _bytes_of_real(workspace: Workspace) -> int:
    train = workspace.train
    return len(train) * train.channels * train.image_size**2
