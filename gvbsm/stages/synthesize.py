"""Synthesize [recover]: optimise the images until they produce the real data's statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gvbsm.matching import Matching
from gvbsm.recipe import Synthesis
from gvbsm.sources import Source
from gvbsm.stages import pretrain
from gvbsm.taps import Taps
from gvbsm.units import Payload, Unit
from gvbsm.workspace import Workspace
from gvbsm_registry import Artifact, GvbsmError, Step
from gvbsm_registry.artifacts import write

STAGE = "synthesize"


def batches(classes: int, section: Synthesis) -> list[tuple[list[int], list[int]]]:
    """Split the set into image batches, each a list of labels and one of ranks within the class.

    "reorder": all images of as many classes as fit (a class larger than the batch is split).
    "original": one image of each of as many classes as fit.
    """
    ipc, size = section.ipc, section.batch
    if section.loop == "original":
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
    """Plan one unit for each image batch."""
    recipe = workspace.recipe
    options = recipe.model_dump(mode="json", include={"synthesis"}, exclude_none=True)["synthesis"]
    options.pop("log_every")
    planned = []
    for number, (labels, ranks) in enumerate(batches(len(workspace.classes), recipe.synthesis)):
        depends = {
            "options": options,
            "match_weights": [backbone.match_weight for backbone in recipe.backbones],
            "backbones": [unit.key for unit in backbones],
            "statistics": [unit.key for unit in statistics],
            "seed": recipe.seed,
            "labels": labels,
            "ranks": ranks,
        }
        arguments = {"backbones": backbones, "statistics": statistics, "labels": labels, "ranks": ranks}
        place = workspace.out / "units" / STAGE
        planned.append(Unit(STAGE, f"batch-{number:04d}", "images", place, depends, optimise, arguments))
    return planned


def optimise(workspace: Workspace, unit: Unit) -> Payload:
    """Optimise one image batch; the artifact holds uint8 images [n, C, H, W], labels and ranks [n].

    Raises GvbsmError if a loss is not finite, after writing the last good images beside the artifact.
    """
    section = workspace.recipe.synthesis
    labels, ranks = (torch.tensor(unit.arguments[name]) for name in ("labels", "ranks"))
    generator = torch.Generator().manual_seed(unit.seed)
    source = Source(workspace, unit.arguments["backbones"][0])
    start = section.initializer.images(labels, ranks, source, generator).to(workspace.device)
    low, high = workspace.pixel_range()
    images = start.clamp(low, high).requires_grad_(True)
    tensors = {"labels": labels, "ranks": ranks}
    if section.iterations:
        rivals = _rivals(workspace, unit)
        run = _Optimisation(workspace, unit, images, labels.to(workspace.device), rivals, generator)
        try:
            run.steps(section.iterations)
        except _NotFinite as error:
            last = unit.path.with_name(f"{unit.key}.last-good.safetensors")
            quantized = {**tensors, "images": workspace.quantize(images.detach())}
            write(last, Artifact("images", unit.key, quantized, {"classes": list(workspace.classes)}))
            raise GvbsmError(f"{error}; the last good images are kept in {last}") from error
    tensors["images"] = workspace.quantize(images.detach())
    return tensors, {"classes": list(workspace.classes)}


@dataclass
class Rival:
    """One candidate backbone of Eq. 7, ready to match against."""

    name: str
    module: nn.Module
    matching: Matching
    weight: float


def _rivals(workspace: Workspace, unit: Unit) -> list[Rival]:
    recipe = workspace.recipe
    rivals = []
    statistics = unit.arguments["statistics"] or [None] * len(recipe.backbones)
    for backbone, planned, measured in zip(
        recipe.backbones, unit.arguments["backbones"], statistics, strict=True
    ):
        module = pretrain.load(workspace, planned)
        targets = {}
        if measured is not None:
            artifact = measured.read()
            workspace.check(artifact, str(measured.path))
            targets = artifact.tensors
        section = recipe.synthesis
        matching = Matching(module, section.matchers, targets, start=section.average_start)
        rivals.append(Rival(planned.name, module, matching, backbone.match_weight))
    return rivals


class _NotFinite(ArithmeticError):
    """A loss became infinite or not a number."""


class _Optimisation:
    """The loop over synthesis steps of one image batch."""

    def __init__(
        self,
        workspace: Workspace,
        unit: Unit,
        images: Tensor,
        labels: Tensor,
        rivals: list[Rival],
        generator: torch.Generator,
    ) -> None:
        self.workspace, self.unit, self.section = workspace, unit, workspace.recipe.synthesis
        self.images, self.labels = images, labels
        self.rivals, self.generator = rivals, generator
        self.optimizer = torch.optim.Adam([images], self.section.learning_rate, betas=self.section.betas)
        self.low, self.high = workspace.pixel_range()

    def steps(self, count: int) -> None:
        for step in range(count):
            self._step(step, count)
            self.workspace.reporter.progress(f"synthesize {self.unit.name}", step + 1, count)

    def _step(self, step: int, count: int) -> None:
        section = self.section
        rival = self.rivals[self._turn(step)]
        rate = section.learning_rate * section.schedule.factor(step, count)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        terms = self._terms(rival)
        total = torch.stack(list(terms.values())).sum()
        value = float(total.detach())
        if not math.isfinite(value):
            bad = [name for name, term in terms.items() if not math.isfinite(float(term.detach()))]
            raise _NotFinite(
                f"{self.unit.name}: step {step} of {count} with backbone {rival.name!r}: the loss is {value} "
                f"(from {', '.join(bad) or 'their sum'}); lower its weight or synthesis.learning_rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        (self.images.grad,) = torch.autograd.grad(total, [self.images])
        self.optimizer.step()
        with torch.no_grad():
            self.images.clamp_(self.low, self.high)
        if step // len(self.rivals) % section.log_every == 0 or step == count - 1:
            values: dict[str, float] = {name: float(term.detach()) for name, term in terms.items()}
            values |= {"total": value, "learning_rate": rate}
            labels = {"backbone": rival.name}
            self.workspace.reporter.tell(Step(STAGE, self.unit.name, step, count, values, labels))

    def _turn(self, step: int) -> int:
        if self.section.backbone_order == "cycle":
            return step % len(self.rivals)
        return int(torch.randint(len(self.rivals), (), generator=self.generator))

    def _terms(self, rival: Rival) -> dict[str, Tensor]:
        """Return the weighted terms of the total loss of one step."""
        section = self.section
        side = self.images.shape[-1]
        view = section.augmentation.draw(len(self.images), side, self.generator)
        uniforms = torch.rand(1, len(rival.matching.sites), generator=self.generator)
        with Taps(rival.module, rival.matching.sites) as taps:
            logits = rival.module(view.apply(self.images))
        terms: dict[str, Any] = {"cross_entropy": section.cross_entropy * cross_entropy(logits, self.labels)}
        matched = rival.matching.losses(taps.activations(), uniforms.to(self.images.device))
        terms |= {name: rival.weight * term for name, term in matched.items()}
        for regularizer in section.regularizers:
            loss = regularizer.weight * regularizer.loss(self.images, self.labels)
            terms[regularizer.title] = terms.get(regularizer.title, 0) + loss
        return terms


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
        "data": workspace.recipe.data.title,
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
