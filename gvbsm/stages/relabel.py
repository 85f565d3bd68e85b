"""Relabel: the ensemble of all backbones labels augmented views, epoch by epoch (Eq. 8, FKD)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gvbsm.stages import pretrain
from gvbsm.units import Payload, Unit
from gvbsm.views import EpochViews, draw
from gvbsm.workspace import Workspace
from gvbsm_registry.artifacts import read

STAGE = "relabel"


def units(workspace: Workspace, images: Unit, backbones: list[Unit]) -> list[Unit]:
    """Plan one unit for each block of epochs of an image set; its file lies beside the images."""
    recipe = workspace.recipe
    section = recipe.relabel
    options = recipe.model_dump(mode="json", include={"relabel"})["relabel"]
    options.pop("epochs")  # a longer run keeps the blocks of a shorter one
    planned = []
    for number, first in enumerate(range(0, section.epochs, section.block)):
        count = min(section.block, section.epochs - first)
        depends = {
            "options": options,
            "images": images.key,
            "backbones": [unit.key for unit in backbones],
            "seed": recipe.seed,
            "first_epoch": first,
            "epochs": count,
        }
        place = images.path.with_name(f"labels-{number:05d}.safetensors")
        arguments = {"images": images, "backbones": backbones}
        name = f"{images.name} {first}-{first + count - 1}"
        planned.append(Unit(STAGE, name, "labels", place, depends, label_block, arguments))
    return planned


def label_block(workspace: Workspace, unit: Unit) -> Payload:
    """Label a block of E epochs of N images.

    The artifact holds, with leading axes [E, N]: logits float16 [K], crop float32 [4] (top, left, height,
    width), flip bool, roll int16 [2], partner int32 and cutmix int16 [4] (top, left, bottom, right).
    """
    artifact = read(unit.arguments["images"].path, "distilled")
    workspace.check(artifact, str(unit.arguments["images"].path))
    images = workspace.normalize(artifact.tensors["images"])
    modules = [pretrain.load(workspace, planned) for planned in unit.arguments["backbones"]]
    first, count = unit.depends["first_epoch"], unit.depends["epochs"]
    epochs: list[dict[str, Tensor]] = []
    for epoch in range(first, first + count):
        # seeded by epoch, so that an epoch's labels do not depend on the size of the blocks
        generator = workspace.generator("views", unit.depends["images"], epoch)
        epochs.append(label_epoch(workspace, images, modules, generator))
        workspace.reporter.progress(f"relabel {unit.name}", epoch - first + 1, count)
    tensors = {name: torch.stack([each[name] for each in epochs]) for name in epochs[0]}
    meta = {
        "classes": list(workspace.classes),
        "images": unit.depends["images"],
        "first_epoch": first,
        "epochs": count,
    }
    return tensors, meta


@torch.no_grad()
def label_epoch(
    workspace: Workspace, images: Tensor, modules: list[nn.Module], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw one epoch's views of `images`, normalised float [N, C, H, W], and label them."""
    section = workspace.recipe.relabel
    groups = torch.randperm(len(images), generator=generator).split(section.batch)
    views: EpochViews = draw(
        section.augmentation, groups, images.shape[-1], section.cutmix, section.cutmix_alpha, generator
    )
    logits = torch.zeros(len(images), len(workspace.classes))
    for group in groups:
        seen = views.apply(images, group)
        logits[group] = section.ensembler.combine(torch.stack([module(seen) for module in modules])).cpu()
    return {"logits": logits.half(), **views.tensors()}
