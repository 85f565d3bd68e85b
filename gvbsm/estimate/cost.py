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

from gvbsm.distilled.labels import smallest_exact_dtype
from gvbsm.estimate.memory import Peak
from gvbsm.estimate.starts import choosing
from gvbsm.estimate.trial import Trial, fresh
from gvbsm.recipe.schema import Recipe
from gvbsm.runtime.data import Data, open_data
from gvbsm.runtime.units import Unit
from gvbsm.stages import relabel, synthesize
from gvbsm.stages.pretrain import is_trained, needed, networks_of, table_of
from gvbsm.stages.training import TEST_BATCH, top1
from gvbsm_registry import Backbone, Initializer, Registry
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
    Left out are other people's exporters.
    Raises GvbsmError if the recipe or its data are wrong.
    """
    with tempfile.TemporaryDirectory(prefix="gvbsm-estimate-") as folder:
        data = open_data(recipe.data, (cache or Path(folder)) / "data")
        stages = _Estimate(recipe, data, registry, device, Path(folder), steps).stages()
    peaks = [cost.peak_bytes for cost in stages.values() if cost.peak_bytes is not None]
    return {
        "stages": [cost.table() for cost in stages.values()],
        "seconds": sum(cost.seconds for cost in stages.values()),
        "peak_bytes": max(peaks, default=None),
        "bytes": {
            "images": stages["synthesis"].bytes,
            "labels": stages["relabel"].bytes // SETS,
            "statistics": stages["measure"].bytes,
            "backbones": stages["pretrain"].bytes,
        },
    }


class _Estimate:
    """Times the units of a trial's plan, and multiplies by what the whole recipe asks for."""

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        registry: Registry,
        device: torch.device,
        folder: Path,
        steps: int,
    ) -> None:
        self.recipe, self.data, self.timed = recipe, data, steps
        self.count = recipe.synthesis.ipc * len(data.classes)
        self.pictures = min(self.count, 2 * max(recipe.relabel.batch, recipe.evaluation.batch))
        self.tests = min(TRIAL_TESTS, len(data.test))
        images = (steps + 1) * max(recipe.pretrain.batch, recipe.measure.batch)
        short = self._shortened(registry)
        self.trial = Trial(short, data, registry, device, folder, images, self.tests, self.pictures)
        self.test_seconds: dict[str, float] = {}

    def _shortened(self, registry: Registry) -> Recipe:
        """Return the recipe with as many steps as are timed."""
        recipe, each = self.recipe, len(self.recipe.backbones)
        section = recipe.synthesis
        compiled = synthesize.is_compiled(section, each)  # decided for the real number of iterations
        changes: dict[str, dict[str, Any]] = {
            "pretrain": {"epochs": 1},
            "measure": {"shards": 1},
            "synthesis": {
                "compile": compiled,
                "iterations": min(section.iterations, each * (self.timed + 1)),
                # not timed here, but by `choosing`; without steps it says whether there are backbones
                **({"initializer": registry.create(Initializer, "noise")} if section.iterations else {}),
            },
            "relabel": {
                "epochs": EPOCHS,
                "epochs_per_file": EPOCHS,
                "keep_fraction": 1.0,
                "pruning": "epochs",
            },
            "evaluation": {"epochs": EPOCHS, "test_every": EPOCHS, "seeds": recipe.evaluation.seeds[:1]},
        }
        sections = {name: getattr(recipe, name).model_copy(update=update) for name, update in changes.items()}
        return recipe.model_copy(update=sections)

    def stages(self) -> dict[str, Cost]:
        """Return the cost of every stage, in order."""
        self.trial.make([self.trial.pictures])
        costs = [self._pretrain(), self._measure(), self._synthesize(), self._relabel(), self._evaluate()]
        return {cost.stage: cost for cost in costs}

    @contextmanager
    def _memory(self, cost: Cost, beside: int = 0) -> Iterator[None]:
        """Note the peak of memory inside; a real run holds `beside` bytes more."""
        with Peak(self.trial.context.device) as peak:
            yield
        cost.held(None if peak.peak is None else peak.peak + beside)

    def _training(self, cost: Cost, backbone: Backbone, unit: Unit) -> None:
        """Add to `cost` what training and testing one module on the real data takes."""
        section = self.recipe.pretrain
        steps = section.epochs * -(-len(self.data.train) // section.batch)
        with self._memory(cost):
            noted = self.trial.timed(unit)
        # the first step warms up, the last note comes right after the last step's
        cost.seconds += steps * statistics.median(noted[1 : self.timed + 1])
        cost.steps += steps
        cost.seconds += len(self.data.test) * self._test(cost, backbone)

    def _test(self, cost: Cost, backbone: Backbone) -> float:
        """Return the seconds that testing on one image takes."""
        if (key := canonical(backbone.to_recipe())) not in self.test_seconds:
            context = self.trial.context
            module = context.build(backbone.model_copy(update={"weights": None}))
            with Peak(context.device) as peak:
                top1(context, module)
                seconds = self.trial.seconds(lambda: top1(context, module))
            if peak.before is not None and peak.extra is not None:
                cost.held(peak.before + peak.extra * min(TEST_BATCH, len(self.data.test)) // self.tests)
            self.test_seconds[key] = seconds / self.tests
        return self.test_seconds[key]

    def _pretrain(self) -> Cost:
        cost = Cost("pretrain")
        tried = zip(networks_of(self.trial.recipe), self.trial.plan.all_networks, strict=True)
        units = {canonical(table_of(network)): unit for network, unit in tried}
        for index, network in enumerate(networks_of(self.recipe)):
            if index not in needed(self.recipe):
                continue
            unit = units[canonical(table_of(fresh(network)))]
            if is_trained(self.recipe, index, network):
                self._training(cost, fresh(network), unit)
            else:
                self.trial.make([unit])
            cost.bytes += _bytes(unit.read().tensors)
        self.trial.make_untrained()  # a few steps at a high rate may have ruined them
        return cost

    def _measure(self) -> Cost:
        """Time both passes over the data, in mixed batches and by class, where there are both."""
        cost, batch = Cost("measure"), self.recipe.measure.batch
        images = len(self.data.train)
        batches = -(-images // batch)
        counts = torch.bincount(self.data.train.labels)
        of_classes = int((-(-counts // batch)).sum())  # many of them are not full
        for unit in self.trial.plan.statistics:
            with self._memory(cost):
                noted = self.trial.timed_measuring(unit)
            passes = [asked for asked in ("matchers", "by_class") if unit.options.get(asked)]
            each = len(noted) // len(passes)
            for number, asked in enumerate(passes):
                step = statistics.median(noted[number * each + 1 : (number + 1) * each])
                cost.seconds += step * (batches if asked == "matchers" else images / batch)
                cost.steps += batches if asked == "matchers" else of_classes
            cost.bytes += _bytes(unit.read().tensors)
        return cost

    def _synthesize(self) -> Cost:
        """Time cycles over all backbones; the first one, compilation included, is paid once."""
        section, each, train = self.recipe.synthesis, len(self.recipe.backbones), self.data.train
        cost = Cost("synthesis", bytes=self.count * (train.channels * train.image_size**2 + 8))
        cost.seconds = choosing(self.trial, self.data, section.initializer)
        if not section.iterations:
            return cost
        planned = self.trial.plan.image_batches
        at_once = synthesize.batches_per_step(section, self.data, self.trial.context.device)
        units = planned[:at_once]
        with self._memory(cost):
            # all real images: a step may take as many of each class as there are
            noted = self.trial.timed(*units, train=self.data.train)
        made = sum(len(unit.options["labels"]) for unit in units)
        share = self.count / made / len(planned)  # the last batch may be smaller, or several go in one step
        step = statistics.fmean(noted[each:])
        cost.steps = len(planned) * section.iterations
        opening = max(0.0, sum(noted[:each]) - each * step)
        # networks of its own are made ready for every image batch anew
        cost.seconds += cost.steps * step * share + opening * (1 if section.joint else len(planned))
        return cost

    def _relabel(self) -> Cost:
        section = self.recipe.relabel
        cost = Cost("relabel")
        self.block_bytes = 0
        if not self.recipe.evaluation.soft:
            return cost
        epochs = SETS * relabel.kept_epochs(section)
        (unit,) = self.trial.plan.labels["distilled"]
        with self._memory(cost, self._set_bytes()):
            noted = self.trial.timed(unit)
        cost.seconds = epochs * self.count / self.pictures * statistics.median(noted[1:])
        cost.steps = epochs * -(-self.count // section.batch)
        epoch_bytes = label_bytes(unit.read().tensors, self.pictures, self.count)
        cost.bytes = epochs * epoch_bytes
        self.block_bytes = min(section.epochs_per_file, epochs // SETS) * epoch_bytes
        cost.held(None if cost.peak_bytes is None else cost.peak_bytes + self.block_bytes)
        return cost

    def _set_bytes(self) -> int:
        """Return what the whole set takes beyond the trial's images: as bytes, and normalised."""
        train = self.data.train
        return (self.count - self.pictures) * train.channels * train.image_size**2 * 5

    def _evaluate(self) -> Cost:
        cost, section = Cost("evaluation"), self.recipe.evaluation
        tests = -(-section.epochs // section.test_every)
        for unit in self.trial.students:
            student = self.trial.context.create(Backbone, unit.options["student"])
            one = Cost("evaluation")
            if unit.options["set"] == "full":
                self._training(one, student, unit)
            else:
                with self._memory(one, self._set_bytes() + self.block_bytes):
                    noted = self.trial.timed(unit)
                # the last epoch ends in a test
                epoch = statistics.median(noted[1:-1]) * self.count / self.pictures
                one.seconds = section.epochs * epoch + tests * len(self.data.test) * self._test(one, student)
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
            size = smallest_exact_dtype(torch.tensor([count - 1])).element_size()
        if name == "flip":
            total += -(-count // 8)
        else:
            many = count if tensor.shape[1] == labelled else tensor.shape[1]
            total += many * size * tensor[0, 0].numel()
    return total


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
