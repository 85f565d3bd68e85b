"""Measure: record over the real data what the matchers will ask of the synthetic images (Eq. 9)."""

from __future__ import annotations

import torch
from torch import Tensor

from gvbsm.matching.collector import StatisticsCollector
from gvbsm.runtime.units import Payload, Unit
from gvbsm.runtime.workspace import Workspace
from gvbsm.stages import pretrain
from gvbsm_registry import Matcher

STAGE = "measure"


def units(workspace: Workspace, backbones: list[Unit]) -> list[Unit]:
    """Plan one unit for each pretrained backbone, if any matcher has targets to be measured.

    With measure.shards above 1 it merges the units of `shards`, which have to be run before.
    """
    recipe = workspace.recipe
    matchers = [matcher for matcher in recipe.synthesis.matchers if not _knows_targets(matcher)]
    if not matchers or recipe.synthesis.iterations == 0:
        return []
    options = recipe.model_dump(mode="json", include={"measure"})["measure"]
    count = options.pop("shards")
    planned = []
    for backbone in backbones:
        depends = {
            "backbone": backbone.key,
            "matchers": sorted((m.measured_by() for m in matchers), key=str),
            "options": options,
            "seed": recipe.seed,
        }
        arguments = {"backbone": backbone, "matchers": matchers}
        place = workspace.store / "statistics"
        unit = Unit(STAGE, backbone.name, "statistics", place, depends, measure_backbone, arguments)
        planned.append(unit if count == 1 else _merging(unit, count))
    return planned


def _merging(whole: Unit, count: int) -> Unit:
    """Split a unit into `count` shards of its batches; return the unit that merges them."""
    shards = []
    for number in range(count):
        depends = {"whole": whole.key, "shard": [number, count]}
        # the order and the views are drawn from the whole's seed, so that all shards see the same batches
        arguments = {**whole.arguments, "seed": whole.seed, "shard": (number, count)}
        name = f"{whole.name} {number + 1}/{count}"
        place = whole.place / "shards"
        shards.append(Unit(STAGE, name, "sums", place, depends, measure_shard, arguments))
    depends = {"shards": [shard.key for shard in shards]}
    arguments = {**whole.arguments, "shards": shards}
    return Unit(STAGE, whole.name, "statistics", whole.place, depends, merge, arguments)


def shards(planned: list[Unit]) -> list[Unit]:
    """Return the units that those planned by `units` merge; none unless measure.shards is above 1."""
    return [shard for unit in planned if not unit.done() for shard in unit.arguments.get("shards", ())]


def _knows_targets(matcher: Matcher) -> bool:
    return type(matcher).targets is not Matcher.targets


def measure_backbone(workspace: Workspace, unit: Unit) -> Payload:
    """Pass the training split once through a backbone; average each batch's statistics, by images.

    The artifact holds a float32 tensor of the statistic's shape for each (matcher, site, statistic).
    """
    totals, seen = _sums(workspace, unit, unit.seed, (0, 1))
    tensors = {name: (total / seen).float() for name, total in totals.items()}
    return tensors, {"classes": list(workspace.classes), "images": seen}


def measure_shard(workspace: Workspace, unit: Unit) -> Payload:
    """Measure some of the batches: the sums, float64, of each batch's statistics times its images."""
    totals, seen = _sums(workspace, unit, unit.arguments["seed"], unit.arguments["shard"])
    return totals, {"classes": list(workspace.classes), "images": seen}


def merge(workspace: Workspace, unit: Unit) -> Payload:
    """Add up the sums and the counts of all shards, in their order, and divide."""
    parts = [shard.read() for shard in unit.arguments["shards"]]
    parts = [part for part in parts if part.meta["images"]]
    seen = sum(part.meta["images"] for part in parts)
    tensors = {
        name: (torch.stack([part.tensors[name] for part in parts]).sum(0) / seen).float()
        for name in parts[0].tensors
    }
    return tensors, {"classes": list(workspace.classes), "images": seen}


def _sums(
    workspace: Workspace, unit: Unit, seed: int, shard: tuple[int, int]
) -> tuple[dict[str, Tensor], int]:
    """Return the batches' statistics times their images, summed over a shard's batches, and its images."""
    section = workspace.recipe.measure
    module = pretrain.load(workspace, unit.arguments["backbone"])
    gauge = StatisticsCollector(module, unit.arguments["matchers"])
    generator = torch.Generator().manual_seed(seed)
    train = workspace.train
    lots = torch.randperm(len(train), generator=generator).split(section.batch)
    number, count = shard
    first, last = number * len(lots) // count, (number + 1) * len(lots) // count
    for lot in lots[:first]:  # what the shards before draw
        section.augmentation.draw(len(lot), train.image_size, generator)
    seen = 0
    totals: dict[str, Tensor] = {}
    if first == last:
        return totals, seen
    total_images = sum(len(lot) for lot in lots[first:last])
    for images, _ in workspace.batches(train, lots[first:last]):
        view = section.augmentation.draw(len(images), train.image_size, generator)
        found = gauge(view.apply(images))
        if not totals:
            totals = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in found.items()}
        torch._foreach_add_(list(totals.values()), [found[name] for name in totals], alpha=len(images))
        seen += len(images)
        workspace.reporter.progress(f"measure {unit.name}", seen, total_images)
    return {name: total.cpu() for name, total in totals.items()}, seen
