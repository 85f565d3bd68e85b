"""Relabel: the ensemble of all backbones labels augmented views, epoch by epoch (Eq. 8, FKD)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gvbsm.distilled.labels import LAYOUT, pack
from gvbsm.distilled.normalized import Normalized
from gvbsm.distilled.views import EpochViews, draw
from gvbsm.recipe.schema import Relabel
from gvbsm.runtime.units import Payload, Unit
from gvbsm.runtime.workspace import Workspace
from gvbsm.stages import pretrain
from gvbsm_registry import GvbsmError
from gvbsm_registry.artifacts import read

STAGE = "relabel"


def units(workspace: Workspace, images: Unit, backbones: list[Unit]) -> list[Unit]:
    """Plan one unit for each block of epochs of an image set; its file lies beside the images."""
    recipe = workspace.recipe
    section = recipe.relabel
    options = recipe.model_dump(mode="json", include={"relabel"})["relabel"]
    for name in ("epochs", "keep_fraction"):  # a longer run keeps the blocks of a shorter one
        options.pop(name)
    planned = []
    epochs = kept_epochs(section)
    for number, first in enumerate(range(0, epochs, section.epochs_per_file)):
        count = min(section.epochs_per_file, epochs - first)
        depends = {
            "options": options,
            "layout": LAYOUT,
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


def kept_epochs(section: Relabel) -> int:
    """How many epochs are labelled and stored (random label pruning); students go through them in turn.

    Whole epochs, so that every image keeps equally many views; which views they are is random already.
    """
    return max(1, round(section.keep_fraction * section.epochs))


def label_block(workspace: Workspace, unit: Unit) -> Payload:
    """Label a block of E epochs of N images; `gvbsm.distilled.labels.pack` says what the artifact holds.

    Raises GvbsmError if a logit is not finite.
    """
    artifact = read(unit.arguments["images"].path, "distilled")
    workspace.check(artifact, str(unit.arguments["images"].path))
    images = Normalized(artifact.tensors["images"], workspace.normalize)
    modules = [pretrain.load(workspace, planned) for planned in unit.arguments["backbones"]]
    first, count = unit.depends["first_epoch"], unit.depends["epochs"]
    views: list[EpochViews] = []
    coded: list[dict[str, Tensor]] = []
    for epoch in range(first, first + count):
        # seeded by epoch, so that an epoch's labels do not depend on the size of the blocks
        generator = workspace.generator("views", unit.depends["images"], epoch)
        drawn, logits = label_epoch(workspace, images, modules, generator)
        if not bool(logits.isfinite().all()):
            raise GvbsmError(
                f"relabel {unit.name}: the logits of epoch {epoch} are not finite; leave out the backbone "
                "that makes them, or pretrain it with a lower pretrain.learning_rate"
            )
        views.append(drawn)
        coded.append(workspace.recipe.relabel.codec.encode(logits))
        workspace.reporter.progress(f"relabel {unit.name}", epoch - first + 1, count)
    meta = {
        "layout": LAYOUT,
        "codec": workspace.recipe.relabel.codec.to_recipe(),
        "classes": list(workspace.classes),
        "images": unit.depends["images"],
        "first_epoch": first,
        "epochs": count,
    }
    return pack(views, coded), meta


@torch.no_grad()
def label_epoch(
    workspace: Workspace, images: Normalized, modules: list[nn.Module], generator: torch.Generator
) -> tuple[EpochViews, Tensor]:
    """Draw one epoch's views of N images; label them, float32 [N, K]."""
    section = workspace.recipe.relabel
    groups = torch.randperm(len(images), generator=generator).split(section.batch)
    views: EpochViews = draw(
        section.augmentation, groups, images.shape[-1], section.cutmix, section.cutmix_alpha, generator
    )
    logits = torch.zeros(len(images), len(workspace.classes))
    for group in groups:
        seen = views.apply(images, group)
        logits[group] = section.ensembler.combine(torch.stack([module(seen) for module in modules])).cpu()
    return views, logits
