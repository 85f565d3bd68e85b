"""Evaluate: train students from scratch on the condensed set and its baselines, test on real images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gvbsm.distilled import LabelBlocks
from gvbsm.training import Batch, Loss, fit, fit_real, sgd, top1
from gvbsm.units import Payload, Unit, seed_of
from gvbsm.workspace import Workspace
from gvbsm_registry.artifacts import read

STAGE = "evaluate"


def units(workspace: Workspace, images: dict[str, Unit], labels: dict[str, list[Unit]]) -> list[Unit]:
    """Plan one unit for each (set, kind of labels, student, seed).

    images, labels: the units that make each set's images and soft labels, by set.
    """
    recipe = workspace.recipe
    section = recipe.evaluation
    trained = [("distilled", "soft"), ("random", "hard"), ("random", "soft")]
    trained += [("distilled", "hard")] if section.distilled_hard else []
    trained += [("full", "hard")] if section.full else []
    options = recipe.model_dump(mode="json", include={"evaluation", "pretrain", "relabel"})
    for name in ("students", "seeds", "distilled_hard", "full"):
        options["evaluation"].pop(name)
    planned = []
    for which, kind in trained:
        for student in section.students:
            for seed in section.seeds:
                inputs = [images[which].key] if which in images else []
                inputs += [unit.key for unit in labels[which]] if kind == "soft" else []
                depends = {
                    "options": options["pretrain"] if which == "full" else options,
                    "data": workspace.data_key,
                    "inputs": inputs,
                    "set": which,
                    "labels": kind,
                    "student": student.table(),
                    "seed": seed,
                }
                arguments = {"student": student, "images": images.get(which)}
                place = workspace.out / "units" / STAGE
                name = f"{which}/{kind} {student.title} seed {seed}"
                planned.append(Unit(STAGE, name, "accuracy", place, depends, train_student, arguments))
    return planned


def train_student(workspace: Workspace, unit: Unit) -> Payload:
    """Train and test one student; the artifact's meta holds one record of results.json."""
    student = unit.arguments["student"]
    seed, which = unit.depends["seed"], unit.depends["set"]
    torch.manual_seed(seed_of("student", seed))  # the same start for every set that a seed is trained on
    module = workspace.build(student)
    generator = torch.Generator().manual_seed(seed_of("order", seed))
    curve: list[tuple[int, float]] = []
    if which == "full":
        fit_real(workspace, module, generator, _progress(workspace, unit))
        curve.append((workspace.recipe.pretrain.epochs, top1(workspace, module)))
    else:
        _train_on_set(workspace, unit, module, generator, curve)
    record = _record(workspace, unit, curve)
    tensors = {"epochs": torch.tensor([e for e, _ in curve]), "top1": torch.tensor([a for _, a in curve])}
    return tensors, {"classes": list(workspace.classes), "record": record, "summary": {"top1": curve[-1][1]}}


def _progress(workspace: Workspace, unit: Unit) -> Callable[[int, int], None]:
    return lambda done, total: workspace.reporter.progress(f"evaluate {unit.name}", done, total)


def _train_on_set(
    workspace: Workspace,
    unit: Unit,
    module: nn.Module,
    generator: torch.Generator,
    curve: list[tuple[int, float]],
) -> None:
    section = workspace.recipe.evaluation
    progress = _progress(workspace, unit)

    def after(epoch: int, loss: float) -> None:
        done = epoch + 1
        if done % section.test_every == 0 or done == section.epochs:
            curve.append((done, top1(workspace, module)))
        progress(done, section.epochs)

    if section.optimizer == "sgd":
        optimizer = sgd(module, section)
    else:
        optimizer = torch.optim.AdamW(
            module.parameters(), section.learning_rate, weight_decay=section.weight_decay
        )
    batches = _batches(workspace, unit, generator)
    fit(module, optimizer, section.schedule, section.epochs, batches, after)


def _batches(
    workspace: Workspace, unit: Unit, generator: torch.Generator
) -> Callable[[int], Iterable[Batch]]:
    """Return the batches of an epoch: replayed views with soft labels, or cropped, flipped real labels."""
    recipe = workspace.recipe
    path = unit.arguments["images"].path
    artifact = read(path, "distilled")
    workspace.check(artifact, str(path))
    images, labels = workspace.normalize(artifact.tensors["images"]), artifact.tensors["labels"]
    blocks = LabelBlocks(path.parent, artifact.key)
    classes, side = len(workspace.classes), images.shape[-1]
    device = workspace.device

    def soft(epoch: int) -> Iterable[Batch]:
        labelled = blocks.epoch(epoch)
        for index in _lots(torch.randperm(len(labels), generator=generator), recipe.evaluation.batch):
            truth = labelled.views.truth(labels, index, classes, side)
            loss = _soft_loss(
                recipe.evaluation.objective, labelled.logits[index].to(device), truth.to(device)
            )
            yield labelled.views.apply(images, index), loss

    def hard(epoch: int) -> Iterable[Batch]:
        for index in _lots(torch.randperm(len(labels), generator=generator), recipe.evaluation.batch):
            view = recipe.relabel.augmentation.draw(len(index), side, generator)
            yield view.apply(images[index]), _hard_loss(labels[index].to(device))

    return soft if unit.depends["labels"] == "soft" else hard


def _lots(order: Tensor, size: int) -> Iterable[Tensor]:
    """Split `order` into lots of `size`; a lone last image joins the lot before (BatchNorm needs two)."""
    lots = list(order.split(size))
    if len(lots) > 1 and len(lots[-1]) == 1:
        lots[-2:] = [torch.cat(lots[-2:])]
    return lots


def _soft_loss(objective: Any, logits: Tensor, truth: Tensor) -> Loss:
    return lambda output: objective.loss(output, logits, truth)


def _hard_loss(labels: Tensor) -> Loss:
    return lambda output: cross_entropy(output, labels)


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
        "ipc": None if full else recipe.synthesis.ipc,
        "student": unit.arguments["student"].title,
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
    return len(train) * train.channels * train.side**2
