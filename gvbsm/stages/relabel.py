"""Relabel: the ensemble of all teachers labels augmented views, epoch by epoch (Eq. 8, FKD)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from gvbsm.distilled.dataset import DistilledDataset
from gvbsm.distilled.labels import LAYOUT, pack
from gvbsm.distilled.normalized import LazyNormalizedImages
from gvbsm.distilled.views import EpochViews, draw
from gvbsm.matching.frozen import use_batch_statistics
from gvbsm.recipe.fields import identities
from gvbsm.recipe.schema import Recipe, Relabel
from gvbsm.runtime.asking import VIEWS, check_view, combined, encoded
from gvbsm.runtime.blame import calling
from gvbsm.runtime.context import Context
from gvbsm.runtime.data import check_classes
from gvbsm.runtime.seeds import generator_of
from gvbsm.runtime.units import Payload, Unit
from gvbsm.stages.pretrain import load_backbone, member
from gvbsm.stages.training import split_batches
from gvbsm_registry import GvbsmError, Member, Registry
from gvbsm_registry.artifacts import peek

LABELS = "labels-{:05d}.safetensors"


def kept_epochs(section: Relabel) -> int:
    """How many epochs are labelled and stored (random label pruning); students go through them in turn.

    Whole epochs, so that every image keeps equally many views; which views they are is random already.
    """
    return max(1, round(section.keep_fraction * section.epochs))


def plan_blocks(
    recipe: Recipe, registry: Registry, name: str, images: Unit, teachers: tuple[Unit, ...]
) -> list[Unit]:
    """Return one unit for each block of epochs of the set called `name`; its file lies beside the images.

    Blocks that are there already keep their size, so that another `epochs_per_file` repeats no work.
    """
    section = recipe.relabel

    def block(first: int, count: int) -> Unit:
        options = {
            # a longer run keeps a shorter one's blocks
            "relabel": section.options("epochs", "keep_fraction", "teachers"),
            "layout": LAYOUT,
            "set": name,
            "first_epoch": first,
            "epochs": count,
            "seed": recipe.seed,
            "components": identities(registry, section.model_copy(update={"teachers": ()})),
        }
        path = images.path.with_name(LABELS.format(first))
        inputs: dict[str, Unit | tuple[Unit, ...]] = {"images": images, "teachers": teachers}
        called = f"{name} {first}-{first + count - 1}"
        return Unit("relabel", called, "labels", label_block, options, inputs, path)

    epochs = kept_epochs(section)
    planned: list[Unit] = []
    first = 0
    while first < epochs:
        there = _epochs_there(images.path.with_name(LABELS.format(first)))
        if 0 < there <= epochs - first and (old := block(first, there)).done():
            planned.append(old)
        else:
            planned.append(block(first, min(section.epochs_per_file, epochs - first)))
        first += planned[-1].options["epochs"]
    return planned


def _epochs_there(path: Path) -> int:
    """Return how many epochs a label file says that it holds; 0 if there is no such file."""
    count = json.loads(peek(path)["meta"]).get("epochs") if path.exists() else 0
    return count if isinstance(count, int) else 0


def open_set(context: Context, images: Unit) -> DistilledDataset:
    """Open the image set that a unit has made; raises GvbsmError if it is not of the data set's classes."""
    opened = DistilledDataset(images.path.parent, context.registry)
    check_classes(opened.classes, context.data.classes, str(images.path))
    return opened


def label_block(context: Context, unit: Unit) -> Payload:
    """Label a block of E epochs of N images; `gvbsm.distilled.labels.pack` says what the artifact holds.

    Raises GvbsmError if a logit is not finite.
    """
    options = unit.options
    section = context.section(Relabel, options["relabel"])
    images = open_set(context, unit.input("images")).lazily_normalized(context.device)
    committee = [
        (load_teacher(context, planned, section), member(planned)) for planned in unit.input_list("teachers")
    ]
    first, count = options["first_epoch"], options["epochs"]
    views: list[EpochViews] = []
    coded: list[dict[str, Tensor]] = []
    for epoch in range(first, first + count):
        # seeded by epoch, so that an epoch's labels do not depend on the size of the blocks
        generator = generator_of(options["seed"], "views", options["set"], epoch)
        drawn, logits = label_epoch(section, images, committee, len(context.data.classes), generator)
        if not bool(logits.isfinite().all()):
            raise GvbsmError(
                f"relabel {unit.name}: the logits of epoch {epoch} are not finite; leave out the backbone "
                "that makes them, or pretrain it with a lower pretrain.learning_rate"
            )
        views.append(drawn)
        coded.append(encoded(section.codec, logits))
        context.reporter.progress(f"relabel {unit.name}", epoch - first + 1, count)
    meta = {
        "layout": LAYOUT,
        "codec": section.codec.to_recipe(),
        "classes": list(context.data.classes),
        "images": unit.input("images").key,
        "first_epoch": first,
        "epochs": count,
    }
    return pack(views, coded), meta


def load_teacher(context: Context, unit: Unit, section: Relabel) -> nn.Module:
    """Return a pretrained network with its BatchNorm as [relabel] says."""
    module = load_backbone(context, unit)
    return use_batch_statistics(module) if section.batch_norm == "batch" else module


@torch.no_grad()
def label_epoch(
    section: Relabel,
    images: LazyNormalizedImages,
    committee: Sequence[tuple[nn.Module, Member]],
    classes: int,
    generator: Generator,
) -> tuple[EpochViews, Tensor]:
    """Draw one epoch's views of N images; label them, float32 [N, K]."""
    groups = label_batches(section, torch.randperm(len(images), generator=generator))
    with calling(section.augmentation, "draw", VIEWS):
        views = draw(
            section.augmentation, groups, images.shape[-1], section.cutmix, section.cutmix_alpha, generator
        )
    check_view(section.augmentation, views.view, len(images))
    logits = torch.zeros(len(images), classes)
    members = [each for _, each in committee]
    for group in groups:
        seen = views.apply(images, group)
        stacked = torch.stack([module(seen) for module, _ in committee])
        logits[group] = combined(section.ensembler, stacked, members).cpu() / section.temperature
    return views, logits


def label_batches(section: Relabel, order: Tensor) -> Sequence[Tensor]:
    """Split an epoch's order of images into batches; where BatchNorm needs two images, none is alone."""
    if section.batch_norm == "batch":
        return split_batches(order, section.batch)
    return order.split(section.batch)
