"""Synthesize [recover]: optimise the images until they produce the real data's statistics."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gvbsm.matching.forward import MatchedBackbone
from gvbsm.matching.terms import Matching
from gvbsm.recipe.schema import Synthesis
from gvbsm.runtime.units import Payload, Unit, out_of_memory
from gvbsm.runtime.workspace import Workspace
from gvbsm.stages import pretrain
from gvbsm.stages.real_images import Source
from gvbsm.synthesis.loop import NotFinite, Optimisation, Rival, Told
from gvbsm_registry import Artifact, GvbsmError, Step
from gvbsm_registry.artifacts import write

COMPILE_FROM = 1000
STAGE = "synthesize"


def batches(classes: int, section: Synthesis) -> list[tuple[list[int], list[int]]]:
    """Split the set into image batches, each a list of labels and one of ranks within the class.

    "by_class": all images of as many classes as fit (a class larger than the batch is split).
    "across_classes": one image of each of as many classes as fit.
    """
    ipc, size = section.ipc, section.batch
    if section.batching == "across_classes":
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


def units(workspace: Workspace, backbones: list[Unit], statistics: list[Unit]) -> list[Unit]:
    """Plan one unit for every `group` image batches of equal size."""
    recipe = workspace.recipe
    section = recipe.synthesis
    options = recipe.model_dump(mode="json", include={"synthesis"}, exclude_none=True)["synthesis"]
    options.pop("log_every")
    common = {
        "options": options,
        "match_weights": [backbone.match_weight for backbone in recipe.backbones],
        "backbones": [unit.key for unit in backbones],
        "statistics": [unit.key for unit in statistics],
        "seed": recipe.seed,
    }
    planned = []
    split = batches(len(workspace.classes), section)
    for numbers in groups(
        [len(labels) for labels, _ in split], section.batches_per_step or _group(workspace)
    ):
        depends = {**common, "batches": numbers, "members": [split[number] for number in numbers]}
        arguments = {"backbones": backbones, "statistics": statistics}
        name = f"batch-{numbers[0]:04d}" + (f"-{numbers[-1]:04d}" if len(numbers) > 1 else "")
        place = workspace.out / "units" / STAGE
        planned.append(Unit(STAGE, name, "images", place, depends, optimise, arguments))
    return planned


def groups(sizes: list[int], most: int) -> list[list[int]]:
    """Put neighbouring batches of equal size together, at most `most` a group; return their numbers."""
    found: list[list[int]] = []
    for number, size in enumerate(sizes):
        if found and len(found[-1]) < most and sizes[found[-1][0]] == size:
            found[-1].append(number)
        else:
            found.append([number])
    return found


def _group(workspace: Workspace) -> int:
    """How many image batches to optimise in one forward pass, from the device's memory; 1 on a CPU.

    A step is taken to need 4000 floats for every input pixel, and may take half the memory.
    """
    if workspace.device.type != "cuda":
        return 1
    memory = torch.cuda.get_device_properties(workspace.device).total_memory
    pixels = workspace.recipe.synthesis.batch * workspace.train.image_size**2
    return max(1, int(memory / 2 / (16000 * pixels)))


def optimise(workspace: Workspace, unit: Unit) -> Payload:
    """Optimise a group of image batches; the artifact holds uint8 images [n, C, H, W], labels and ranks [n].

    Each batch's random stream is seeded by the recipe's seed and the batch's number alone, so that ablations
    start from the same noise and grouping changes nothing. A group that finds no memory is halved, as often
    as need be. Raises GvbsmError if a loss or its gradient is not finite, after writing the last good images
    beside the artifact.
    """
    parts = _optimised(workspace, unit, range(len(unit.depends["batches"])))
    tensors = dict(zip(("images", "labels", "ranks"), map(torch.cat, zip(*parts, strict=True)), strict=True))
    return tensors, {"classes": list(workspace.classes)}


def _optimised(workspace: Workspace, unit: Unit, places: range) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Optimise the unit's batches at `places`, together if memory allows; return images, labels and ranks."""
    try:
        return [_together(workspace, unit, places)]
    except (MemoryError, RuntimeError) as error:
        if len(places) == 1 or not out_of_memory(error):
            raise
    warnings.warn(
        f"{unit.name}: {len(places)} image batches at once find no memory on {workspace.device}; halving "
        "(set synthesis.batches_per_step to start with fewer)",
        stacklevel=2,
    )
    if workspace.device.type == "cuda":
        torch.cuda.empty_cache()
    middle = len(places) // 2
    return [
        *_optimised(workspace, unit, places[:middle]),
        *_optimised(workspace, unit, places[middle:]),
    ]


def _together(workspace: Workspace, unit: Unit, places: range) -> tuple[Tensor, Tensor, Tensor]:
    """Optimise the unit's batches at `places` in one forward pass a step."""
    section = workspace.recipe.synthesis
    source = Source(workspace, unit.arguments["backbones"][0])
    generators = [workspace.generator(STAGE, unit.depends["batches"][place]) for place in places]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for place, generator in zip(places, generators, strict=True):
        labels, ranks = (torch.tensor(part) for part in unit.depends["members"][place])
        parts.append((section.initializer.images(labels, ranks, source, generator), labels, ranks))
    start, labels, ranks = (torch.cat(part) for part in zip(*parts, strict=True))
    low, high = workspace.pixel_range()
    images = start.to(workspace.device).clamp(low, high)
    if section.iterations:
        rivals = _rivals(workspace, unit, len(places))
        order = workspace.generator(STAGE, "order")
        on_device = labels.to(workspace.device)
        loop = Optimisation(section, images, on_device, (low, high), rivals, generators, order)
        try:
            loop.run(*_watchers(workspace, unit))
        except NotFinite as error:
            last = unit.path.with_name(f"{unit.key}.last-good.safetensors")
            good = {"images": workspace.quantize(images.detach()), "labels": labels, "ranks": ranks}
            write(last, Artifact("images", unit.key, good, {"classes": list(workspace.classes)}))
            raise GvbsmError(f"{unit.name}: {error}; the last good images are kept in {last}") from error
    return workspace.quantize(images.detach()), labels, ranks


def _watchers(workspace: Workspace, unit: Unit) -> tuple[Told, Callable[[int, int], None]]:
    reporter, count = workspace.reporter, workspace.recipe.synthesis.iterations

    def tell(step: int, backbone: str, values: dict[str, float]) -> None:
        reporter.emit(Step(STAGE, unit.name, step, count, values, {"backbone": backbone}))

    return tell, lambda done, total: reporter.progress(f"synthesize {unit.name}", done, total)


def _rivals(workspace: Workspace, unit: Unit, groups: int) -> list[Rival]:
    recipe = workspace.recipe
    section = recipe.synthesis
    statistics = unit.arguments["statistics"] or [None] * len(recipe.backbones)
    rivals = []
    for backbone, planned, measured in zip(
        recipe.backbones, unit.arguments["backbones"], statistics, strict=True
    ):
        module = pretrain.load(workspace, planned)
        targets = {}
        if measured is not None:
            artifact = measured.read()
            workspace.check(artifact, str(measured.path))
            targets = artifact.tensors
        matching = Matching(module, section.matchers, targets, groups, section.ema_init)
        compiled = pays(section, len(recipe.backbones)) if section.compile == "auto" else section.compile
        observer = MatchedBackbone(module, matching, bool(compiled), section.precision)
        rivals.append(Rival(planned.name, observer, backbone.match_weight))
    return rivals


def pays(section: Synthesis, backbones: int) -> bool:
    """Whether compiling is likely to pay: a minute or so a backbone is earned back over this many steps.

    Decided from the recipe alone, so that an interrupted run goes on with the same arithmetic.
    """
    return section.iterations >= COMPILE_FROM * backbones


def assembly(workspace: Workspace, parts: list[Unit]) -> Unit:
    """Plan the unit that puts the finished batches together into the distilled set."""
    depends = {"parts": [part.key for part in parts]}
    place = workspace.out / "distilled" / "images.safetensors"
    return Unit("assemble", "distilled", "distilled", place, depends, assemble, {"parts": parts})


def assemble(workspace: Workspace, unit: Unit) -> Payload:
    """Sort all batches' images by class and rank: images uint8 [N, C, H, W], labels int64 [N]."""
    parts = [part.read() for part in unit.arguments["parts"]]
    for part in parts:
        workspace.check(part, "an image batch")
    images, labels, ranks = (
        torch.cat([part.tensors[name] for part in parts]) for name in ("images", "labels", "ranks")
    )
    order = torch.argsort(labels * (int(ranks.max()) + 1) + ranks)
    return {"images": images[order], "labels": labels[order]}, set_meta(workspace)


def set_meta(workspace: Workspace) -> dict[str, Any]:
    """Return what an image set's file says of itself."""
    mean, std = workspace.moments
    return {
        "classes": list(workspace.classes),
        "mean": mean,
        "std": std,
        "ipc": workspace.recipe.synthesis.ipc,
        "data": workspace.recipe.data.full_name,
    }


def random_set(workspace: Workspace) -> Unit:
    """Plan the baseline: as many random real images of every class."""
    depends = {
        "data": workspace.data_key,
        "ipc": workspace.recipe.synthesis.ipc,
        "seed": workspace.recipe.seed,
    }
    place = workspace.out / "baselines" / "random" / "images.safetensors"
    return Unit("assemble", "random", "distilled", place, depends, draw_random)


def draw_random(workspace: Workspace, unit: Unit) -> Payload:
    """Draw images per class of real training images without replacement."""
    ipc, train = workspace.recipe.synthesis.ipc, workspace.train
    generator = workspace.generator("random set")
    chosen = []
    for label, name in enumerate(workspace.classes):
        members = (train.labels == label).nonzero().squeeze(1)
        if len(members) < ipc:
            raise GvbsmError(
                f"class {name!r} has {len(members)} training images, too few for {ipc} per class; "
                "lower synthesis.ipc (--ipc)"
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:ipc]])
    index = torch.cat(chosen)
    return {"images": train.read(index), "labels": train.labels[index]}, set_meta(workspace)
