"""What the reference says of a run: who is called when, and in what state networks are shown."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
import torch
from conftest import MakeRun
from torch import Generator, Tensor, nn

from gvbsm_registry import (
    Activation,
    Backbone,
    Callback,
    Component,
    Initializer,
    Matcher,
    Memory,
    Network,
    OpenPopulation,
    Population,
    Registry,
    Schedule,
    Source,
    Stock,
    SynthesisState,
    SynthesisStep,
    Term,
    discover,
    hookimpl,
)

called: list[str] = []
shown: list[nn.Module] = []


class WatchedStart(Initializer):
    """Grey images."""

    name = "watched_start"

    def prepare(self, source: Source) -> dict[str, Tensor]:
        called.append("prepare")
        shown.extend(member.module for member in source.committee)
        return {}

    def images(self, labels: Tensor, ranks: Tensor, source: Source, generator: Generator) -> Tensor:
        called.append(f"images {labels.tolist()}")
        return torch.zeros(len(labels), 1, 8, 8)


class WatchedPopulation(Population):
    """All backbones in every step."""

    name = "watched_population"

    def open(self, stock: Stock, generator: Generator) -> OpenPopulation:
        called.append("open")
        return _Watched([stock.pretrained(index) for index in range(len(stock.names))])


class _Watched(OpenPopulation):
    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks = networks

    def draw(self, step: int) -> Sequence[Network]:
        called.append(f"draw {step}")
        return self.networks

    def settle(self, step: SynthesisStep) -> None:
        called.append(f"settle {step.index}")


class WatchedTerm(Term):
    """Nothing much."""

    name = "watched_term"

    def loss(self, step: SynthesisStep, memory: Memory) -> Tensor:
        called.append(f"loss {step.index}")
        shown.extend(network.module for network in step.networks)
        return step.images.square().mean()


class WatchedMatcher(Matcher):
    """Means of what enters the first convolution."""

    name = "watched_matcher"

    def sites(self, model: nn.Module) -> list[str]:
        called.append(f"sites {next(model.parameters()).device.type}")
        return ["0"]

    def statistics(self, activation: Activation) -> dict[str, Tensor]:
        called.append(f"statistics of {len(activation.tensor)}")
        return {"mean": activation.tensor.mean((0, 2, 3))}


class WatchedCallback(Callback):
    """Does nothing, every second step."""

    name = "watched_callback"

    def after(self, step: int, state: SynthesisState) -> None:
        called.append(f"after {step}")


class WatchedNet(Backbone):
    """A linear classifier that tells what is done with it."""

    name = "watched_net"

    def build(self, classes: int, image_size: int, channels: int) -> nn.Module:
        return _WatchedModule(channels * image_size**2, classes)


class _WatchedModule(nn.Linear):
    def train(self, mode: bool = True) -> _WatchedModule:
        called.append("train" if mode else "eval")
        super().train(mode)
        return self

    def forward(self, images: Tensor) -> Tensor:
        called.append(f"forward {len(images)}")
        return super().forward(images.flatten(1))


class WatchedSchedule(Schedule):
    """Always 1."""

    name = "watched_schedule"

    def factor(self, step: int, steps: int) -> float:
        called.append(f"factor {step} of {steps}")
        return 1.0


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    parts: list[type[Component]] = [WatchedStart, WatchedPopulation, WatchedTerm, WatchedMatcher]
    return [*parts, WatchedCallback, WatchedNet, WatchedSchedule]


@pytest.fixture(scope="module")
def registry() -> Registry:
    mine = [metadata.EntryPoint(name, name, "gvbsm") for name in ("toys", __name__)]
    return discover([*metadata.entry_points(group="gvbsm"), *mine])


@pytest.fixture(autouse=True)
def _forget() -> None:
    called.clear()
    shown.clear()


WATCHED = (
    ("synthesis.initializer", "watched_start"),
    ("synthesis.population", "watched_population"),
    ("synthesis.terms", ["watched_term"]),
    ("synthesis.matchers", ["watched_matcher"]),
    ("synthesis.callbacks", [{"use": "watched_callback", "every": 2}]),
    ("synthesis.iterations", 3),
    ("synthesis.compile", False),
)


def test_the_calls_of_synthesis_come_in_the_references_order(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(*WATCHED, store=tmp_path / "store")
    run.statistics()
    assert "sites cpu" in called
    called.clear()
    run.until("synthesis")
    told = [call for call in called if not call.startswith(("sites", "statistics"))]
    steps = ["draw 0", "loss 0", "settle 0", "draw 1", "loss 1", "settle 1", "after 2"]
    batch = ["open", "after 0", *steps, "draw 2", "loss 2", "settle 2"]
    assert told == ["prepare", "images [0, 0, 1, 1]", *batch, "images [2, 2]", *batch]
    # each network once a step: of the first image batch, then of the second
    counts = [call for call in called if call.startswith("statistics")]
    assert counts == ["statistics of 4"] * 6 + ["statistics of 2"] * 6


def test_networks_are_shown_frozen_folded_and_channels_last(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(*WATCHED, store=tmp_path / "store").until("synthesis")
    assert len(shown) == 2 + 2 * 2 * 3  # the committee, and two networks in each step of two image batches
    for module in shown:
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())
        convolution, norm = module[3], module[4]  # type: ignore[index]
        assert isinstance(norm, nn.BatchNorm2d)
        assert type(norm) is not nn.BatchNorm2d
        assert norm.running_mean is not None
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_student_is_trained_in_the_references_order(make_run: MakeRun) -> None:
    run = make_run(
        ("synthesis.iterations", 0),
        ("synthesis.initializer", "noise"),
        ("evaluation.students", ["watched_net"]),
        ("evaluation.schedule", "watched_schedule"),
        ("evaluation.random_baseline", False),
        ("evaluation.epochs", 3),
        ("evaluation.test_every", 2),
    )
    run.until("relabel")
    called.clear()
    run.until("evaluation")
    told = [call for call in called if call != "forward 60"]  # 60: the test split
    epochs = [
        [
            "train",
            *(part for step in (2 * epoch, 2 * epoch + 1) for part in (f"factor {step} of 6", "forward")),
        ]
        for epoch in range(3)
    ]
    assert [call.removesuffix(" 4").removesuffix(" 2") for call in told] == [
        "eval",
        *(call for epoch in epochs for call in (*epoch, "eval")),
    ]
    places = [place for place, call in enumerate(called) if call == "forward 60"]
    assert [called[place - 1] for place in places] == ["eval", "eval"]
    assert places[-1] == len(called) - 1
