"""Pretrain [squeeze]: train every backbone on the real data, or take the weights it comes with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gvbsm.matching.frozen import freeze
from gvbsm.runtime.units import Payload, Unit
from gvbsm.runtime.workspace import Workspace
from gvbsm.stages.training import fit_real, top1
from gvbsm_registry import Backbone, GvbsmError

if TYPE_CHECKING:
    from torch import nn

STAGE = "pretrain"
CHANCE_DEVIATIONS = 3


def units(workspace: Workspace) -> list[Unit]:
    """Plan one unit for each backbone; its artifact holds the module's state and its test accuracy."""
    recipe = workspace.recipe
    options = recipe.model_dump(mode="json", include={"pretrain"})["pretrain"]
    options.pop("min_accuracy")  # a gate, not something that the weights depend on
    planned = []
    for index, backbone in enumerate(recipe.backbones):
        table = backbone.to_recipe()
        table.pop("match_weight")
        depends = {
            "backbone": table,
            "weights": _file_digest(backbone),
            "options": options,
            "data": workspace.data_key,
            "seed": recipe.seed,
            "copy": _copy(workspace, index),
        }
        unit = Unit(
            stage=STAGE,
            name=label(workspace, index),
            kind="backbone",
            place=workspace.store / "backbones",
            depends=depends,
            work=train_backbone,
            arguments={"index": index},
            shared=True,
        )
        planned.append(unit)
    return planned


def label(workspace: Workspace, index: int) -> str:
    """Return the name of the backbone at `index`, numbered if the recipe has it more than once."""
    copy = _copy(workspace, index)
    title = workspace.recipe.backbones[index].full_name
    return title if copy == 0 else f"{title}-{copy + 1}"


def _copy(workspace: Workspace, index: int) -> int:
    """How often the same backbone, with the same name, stands before `index`: copies are trained anew."""
    titles = [backbone.full_name for backbone in workspace.recipe.backbones]
    return titles[:index].count(titles[index])


def _file_digest(backbone: Backbone) -> str | None:
    if backbone.weights is None or not Path(backbone.weights).expanduser().is_file():
        return None
    with Path(backbone.weights).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def train_backbone(workspace: Workspace, unit: Unit) -> Payload:
    """Build, train and test one backbone."""
    backbone = workspace.recipe.backbones[unit.arguments["index"]]
    module = workspace.build(backbone)
    generator = torch.Generator().manual_seed(unit.seed)

    def progress(done: int, total: int) -> None:
        workspace.reporter.progress(f"pretrain {unit.name}", done, total)

    fit_real(workspace, module, generator, progress)
    accuracy = top1(workspace, module)
    meta: dict[str, Any] = {
        "classes": list(workspace.classes),
        "backbone": backbone.to_recipe(),
        "top1": accuracy,
        "epochs": workspace.recipe.pretrain.epochs,
        "moments": workspace.moments,
        "summary": {"top1": accuracy},
    }
    return dict(module.state_dict()), meta


def check(workspace: Workspace, planned: list[Unit]) -> None:
    """Raise GvbsmError if a backbone is no better than chance, or below the recipe's floor.

    Better than chance means: three standard deviations above 1 / classes on as many test images, or all
    of them right where there are too few to tell.
    """
    chance = 1 / len(workspace.classes)
    noise = CHANCE_DEVIATIONS * (chance * (1 - chance) / len(workspace.test)) ** 0.5
    floor = max(workspace.recipe.pretrain.min_accuracy, min(chance + noise, 1.0))
    for unit in planned:
        artifact = unit.read()
        workspace.check(artifact, str(unit.path))
        accuracy = artifact.meta["top1"]
        if accuracy < floor:
            raise GvbsmError(
                f"backbone {unit.name!r} reaches {accuracy:.1%} on the test split, below the {floor:.1%} "
                "that it needs (chance, or pretrain.min_accuracy); train"
                " longer (--set pretrain.epochs=N), give "
                "it weights or leave it out"
            )


def load(workspace: Workspace, unit: Unit) -> nn.Module:
    """Return a pretrained backbone, frozen, in evaluation mode."""
    artifact = unit.read()
    workspace.check(artifact, str(unit.path))
    backbone = workspace.recipe.backbones[unit.arguments["index"]]
    module = workspace.build(backbone.model_copy(update={"weights": None}))
    try:
        module.load_state_dict(artifact.tensors)
    except RuntimeError as error:
        raise GvbsmError(
            f"{unit.path}: does not fit backbone {unit.name!r} as it is built now (another version made it); "
            "delete the file and run again"
        ) from error
    return freeze(module)
