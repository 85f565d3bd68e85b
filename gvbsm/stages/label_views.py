"""Which views are labelled: those of an epoch, or those of a pool if labels are pruned by batch or class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from gvbsm.distilled.views import EpochViews, draw
from gvbsm.recipe.schema import Relabel
from gvbsm.runtime.asking import VIEWS, check_view
from gvbsm.runtime.blame import calling
from gvbsm.runtime.seeds import generator_of
from gvbsm.stages.training import batches_of, split_batches


def kept_epochs(section: Relabel) -> int:
    """How many epochs are labelled and stored (random label pruning); students go through them in turn.

    Whole epochs, so that every image keeps equally many views; which views they are is random already.
    """
    return max(1, round(section.keep_fraction * section.epochs))


def pool_size(section: Relabel, ipc: int, classes: int) -> int:
    """How many batches the pool has."""
    if section.pruning == "batches":
        return max(
            1, round(section.keep_fraction * section.epochs * batches_of(ipc * classes, section.batch))
        )
    return batches_of(classes * _kept_of_class(section, ipc), section.batch)


def _kept_of_class(section: Relabel, ipc: int) -> int:
    return max(1, round(section.keep_fraction * section.epochs * ipc))


def label_batches(section: Relabel, order: Tensor) -> Sequence[Tensor]:
    """Split an order of images into those labelled, and mixed, together.

    Where BatchNorm needs two images, be it a teacher's or that of a student who trains on these very batches,
    none is alone.
    """
    if section.batch_norm == "batch" or section.pruning != "epochs":
        return split_batches(order, section.batch)
    return order.split(section.batch)


def draw_epoch(
    section: Relabel, count: int, image_size: int, generator: Generator
) -> tuple[EpochViews, Sequence[Tensor]]:
    """Draw one epoch's views of `count` images, and which of them belong together."""
    groups = label_batches(section, torch.randperm(count, generator=generator))
    return _drawn(section, groups, image_size, generator), groups


def _drawn(section: Relabel, groups: Sequence[Tensor], image_size: int, generator: Generator) -> EpochViews:
    augmentation = section.augmentation
    with calling(augmentation, "draw", VIEWS):
        views = draw(augmentation, groups, image_size, section.cutmix, section.cutmix_alpha, generator)
    check_view(augmentation, views.view, sum(len(group) for group in groups))
    return views


def draw_pool(
    section: Relabel, labels: Tensor, image_size: int, seed: int, name: str, first: int, count: int
) -> Iterator[EpochViews]:
    """Yield the views of the pool's batches `first` to `first + count - 1`, one batch after the other.

    By batch: of all batches of all epochs, some drawn at random, in their order; each as it is unpruned.
    By class: views of images drawn at random, as many of each class, in random batches. labels: int64 [N].
    """
    if section.pruning == "batches":
        yield from _kept_batches(section, len(labels), image_size, seed, name, first, count)
        return
    batches = label_batches(section, _kept_images(section, labels, generator_of(seed, "pool", name)))
    for number in range(first, first + count):
        images, generator = batches[number], generator_of(seed, "views", name, "pool", number)
        yield replace(_drawn(section, [torch.arange(len(images))], image_size, generator), images=images)


def _kept_batches(
    section: Relabel, images: int, image_size: int, seed: int, name: str, first: int, count: int
) -> Iterator[EpochViews]:
    each = batches_of(images, section.batch)
    kept = max(1, round(section.keep_fraction * section.epochs * each))
    drawn = torch.randperm(section.epochs * each, generator=generator_of(seed, "pool", name))[:kept]
    drawn_from = -1
    for place in drawn.sort().values[first : first + count].tolist():
        epoch, number = divmod(place, each)
        if epoch != drawn_from:
            views, groups = draw_epoch(section, images, image_size, generator_of(seed, "views", name, epoch))
            drawn_from = epoch
        yield views.part(groups[number])


def _kept_images(section: Relabel, labels: Tensor, generator: Generator) -> Tensor:
    """Return of which image each kept view is, in random order: equally many of every class."""
    kept = []
    for label in labels.unique():
        images = (labels == label).nonzero().flatten()
        views = torch.randperm(section.epochs * len(images), generator=generator)
        kept.append(images[views[: _kept_of_class(section, len(images))] % len(images)])
    chosen = torch.cat(kept)
    return chosen[torch.randperm(len(chosen), generator=generator)]
