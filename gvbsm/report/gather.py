"""Collects what a run folder holds, and what the backbones make of its images, for the report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gvbsm.runtime.units import Unit
from gvbsm.runtime.workspace import Workspace
from gvbsm.stages import measure, pretrain
from gvbsm_registry import Artifact, GvbsmError
from gvbsm_registry.artifacts import read

CLASSES = 10
PER_CLASS = 40
LEAST_IMAGES = 60
BATCH = 100
PICTURES = (64, 64)
STAGES = ("pretrain", "measure", "synthesize", "assemble", "relabel", "evaluate")


@dataclass
class Observed:
    """What one backbone makes of n images.

    logits: float32 [n, K]; features: float32 [n, D], what its last linear layer sees.
    layers: names of its L convolutions; means, variances: float64 [L], of each one's input, by channel over
    the images and space, then averaged over the channels.
    """

    logits: Tensor
    features: Tensor
    layers: list[str]
    means: Tensor
    variances: Tensor


@dataclass
class Sample:
    """Some images of the classes shown: uint8 [n, C, H, W] and labels int64 [n]."""

    images: Tensor
    labels: Tensor
    seen: dict[str, Observed] = field(default_factory=dict)


@dataclass
class Run:
    """One run, as far as it has come. shown: the labels of the classes that pictures are made of."""

    name: str
    classes: tuple[str, ...]
    shown: list[int]
    recipe: str
    facts: dict[str, str]
    records: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    stages: list[tuple[str, float | None, int]]
    samples: dict[str, Sample]
    backbones: list[tuple[str, float]]
    confusion: tuple[str, Tensor] | None
    notes: list[str]


def gather(workspace: Workspace) -> Run:
    """Return everything that a report tells of a run; what is missing is left out, with a note."""
    count = len(workspace.classes)
    shown = torch.linspace(0, count - 1, min(count, CLASSES)).round().long().unique().tolist()
    notes: list[str] = []
    sets = {name: _image_set(workspace, name, notes) for name in ("distilled", "random")}
    samples = {"real": real_sample(workspace, shown)}
    for name, artifact in sets.items():
        if artifact is not None:
            samples[name] = _sample(artifact.tensors["images"], artifact.tensors["labels"], shown)
    events = list(_events(workspace.out / "log.jsonl"))
    backbones = pretrain.units(workspace)
    records = _records(workspace.out / "results.json", notes)
    return Run(
        workspace.out.resolve().name,
        workspace.classes,
        shown,
        (workspace.out / "recipe.toml").read_text(encoding="utf-8"),
        _facts(workspace, sets["distilled"]),
        records,
        [event for event in events if event["event"] == "step" and event.get("stage") == "synthesize"],
        _stages(workspace, events, backbones),
        samples,
        _observe_all(workspace, backbones, samples, notes),
        _confusion(workspace, records),
        notes,
    )


def _image_set(workspace: Workspace, name: str, notes: list[str]) -> Artifact | None:
    where = "distilled" if name == "distilled" else "baselines/random"
    path = workspace.out / where / "images.safetensors"
    if not path.exists():
        if name == "distilled":
            notes.append("There are no distilled images yet; run the synthesize stage.")
        return None
    return read(path, "distilled")


def real_sample(workspace: Workspace, shown: list[int]) -> Sample:
    """Return the first training images of the classes shown, fewer where images are large."""
    train = workspace.train
    room = (
        PER_CLASS
        * len(shown)
        * PICTURES[0]
        * PICTURES[1]
        // max(train.image_size**2, PICTURES[0] * PICTURES[1])
    )
    each = max(1, max(LEAST_IMAGES, room) // max(1, len(shown)))
    index = torch.cat([(train.labels == label).nonzero().flatten()[:each] for label in shown])
    return Sample(train.read(index), train.labels[index])


def _sample(images: Tensor, labels: Tensor, shown: list[int]) -> Sample:
    index = torch.cat([(labels == label).nonzero().flatten()[:PER_CLASS] for label in shown])
    return Sample(images[index], labels[index])


def _events(path: Path) -> Any:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # a line that a killed process left half-written
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


def _records(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        notes.append("There are no accuracies yet; run the evaluate stage.")
        return []
    return list(json.loads(path.read_text(encoding="utf-8"))["records"])


def _facts(workspace: Workspace, distilled: Artifact | None) -> dict[str, str]:
    recipe = workspace.recipe
    image_size, channels = workspace.train.image_size, workspace.train.channels
    facts = {
        "recipe": recipe.name,
        "reproduces": recipe.reproduces or "nothing stated",
        "data": f"{recipe.data.full_name}: {len(workspace.train):,} training and {len(workspace.test):,} "
        f"test images, {len(workspace.classes):,} classes, {image_size}×{image_size}×{channels}",
        "start": f"{recipe.synthesis.initializer.full_name}, {recipe.synthesis.iterations:,} iterations",
        "images per class": str(recipe.synthesis.ipc),
        "seed": str(recipe.seed),
    }
    if distilled is not None:
        provenance = distilled.meta.get("provenance", {})
        facts["made with"] = f"gvbsm {provenance.get('gvbsm', '?')}, torch {provenance.get('torch', '?')}"
        facts["key"] = distilled.key
    return facts


def _stages(
    workspace: Workspace, events: list[dict[str, Any]], backbones: list[Unit]
) -> list[tuple[str, float | None, int]]:
    """Return (stage, seconds of its units over all times it was run, bytes of its artifacts)."""
    seconds: dict[str, float] = {}
    for event in events:
        if event["event"] == "stage_finished":
            spent = sum(float(unit.get("seconds", 0)) for unit in event.get("summaries", {}).values())
            name = str(event["stage"]).split()[0]
            seconds[name] = seconds.get(name, 0.0) + spent
    out = workspace.out
    files = {
        "pretrain": [unit.path for unit in backbones],
        "measure": [unit.path for unit in measure.units(workspace, backbones)],
        "synthesize": list((out / "units" / "synthesize").glob("*.safetensors")),
        "assemble": list(out.glob("*/**/images.safetensors")),
        "relabel": list(out.glob("*/**/labels-*.safetensors")),
        "evaluate": list((out / "units" / "evaluate").glob("*.safetensors")),
    }
    return [
        (stage, seconds.get(stage), sum(path.stat().st_size for path in files[stage] if path.exists()))
        for stage in STAGES
    ]


def _observe_all(
    workspace: Workspace, backbones: list[Unit], samples: dict[str, Sample], notes: list[str]
) -> list[tuple[str, float]]:
    """Show every sample to every backbone that is there; return the backbones' names and accuracies."""
    found = []
    for unit in backbones:
        try:
            module = pretrain.load(workspace, unit)
            accuracy = float(unit.read().meta["top1"])
        except GvbsmError:
            notes.append(f"Backbone {unit.name} is not in the store (any more); give --store, or run again.")
            continue
        found.append((unit.name, accuracy))
        for sample in samples.values():
            sample.seen[unit.name] = observe(workspace, module, sample.images)
    return found


@torch.no_grad()
def observe(workspace: Workspace, module: nn.Module, images: Tensor) -> Observed:
    """Pass uint8 images through a backbone and record its layers' statistics."""
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    layers = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Conv2d)]
    features: list[Tensor] = []
    sums: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            wide = inputs[0].double().transpose(0, 1).flatten(1)
            moments = torch.stack([wide.mean(1), wide.square().mean(1)]) * len(inputs[0])
            sums[name] = sums.get(name, 0) + moments.cpu()

        return hook

    handles = [part.register_forward_pre_hook(record(name)) for name, part in layers]
    if linear:
        handles.append(
            linear[-1].register_forward_pre_hook(lambda _, seen: features.append(seen[0].flatten(1).cpu()))
        )
    try:
        logits = torch.cat([module(workspace.normalize(part)).float().cpu() for part in images.split(BATCH)])
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, _ in layers if name in sums]
    moments = [sums[name] / len(images) for name in names]
    means = torch.stack([m[0].mean() for m in moments]) if moments else torch.zeros(0)
    variances = torch.stack([(m[1] - m[0].square()).mean() for m in moments]) if moments else torch.zeros(0)
    return Observed(logits, torch.cat(features) if features else logits, names, means, variances)


def _confusion(workspace: Workspace, records: list[dict[str, Any]]) -> tuple[str, Tensor] | None:
    """Return (which student, counts [K, K]) of the first student trained on the distilled set, if stored."""
    wanted = [record for record in records if record["set"] == "distilled" and record["labels"] == "soft"]
    for path in sorted((workspace.out / "units" / "evaluate").glob("*.safetensors")) if wanted else ():
        artifact = read(path, "accuracy")
        record, cells = artifact.meta["record"], artifact.tensors.get("confusion")
        if record == wanted[0] and cells is not None:
            size = len(workspace.classes)
            matrix = torch.zeros(size, size, dtype=torch.int64)
            matrix[cells[:, 0], cells[:, 1]] = cells[:, 2]
            return f"{record['student']}, seed {record['seed']}", matrix
    return None
