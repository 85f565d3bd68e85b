"""What a run will take: a few steps of every stage, timed on untrained backbones, and how many there are."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gvbsm.distilled.labels import least
from gvbsm.estimate.memory import Peak
from gvbsm.estimate.trial import Trial
from gvbsm.recipe.schema import Recipe
from gvbsm.runtime.units import Unit
from gvbsm.runtime.workspace import Workspace
from gvbsm.stages import evaluate, measure, pretrain, relabel, synthesize
from gvbsm.stages.training import TEST_BATCH, top1
from gvbsm_registry import Initializer, Registry
from gvbsm_registry.artifacts import canonical

EPOCHS = 3
TRIAL_TESTS = 64
SETS = 2  # the distilled images and the random baseline


@dataclass
class Cost:
    """What a stage takes: `seconds` in all, of which `seconds_per_step` × `steps` are its steps.

    peak_bytes: of memory, with all that the process holds; None where nobody tells. bytes: of its files'
    tensors. seconds_per_step is the mean over backbones or students.
    """

    stage: str
    steps: int = 0
    seconds: float = 0.0
    peak_bytes: int | None = None
    bytes: int = 0

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.steps if self.steps else 0.0

    def held(self, size: int | None) -> None:
        """Note a peak of memory; the largest counts."""
        if size is not None:
            self.peak_bytes = max(size, self.peak_bytes or 0)

    def table(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {**asdict(self), "seconds_per_step": self.seconds_per_step}


def estimate(
    recipe: Recipe, registry: Registry, device: torch.device, steps: int = 3, cache: Path | None = None
) -> dict[str, Any]:
    """Return the cost of a whole run of `recipe` on `device`, from nothing, one unit of work at a time.

    Keys: "stages", a list of `Cost.table`s; "seconds"; "peak_bytes"; "bytes", by what is stored: of the
    distilled "images" and "labels", and of "statistics" and "backbones" of the store.
    steps: how many are timed of each kind. cache: the store where the data set keeps decoded pixels.
    Left out are what choosing real images to start from takes, and other people's exporters.
    Raises GvbsmError if the recipe or its data are wrong.
    """
    with tempfile.TemporaryDirectory(prefix="gvbsm-estimate-") as folder:
        stages = _Estimate(Trial(recipe, registry, device, Path(folder), cache), steps).stages()
    peaks = [cost.peak_bytes for cost in stages.values() if cost.peak_bytes is not None]
    return {
        "stages": [cost.table() for cost in stages.values()],
        "seconds": sum(cost.seconds for cost in stages.values()),
        "peak_bytes": max(peaks, default=None),
        "bytes": {
            "images": stages["synthesize"].bytes,
            "labels": stages["relabel"].bytes // SETS,
            "statistics": stages["measure"].bytes,
            "backbones": stages["pretrain"].bytes,
        },
    }


class _Estimate:
    def __init__(self, trial: Trial, steps: int) -> None:
        self.trial, self.timed = trial, steps
        self.recipe, self.whole = trial.recipe, trial.whole
        self.test_seconds: dict[str, float] = {}

    def stages(self) -> dict[str, Cost]:
        backbones = self.trial.backbones()
        self.pictures = self.trial.pictures("distilled", self._few(self.recipe.relabel.batch))
        found = [self._pretrain(backbones)]
        cost, statistics_units = self._measure(backbones)
        found += [cost, self._synthesize(backbones, statistics_units)]
        cost, labels = self._relabel(backbones)
        found += [cost, self._evaluate(labels)]
        return {cost.stage: cost for cost in found}

    @property
    def count(self) -> int:
        """The images of the condensed set."""
        return self.recipe.synthesis.ipc * len(self.whole.classes)

    def _few(self, batch: int) -> int:
        return min(self.count, 2 * max(batch, self.recipe.evaluation.batch))

    @contextmanager
    def _memory(self, cost: Cost, beside: int = 0) -> Iterator[None]:
        """Note the peak of memory inside; a real run holds `beside` bytes more."""
        with Peak(self.whole.device) as peak:
            yield
        cost.held(None if peak.peak is None else peak.peak + beside)

    def _training(self, cost: Cost, backbone: Any, workspace: Workspace, unit: Unit) -> None:
        """Add to `cost` what training and testing one module on the real data takes."""
        section, tests = self.recipe.pretrain, len(self.whole.test)
        steps = section.epochs * -(-len(self.whole.train) // section.batch)
        with self._memory(cost):
            noted = self.trial.timed(workspace, unit)
        # the first step warms up, the last note comes right after the last step's
        cost.seconds += steps * statistics.median(noted[1 : self.timed + 1])
        cost.steps += steps
        cost.seconds += tests * self._test(cost, backbone)

    def _test(self, cost: Cost, backbone: Any) -> float:
        """Return the seconds that testing on one image takes."""
        if (key := canonical(backbone.to_recipe())) not in self.test_seconds:
            tests = min(TRIAL_TESTS, len(self.whole.test))
            workspace = self.trial.workspace(tests=tests)
            module = workspace.build(backbone.model_copy(update={"weights": None}))
            with Peak(self.whole.device) as peak:
                top1(workspace, module)
                seconds = self.trial.seconds(lambda: top1(workspace, module))
            if peak.before is not None and peak.extra is not None:
                cost.held(peak.before + peak.extra * min(TEST_BATCH, len(self.whole.test)) // tests)
            self.test_seconds[key] = seconds / tests
        return self.test_seconds[key]

    def _pretrain(self, backbones: list[Unit]) -> Cost:
        cost = Cost("pretrain")
        for index, unit in enumerate(backbones):
            cost.bytes += _bytes(unit.read().tensors)
            workspace = self.trial.workspace(
                images=(self.timed + 1) * self.recipe.pretrain.batch, pretrain={"epochs": 1}
            )
            planned = pretrain.units(workspace)[index]
            self._training(cost, self.recipe.backbones[index], workspace, planned)
        return cost

    def _measure(self, backbones: list[Unit]) -> tuple[Cost, list[Unit]]:
        cost, batch = Cost("measure"), self.recipe.measure.batch
        workspace = self.trial.workspace(images=(self.timed + 1) * batch, measure={"shards": 1})
        planned = measure.units(workspace, backbones)
        steps = -(-len(self.whole.train) // batch)
        for unit in planned:
            with self._memory(cost):
                noted = self.trial.timed(workspace, unit)
            cost.seconds += steps * statistics.median(noted[1:])
            cost.steps += steps
            cost.bytes += _bytes(unit.read().tensors)
        return cost, planned

    def _synthesize(self, backbones: list[Unit], statistics_units: list[Unit]) -> Cost:
        """Time cycles over all backbones; the first one, compilation included, is paid once."""
        section, each = self.recipe.synthesis, len(backbones)
        train = self.whole.train
        cost = Cost("synthesize", bytes=self.count * (train.channels * train.image_size**2 + 8))
        batches = len(synthesize.batches(len(self.whole.classes), section))
        if not section.iterations:
            return cost
        # decided for the real number of iterations
        compiled = synthesize.pays(section, each) if section.compile == "auto" else section.compile
        options = {
            "compile": compiled,
            "iterations": each * (self.timed + 1),
            "backbone_order": "cycle",
            "initializer": self.whole.registry.create(Initializer, "noise"),
        }
        workspace = self.trial.workspace(synthesis=options)
        unit = synthesize.units(workspace, backbones, statistics_units)[0]
        with self._memory(cost):
            noted = self.trial.timed(workspace, unit)
        made = len(unit.read().tensors["images"])
        share = self.count / made / batches  # the last batch may be smaller, or several go in one unit
        step = statistics.fmean(noted[each:])
        cost.steps = batches * section.iterations
        cost.seconds = cost.steps * step * share + max(0.0, sum(noted[:each]) - each * step)
        return cost

    def _relabel(self, backbones: list[Unit]) -> tuple[Cost, list[Unit]]:
        section, count = self.recipe.relabel, int(self.pictures.arguments["count"])
        cost = Cost("relabel")
        real = relabel.units(self.whole, self.pictures, backbones)
        epochs = SETS * sum(unit.depends["epochs"] for unit in real)
        workspace = self.trial.workspace(
            relabel={"epochs": EPOCHS, "epochs_per_file": EPOCHS, "keep_fraction": 1.0}
        )
        (unit,) = relabel.units(workspace, self.pictures, backbones)
        with self._memory(cost, self._set_bytes()):
            noted = self.trial.timed(workspace, unit)
        share = self.count / count
        cost.seconds = epochs * share * statistics.median(noted[1:])
        cost.steps = epochs * -(-self.count // section.batch)
        epoch_bytes = label_bytes(unit.read().tensors, count, self.count)
        cost.bytes = epochs * epoch_bytes
        self.block_bytes = min(section.epochs_per_file, epochs // SETS) * epoch_bytes
        cost.held(None if cost.peak_bytes is None else cost.peak_bytes + self.block_bytes)
        return cost, [unit]

    def _set_bytes(self) -> int:
        """What the whole set takes beyond the trial's images: as bytes, and normalised."""
        train = self.whole.train
        more = self.count - int(self.pictures.arguments["count"])
        return more * train.channels * train.image_size**2 * 5

    def _evaluate(self, labels: list[Unit]) -> Cost:
        cost, section = Cost("evaluate"), self.recipe.evaluation
        count = int(self.pictures.arguments["count"])
        options = {"epochs": EPOCHS, "test_every": EPOCHS, "seeds": section.seeds[:1]}
        few = self.trial.workspace(
            images=(self.timed + 1) * self.recipe.pretrain.batch, evaluation=options, pretrain={"epochs": 1}
        )
        images = {"distilled": self.pictures, "random": self.pictures}
        planned = evaluate.units(few, images, {"distilled": labels, "random": labels})
        tests = -(-section.epochs // section.test_every)
        for unit in planned:
            student = unit.arguments["student"]
            one = Cost("evaluate")
            if unit.depends["set"] == "full":
                self._training(one, student, few, unit)
            else:
                with self._memory(one, self._set_bytes() + self.block_bytes):
                    noted = self.trial.timed(few, unit)
                epoch = statistics.median(noted[1:-1]) * self.count / count  # the last one ends in a test
                one.seconds = section.epochs * epoch + tests * len(self.whole.test) * self._test(one, student)
                one.steps = section.epochs * -(-self.count // section.batch)
            cost.seconds += len(section.seeds) * one.seconds
            cost.steps += len(section.seeds) * one.steps
            cost.held(one.peak_bytes)
        return cost


def label_bytes(tensors: dict[str, Tensor], labelled: int, count: int) -> int:
    """Return what an epoch of `count` images takes in files like `tensors`, of `labelled` images."""
    total = 0
    for name, tensor in tensors.items():
        size = tensor.element_size()
        if name == "partner":  # an image's number takes as many bytes as the largest one's
            size = least(torch.tensor([count - 1])).element_size()
        if name == "flip":
            total += -(-count // 8)
        else:
            many = count if tensor.shape[1] == labelled else tensor.shape[1]
            total += many * size * tensor[0, 0].numel()
    return total


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
