"""Image sets: how one is split into image batches, put together again, or drawn from the real images."""

from __future__ import annotations

from typing import Any

import torch

from gvbsm.recipe.schema import Synthesis
from gvbsm.runtime.context import Context
from gvbsm.runtime.seeds import generator_of
from gvbsm.runtime.units import Payload, Unit
from gvbsm_registry import GvbsmError


def image_batches(classes: int, section: Synthesis) -> list[tuple[list[int], list[int]]]:
    """Split the set into image batches, each a list of labels and one of ranks within the class.

    "by_class": all images of as many classes as fit (a class larger than the batch is split).
    "one_class": all images of one class. "across_classes": one image of each of as many classes as fit. Where
    a term or the population is not separable, the whole set is one batch.
    """
    ipc = section.ipc
    size = ipc if section.batching == "one_class" else section.batch
    size = size if section.separable else ipc * classes
    if section.batching == "across_classes" and section.separable:
        pairs = [(label, rank) for rank in range(ipc) for label in range(classes)]
        chunks = [
            pairs[start + first : start + min(first + size, classes)]
            for start in range(0, len(pairs), classes)
            for first in range(0, classes, size)
        ]
    else:
        pairs = [(label, rank) for label in range(classes) for rank in range(ipc)]
        if ipc >= size:
            chunks = [
                pairs[start + first : start + min(first + size, ipc)]
                for start in range(0, len(pairs), ipc)
                for first in range(0, ipc, size)
            ]
        else:
            step = size // ipc * ipc
            chunks = [pairs[start : start + step] for start in range(0, len(pairs), step)]
    return [([label for label, _ in chunk], [rank for _, rank in chunk]) for chunk in chunks]


def assemble(context: Context, unit: Unit) -> Payload:
    """Sort all batches' images by class and rank: images uint8 [N, C, H, W], labels int64 [N]."""
    parts = [part.read() for part in unit.input_list("parts")]
    for part in parts:
        context.data.check_classes(part, "an image batch")
    images, labels, ranks = (
        torch.cat([part.tensors[name] for part in parts]) for name in ("images", "labels", "ranks")
    )
    order = torch.argsort(labels * (int(ranks.max()) + 1) + ranks)
    return {"images": images[order], "labels": labels[order]}, set_meta(context, unit)


def draw_random(context: Context, unit: Unit) -> Payload:
    """Draw images per class of real training images without replacement: the baseline."""
    ipc, train = unit.options["ipc"], context.data.train
    generator = generator_of(unit.options["seed"], "random set")
    chosen = []
    for label, name in enumerate(train.classes):
        members = (train.labels == label).nonzero().squeeze(1)
        if len(members) < ipc:
            raise too_few_images(name, len(members), ipc)
        chosen.append(members[torch.randperm(len(members), generator=generator)[:ipc]])
    index = torch.cat(chosen)
    return {"images": train.read(index), "labels": train.labels[index]}, set_meta(context, unit)


def too_few_images(name: str, count: int, ipc: int) -> GvbsmError:
    """Return the error that a class has fewer training images than a set holds of it."""
    return GvbsmError(
        f"class {name!r} has {count} training images, too few for {ipc} per class; "
        "lower synthesis.ipc (--ipc)"
    )


def set_meta(context: Context, unit: Unit) -> dict[str, Any]:
    """Return what an image set's file says of itself."""
    normalization = context.data.normalization
    return {
        "classes": list(context.data.classes),
        "mean": normalization.mean,
        "std": normalization.std,
        "ipc": unit.options["ipc"],
        "data": context.data.name,
    }
