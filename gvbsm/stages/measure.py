"""Measure: record over the real data what the matchers will ask of the synthetic images (Eq. 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from gvbsm.matching.collector import StatisticsCollector
from gvbsm.matching.targets import BY_CLASS
from gvbsm.recipe.schema import Measure
from gvbsm.runtime.asking import drawn
from gvbsm.runtime.context import Context
from gvbsm.runtime.seeds import generator_of
from gvbsm.runtime.units import Payload, Unit
from gvbsm.stages.pretrain import load_backbone
from gvbsm_registry import Matcher, Split


def split_into_shards(whole: Unit, count: int, folder: Path) -> Unit:
    """Return the unit that merges `count` shards of the batches of `whole`: the same statistics."""
    if count == 1:
        return whole
    shards = tuple(
        replace(
            whole,
            name=f"{whole.name} {number + 1}/{count}",
            kind="sums",
            work=measure_shard,
            options={**whole.options, "shard": [number, count]},
        ).stored_in(folder / "shards")
        for number in range(count)
    )
    inputs = {**whole.inputs, "shards": shards}
    return replace(whole, work=merge, inputs=inputs).stored_in(folder)


def measure_backbone(context: Context, unit: Unit) -> Payload:
    """Pass the training split once through a backbone; average each batch's statistics, by images.

    The artifact holds a float32 tensor of the statistic's shape for each (matcher, site, statistic). Where a
    matcher matches by class, there is a second pass in batches of one class each, and a tensor [K, *shape],
    not a number for a class without images.
    """
    return _averages(context, [_sums(context, unit, (0, 1))])


def measure_shard(context: Context, unit: Unit) -> Payload:
    """Measure some of the batches: the sums, float64, of each batch's statistics times its images."""
    number, count = unit.options["shard"]
    sums = _sums(context, unit, (number, count))
    return sums.totals, {"classes": list(context.data.classes), "images": sums.images, "shown": sums.shown}


def merge(context: Context, unit: Unit) -> Payload:
    """Add up the sums and the counts of all shards, in their order, and divide."""
    parts = [shard.read() for shard in unit.input_list("shards")]
    return _averages(context, [Sums(part.tensors, part.meta["images"], part.meta["shown"]) for part in parts])


@dataclass
class Sums:
    """Batches' statistics times their images, summed, float64; of classes: [K, *shape], by their target name.

    images: of batches of all classes. shown: of each class, in batches of that class alone.
    """

    totals: dict[str, Tensor]
    images: int
    shown: list[int]

    def add(self, statistics: Mapping[str, Tensor], images: int, label: int | None) -> None:
        """Take in a batch: of all classes, or of the class `label`."""
        if not statistics:
            return
        for name, value in statistics.items():
            if name not in self.totals:
                shape = value.shape if label is None else (len(self.shown), *value.shape)
                self.totals[name] = value.new_zeros(shape, dtype=torch.float64)
        totals = [self.totals[name] if label is None else self.totals[name][label] for name in statistics]
        torch._foreach_add_(totals, list(statistics.values()), alpha=images)
        if label is None:
            self.images += images
        else:
            self.shown[label] += images


def _averages(context: Context, parts: Sequence[Sums]) -> Payload:
    images = sum(part.images for part in parts)
    shown = torch.tensor([part.shown for part in parts]).sum(0)
    tensors = {}
    for name in dict.fromkeys(name for part in parts for name in part.totals):
        total = torch.stack([part.totals[name] for part in parts if name in part.totals]).sum(0)
        count = shown.view(-1, *[1] * (total.ndim - 1)) if name.startswith(BY_CLASS) else images
        tensors[name] = (total / count).float()
    return tensors, {"classes": list(context.data.classes), "images": images or int(shown.sum())}


@dataclass
class Pass:
    """All images once, in batches and in views drawn by `generator` that are the same for all shards."""

    collect: StatisticsCollector
    batches: Sequence[Tensor]
    generator: Generator
    by_class: bool


def _sums(context: Context, unit: Unit, shard: tuple[int, int]) -> Sums:
    """Return the sums over a shard's batches of each pass."""
    section, train = context.section(Measure, unit.options["measure"]), context.data.train
    sums = Sums({}, 0, [0] * len(train.classes))
    shares = [(one, *_share(one.batches, shard)) for one in _passes(context, unit, section)]
    seen, total = 0, sum(len(batch) for *_, share in shares for batch in share)
    for one, before, share in shares:
        for batch in before:  # what the shards before draw
            drawn(section.augmentation, len(batch), train.image_size, one.generator)
        for (images, _), batch in zip(context.batches(train, share), share, strict=True):
            view = drawn(section.augmentation, len(images), train.image_size, one.generator)
            label = int(train.labels[batch[0]]) if one.by_class else None
            sums.add(one.collect(view.apply(images)), len(images), label)
            seen += len(images)
            context.reporter.progress(f"measure {unit.name}", seen, total)
    sums.totals = {name: total.cpu() for name, total in sums.totals.items()}
    return sums


def _passes(context: Context, unit: Unit, section: Measure) -> list[Pass]:
    """Return the passes over the data: in mixed batches, and by class, where a matcher asks for them."""
    module, train = load_backbone(context, unit.input("backbone")), context.data.train
    passes = []
    for asked, by_class in (("matchers", False), ("by_class", True)):
        if tables := unit.options.get(asked):
            matchers = [context.create(Matcher, table) for table in tables]
            generator = generator_of("measure", unit.options["seed"], *(["by class"] if by_class else []))
            batches: Sequence[Tensor]
            if by_class:
                batches = batches_of_one_class(train, section.batch, generator)
            else:
                batches = torch.randperm(len(train), generator=generator).split(section.batch)
            collect = StatisticsCollector(module, matchers, by_class)
            passes.append(Pass(collect, batches, generator, by_class))
    return passes


def batches_of_one_class(split: Split, size: int, generator: Generator) -> list[Tensor]:
    """Return all images in batches of at most `size` of one class each, shuffled: class after class."""
    batches: list[Tensor] = []
    for label in range(len(split.classes)):
        if len(members := (split.labels == label).nonzero().squeeze(1)):
            batches += members[torch.randperm(len(members), generator=generator)].split(size)
    return batches


def _share(batches: Sequence[Tensor], shard: tuple[int, int]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return the batches of the shards before one, and its own."""
    number, count = shard
    first, last = number * len(batches) // count, (number + 1) * len(batches) // count
    return batches[:first], batches[first:last]
