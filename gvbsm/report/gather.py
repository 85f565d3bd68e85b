"""Collects what a run folder holds, and what the backbones make of its images, for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gvbsm.results.card import FACTS
from gvbsm.results.finished import FinishedRun
from gvbsm.results.records import published_rows
from gvbsm.runtime import log as logs
from gvbsm.runtime.folders import LOG
from gvbsm_registry import GvbsmError, Split
from gvbsm_registry.artifacts import read

CLASSES = 10
PER_CLASS = 40
LEAST_IMAGES = 60
BATCH = 100
SIDE = 64

TRAINING = ("set", "labels", "augmented", "student_options", "seed")


@dataclass(frozen=True)
class StoredBackbone:
    """A pretrained backbone: its file, and how to load it.

    load: returns the module, frozen and in evaluation mode, and its Top-1 on the test split, 0 to 1; raises
    GvbsmError if the file is damaged or does not fit.
    """

    name: str
    path: Path
    load: Callable[[], tuple[nn.Module, float]]


@dataclass(frozen=True)
class ReportInputs:
    """What the report of a run is made from; the run may be unfinished.

    data, train, tests: the data set's full name, training split and number of test images. normalize: uint8
    images [n, C, H, W] as the backbones take them. files: the artifacts of each stage, made or not.
    """

    run: FinishedRun
    data: str
    train: Split
    tests: int
    normalize: Callable[[Tensor], Tensor]
    backbones: Sequence[StoredBackbone]
    files: Mapping[str, Sequence[Path]]


@dataclass
class Response:
    """What one backbone makes of n images.

    logits: float32 [n, K]; features: float32 [n, D], what its last linear layer sees. means, variances:
    float64 [L], of the input of each of its L convolutions, by channel over the images and space, then
    averaged over the channels.
    """

    logits: Tensor
    features: Tensor
    means: Tensor
    variances: Tensor


@dataclass
class Sample:
    """Some images of the classes shown: uint8 [n, C, H, W], labels int64 [n], responses by backbone."""

    images: Tensor
    labels: Tensor
    responses: dict[str, Response] = field(default_factory=dict)


@dataclass
class RunFacts:
    """One run, as far as it has come. shown: the labels of the classes that pictures are made of."""

    name: str
    classes: tuple[str, ...]
    shown: list[int]
    recipe: str
    facts: dict[str, str]
    records: list[dict[str, Any]]
    published: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    stages: list[tuple[str, float | None, int]]
    samples: dict[str, Sample]
    backbones: list[tuple[str, float]]
    confusion: tuple[str, Tensor] | None
    notes: list[str]


def gather(inputs: ReportInputs) -> RunFacts:
    """Return everything that a report tells of a run; what is missing is left out, with a note.

    Raises GvbsmError if a file of the run is broken.
    """
    run, classes = inputs.run, inputs.train.classes
    shown = torch.linspace(0, len(classes) - 1, min(len(classes), CLASSES)).round().long().unique().tolist()
    notes: list[str] = []
    samples = {"real": real_sample(inputs.train, shown)}
    if run.has_images:
        samples["distilled"] = _sample(run.images, run.labels, shown)
    else:
        notes.append("There are no distilled images yet; run the synthesis stage.")
    if run.baseline is not None:
        samples["random"] = _sample(*run.baseline, shown)
    if not run.records:
        notes.append("There are no accuracies yet; run the evaluation stage.")
    events = list(logs.events(run.folder / LOG))
    return RunFacts(
        run.folder.resolve().name,
        classes,
        shown,
        (run.folder / "recipe.toml").read_text(encoding="utf-8"),
        _facts(inputs),
        run.records,
        published_rows(run.recipe) if run.records else [],
        [event for event in events if event["event"] == "step" and event.get("stage") == "synthesis"],
        _stages(inputs.files, events),
        samples,
        _show_to_backbones(inputs, samples, notes),
        _confusion(inputs.files["evaluation"], run.records, len(classes)),
        notes,
    )


def real_sample(train: Split, shown: list[int]) -> Sample:
    """Return the first training images of the classes shown, fewer where images are large."""
    room = PER_CLASS * len(shown) * SIDE**2 // max(train.image_size, SIDE) ** 2
    each = max(1, max(LEAST_IMAGES, room) // max(1, len(shown)))
    index = torch.cat([(train.labels == label).nonzero().flatten()[:each] for label in shown])
    return Sample(train.read(index), train.labels[index])


def _sample(images: Tensor, labels: Tensor, shown: list[int]) -> Sample:
    index = torch.cat([(labels == label).nonzero().flatten()[:PER_CLASS] for label in shown])
    return Sample(images[index], labels[index])


def _facts(inputs: ReportInputs) -> dict[str, str]:
    run, train, recipe = inputs.run, inputs.train, inputs.run.recipe
    synthesis = recipe["synthesis"]
    facts = {
        "recipe": str(recipe["name"]),
        **{key: str(recipe[key]) for key in FACTS if recipe.get(key)},
        "data": f"{inputs.data}: {len(train):,} training and {inputs.tests:,} test images, "
        f"{len(train.classes):,} classes, {train.image_size}×{train.image_size}×{train.channels}",
        "start": f"{synthesis['initializer']['use']}, {synthesis['iterations']:,} iterations",
        "images per class": str(synthesis["ipc"]),
        "seed": str(recipe["seed"]),
    }
    if run.has_images:
        provenance = run.meta.get("provenance", {})
        facts["made with"] = f"gvbsm {provenance.get('gvbsm', '?')}, torch {provenance.get('torch', '?')}"
        facts["key"] = run.key
    return facts


def _stages(
    files: Mapping[str, Sequence[Path]], events: list[dict[str, Any]]
) -> list[tuple[str, float | None, int]]:
    """Return (stage, seconds of its units over all times it was run, bytes of its artifacts)."""
    seconds: dict[str, float] = {}
    for event in events:
        if event["event"] == "stage_finished":
            spent = sum(float(unit.get("seconds", 0)) for unit in event.get("summaries", {}).values())
            name = str(event["stage"]).split()[0]
            seconds[name] = seconds.get(name, 0.0) + spent
    return [
        (stage, seconds.get(stage), sum(path.stat().st_size for path in files[stage] if path.exists()))
        for stage in files
    ]


def _show_to_backbones(
    inputs: ReportInputs, samples: dict[str, Sample], notes: list[str]
) -> list[tuple[str, float]]:
    """Show every sample to every backbone that is there; return the backbones' names and accuracies."""
    names = []
    for backbone in inputs.backbones:
        if not backbone.path.exists():
            notes.append(
                f"Backbone {backbone.name} is not in the store (any more); give --store, or run again."
            )
            continue
        try:
            module, top1 = backbone.load()
        except GvbsmError as error:
            notes.append(f"Backbone {backbone.name} is damaged or does not fit: {error}")
            continue
        names.append((backbone.name, top1))
        for sample in samples.values():
            sample.responses[backbone.name] = respond(module, sample.images, inputs.normalize)
    return names


@torch.no_grad()
def respond(module: nn.Module, images: Tensor, normalize: Callable[[Tensor], Tensor]) -> Response:
    """Pass uint8 images [n, C, H, W] through a backbone and record its layers' statistics."""
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    features: list[Tensor] = []
    sums: dict[nn.Module, Tensor] = {}

    def add(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        by_channel = inputs[0].double().transpose(0, 1).flatten(1)
        powers = torch.stack([by_channel.mean(1), by_channel.square().mean(1)]) * len(inputs[0])
        sums[part] = sums.get(part, 0) + powers.cpu()

    def keep(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features.append(inputs[0].flatten(1).cpu())

    handles = [part.register_forward_pre_hook(add) for part in convolutions]
    handles += [part.register_forward_pre_hook(keep) for part in linear[-1:]]
    try:
        logits = torch.cat([module(normalize(part)).float().cpu() for part in images.split(BATCH)])
    finally:
        for handle in handles:
            handle.remove()
    averages = [sums[part] / len(images) for part in convolutions if part in sums]
    means = torch.tensor([float(mean.mean()) for mean, _ in averages], dtype=torch.float64)
    variances = torch.tensor(
        [float((square - mean.square()).mean()) for mean, square in averages], dtype=torch.float64
    )
    return Response(logits, torch.cat(features) if features else logits, means, variances)


def _confusion(
    files: Sequence[Path], records: list[dict[str, Any]], classes: int
) -> tuple[str, Tensor] | None:
    """Return (which student, counts [K, K]) of the first student trained on the distilled set, if stored."""
    wanted = [record for record in records if record["set"] == "distilled"]
    for path in files if wanted else ():
        artifact = read(path, "accuracy") if path.exists() else None
        if artifact is None or "confusion" not in artifact.tensors:
            continue
        if all(artifact.meta["record"].get(name) == wanted[0][name] for name in TRAINING):
            matrix = torch.zeros(classes, classes, dtype=torch.int64)
            true, predicted, counts = artifact.tensors["confusion"].unbind(1)
            matrix[true, predicted] = counts
            return f"{wanted[0]['student']}, seed {wanted[0]['seed']}", matrix
    return None
