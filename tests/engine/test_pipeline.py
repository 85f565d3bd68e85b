"""Whole runs by `gvbsm.run`: their components, their recipes, and backbones that matchers find nothing in."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRun
from torch import Tensor, nn

import gvbsm
from gvbsm.distilled.dataset import DistilledDataset
from gvbsm.matching.targets import target_name
from gvbsm.recipe import loading
from gvbsm_registry import Backbone, Codec, Component, GvbsmError, Registry, discover, hookimpl


class Doubled(Codec):
    """Twice the logits."""

    name = "doubled"

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        return {"twice": 2 * logits}

    def decode(self, parts: dict[str, Tensor], classes: int) -> Tensor:
        return parts["twice"] / 2


class Untracked(Backbone):
    """A convolution and a BatchNorm that keeps no running statistics."""

    name = "untracked"

    def build(self, classes: int, image_size: int, channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6, track_running_stats=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * image_size**2, classes),
        )


class Flat(Backbone):
    """One linear layer: no matcher has a site in it."""

    name = "flat"

    def build(self, classes: int, image_size: int, channels: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes))


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [Doubled, Untracked, Flat]


@pytest.fixture(scope="module")
def registry() -> Registry:
    """The installed plugins, the toys and this module, which no other registry knows."""
    points = [metadata.EntryPoint(name, name, "gvbsm") for name in ("toys", __name__)]
    return discover([*metadata.entry_points(group="gvbsm"), *points])


Run = Callable[..., Path]


@pytest.fixture
def run(make_run: MakeRun, registry: Registry, shared_store: Path, tmp_path: Path) -> Run:
    """run(changes, …, out="out", …): `gvbsm.run` on the toy recipe, changed, as an object."""

    def run(*changes: tuple[str, Any], out: str = "out", **options: Any) -> Path:
        recipe, folder = make_run(*changes).recipe, tmp_path / out
        common = {"store": shared_store, "registry": registry, "device": "cpu", "report": False}
        return gvbsm.run(recipe, out=folder, **common, **options)

    return run


def records(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text())["records"]


def steps(folder: Path) -> list[dict[str, Any]]:
    events = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == "step"]


def test_labels_are_made_and_decoded_by_the_registry_that_is_given(run: Run, registry: Registry) -> None:
    folder = run(("relabel.codec", "doubled"))
    assert {(record["set"], record["labels"]) for record in records(folder)} >= {("distilled", "soft")}
    kept = DistilledDataset(folder / "distilled", registry).epoch(1).logits
    half = DistilledDataset(run(out="fp16") / "distilled").epoch(1).logits
    torch.testing.assert_close(kept, half, rtol=2**-10, atol=2e-3)
    with pytest.raises(GvbsmError, match=r"labels-00000\.safetensors: .*unknown codec 'doubled'"):
        DistilledDataset(folder / "distilled").epoch(1)


def test_overrides_change_a_recipe_that_is_given_as_an_object(run: Run, registry: Registry) -> None:
    overrides = [("synthesis.ipc", 1), ("synthesis.matchers.0.weight", 0.5)]
    folder = run(overrides=overrides, until="synthesis")
    assert len(DistilledDataset(folder / "distilled")) == 3
    written = loading.load(folder / "recipe.toml", registry).synthesis
    assert (written.ipc, written.matchers[0].weight) == (1, 0.5)
    with pytest.raises(GvbsmError, match=r"synthesis\.ipc.*got 0"):
        run(overrides=[("synthesis.ipc", 0)], out="wrong")
    assert not (folder.parent / "wrong").exists()


BACKBONES = ("backbones", ["flat", "untracked", "toy_net"])


def test_a_batchnorm_that_keeps_no_statistics_is_measured(run: Run, make_run: MakeRun) -> None:
    changes = [BACKBONES, ("synthesis.matchers", ["bn"])]
    folder = run(*changes, until="synthesis")
    made = make_run(*changes)
    (unit,) = made.plan.statistics
    (matcher,) = made.recipe.synthesis.matchers
    assert unit.name == "untracked"
    assert set(unit.read().tensors) == {target_name(matcher, "1", name) for name in ("mean", "var")}
    terms = {step["labels"]["backbone"]: step["values"] for step in steps(folder)}
    assert terms["untracked"]["bn"] > 0


def test_a_backbone_without_sites_is_classified_with_and_not_measured(run: Run, make_run: MakeRun) -> None:
    folder = run(BACKBONES)
    assert [unit.name for unit in make_run(BACKBONES).plan.statistics] == ["untracked", "toy_net"]
    terms = {step["labels"]["backbone"]: set(step["values"]) for step in steps(folder)}
    alone = {"cross_entropy", "dd", "total", "learning_rate"}
    assert terms == {
        "flat": alone,
        "untracked": alone | {"bn", "conv_channel", "conv_patch"},
        "toy_net": alone | {"bn", "conv_channel", "conv_patch"},
    }
    assert len(records(folder)) == 3


def test_two_regularizers_of_one_name_keep_their_own_terms(run: Run) -> None:
    pair = [{"use": "l2", "weight": 1.0}, {"use": "l2", "weight": 3.0}]
    folder = run(("synthesis.regularizers", pair), until="synthesis")
    logged = [step["values"] for step in steps(folder)]
    assert logged
    for values in logged:
        assert values["l2-2"] == pytest.approx(3 * values["l2-1"])
        terms = [value for name, value in values.items() if name not in ("total", "learning_rate")]
        assert values["total"] == pytest.approx(sum(terms), rel=1e-5)
