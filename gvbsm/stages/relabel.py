"""Relabel: the ensemble of all teachers labels augmented views, epoch by epoch (Eq. 8, FKD)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gvbsm.distilled.dataset import LABELS
from gvbsm.distilled.labels import LAYOUT, pack
from gvbsm.distilled.normalized import LazyNormalizedImages, Normalization
from gvbsm.distilled.pool import chained
from gvbsm.distilled.views import EpochViews
from gvbsm.matching.frozen import use_batch_statistics
from gvbsm.recipe.fields import identities
from gvbsm.recipe.schema import Recipe, Relabel
from gvbsm.runtime.asking import combined, encoded
from gvbsm.runtime.context import Context
from gvbsm.runtime.seeds import generator_of
from gvbsm.runtime.units import Payload, Unit
from gvbsm.stages.label_views import draw_epoch, draw_pool, kept_epochs, pool_size
from gvbsm.stages.pretrain import load_backbone, member
from gvbsm.stages.training import batches_of
from gvbsm_registry import GvbsmError, Member, Registry
from gvbsm_registry.artifacts import peek


def plan_blocks(
    recipe: Recipe, registry: Registry, name: str, images: Unit, teachers: tuple[Unit, ...], classes: int
) -> list[Unit]:
    """Return one unit for each file of labels of the set called `name`; it lies beside the images.

    A file holds a block of epochs, or of batches where labels are a pool. Blocks that are there already keep
    their size, so that another `epochs_per_file` repeats no work.
    """
    section, ipc = recipe.relabel, recipe.synthesis.ipc
    by_epoch = section.pruning == "epochs"
    what = "epochs" if by_epoch else "batches"
    total = kept_epochs(section) if by_epoch else pool_size(section, ipc, classes)
    each = section.epochs_per_file * (1 if by_epoch else batches_of(ipc * classes, section.batch))

    def block(first: int, count: int) -> Unit:
        # a longer run keeps a shorter one's blocks
        without = ("epochs", "keep_fraction") if by_epoch else ()
        options = {
            "relabel": section.options("teachers", *without),
            "layout": LAYOUT,
            "set": name,
            "first": first,
            what: count,
            "seed": recipe.seed,
            "components": identities(registry, section.model_copy(update={"teachers": ()})),
        }
        path = images.path.with_name(LABELS.format(first))
        inputs: dict[str, Unit | tuple[Unit, ...]] = {"images": images, "teachers": teachers}
        work = label_epochs if by_epoch else label_pool
        called = f"{name} {first}-{first + count - 1}"
        return Unit("relabel", called, "labels", work, options, inputs, path)

    planned: list[Unit] = []
    first = 0
    while first < total:
        there = _count_there(images.path.with_name(LABELS.format(first)), what)
        if 0 < there <= total - first and (old := block(first, there)).done():
            planned.append(old)
        else:
            planned.append(block(first, min(each, total - first)))
        first += planned[-1].options[what]
    return planned


def _count_there(path: Path, what: str) -> int:
    """Return how many epochs or batches a label file says that it holds; 0 if there is no such file."""
    count = json.loads(peek(path)["meta"]).get(what) if path.exists() else 0
    return count if isinstance(count, int) else 0


def read_set(context: Context, images: Unit) -> tuple[LazyNormalizedImages, Tensor]:
    """Return the images that a unit has made, without their labels' files, and their classes, int64 [N].

    Raises GvbsmError if the unit did not make them, or not of the data set's classes.
    """
    artifact = images.read()
    context.data.check_classes(artifact, str(images.path))
    tensors, meta = artifact.tensors, artifact.meta
    normalization = Normalization(tuple(meta["mean"]), tuple(meta["std"]))
    return LazyNormalizedImages(tensors["images"], normalization, context.device), tensors["labels"]


def label_epochs(context: Context, unit: Unit) -> Payload:
    """Label a block of E epochs of N images; `gvbsm.distilled.labels.pack` says what the artifact holds.

    Raises GvbsmError if a logit is not finite.
    """
    options = unit.options
    section = context.section(Relabel, options["relabel"])
    images, _ = read_set(context, unit.input("images"))
    committee = _committee(context, unit, section)
    first, count = options["first"], options["epochs"]
    views: list[EpochViews] = []
    coded: list[dict[str, Tensor]] = []
    for epoch in range(first, first + count):
        # seeded by epoch, so that an epoch's labels do not depend on the size of the blocks
        generator = generator_of(options["seed"], "views", options["set"], epoch)
        drawn, groups = draw_epoch(section, len(images), images.shape[-1], generator)
        logits = label(section, images, committee, len(context.data.classes), drawn, groups)
        _check_finite(unit, logits, f"epoch {epoch}")
        views.append(drawn)
        coded.append(encoded(section.codec, logits))
        context.reporter.progress(f"relabel {unit.name}", epoch - first + 1, count)
    return pack(views, coded), {**_meta(context, unit, section), "first_epoch": first, "epochs": count}


def label_pool(context: Context, unit: Unit) -> Payload:
    """Label a block of P batches of a pool: a row of views as of one epoch, and how many each batch has.

    Beside what `gvbsm.distilled.labels.pack` says of E = 1 the artifact holds `batch`, int32 [P].
    Raises GvbsmError if a logit is not finite.
    """
    options = unit.options
    section = context.section(Relabel, options["relabel"])
    images, truth = read_set(context, unit.input("images"))
    committee = _committee(context, unit, section)
    first, count = options["first"], options["batches"]
    drawn = draw_pool(section, truth, images.shape[-1], options["seed"], options["set"], first, count)
    views: list[EpochViews] = []
    labelled: list[Tensor] = []
    for number, batch in enumerate(drawn):
        together = [torch.arange(len(batch.partners))]
        logits = label(section, images, committee, len(context.data.classes), batch, together)
        _check_finite(unit, logits, f"batch {first + number}")
        views.append(batch)
        labelled.append(logits)
        context.reporter.progress(f"relabel {unit.name}", number + 1, count)
    tensors = pack([chained(views)], [encoded(section.codec, torch.cat(labelled))])
    tensors["batch"] = torch.tensor([len(batch) for batch in labelled], dtype=torch.int32)
    meta = {"pruning": section.pruning, "first_batch": first, "batches": count}
    return tensors, {**_meta(context, unit, section), **meta}


def _meta(context: Context, unit: Unit, section: Relabel) -> dict[str, Any]:
    return {
        "layout": LAYOUT,
        "codec": section.codec.to_recipe(),
        "classes": list(context.data.classes),
        "images": unit.input("images").key,
    }


def _committee(context: Context, unit: Unit, section: Relabel) -> list[tuple[nn.Module, Member]]:
    return [
        (load_teacher(context, planned, section), member(planned)) for planned in unit.input_list("teachers")
    ]


def _check_finite(unit: Unit, logits: Tensor, what: str) -> None:
    if not bool(logits.isfinite().all()):
        raise GvbsmError(
            f"relabel {unit.name}: the logits of {what} are not finite; leave out the backbone "
            "that makes them, or pretrain it with a lower pretrain.learning_rate"
        )


def load_teacher(context: Context, unit: Unit, section: Relabel) -> nn.Module:
    """Return a pretrained network with its BatchNorm as [relabel] says."""
    module = load_backbone(context, unit)
    return use_batch_statistics(module) if section.batch_norm == "batch" else module


@torch.no_grad()
def label(
    section: Relabel,
    images: LazyNormalizedImages,
    committee: Sequence[tuple[nn.Module, Member]],
    classes: int,
    views: EpochViews,
    groups: Sequence[Tensor],
) -> Tensor:
    """Label views, those of each group together: float32 [views, classes]."""
    logits = torch.zeros(len(views.partners), classes)
    members = [each for _, each in committee]
    for group in groups:
        seen = views.apply(images, group)
        stacked = torch.stack([module(seen) for module, _ in committee])
        logits[group] = combined(section.ensembler, stacked, members).cpu() / section.temperature
    return logits
