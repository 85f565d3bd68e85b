"""Measure: record over the real data what the matchers will ask of the synthetic images (Eq. 9)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gvbsm.matching.collector import StatisticsCollector
from gvbsm.recipe.schema import Measure
from gvbsm.runtime.context import Context
from gvbsm.runtime.seeds import generator_of
from gvbsm.runtime.units import Payload, Unit
from gvbsm.stages.pretrain import load_backbone
from gvbsm_registry import Matcher


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

    The artifact holds a float32 tensor of the statistic's shape for each (matcher, site, statistic).
    """
    totals, images = _sums(context, unit, (0, 1))
    tensors = {name: (total / images).float() for name, total in totals.items()}
    return tensors, {"classes": list(context.data.classes), "images": images}


def measure_shard(context: Context, unit: Unit) -> Payload:
    """Measure some of the batches: the sums, float64, of each batch's statistics times its images."""
    number, count = unit.options["shard"]
    totals, images = _sums(context, unit, (number, count))
    return totals, {"classes": list(context.data.classes), "images": images}


def merge(context: Context, unit: Unit) -> Payload:
    """Add up the sums and the counts of all shards, in their order, and divide."""
    parts = [shard.read() for shard in unit.input_list("shards")]
    parts = [part for part in parts if part.meta["images"]]
    images = sum(part.meta["images"] for part in parts)
    tensors = {
        name: (torch.stack([part.tensors[name] for part in parts]).sum(0) / images).float()
        for name in parts[0].tensors
    }
    return tensors, {"classes": list(context.data.classes), "images": images}


def _sums(context: Context, unit: Unit, shard: tuple[int, int]) -> tuple[dict[str, Tensor], int]:
    """Return the batches' statistics times their images, summed over a shard's batches, and its images."""
    section = context.section(Measure, unit.options["measure"])
    matchers = [context.create(Matcher, table) for table in unit.options["matchers"]]
    collect = StatisticsCollector(load_backbone(context, unit.input("backbone")), matchers)
    # all shards draw the same order and the same views
    generator = generator_of("measure", unit.options["seed"])
    train = context.data.train
    batches = torch.randperm(len(train), generator=generator).split(section.batch)
    number, count = shard
    first, last = number * len(batches) // count, (number + 1) * len(batches) // count
    for batch in batches[:first]:  # what the shards before draw
        section.augmentation.draw(len(batch), train.image_size, generator)
    seen, total_images = 0, sum(len(batch) for batch in batches[first:last])
    totals: dict[str, Tensor] = {}
    for images, _ in context.batches(train, batches[first:last]):
        view = section.augmentation.draw(len(images), train.image_size, generator)
        statistics = collect(view.apply(images))
        if not totals:
            totals = {
                name: torch.zeros_like(value, dtype=torch.float64) for name, value in statistics.items()
            }
        torch._foreach_add_(list(totals.values()), [statistics[name] for name in totals], alpha=len(images))
        seen += len(images)
        context.reporter.progress(f"measure {unit.name}", seen, total_images)
    return {name: total.cpu() for name, total in totals.items()}, seen
