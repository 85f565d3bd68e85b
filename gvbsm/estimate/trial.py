"""Runs of a few steps in a throw-away folder: stages are timed on them before, or without, a real run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gvbsm.recipe.schema import Recipe
from gvbsm.runtime.reporting import Event, Reporter
from gvbsm.runtime.units import Payload, Unit, perform
from gvbsm.runtime.workspace import Workspace
from gvbsm.stages import pretrain
from gvbsm_registry import Dataset, Executor, Registry, Split


class FakeData(Dataset):
    """Noise in place of a data set that is not at hand; made when it is read, so that it takes no memory."""

    name = "stand-in"

    images: int = Field(ge=1)
    tests: int = Field(ge=1)
    classes: int = Field(ge=1)
    image_size: int = Field(ge=1)
    channels: int = Field(3, ge=1)

    @staticmethod
    def like(images: int, tests: int, classes: int, image_size: int, channels: int) -> FakeData:
        """Return a stand-in that knows its pixels' mean and deviation, so that no one measures them."""
        mean, std = (0.5,) * channels, (0.29,) * channels
        return FakeData(
            images=images,
            tests=tests,
            classes=classes,
            image_size=image_size,
            channels=channels,
            mean=mean,
            std=std,
        )

    def open(self, split: Literal["train", "test"], cache: Path) -> Split:
        return _Noise(self, self.images if split == "train" else self.tests)


class _Noise(Split):
    def __init__(self, data: FakeData, count: int) -> None:
        self.classes = tuple(str(label) for label in range(data.classes))
        self.labels = torch.arange(count) % data.classes
        self.image_size, self.channels = data.image_size, data.channels

    def read(self, indices: Tensor) -> Tensor:
        shape = (len(indices), self.channels, self.image_size, self.image_size)
        return torch.randint(256, shape, dtype=torch.uint8)

    @property
    def digest(self) -> str:
        return f"noise {len(self.labels)} {len(self.classes)} {self.image_size} {self.channels}"


class Subset(Split):
    """`count` images of a split, evenly spread; all of them, some more than once, if it has fewer."""

    def __init__(self, whole: Split, count: int) -> None:
        self.whole = whole
        self.indices = torch.arange(count) * max(1, len(whole) // count) % len(whole)
        self.labels, self.classes = whole.labels[self.indices], whole.classes
        self.image_size, self.channels, self.in_memory = whole.image_size, whole.channels, whole.in_memory

    def read(self, indices: Tensor) -> Tensor:
        return self.whole.read(self.indices[indices])

    @property
    def digest(self) -> str:
        return f"part {len(self.indices)}"


class TimingReporter(Reporter):
    """A reporter that shows and logs nothing, but notes when each step of a unit of work was done."""

    def __init__(self, registry: Registry, device: torch.device) -> None:
        super().__init__(None, registry, quiet=True)
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
        """The seconds between one note and the next."""
        return [later - sooner for sooner, later in zip(self.stamps, self.stamps[1:], strict=False)]


class _TrialWorkspace(Workspace):
    """Sees only a part of each split."""

    def __init__(self, whole: Workspace, recipe: Recipe, images: int, tests: int) -> None:
        super().__init__(
            recipe, whole.registry, whole.out, whole.store, whole.device, whole.reporter, whole.executor
        )
        self._parts = {"train": Subset(whole.train, images), "test": Subset(whole.test, tests)}
        self.__dict__["moments"] = whole.moments

    def _open(self, name: Any) -> Split:
        return self._parts[name]


class Trial:
    """Stages of `recipe` on parts of its data, in `folder`; `whole` is the workspace of the full run."""

    def __init__(
        self,
        recipe: Recipe,
        registry: Registry,
        device: torch.device,
        folder: Path,
        cache: Path | None = None,
    ) -> None:
        self.clock = TimingReporter(registry, device)
        fresh = tuple(backbone.model_copy(update={"weights": None}) for backbone in recipe.backbones)
        self.recipe = recipe.model_copy(update={"backbones": fresh})
        runner = registry.create(Executor, "local")
        store = folder / "store"
        self.whole = _Cached(self.recipe, registry, folder / "out", store, device, self.clock, runner)
        self.whole.cache = cache or store

    def workspace(self, images: int = 1, tests: int = 1, **changes: dict[str, Any]) -> Workspace:
        """Return a workspace on part of the data, whose recipe has other options: section={option: value}."""
        sections = {
            name: getattr(self.recipe, name).model_copy(update=update) for name, update in changes.items()
        }
        return _TrialWorkspace(self.whole, self.recipe.model_copy(update=sections), images, tests)

    def backbones(self) -> list[Unit]:
        """Make untrained backbones and return their finished units."""
        workspace = self.workspace(images=8)
        planned = [replace(unit, work=_untrained) for unit in pretrain.units(workspace)]
        for unit in planned:
            perform(workspace, unit)
        return planned

    def pictures(self, name: str, count: int) -> Unit:
        """Make a set of `count` random images and return its finished unit."""
        place = self.whole.out / name / "images.safetensors"
        unit = Unit("assemble", name, "distilled", place, {"trial": count}, _pictures)
        unit.arguments["count"] = count
        perform(self.whole, unit)
        return unit

    def timed(self, workspace: Workspace, unit: Unit) -> list[float]:
        """Do a unit's work; return the seconds from its start to its first step, and between its steps."""
        self.clock.restart()
        perform(workspace, unit)
        return self.clock.steps()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return how long `work` takes."""
        self.clock.restart()
        work()
        self.clock.stamp()
        return self.clock.steps()[-1]


class _Cached(Workspace):
    """Keeps decoded pixels where runs keep them, though all else goes to the throw-away folder."""

    cache: Path

    def _open(self, name: Any) -> Split:
        return self.recipe.data.open(name, self.cache / "data")


def _untrained(workspace: Workspace, unit: Unit) -> Payload:
    module = workspace.build(workspace.recipe.backbones[unit.arguments["index"]])
    calibrate(module, workspace.normalize(workspace.train.read(torch.arange(len(workspace.train)))))
    return dict(module.state_dict()), {"classes": list(workspace.classes)}


def _pictures(workspace: Workspace, unit: Unit) -> Payload:
    train, count = workspace.train, unit.arguments["count"]
    images = torch.randint(
        256, (count, train.channels, train.image_size, train.image_size), dtype=torch.uint8
    )
    mean, std = workspace.moments
    meta = {"classes": list(workspace.classes), "mean": mean, "std": std, "ipc": 1, "data": "noise"}
    return {"images": images, "labels": torch.arange(count) % len(workspace.classes)}, meta


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
