"""Mistakes: one line that says what, where and what to do; exit code 2; nothing lost, nothing written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cli_helpers
import pytest
import torch
from cli_helpers import contents, done, invoke, leftovers, product, refused
from conftest import Run

from gvbsm.results.records import read_records
from gvbsm.stages import STAGES
from gvbsm_registry import Artifact, Backbone, GvbsmError, artifacts, discover

SIDE = 8


def make_folder(root: Path, classes: tuple[str, ...] = ("across", "down"), each: int = 12) -> Path:
    """Make an image folder of easily told classes: stripes across or down, and noise."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(each):
                noise = torch.randint(90, (SIDE, SIDE), generator=generator)
                stripes = 150 * (torch.arange(SIDE) // 2 % 2)
                pixels = noise + (stripes[:, None] if label == 0 else stripes)
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{number}.jpg", quality=95)
    return root


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


FOLDER = """
data = { use = "imagefolder", channels = 1 }
backbones = [{ use = "convnet", width = 8, depth = 1 }]
[pretrain]
epochs = 12
batch = 8
learning_rate = 0.1
augmentation = "none"
[measure]
augmentation = "none"
[synthesis]
ipc = 2
iterations = 2
[relabel]
epochs = 2
[evaluation]
students = [{ use = "convnet", width = 8, depth = 1 }]
epochs = 2
"""


@pytest.fixture(scope="module")
def folder_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "folder.toml"
    path.write_text(FOLDER)
    return path


# Data -------------------------------------------------------------------------------------------------


def damage_nothing_there(root: Path) -> list[str]:
    return ["no such folder", "--data"]


def damage_empty(root: Path) -> list[str]:
    root.mkdir()
    return ["is empty", "--data"]


def damage_file(root: Path) -> list[str]:
    root.write_text("a file")
    return []


def damage_no_test(root: Path) -> list[str]:
    make_folder(root)
    (root / "test").rename(root / "somewhere")
    return ["'test'", "'val'"]


def damage_empty_class(root: Path) -> list[str]:
    make_folder(root)
    for path in (root / "train" / "down").iterdir():
        path.unlink()
    return [str(root / "train" / "down"), "class folder without pictures"]


def damage_other_classes(root: Path) -> list[str]:
    make_folder(root)
    (root / "test" / "down").rename(root / "test" / "up")
    return ["different classes", "'down'", "'up'"]


def damage_truncated(root: Path) -> list[str]:
    path = make_folder(root) / "train" / "across" / "7.jpg"
    truncate(path)
    return [str(path), "skip_broken"]


def damage_truncated_test(root: Path) -> list[str]:
    path = make_folder(root) / "test" / "down" / "3.jpg"
    truncate(path)
    return [str(path), "skip_broken"]


def damage_small_class(root: Path) -> list[str]:
    make_folder(root)
    for number in range(1, 12):
        (root / "train" / "down" / f"{number}.jpg").unlink()
    return ["'down'", "1 training image", "--ipc"]


DAMAGE = [value for name, value in list(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__.removeprefix("damage_"))
def test_data_that_can_not_be_used(damage: object, folder_recipe: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    named = damage(root)  # type: ignore[operator]
    out, store = tmp_path / "out", tmp_path / "store"
    result = invoke("run", folder_recipe, "--data", root, "--out", out, "--store", store)
    refused(result, root, *named) if "'down'" not in named else refused(result, *named)
    assert not out.exists()
    assert not (store / "backbones").exists()


def test_the_same_folder_can_be_used_after_the_data_is_put_right(folder_recipe: Path, tmp_path: Path) -> None:
    run: list[str | Path] = ["run", folder_recipe, "--out", tmp_path / "out", "--store", tmp_path / "store"]
    refused(invoke(*run, "--data", tmp_path / "dtaa"), tmp_path / "dtaa")
    done(*run, "--data", make_folder(tmp_path / "data"))


def test_skip_broken_goes_on(folder_recipe: Path, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    truncate(root / "train" / "across" / "7.jpg")
    run: list[str | Path] = [
        "run",
        folder_recipe,
        "--data",
        root,
        "--out",
        tmp_path / "out",
        "--store",
        tmp_path / "store",
    ]
    refused(invoke(*run), root / "train" / "across" / "7.jpg")
    done(*run, "--set", "data.skip_broken=true")
    assert (tmp_path / "out" / "results.json").exists()


def test_data_given_relative_to_the_working_directory(
    folder_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    done("run", folder_recipe, "--data", "data", "--out", "out", "--store", "store")
    monkeypatch.chdir(tmp_path / "elsewhere")
    done("evaluation", "../out", "--store", "../store")


# Recipes and options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--ipc", "0"], ["synthesis.ipc", "greater than or equal to 1", "got 0"]),
        (["--ipc", "200"], ["class '8'", "too few for 200", "--ipc"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--matcher", "conv_pach"], ["'conv_pach'", "did you mean 'conv_patch'", "available: bn,"]),
        (["--backbone", "resnet"], ["unknown backbone 'resnet'", "convnet"]),
        (["--backbone", "timm/resnet_of_mine"], ["resnet_of_mine"]),
        (["--regularizer", "zzz"], ["unknown regularizer 'zzz'", "available: dd, l2, tv"]),
        (["--matcher", "bn:sied=4"], ["unknown option 'sied'", "matcher 'bn'", "available:"]),
        (["--matcher", "bn:momentum"], ["'momentum' is not an option", "NAME:key=value"]),
        (["--matcher", "bn:momentum=1.5"], ["momentum", "less than 1", "got 1.5"]),
        (["--backbone", "convnet:width=wide"], ["width", "valid integer", "got 'wide'"]),
        (["--backbone", "convnet:width=0"], ["width", "got 0"]),
        (["--backbone", ""], ["backbone"]),
        (["--executor", "locl"], ["unknown executor 'locl'", "did you mean 'local'"]),
        (["--set", "synthesis.iteratons=5"], ["synthesis.iteratons"]),
        (["--set", "sinthesis.ipc=5"], ["unknown option 'sinthesis'", "did you mean 'synthesis'"]),
        (["--set", "synthesis.iterations=many"], ["synthesis.iterations", "valid integer", "got 'many'"]),
        (["--set", "synthesis.iterations=-1"], ["synthesis.iterations", "got -1"]),
        (["--set", "synthesis.learning_rate=nan"], ["synthesis.learning_rate"]),
        (["--set", "synthesis.learning_rate=inf"], ["synthesis.learning_rate"]),
        (["--set", "synthesis=3"], ["synthesis", "got 3"]),
        (
            ["--set", "synthesis.batching=by_classes"],
            ["synthesis.batching", "'one_class' or 'across_classes'"],
        ),
        (["--set", "synthesis"], ["--set synthesis", "KEY=VALUE"]),
        (["--set", "=3"], ["KEY=VALUE"]),
        (["--set", "backbones.7.width=3"], ["backbones.7.width", "list of 2"]),
        (["--set", "backbones=[]"], ["backbones", "at least 1"]),
        (["--set", "backbones=convnet"], ["backbones"]),
        (["--set", "synthesis.matchers.0.momentum.x=3"], ["momentum"]),
        (["--set", "evaluation.students=[3]"], ["evaluation.students", "NAME"]),
        (["--set", "data.use=digit"], ["unknown dataset 'digit'", "did you mean 'digits'"]),
        (["--data", "/nowhere"], ["dataset 'digits'", "unknown option 'root'"]),
        (["--device", "cuda:99"], ["--device cuda:99", "--device cpu"]),
        (["--device", "tpu"], ["--device tpu", "auto, cpu or cuda"]),
        (["--device", "meta"], ["--device meta", "auto, cpu or cuda"]),
        (["--set", "pretrain.min_accuracy=1.0"], ["'convnet'", "below the 100.0%", "pretrain.epochs"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_options(options: list[str], named: list[str], tiny: Path, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = contents(store)
    refused(invoke("run", tiny, "--out", out, "--store", store, *options), *named)
    assert not list(out.rglob("*.safetensors"))
    if "pretrain.min_accuracy=1.0" not in options:
        assert not out.exists()
    assert contents(store) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(tiny: Path, store: Path, tmp_path: Path) -> None:
    result = invoke("run", tiny, "--out", tmp_path / "out", "--store", store, "--device", "cuda")
    refused(result, "--device cuda", "no such CUDA device", "--device cpu")
    assert not (tmp_path / "out").exists()


def test_recipe_names(tmp_path: Path) -> None:
    refused(invoke("run", "digts", "--out", tmp_path / "out"), "digts", "did you mean 'digits'", "available:")
    refused(invoke("run", tmp_path / "none.toml"), tmp_path / "none.toml", "no such file", "gvbsm recipes")
    refused(invoke("run", tmp_path), tmp_path)
    refused(invoke("run", ""), "recipe")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"[synthesis\nipc = 1", ["is not TOML"]),
        (b"ipc: 1\n", ["is not TOML"]),
        (b"\xff\xfe\x00", ["is not TOML"]),
        (b"synthesis = 3", ["synthesis"]),
        (b"data = 3", ["data", "use"]),
        (b"[data]\nimage_size = 3", ["data", "use", "digits"]),
        (b"[[matchers]]\nuse = 'bn'", ["unknown option 'matchers'"]),
        (b"[synthesis]\nmatchers = 'bn'", ["synthesis.matchers"]),
        (b"a = " + b"[" * 5000 + b"]" * 5000, ["is not TOML"]),
    ],
)
def test_recipe_files(text: bytes, named: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text)
    refused(invoke("run", path, "--out", tmp_path / "out"), path, *named)
    assert not (tmp_path / "out").exists()


def test_weights_with_other_classes(tiny: Path, store: Path, tmp_path: Path) -> None:
    network = discover().create(Backbone, {"use": "convnet", "width": 8, "depth": 1})
    for name in ("weights.pth", "weights.safetensors"):
        path = tmp_path / name
        state = network.build(7, 8, 1).state_dict()
        if path.suffix == ".pth":
            torch.save(state, path)
        else:
            artifacts.write(path, Artifact("backbone", "k", state, {}))
        before = contents(store)
        result = invoke(
            "run",
            tiny,
            "--out",
            tmp_path / name[-3:],
            "--store",
            store,
            "--set",
            f"backbones.0.weights={path}",
        )
        refused(result, path, "7 classes", "10", "reset_classifier")
        assert contents(store) == before
    missing = ["--set", f"backbones.0.weights={tmp_path / 'none.pth'}"]
    refused(invoke("run", tiny, "--out", tmp_path / "c", "--store", store, *missing), tmp_path / "none.pth")


# Folders ----------------------------------------------------------------------------------------------


def test_out_holds_the_run_of_another_recipe(tiny: Path, copied: Run) -> None:
    before = contents(copied.out)
    run: list[str | Path] = ["run", tiny, "--out", copied.out, "--store", copied.store]
    refused(invoke(*run, "--ipc", "3"), copied.out, "another recipe", "synthesis.ipc", "--out")
    refused(invoke(*run, "--matcher", "bn"), copied.out, "synthesis.matchers")
    refused(invoke("run", "digits", "--out", copied.out, "--store", copied.store), copied.out, "name")
    assert contents(copied.out) == before


def test_files_where_folders_belong(tiny: Path, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    refused(invoke("run", tiny, "--out", file, "--store", store), "--out", file)
    refused(invoke("run", tiny, "--out", file / "below", "--store", store), "--out", file)
    refused(invoke("run", tiny, "--out", tmp_path / "out", "--store", file), "--store", file)
    refused(invoke("evaluation", file, "--store", store), file, "recipe.toml")
    assert file.read_text() == "mine"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_stages_of_no_run_folder(stage: str, tmp_path: Path) -> None:
    refused(invoke(stage, tmp_path / "none"), tmp_path / "none", "is not a run folder", "gvbsm run")
    refused(invoke(stage, tmp_path), tmp_path, "recipe.toml")
    assert not list(tmp_path.iterdir())


def test_a_broken_recipe_in_the_run_folder(copied: Run, tiny: Path) -> None:
    path = copied.out / "recipe.toml"
    path.write_text("[broken")
    before = contents(copied.out)
    refused(invoke("evaluation", copied.out, "--store", copied.store), path, "is not TOML")
    refused(invoke("run", tiny, "--out", copied.out, "--store", copied.store), path, "is not TOML")
    assert contents(copied.out) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"records": 3}', "\x00"])
def test_broken_results_are_refused_and_written_again(text: str, copied: Run, finished: Run) -> None:
    path = copied.out / "results.json"
    path.write_text(text)
    with pytest.raises(GvbsmError, match=r"results\.json.*gvbsm evaluation"):
        read_records(copied.out)
    done("evaluation", copied.out, "--store", copied.store)
    assert path.read_bytes() == (finished.out / "results.json").read_bytes()


# Damaged artifacts ------------------------------------------------------------------------------------


def empty(path: Path) -> None:
    path.write_bytes(b"")


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"images": torch.zeros(3)}, path)


PLACES = [
    "store/backbones/*",
    "store/statistics/*",
    "out/units/synthesis/*",
    "out/units/evaluation/*",
    "out/distilled/images*",
    "out/distilled/labels-00002*",
    "out/baselines/random/images*",
    "out/baselines/random/labels-00002*",
]


@pytest.mark.parametrize("damage", [truncate, empty, alter, replace])
@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_artifact(place: str, damage: object, tiny: Path, copied: Run, finished: Run) -> None:
    """It is named, all others stay; deleting it, as the message says, makes it anew, equal bit for bit."""
    path = sorted(copied.out.parent.glob(place))[0]
    damage(path)  # type: ignore[operator]
    run: list[str | Path] = ["run", tiny, "--out", copied.out, "--store", copied.store]
    before = cli_helpers.artifacts(copied.out.parent)
    line = refused(invoke(*run), path)
    assert "delete the file" in line or "not written by gvbsm" in line
    refused(invoke("evaluation", copied.out, "--store", copied.store), path)
    assert cli_helpers.artifacts(copied.out.parent) == before
    if damage is alter:
        path.unlink()
        done(*run)
        after = cli_helpers.artifacts(copied.out.parent)
        assert {other for other in after if after[other] != before[other]} == {path}
        assert product(copied.out) == product(finished.out)
        assert cli_helpers.meaning(copied.store) == cli_helpers.meaning(finished.store)


# A full disk ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("largest", [300, 1_100, 5_000])
def test_no_room_for_a_file(largest: int, tiny: Path, store: Path, finished: Run, tmp_path: Path) -> None:
    """No file can grow beyond `largest` bytes: first the recipe, then an image batch, then the log."""
    out, errors = tmp_path / "out", tmp_path / "errors"
    run: list[str | Path] = ["run", tiny, "--out", out, "--store", store]
    process = cli_helpers.start(*run, errors=errors, largest=largest)
    process.join()
    assert process.exitcode == 2, errors.read_text()
    cli_helpers.refusal(errors.read_text(), out, "can't be written", "run again")
    assert not leftovers(out, store)
    kept = cli_helpers.artifacts(out)
    done(*run)
    after = cli_helpers.artifacts(out)
    assert {path: after[path] for path in kept} == kept
    assert product(out) == product(finished.out)
    cli_helpers.events(out)  # every line of the log is whole


@pytest.mark.slow
def test_no_room_in_the_store(tiny: Path, finished: Run, tmp_path: Path) -> None:
    out, store, errors = tmp_path / "out", tmp_path / "store", tmp_path / "errors"
    run: list[str | Path] = ["run", tiny, "--out", out, "--store", store]
    process = cli_helpers.start(*run, errors=errors, largest=20_000)
    process.join()
    assert process.exitcode == 2, errors.read_text()
    cli_helpers.refusal(errors.read_text(), store / "backbones", "can't be written", "run again")
    assert not leftovers(out, store)
    done(*run)
    assert product(out) == product(finished.out)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 KiB, where this user may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48k", "none", str(place)]
    try:
        made = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("a file system can be mounted by root alone")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk: Path, tiny: Path, store: Path, finished: Run) -> None:
    out = small_disk / "out"
    run: list[str | Path] = ["run", tiny, "--out", out, "--store", store]
    refused(invoke(*run), out, "can't be written", "free some space", "run again")
    assert not leftovers(out)
    kept = cli_helpers.artifacts(out)
    assert kept
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    done(*run)
    after = cli_helpers.artifacts(out)
    assert {path: after[path] for path in kept} == kept
    assert product(out) == product(finished.out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tiny: Path, store: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    refused(invoke("run", tiny, "--out", locked / "out", "--store", store), locked, "permissions")
