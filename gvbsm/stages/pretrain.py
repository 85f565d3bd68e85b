"""Pretrain [squeeze]: train every backbone on the real data, or take the weights it comes with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from gvbsm.matching.frozen import freeze
from gvbsm.recipe.fields import identities
from gvbsm.recipe.schema import Pretrain, Recipe, Synthesis
from gvbsm.runtime.context import Context
from gvbsm.runtime.data import Data
from gvbsm.runtime.seeds import seed_of
from gvbsm.runtime.units import Payload, Unit
from gvbsm.stages.training import diverging, fit_real, top1
from gvbsm_registry import Backbone, GvbsmError, Member, Registry
from gvbsm_registry.artifacts import peek

if TYPE_CHECKING:
    from torch import nn

CHANCE_DEVIATIONS = 3


def train_backbone(context: Context, unit: Unit) -> Payload:
    """Build, train and test one backbone; the artifact holds its state and its test accuracy."""
    options = unit.options
    backbone = context.create(Backbone, options["backbone"])
    section = context.section(Pretrain, options["pretrain"])
    seed = seed_of("pretrain", options["seed"], backbone.full_name, options["copy"])
    torch.manual_seed(seed)
    module = context.build(backbone)

    def progress(done: int, total: int) -> None:
        context.reporter.progress(f"pretrain {unit.name}", done, total)

    with diverging(unit, "pretrain"):
        fit_real(context, section, module, torch.Generator().manual_seed(seed), progress)
        reached = top1(context, module)
    normalization = context.data.normalization
    meta: dict[str, Any] = {
        "classes": list(context.data.classes),
        "backbone": backbone.to_recipe(),
        "top1": reached,
        "epochs": section.epochs,
        "mean": normalization.mean,
        "std": normalization.std,
        "summary": {"top1": reached},
    }
    return dict(module.state_dict()), meta


def table_of(network: Backbone) -> dict[str, Any]:
    """Return the recipe table of a network as it is pretrained."""
    table = network.to_recipe()
    table.pop("match_weight")
    return table


def teachers_of(recipe: Recipe) -> list[int]:
    """Return the places in `networks_of` of [relabel]'s own teachers.

    A teacher that equals a backbone is that one, and no other teacher is.
    """
    free = {index: table_of(backbone) for index, backbone in enumerate(recipe.backbones)}
    places, new = [], len(recipe.backbones)
    for teacher in recipe.relabel.teachers:
        table = table_of(teacher)
        place = next((index for index, other in free.items() if other == table), new)
        new += place == new
        free.pop(place, None)
        places.append(place)
    return places


def networks_of(recipe: Recipe) -> list[Backbone]:
    """Return all networks that are pretrained: the backbones, then the teachers that are none of them."""
    own = zip(teachers_of(recipe), recipe.relabel.teachers, strict=True)
    return [*recipe.backbones, *(teacher for place, teacher in own if place >= len(recipe.backbones))]


def synthesis_needs(section: Synthesis) -> bool:
    """Whether synthesis looks at pretrained networks at all."""
    return looks_through_trained(section) or section.initializer.uses_networks


def looks_through_trained(section: Synthesis) -> bool:
    """Whether the steps, if there are any, look through pretrained networks."""
    return section.iterations > 0 and section.population.keeps != "none"


def needed(recipe: Recipe) -> set[int]:
    """Return the places in `networks_of` of the networks that synthesis or labels need."""
    backbones = range(len(recipe.backbones))
    places = set(backbones) if synthesis_needs(recipe.synthesis) else set()
    return places | set(teachers_of(recipe) or backbones) if recipe.evaluation.soft else places


def is_trained(recipe: Recipe, index: int, network: Backbone) -> bool:
    """Whether a network at a place in `networks_of` is trained; a teacher with weights is used as it is."""
    return index < len(recipe.backbones) or network.weights is None


def plan_networks(recipe: Recipe, registry: Registry, data_key: str) -> list[Unit]:
    """Return one unit for each of `networks_of`, without its place."""
    planned = []
    networks = networks_of(recipe)
    names = [network.full_name for network in networks]
    for index, network in enumerate(networks):
        copy = names[:index].count(names[index])  # copies of one name are trained anew
        trained = is_trained(recipe, index, network)
        section = recipe.pretrain.model_copy(update={} if trained else {"epochs": 0})
        options = {
            "backbone": table_of(network),
            "copy": copy,
            "pretrain": section.options(),
            "data": data_key,
            "seed": recipe.seed,
            "components": identities(registry, network, recipe.pretrain),
        }
        name = names[index] if copy == 0 else f"{names[index]}-{copy + 1}"
        planned.append(Unit("pretrain", name, "backbone", train_backbone, options, data_parallel=True))
    return planned


def check_accuracies(units: Sequence[Unit], data: Data, least: float) -> None:
    """Raise GvbsmError if a backbone's test accuracy is no better than chance, or below `least`.

    Better than chance means: three standard deviations above 1 / classes on as many test images, or all
    of them right where there are too few to tell.
    """
    chance = 1 / len(data.classes)
    noise = CHANCE_DEVIATIONS * (chance * (1 - chance) / len(data.test)) ** 0.5
    least = max(least, min(chance + noise, 1.0))
    for unit in units:
        artifact = unit.read()
        data.check_classes(artifact, str(unit.path))
        reached = artifact.meta["top1"]
        if reached < least:
            raise GvbsmError(
                f"backbone {unit.name!r} reaches {reached:.1%} on the test split, below the {least:.1%} that "
                "it needs (chance, or pretrain.min_accuracy); train longer (--set pretrain.epochs=N), give "
                "it weights or leave it out"
            )


def load_backbone(context: Context, unit: Unit) -> nn.Module:
    """Return a pretrained backbone, frozen, in evaluation mode; raises GvbsmError as `load_trained` does."""
    return freeze(load_trained(context, unit))


def load_trained(context: Context, unit: Unit) -> nn.Module:
    """Return a pretrained backbone in evaluation mode.

    Raises GvbsmError if its file is missing or broken, or does not fit the backbone as it is built now.
    """
    artifact = unit.read()
    context.data.check_classes(artifact, str(unit.path))
    module = context.build(untrained(context, unit))
    try:
        module.load_state_dict(artifact.tensors)
    except RuntimeError as error:
        raise GvbsmError(
            f"{unit.path}: does not fit backbone {unit.name!r} as it is built now (another version made it); "
            "delete the file and run again"
        ) from error
    return module


def member(unit: Unit) -> Member:
    """Return what ensemblers are told of a pretrained backbone."""
    return Member(unit.name, json.loads(peek(unit.path)["meta"])["top1"])


def untrained(context: Context, unit: Unit) -> Backbone:
    """Return the backbone that a unit pretrains, with fresh weights when it is built."""
    return context.create(Backbone, {**unit.options["backbone"], "weights": None})
