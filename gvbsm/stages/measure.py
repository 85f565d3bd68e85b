"""Measure: record over the real data what the matchers will ask of the synthetic images (Eq. 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gvbsm.matching import sites_of, statistics_of, target_name
from gvbsm.stages import pretrain
from gvbsm.taps import Taps
from gvbsm.units import Payload, Unit
from gvbsm.workspace import Workspace
from gvbsm_registry import Matcher

STAGE = "measure"


def units(workspace: Workspace, backbones: list[Unit]) -> list[Unit]:
    """Plan one unit for each pretrained backbone, if any matcher has targets to be measured."""
    recipe = workspace.recipe
    matchers = [matcher for matcher in recipe.synthesis.matchers if not _knows_targets(matcher)]
    if not matchers or recipe.synthesis.iterations == 0:
        return []
    options = recipe.model_dump(mode="json", include={"measure"})["measure"]
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
        planned.append(Unit(STAGE, backbone.name, "statistics", place, depends, measure_backbone, arguments))
    return planned


def _knows_targets(matcher: Matcher) -> bool:
    return type(matcher).targets is not Matcher.targets


def measure_backbone(workspace: Workspace, unit: Unit) -> Payload:
    """Pass the training split once through a backbone; average each batch's statistics, by images.

    The artifact holds a float32 tensor of the statistic's shape for each (matcher, site, statistic).
    """
    section = workspace.recipe.measure
    module = pretrain.load(workspace, unit.arguments["backbone"])
    matchers: list[Matcher] = unit.arguments["matchers"]
    generator = torch.Generator().manual_seed(unit.seed)
    train = workspace.train
    order = torch.randperm(len(train), generator=generator)
    seen = 0
    totals: dict[str, Tensor] = {}
    for images, _ in workspace.batches(train, section.batch, order):
        view = section.augmentation.draw(len(images), train.side, generator)
        for name, value in batch_statistics(module, matchers, view.apply(images)).items():
            totals[name] = totals.get(name, 0) + value * len(images)
        seen += len(images)
        workspace.reporter.progress(f"measure {unit.name}", seen, len(train))
    tensors = {name: (total / seen).float() for name, total in totals.items()}
    return tensors, {"classes": list(workspace.classes), "images": seen}


@torch.no_grad()
def batch_statistics(module: nn.Module, matchers: list[Matcher], images: Tensor) -> dict[str, Tensor]:
    """Return every statistic of one batch, float64 on the CPU, by target name."""
    by_matcher = [sites_of(matcher, module) for matcher in matchers]
    with Taps(module, dict.fromkeys(site for sites in by_matcher for site in sites)) as taps:
        module(images)
    activations = taps.activations()
    return {
        target_name(matcher, site, name): value
        for matcher, sites in zip(matchers, by_matcher, strict=True)
        for site in sites
        for name, value in statistics_of(matcher, activations[site].group(0)).items()
    }
