"""A run of a few steps in a throw-away folder: stages are timed on it before, or without, a real run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gvbsm.estimate.fake_data import OneClass, Subset
from gvbsm.recipe.schema import Recipe
from gvbsm.runtime.context import Context
from gvbsm.runtime.data import Data
from gvbsm.runtime.execution import perform
from gvbsm.runtime.reporting import Event, MessageReporter
from gvbsm.runtime.units import Payload, Unit
from gvbsm.stages import measure
from gvbsm.stages.image_sets import set_meta
from gvbsm.stages.plan import Plan
from gvbsm.stages.pretrain import untrained
from gvbsm_registry import Backbone, Registry, Split


class TimingReporter(MessageReporter):
    """A reporter that tells nobody, but notes when each step of a unit of work was done."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(lambda message: None)
        self.device = device
        self.stamps: list[float] = []

    def emit(self, event: Event) -> None:
        return

    def progress(self, name: str, done: int, total: int) -> None:
        self.stamp()

    def stamp(self) -> None:
        """Note the time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.stamps.append(time.perf_counter())

    def restart(self) -> None:
        """Forget all times but now."""
        self.stamps.clear()
        self.stamp()

    def steps(self) -> list[float]:
        """Return the seconds between one note and the next."""
        return [later - sooner for sooner, later in zip(self.stamps, self.stamps[1:], strict=False)]


class Trial:
    """Stages on a part of the data: `images` of the training split, `tests` of the test split.

    recipe: with fresh weights, and as many steps as are to be timed. pictures: how many images the set has
    that is labelled and trained on, in place of a distilled one.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        registry: Registry,
        device: torch.device,
        folder: Path,
        images: int,
        tests: int = 1,
        pictures: int = 1,
    ) -> None:
        part = replace(
            data, train=Subset(data.train, images), test=Subset(data.test, tests), key="trial", origin=None
        )
        self.reporter = TimingReporter(device)
        self.context = Context(part, registry, device, self.reporter)
        teachers = tuple(map(fresh, recipe.relabel.teachers))
        relabel = recipe.relabel.model_copy(update={"teachers": teachers})
        backbones = tuple(map(fresh, recipe.backbones))
        self.recipe = recipe.model_copy(update={"backbones": backbones, "relabel": relabel})
        self.pictures = Unit(
            "synthesis",
            "pictures",
            "distilled",
            _noise_pictures,
            {"count": pictures, "ipc": 1},
            path=folder / "pictures" / "images.safetensors",
        )
        sets = {"distilled": self.pictures, "random": self.pictures}
        self.plan = Plan(self.recipe, part, registry, folder / "out", folder / "store", sets)

    @property
    def students(self) -> list[Unit]:
        """The plan's students; there is one set of pictures, so that all of them take its labels."""
        plan = self.plan
        return [
            replace(unit, inputs={**unit.inputs, "labels": tuple(plan.labels["distilled"])})
            if unit.input_list("labels")
            else unit
            for unit in plan.students
        ]

    def timed(self, *units: Unit, train: Split | None = None) -> list[float]:
        """Do units' work; return the seconds from its start to its first step, and between its steps.

        train: a training split that takes the place of the part.
        """
        data = self.context.data
        context = replace(self.context, data=replace(data, train=train or data.train))
        self.reporter.restart()
        perform(context, units)
        return self.reporter.steps()

    def timed_measuring(self, unit: Unit) -> list[float]:
        """Do a unit's measuring as `timed` does, with all images in one class: full batches by class, too."""
        data = self.context.data
        train = OneClass(data.train)
        self.reporter.restart()
        perform(replace(self.context, data=replace(data, train=train)), [replace(unit, work=_measured)])
        return self.reporter.steps()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return how long `work` takes."""
        self.reporter.restart()
        work()
        self.reporter.stamp()
        return self.reporter.steps()[-1]

    def make(self, units: Sequence[Unit]) -> None:
        """Do the work of units that are not to be timed."""
        for unit in units:
            perform(self.context, [unit])

    def make_untrained(self) -> None:
        """Make the backbones without training them."""
        self.make([replace(unit, work=_untrained) for unit in self.plan.networks])


def fresh(network: Backbone) -> Backbone:
    """Return a network without its weights, which a trial has no need of."""
    return network.model_copy(update={"weights": None})


def _untrained(context: Context, unit: Unit) -> Payload:
    module = context.build(untrained(context, unit))
    train = context.data.train
    calibrate(module, context.normalize(train.read(torch.arange(min(8, len(train))))))
    return dict(module.state_dict()), {"classes": list(context.data.classes), "top1": 0.0}


def _measured(context: Context, unit: Unit) -> Payload:
    """Measure; classes without images have targets all the same, so that images can be matched to them."""
    tensors, meta = measure.measure_backbone(context, unit)
    return {name: value.nan_to_num() for name, value in tensors.items()}, meta


def _noise_pictures(context: Context, unit: Unit) -> Payload:
    train, count = context.data.train, unit.options["count"]
    shape = (count, train.channels, train.image_size, train.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8)
    labels = torch.arange(count) % len(train.classes)
    return {"images": images, "labels": labels}, set_meta(context, unit)


@torch.no_grad()
def calibrate(module: nn.Module, images: Tensor) -> nn.Module:
    """Set every BatchNorm's running statistics to those of `images`, so that no activation runs away.

    Returns the module in evaluation mode.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the average over all batches: here the one
        norm.reset_running_stats()
    module.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return module.eval()
