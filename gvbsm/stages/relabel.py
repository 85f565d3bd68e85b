"""Relabel: the ensemble of all teachers labels augmented views, epoch by epoch (Eq. 8, FKD)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from gvbsm.distilled.dataset import DistilledDataset
from gvbsm.distilled.labels import LAYOUT, pack
from gvbsm.distilled.normalized import LazyNormalizedImages
from gvbsm.distilled.views import EpochViews, draw
from gvbsm.matching.frozen import use_batch_statistics
from gvbsm.recipe.schema import Relabel
from gvbsm.runtime.context import Context
from gvbsm.runtime.data import check_classes
from gvbsm.runtime.seeds import generator_of
from gvbsm.runtime.units import Payload, Unit
from gvbsm.stages.pretrain import load_backbone, member
from gvbsm.stages.training import split_batches
from gvbsm_registry import GvbsmError, Member


def kept_epochs(section: Relabel) -> int:
    """How many epochs are labelled and stored (random label pruning); students go through them in turn.

    Whole epochs, so that every image keeps equally many views; which views they are is random already.
    """
    return max(1, round(section.keep_fraction * section.epochs))


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
        coded.append(section.codec.encode(logits))
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
    views = draw(
        section.augmentation, groups, images.shape[-1], section.cutmix, section.cutmix_alpha, generator
    )
    logits = torch.zeros(len(images), classes)
    members = [each for _, each in committee]
    for group in groups:
        seen = views.apply(images, group)
        stacked = torch.stack([module(seen) for module, _ in committee])
        logits[group] = section.ensembler.combine(stacked, members).cpu() / section.temperature
    return views, logits


def label_batches(section: Relabel, order: Tensor) -> Sequence[Tensor]:
    """Split an epoch's order of images into batches; where BatchNorm needs two images, none is alone."""
    if section.batch_norm == "batch":
        return split_batches(order, section.batch)
    return order.split(section.batch)
