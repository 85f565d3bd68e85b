"""Values of recipes that nothing can be computed with: refused with the key, before anything is made."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import invoke, refused
from conftest import TABLES, MakeRun

from gvbsm.distilled.labels import pack, views_of
from gvbsm.distilled.views import EpochViews
from gvbsm.recipe import loading
from gvbsm.recipe.text import parse_setting, parse_value
from gvbsm_registry import Codec, GvbsmError, Matcher, Registry, View

INF, NAN, HUGE = float("inf"), float("nan"), 99999999999999999999


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("relabel.batch", HUGE),
        ("evaluation.batch", HUGE),
        ("pretrain.batch", HUGE),
        ("measure.batch", HUGE),
        ("measure.shards", HUGE),
        ("synthesis.iterations", 1e26),
        ("synthesis.iterations", HUGE),
        ("synthesis.ipc", 10**12),
        ("relabel.epochs", 10**12),
        ("seed", 2**64),
        ("synthesis.optimizer", {"use": "adam", "betas": [1.5, 0.9]}),
        ("synthesis.optimizer", {"use": "adam", "betas": [1.0, 1.0]}),
        ("pretrain.learning_rate", 1e308),
        ("evaluation.learning_rate", 1e308),
        ("synthesis.learning_rate", 1e308),
        ("pretrain.optimizer", {"use": "sgd", "weight_decay": 1e308}),
        ("synthesis.initializer", {"use": "forgetting", "learning_rate": 1e308}),
        ("synthesis.initializer", {"use": "forgetting", "learning_rate": INF}),
        ("synthesis.matchers", [{"use": "bn", "weight": INF}]),
        ("synthesis.matchers", [{"use": "bn", "weight": NAN}]),
        ("synthesis.regularizers", [{"use": "dd", "weight": INF}]),
        ("synthesis.matchers", [{"use": "conv_patch", "patch_size": HUGE}]),
        ("synthesis.augmentation", {"use": "crop_flip_roll", "padding": HUGE}),
        ("synthesis.augmentation", {"use": "crop_flip_roll", "roll": HUGE}),
        ("evaluation.objective", {"use": "mse_gt", "gamma": INF}),
        ("backbones", [{"use": "convnet", "match_weight": INF}]),
        ("backbones", [{"use": "convnet", "width": HUGE}]),
        ("backbones", [{"use": "timm/test_resnet", "options": {"drop_rate": [NAN]}}]),
        ("data.mean", [NAN]),
        ("data.mean", [INF]),
        ("data.mean", [1e308]),
        ("data.std", [NAN]),
        ("data.std", [-1.0]),
        ("data.std", [0.0]),
        ("data.std", [1e-45]),
        ("relabel.cutmix_alpha", 0.001),
        ("evaluation.seeds", [0, 0, 0]),
        ("evaluation.seeds", [-1]),
    ],
)
def test_a_number_out_of_range_is_told_with_its_key(key: str, value: Any, registry: Registry) -> None:
    tables: dict[str, Any] = {"data": {"use": "digits"}, "backbones": ["convnet"]}
    loading.override(tables, key, value)
    with pytest.raises(GvbsmError) as error:
        loading.make(tables, registry, where="x")
    for part in key.split("."):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("relabel.batch", 10**12),
        ("evaluation.batch", 10**12),
        ("pretrain.batch", 10**12),
        ("measure.batch", 10**12),
        ("synthesis.batch", 10**12),
        ("measure.shards", 10**12),
        ("synthesis.matchers", [{"use": "conv_patch", "patch_size": 10**12}]),
        ("synthesis.augmentation", {"use": "crop_flip_roll", "padding": 10**6, "roll": 10**6}),
        ("relabel.augmentation", {"use": "crop_flip_roll", "padding": 10**6, "roll": 10**6}),
        ("relabel.cutmix_alpha", 0.01),
    ],
)
def test_the_largest_numbers_work(key: str, value: Any, make_run: MakeRun) -> None:
    run = make_run((key, value), ("evaluation.epochs", 1), ("synthesis.iterations", 2)).until("evaluation")
    assert all(unit.done() for unit in run.plan.students)


def test_a_large_patch_is_the_whole_map(make_run: MakeRun, registry: Registry) -> None:
    maps = []
    for size in (64, 10**12):
        run = make_run(("synthesis.matchers", [{"use": "conv_patch", "patch_size": size}]), out=str(size))
        run.statistics()
        maps.append(run.plan.statistics[0].read().tensors)
        assert registry.create(Matcher, {"use": "conv_patch", "patch_size": size})
    for one, other in zip(*(found.values() for found in maps), strict=True):
        assert torch.equal(one, other)


def test_shifts_of_more_than_16_bits_are_stored_as_they_are(registry: Registry) -> None:
    rolls = torch.tensor([[100_000, -70_000], [3, -4]])
    boxes = torch.tensor([[0.0, 0.0, 12.0, 12.0]]).repeat(2, 1)
    view = View(boxes, torch.tensor([True, False]), rolls)
    views = EpochViews(view, torch.tensor([1, 0]), torch.zeros(2, 4, dtype=torch.int64))
    coded = registry.create(Codec, "fp16").encode(torch.zeros(2, 3))
    assert torch.equal(views_of(pack([views], [coded]), 0, 2).view.rolls, rolls)


def test_paths_mean_the_same_from_every_folder(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    tables: dict[str, Any] = copy.deepcopy(TABLES)
    tables["data"] = {"use": "imagefolder", "root": "d"}
    tables["backbones"] = [{"use": "convnet", "weights": "w.pth"}, {"use": "convnet", "weights": "~/w.pth"}]
    tables["synthesis"]["initializer"] = {"use": "folder", "root": "rel", "contents": "x"}
    made = loading.make(tables, registry, where="x").tables()
    assert made["data"]["root"] == str(tmp_path / "d")
    assert made["synthesis"]["initializer"]["root"] == str(tmp_path / "rel")
    weights = [backbone["weights"] for backbone in made["backbones"]]
    assert weights == [str(tmp_path / "w.pth"), str(tmp_path / "home" / "w.pth")]


@pytest.mark.parametrize("path", [os.fsdecode(b"/tmp/\xff"), "~nosuchuser/x"])
@pytest.mark.parametrize("key", ["data.root", "backbones.0.weights"])
def test_paths_that_a_recipe_can_not_hold(key: str, path: str, registry: Registry) -> None:
    tables: dict[str, Any] = {"data": {"use": "imagefolder"}, "backbones": ["convnet"]}
    loading.override(tables, key, Path(path) if key == "data.root" else path)
    with pytest.raises(GvbsmError, match=key.split(".")[-1]) as error:
        loading.make(tables, registry, where="x")
    assert str(error.value).isprintable()


def test_integers_of_thousands_of_digits_and_deep_tables(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    for text in ("seed = " + "9" * 4301, "[synthesis]\n" + ".".join("a" * 5000) + " = 1"):
        path.write_text(text)
        with pytest.raises(GvbsmError, match=r"r\.toml: is not TOML"):
            loading.load(path, registry)
    assert parse_value("9" * 4301) == "9" * 4301
    deep = "{" + ".".join("a" * 5000) + "=1}"
    assert parse_value(deep) == deep
    with pytest.raises(GvbsmError, match="so many parts"):
        parse_setting("synthesis." + ".".join("a" * 5000) + "=1")


@pytest.mark.parametrize("place", ["~nosuchuser/x", "a" * 300, "a" * 5000])
@pytest.mark.parametrize("flag", ["--out", "--store", "--data", "RECIPE", "scores", "export", "synthesis"])
def test_paths_of_the_command_line(flag: str, place: str, tmp_path: Path) -> None:
    match flag:
        case "RECIPE":
            args: list[Any] = ["run", place]
        case "scores" | "synthesis":
            args = [flag, place]
        case "export":
            args = [flag, place, tmp_path / "x", "--to", "imagefolder"]
        case _:
            args = ["run", "digits", flag, place, *(["--out", tmp_path / "out"] if flag != "--out" else [])]
    refused(invoke(*args))
