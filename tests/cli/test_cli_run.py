"""What a user of the command line, or of `gvbsm.run`, gets."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import cli_helpers
import pytest
import torch
from cli_helpers import Run, done
from torch.utils.data import DataLoader

import gvbsm
from gvbsm_registry import artifacts, discover

pytestmark = pytest.mark.usefixtures("one_thread")

# Shrinks whatever recipe it is set on to what the tiny one is.
SHRINK = [
    'backbones=[{use="convnet", width=8, depth=1}, {use="timm/test_resnet"}]',
    "pretrain.epochs=4",
    "pretrain.learning_rate=0.1",
    "pretrain.augmentation={use='crop_flip_roll', padding=1, flip=0.0}",
    "measure.augmentation={use='crop_flip_roll'}",
    "synthesis.ipc=2",
    "synthesis.iterations=8",
    "synthesis.batch=4",
    "synthesis.log_every=1",
    "relabel.epochs=2",
    "evaluation.epochs=2",
    "evaluation.seeds=[0]",
    "evaluation.full_baseline=false",
]


def settings(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


def resolved(out: Path) -> dict[str, Any]:
    return tomllib.loads((out / "recipe.toml").read_text(encoding="utf-8"))


def images(out: Path) -> torch.Tensor:
    return gvbsm.DistilledDataset(out / "distilled").images


def terms(out: Path) -> dict[str, set[str]]:
    """Return the loss terms in the log, by backbone."""
    found: dict[str, set[str]] = {}
    for event in cli_helpers.events(out, "step"):
        found.setdefault(event["labels"]["backbone"], set()).update(event["values"])
    return found


def test_a_run_without_a_recipe_is_digits_with_exactly_the_named_matchers(
    store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run: list[str | Path] = ["run", "--out", out, "--store", store, *settings(*SHRINK)]
    done(*run, "--matcher", "bn", "--matcher", "conv_patch")
    assert resolved(out)["name"] == "digits"
    assert resolved(out)["data"]["use"] == "digits"
    assert [matcher["use"] for matcher in resolved(out)["synthesis"]["matchers"]] == ["bn", "conv_patch"]
    always = {"cross_entropy", "dd", "total", "learning_rate"}
    assert terms(out) == {  # a ConvNet has no BatchNorm for `bn` to match
        "convnet": always | {"conv_patch"},
        "timm/test_resnet": always | {"bn", "conv_patch"},
    }
    for event in cli_helpers.events(out, "step"):
        values = event["values"]
        parts = sum(value for name, value in values.items() if name not in ("total", "learning_rate"))
        assert values["total"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize(
    "without",
    [
        settings("synthesis.regularizers=[]"),
        ["--matcher", "bn", "--matcher", "conv_channel"],
        ["--matcher", "conv_channel", "--matcher", "conv_patch"],
        settings("synthesis.matchers=[]"),
    ],
    ids=["dd", "conv_patch", "bn", "every matcher"],
)
def test_leaving_a_term_out_changes_the_images(
    without: list[str], tiny: Path, finished: Run, store: Path, tmp_path: Path
) -> None:
    done("run", tiny, "--out", tmp_path / "out", "--store", store, *without)
    assert not torch.equal(images(tmp_path / "out"), images(finished.out))
    assert images(tmp_path / "out").shape == images(finished.out).shape


def test_naming_the_default_changes_nothing(tiny: Path, finished: Run, store: Path, tmp_path: Path) -> None:
    matchers = ["--matcher", "bn", "--matcher", "conv_channel", "--matcher", "conv_patch"]
    options: list[str | int] = ["--regularizer", "dd", *matchers, "--ipc", 2, "--seed", 0, "--device", "cpu"]
    done("run", tiny, "--out", tmp_path / "out", "--store", store, *options)
    assert cli_helpers.product(tmp_path / "out") == cli_helpers.product(finished.out)


def test_components_and_their_options_by_flag(tiny: Path, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(
        "run", tiny, "--out", out, "--store", store, "--backbone", "convnet:width=8",
        "--regularizer", "dd:weight=0.5,temperature=2", "--regularizer", "tv", "--ipc", "1",
        *settings("synthesis.matchers.0.momentum=0.5", "synthesis.iterations=3"),
    )  # fmt: skip
    recipe = resolved(out)
    assert [(each["use"], each["width"]) for each in recipe["backbones"]] == [("convnet", 8)]
    chosen = recipe["synthesis"]["regularizers"]
    assert [each["use"] for each in chosen] == ["dd", "tv"]
    assert (chosen[0]["weight"], chosen[0]["temperature"]) == (0.5, 2)
    assert recipe["synthesis"]["matchers"][0]["momentum"] == 0.5
    assert recipe["synthesis"]["ipc"] == 1
    assert images(out).shape == (10, 1, 8, 8)


def test_each_stage_alone(finished: Run, store: Path, tmp_path: Path) -> None:
    """A folder with nothing but a recipe.toml becomes the whole run, stage by stage."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "recipe.toml").write_bytes((finished.out / "recipe.toml").read_bytes())
    made = {
        "pretrain": set(),
        "measure": set(),
        "synthesis": {"distilled/images.safetensors", "baselines/random/images.safetensors"},
        "relabel": {"distilled/labels-00002.safetensors", "baselines/random/labels-00002.safetensors"},
        "evaluation": {"results.json"},
    }
    expected: set[str] = set()
    for stage, names in made.items():
        shown = done(stage, out, "--store", store).stdout
        assert str(out) in shown
        expected |= names
        everything = set().union(*made.values())
        assert everything & set(cli_helpers.contents(out)) == expected, stage
    assert cli_helpers.product(out) == cli_helpers.product(finished.out)


def test_a_stage_ends_with_a_report_if_asked_to(finished: Run, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "recipe.toml").write_bytes((finished.out / "recipe.toml").read_bytes())
    done("pretrain", out, "--store", store)
    assert not (out / "report.html").exists()
    done("pretrain", out, "--store", store, "--report")
    assert "There are no accuracies yet" in (out / "report.html").read_text()
    assert not (out / "README.md").exists()
    done("synthesis", out, "--store", store, "--report")
    assert "# Condensed set: tiny" in (out / "README.md").read_text()
    (out / "report.html").unlink()
    done("evaluation", out, "--store", store)
    assert not (out / "report.html").exists()


def test_stages_go_on_after_the_recipe_is_edited(copied: Run) -> None:
    path = copied.out / "recipe.toml"
    text = path.read_text().replace("test_every = 3", "test_every = 2")
    path.write_text(f"# a note of mine\n{text}")
    before = cli_helpers.artifacts(copied.out / "distilled")
    done("evaluation", copied.out, "--store", copied.store)
    assert cli_helpers.artifacts(copied.out / "distilled") == before
    assert "# a note of mine" in path.read_text()
    assert cli_helpers.events(copied.out, "stage_started")[-1]["units"] == 3


def test_the_resolved_recipe_makes_the_same_run(finished: Run, tmp_path: Path) -> None:
    """In another folder, with an empty store in the user's cache folder, bit for bit."""
    environment = cli_helpers.environment(XDG_CACHE_HOME=str(tmp_path / "cache"))
    command = cli_helpers.command("run", finished.out / "recipe.toml", "--quiet")
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.startswith("tiny-")
    assert f"results are in {out.relative_to(tmp_path)}" in result.stdout
    assert cli_helpers.product(out) == cli_helpers.product(finished.out)
    assert len(cli_helpers.artifacts(tmp_path / "cache" / "gvbsm" / "backbones")) == 2
    assert cli_helpers.meaning(tmp_path / "cache" / "gvbsm") == cli_helpers.meaning(finished.store)


def test_running_again_does_nothing_twice(copied: Run, tiny: Path) -> None:
    before = cli_helpers.artifacts(copied.out, copied.store)
    told = len(cli_helpers.events(copied.out))
    done("run", tiny, "--out", copied.out, "--store", copied.store)
    assert cli_helpers.artifacts(copied.out, copied.store) == before
    started = [event for event in cli_helpers.events(copied.out)[told:] if event["event"] == "stage_started"]
    assert [event["units"] for event in started] == [0] * 6
    assert sum(event["reused"] for event in started) == cli_helpers.UNITS


def test_seed(tiny: Path, store: Path, tmp_path: Path) -> None:
    short = settings("synthesis.iterations=2", "relabel.epochs=2", "evaluation.epochs=1")
    small = ["--backbone", "convnet:width=8,depth=1", *short]
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        done("run", tiny, "--out", tmp_path / name, "--store", store, "--seed", seed, *small)
    assert resolved(tmp_path / "a")["seed"] == 1
    a, b, c = (cli_helpers.product(tmp_path / name) for name in "abc")
    assert a == c
    for name in ("distilled/images.safetensors", "baselines/random/images.safetensors"):
        assert a[name][-1]["images"] != b[name][-1]["images"]
    assert gvbsm.DistilledDataset(tmp_path / "a" / "distilled").provenance["seed"] == 1


def test_what_a_run_leaves_behind(finished: Run) -> None:
    names = set(cli_helpers.contents(finished.out))
    assert {"recipe.toml", "results.json", "log.jsonl", "distilled/images.safetensors"} <= names
    assert {f"distilled/labels-{first:05d}.safetensors" for first in (0, 2, 4)} <= names
    assert {path.name for path in finished.store.iterdir()} >= {"backbones", "statistics"}
    assert len(cli_helpers.artifacts(finished.out, finished.store)) == cli_helpers.UNITS
    assert not cli_helpers.leftovers(finished.out, finished.store)


def test_results(finished: Run) -> None:
    results = json.loads((finished.out / "results.json").read_text())
    assert results["schema"] == 2
    sets = [(record["set"], record["labels"]) for record in results["records"]]
    assert sorted(sets) == [("distilled", "soft"), ("random", "hard"), ("random", "soft")]
    for record in results["records"]:
        assert (record["ipc"], record["student"], record["seed"], record["epochs"]) == (2, "convnet", 0, 6)
        assert 0 <= record["top1"] <= record["best_top1"] <= 1
        assert record["image_bytes"] > 0
        assert record["label_bytes"] > 0
        assert f"{100 * record['top1']:.1f}" in finished.output
    size = (finished.out / "distilled" / "images.safetensors").stat().st_size
    assert results["records"][0]["image_bytes"] == size


def test_without_a_terminal_there_are_no_bars(finished: Run) -> None:
    assert finished.errors == ""
    assert "\x1b" not in finished.output


def on_a_terminal(*args: str | Path) -> str:
    """Run a command with a terminal as its standard error; return what appears there."""
    ours, theirs = pty.openpty()
    process = cli_helpers.start(*args, errors=Path(os.ttyname(theirs)))
    shown = b""
    while process.is_alive() or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.05)[0]:
            shown += os.read(ours, 65536)
    os.close(theirs)
    os.close(ours)
    assert process.exitcode == 0, shown.decode()
    return shown.decode()


def test_bars_on_a_terminal_and_quiet(tiny: Path, store: Path, tmp_path: Path) -> None:
    shown = on_a_terminal("run", tiny, "--out", tmp_path / "a", "--store", store)
    assert "synthesis batch-0000" in shown
    assert "left" in shown
    assert on_a_terminal("run", tiny, "--out", tmp_path / "b", "--store", store, "--quiet") == ""


def test_recipes_lists_the_shipped_recipes() -> None:
    shown = done("recipes").stdout
    recipes = discover().recipes()
    assert {"digits", "cifar10-small"} <= set(recipes)
    for title in ("sets: ", "methods: --method NAME", "protocols: --protocol NAME", "sweeps: "):
        assert title in shown
    for name in recipes:
        assert name.split("/")[-1] in shown


def test_plugins_lists_every_component() -> None:
    shown = " ".join(done("plugins").stdout.replace("│", " ").split())
    registry = discover()
    for component in registry.components():
        assert f"{component.kind} {component.name}" in shown or component.name in shown
    for plugin in registry.plugins:
        assert plugin.name in shown
    assert "gvbsm" in shown


def test_from_python(finished: Run, store: Path, tiny: Path, tmp_path: Path) -> None:
    out = gvbsm.run(tiny, out=tmp_path / "out", store=store, device="cpu")
    assert out == tmp_path / "out"
    assert cli_helpers.product(out) == cli_helpers.product(finished.out)
    overrides = [("synthesis.ipc", 1), ("synthesis.iterations", 1)]
    until = gvbsm.run(tiny, out=tmp_path / "b", store=store, overrides=overrides, until="synthesis")
    assert len(gvbsm.DistilledDataset(until / "distilled")) == 10
    assert not (until / "results.json").exists()


def test_the_product_is_a_torch_data_set(finished: Run) -> None:
    data = gvbsm.DistilledDataset(finished.out / "distilled")
    assert data.classes == tuple("0123456789")
    assert data.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert (data.images.dtype, data.images.shape) == (torch.uint8, (20, 1, 8, 8))
    batches = list(DataLoader(data, batch_size=7))
    assert [len(labels) for _, labels in batches] == [7, 7, 6]
    stored = artifacts.read(finished.out / "distilled" / "images.safetensors").tensors["images"]
    mean, std = (torch.tensor(part)[:, None, None] for part in (data.mean, data.std))
    loaded = torch.cat([images for images, _ in batches])
    torch.testing.assert_close(loaded, (stored / 255 - mean) / std)
    assert data.epochs == 6
    data.set_epoch(5)
    one_by_one = list(DataLoader(data, batch_size=3))
    views, logits, truth = (torch.cat([batch[part] for batch in one_by_one]) for part in range(3))
    (whole,) = data.batches(5, 20)
    for part, other in zip((views, logits, truth), whole, strict=True):
        torch.testing.assert_close(part, other)
    torch.testing.assert_close(truth.sum(1), torch.ones(20))
