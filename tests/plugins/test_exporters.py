"""Exports and what takes them back: bit for bit, by readers that are not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from gvbsm import DistilledDataset
from gvbsm.recipe import loading
from gvbsm.results.finished import FinishedRun
from gvbsm_plugins.exporters import DDRanking, HuggingFaceFolder, ImageFolderFiles
from gvbsm_plugins.exporters.writing import folder_names
from gvbsm_plugins.initializers.folder import FolderImages
from gvbsm_registry import Exporter, GvbsmError, Registry, TensorSplit, discover
from gvbsm_registry.artifacts import Artifact, write
from gvbsm_registry.testing import check_exporter
from gvbsm_registry.testing.samples import SampleRun

EVIL = ("<script>alert(1)</script>", "a/b\\..", "a | b", "Ünï 日本", ".hidden")
RECORD = {
    "set": "distilled",
    "labels": "soft",
    "augmented": True,
    "ipc": 3,
    "student": "convnet",
    "student_options": {"use": "convnet"},
    "seed": 0,
    "top1": 0.5,
    "best_top1": 0.5,
    "epochs": 1,
    "image_bytes": 10,
    "label_bytes": 20,
}


def make_run(
    folder: Path,
    channels: int = 3,
    classes: tuple[str, ...] = EVIL,
    image_size: int = 9,
    recipe: dict[str, Any] | None = None,
) -> FinishedRun:
    generator = torch.Generator().manual_seed(7)
    count = 3 * len(classes)
    for place in ("distilled", "baselines/random"):
        images = torch.randint(
            256, (count, channels, image_size, image_size), generator=generator, dtype=torch.uint8
        )
        tensors = {"images": images, "labels": torch.arange(len(classes)).repeat_interleave(3)}
        meta = {
            "classes": list(classes),
            "mean": [0.5] * channels,
            "std": [0.25] * channels,
            "ipc": 3,
            "data": "cifar10",
            "provenance": {"gvbsm": "0", "torch": "0", "recipe": "r", "seed": 0},
        }
        write(folder / place / "images.safetensors", Artifact("distilled", "0" * 64, tensors, meta))
    (folder / "results.json").write_text(json.dumps({"schema": 2, "records": [RECORD]}))
    tables = {"name": "r", "reproduces": "<b>Table 1</b>", **(recipe or {})}
    registry = discover()
    (folder / "recipe.toml").write_text(loading.make(tables, registry, where="r").toml())
    return FinishedRun(folder)


def pixels(image: Image.Image) -> torch.Tensor:
    array = np.asarray(image)
    return torch.from_numpy(array.copy()).reshape(*array.shape[:2], -1).permute(2, 0, 1)


class Source:
    """As much of a source as the initializer needs: a data set with the same classes."""

    def __init__(self, classes: tuple[str, ...], channels: int, image_size: int) -> None:
        images = torch.zeros(len(classes), channels, image_size, image_size, dtype=torch.uint8)
        self.train = TensorSplit(images, torch.arange(len(classes)), classes)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()


def imported(root: Path, source: Source, ipc: int = 3) -> torch.Tensor:
    labels = torch.arange(len(source.train.classes)).repeat_interleave(ipc)
    ranks = torch.arange(ipc).repeat(len(source.train.classes))
    return FolderImages(root=root).images(labels, ranks, source, torch.Generator())


@pytest.mark.parametrize("exporter", [ImageFolderFiles(), HuggingFaceFolder(), DDRanking()], ids=str)
def test_conformance(exporter: Exporter) -> None:
    if exporter.name == "huggingface":
        pytest.importorskip("datasets", reason="the package datasets is not installed")
    check_exporter(exporter)


def test_the_sample_run_has_a_recipe_like_the_engines(tmp_path: Path, registry: Registry) -> None:
    sample = SampleRun(tmp_path).recipe
    made = loading.make(sample, registry, where="sample").tables()

    def part_of(given: Any, whole: Any) -> bool:
        if isinstance(given, dict):
            return all(key in whole and part_of(value, whole[key]) for key, value in given.items())
        if isinstance(given, list):
            return len(given) == len(whole) and all(map(part_of, given, whole))
        return bool(given == whole)

    assert part_of(sample, made)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [EVIL, ("ant", "bee", "cat")])
def test_imagefolder_comes_back_to_the_bit(tmp_path: Path, channels: int, classes: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "run", channels, classes)
    ours = DistilledDataset(run.folder / "distilled")
    ImageFolderFiles().export(run, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["classes"] == list(classes)
    assert [entry["label"] for entry in manifest["images"]] == ours.labels.tolist()
    assert manifest["results"] == [RECORD]
    back = imported(tmp_path / "out", Source(classes, channels, 9))
    assert torch.equal(back, ours.images.float())
    theirs = TorchvisionFolder(str(tmp_path / "out" / "images"))
    assert theirs.targets == ours.labels.tolist()
    for (path, _), image in zip(theirs.samples, ours.images, strict=True):
        assert torch.equal(pixels(Image.open(path)), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_huggingface_opens_with_datasets(tmp_path: Path, channels: int) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    run = make_run(tmp_path / "run", channels)
    ours = DistilledDataset(run.folder / "distilled")
    HuggingFaceFolder(license="mit").export(run, tmp_path / "out")
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert found.features["label"].names == list(EVIL)
    assert list(found["label"]) == ours.labels.tolist()
    for row, image in zip(found, ours.images, strict=True):
        assert torch.equal(pixels(row["image"]), image)
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith('---\nlicense: "mit"\n')
    assert "| distilled | soft | 3 | convnet | 50.0 |" in text
    assert "<script" not in text
    assert "<b>" not in text
    assert Image.open(tmp_path / "out" / "examples.png").size[0] > 20


def test_huggingface_card_has_a_header_that_yaml_reads(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="the package PyYAML is not installed")
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    HuggingFaceFolder().export(make_run(tmp_path / "run"), tmp_path / "out")
    header = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    assert header["size_categories"] == ["n<1K"]
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]


def test_dd_rankings_layout_opens_with_torchvision(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="the package PyYAML is not installed")
    run = make_run(tmp_path / "run")
    DDRanking().export(run, tmp_path / "out")
    settings = yaml.safe_load((tmp_path / "out" / "G-VBSM" / "CIFAR10" / "IPC3.yaml").read_text())
    assert settings["dataset"] == "CIFAR10"
    assert settings["ipc"] == 3
    assert settings["im_size"] == [9, 9]
    assert settings["custom_train_trans"][1]["args"]["mean"] == [0.5] * 3
    for key, place in (("syn_data_path", "distilled"), ("random_data_path", "baselines/random")):
        ours = DistilledDataset(run.folder / place)
        theirs = TorchvisionFolder(str(tmp_path / "out" / settings[key]))
        assert theirs.targets == ours.labels.tolist()
        for (path, _), image in zip(theirs.samples, ours.images, strict=True):
            assert torch.equal(pixels(Image.open(path)), image)


TRAINED = {
    "relabel": {"cutmix": 0.5, "cutmix_alpha": 0.3, "ensembler": "normalized", "temperature": 2.0},
    "evaluation": {
        "students": [{"use": "convnet", "depth": 2}],
        "seeds": [3, 4],
        "epochs": 7,
        "ema": 0.9,
        "batch": 11,
        "optimizer": {"use": "sgd", "momentum": 0.7, "weight_decay": 0.03, "nesterov": True},
        "learning_rate": 0.2,
        "schedule": "linear",
        "objective": {"use": "kl", "temperature": 4.0},
    },
    "pretrain": {"batch": 13},
}


@pytest.mark.parametrize("recipe", [TRAINED, None])
def test_dd_ranking_is_told_the_recipes_training(tmp_path: Path, recipe: dict[str, Any] | None) -> None:
    yaml = pytest.importorskip("yaml", reason="the package PyYAML is not installed")
    DDRanking().export(make_run(tmp_path / "run", recipe=recipe), tmp_path / "out")
    text = (tmp_path / "out" / "G-VBSM" / "CIFAR10" / "IPC3.yaml").read_text()
    told = yaml.safe_load(text)
    comments = [line for line in text.splitlines() if line.startswith("#")]
    if recipe is None:  # the defaults
        assert told["data_aug_func"] == "cutmix"
        assert told["aug_params"] == {"beta": 1.0}
        assert (told["soft_label_criterion"], told["loss_fn_kwargs"]) == ("mse_gt", {"ce_weight": 0.15})
        assert (told["lr_scheduler"], told["optimizer"], told["num_eval"]) == ("cosine", "adamw", 1)
        assert told["weight_decay"] == 0.01
        assert not {"temperature", "momentum"} & told.keys()
        assert not any("evaluation.optimizer" in line for line in comments)
        return
    expected = {
        "model_name": "ConvNet-2",
        "data_aug_func": "cutmix",
        "aug_params": {"beta": 0.3},
        "soft_label_criterion": "kl",
        "temperature": 4.0,
        "optimizer": "sgd",
        "momentum": 0.7,
        "weight_decay": 0.03,
        "default_lr": 0.2,
        "num_eval": 2,
        "num_epochs": 7,
        "syn_batch_size": 11,
        "real_batch_size": 13,
    }
    assert {key: told[key] for key in expected} == expected
    assert "lr_scheduler" not in told
    for key in (
        "evaluation.optimizer",
        "evaluation.schedule",
        "relabel.ensembler",
        "relabel.augmentation",
        "relabel.cutmix = 0.5",
        "relabel.temperature = 2.0",
        "evaluation.ema = 0.9",
    ):
        assert any(key in line for line in comments)


def test_dd_ranking_without_cutmix(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="the package PyYAML is not installed")
    DDRanking().export(make_run(tmp_path / "run", recipe={"relabel": {"cutmix": 0.0}}), tmp_path / "out")
    told = yaml.safe_load((tmp_path / "out" / "G-VBSM" / "CIFAR10" / "IPC3.yaml").read_text())
    assert told["data_aug_func"] is None
    assert told["aug_params"] == {}


@pytest.mark.parametrize("exporter", [ImageFolderFiles(), HuggingFaceFolder()], ids=str)
def test_a_card_opens_the_format_beside_it(
    tmp_path: Path, exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    run = make_run(tmp_path / "run")
    exporter.export(run, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "OUT" not in text
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert len(names["dataset"]) == len(run.labels)


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gvbsm_plugins.exporters.imagefolder.write_pictures", full)
    with pytest.raises(GvbsmError, match="No space left"):
        ImageFolderFiles().export(run, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_an_existing_destination_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(GvbsmError, match="exists"):
        ImageFolderFiles().export(make_run(tmp_path / "run"), tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_folder_names_sort_like_the_labels() -> None:
    assert folder_names(("ant", "bee", "cat")) == ["ant", "bee", "cat"]
    for classes in (EVIL, ("b", "a"), ("A", "a"), tuple(map(str, range(12))), ("", "x"), ("a.", "b")):
        names = folder_names(classes)
        assert sorted(names) == names
        assert len({name.lower() for name in names}) == len(classes)
        assert all(name and not set('/\\<>:"|?*') & set(name) for name in names)


def test_sre2ls_layout(tmp_path: Path) -> None:
    wanted = torch.empty(6, 3, 8, 8, dtype=torch.uint8)
    for label in range(3):
        for number in range(2):
            path = tmp_path / f"new{label:03d}" / f"class{label:03d}_id{number:03d}.jpg"
            path.parent.mkdir(exist_ok=True)
            shade = np.full((8, 8, 3), 40 * label + 100 * number, dtype=np.uint8)
            Image.fromarray(shade).save(path, quality=95)
            wanted[2 * label + number] = pixels(Image.open(path))
    source = Source(("zebra", "ant", "bee"), 3, 8)
    assert FolderImages(root=tmp_path).per_class() == 2
    assert torch.equal(imported(tmp_path, source, 2), wanted.float())
    with pytest.raises(GvbsmError, match="not one for each"):
        imported(tmp_path, Source(("a", "b"), 3, 8), 2)


def test_class_folders_go_by_name_whatever_the_order_of_labels(tmp_path: Path) -> None:
    for name, shade in (("ant", 10), ("bee", 20)):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8), shade).save(tmp_path / name / "x.png")
    back = imported(tmp_path, Source(("bee", "ant"), 1, 8), 1)
    assert back[:, 0, 0, 0].tolist() == [20, 10]
    with pytest.raises(GvbsmError, match="missing \\['wasp'\\]"):
        imported(tmp_path, Source(("bee", "wasp"), 1, 8), 1)


def test_the_recipe_depends_on_the_pictures_not_on_where_they_lie(tmp_path: Path, registry: Registry) -> None:
    run = make_run(tmp_path / "run")
    for name in ("one", "two"):
        ImageFolderFiles().export(run, tmp_path / name)

    def contents(name: str) -> list[bytes]:
        return [path.read_bytes() for path in FolderImages(root=tmp_path / name).files()]

    assert len(contents("one")) == 1 + 3 * len(EVIL)
    assert contents("one") == contents("two")
    path = next((tmp_path / "two" / "images").rglob("*.png"))
    Image.new("RGB", (9, 9)).save(path)
    assert contents("one") != contents("two")
    (tmp_path / "one" / "manifest.json").unlink()
    assert len(contents("one")) == 3 * len(EVIL)


def test_a_digest_stands_for_the_pictures_until_they_are_read(tmp_path: Path) -> None:
    ImageFolderFiles().export(make_run(tmp_path / "run"), tmp_path / "out")
    pinned = FolderImages(root=tmp_path / "out", contents="now")
    assert pinned.contents != "now"
    assert pinned.files() == ()
    source, first = Source(EVIL, 3, 9), (torch.tensor([0]), torch.tensor([0]))
    assert pinned.images(*first, source, torch.Generator()).shape == (1, 3, 9, 9)
    Image.new("RGB", (9, 9)).save(next((tmp_path / "out" / "images").rglob("*.png")))
    assert FolderImages(root=tmp_path / "out", contents="now").contents != pinned.contents
    with pytest.raises(GvbsmError, match="have changed since"):
        FolderImages(root=tmp_path / "out", contents=pinned.contents).images(
            *first, source, torch.Generator()
        )


def test_making_it_reads_nothing(tmp_path: Path) -> None:
    assert FolderImages(root=tmp_path / "missing").to_recipe() == {
        "use": "folder",
        "root": str(tmp_path / "missing"),
    }
    with pytest.raises(GvbsmError, match="no such folder"):
        FolderImages(root=tmp_path / "missing").files()


def test_a_broken_picture_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "x.png").write_bytes(b"not a picture")
    with pytest.raises(GvbsmError, match=r"x\.png: is not a picture.*; replace it$") as caught:
        imported(tmp_path, Source(("ant",), 1, 8), 1)
    assert "skip_broken" not in str(caught.value)


def test_an_image_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    ImageFolderFiles().export(make_run(tmp_path / "run"), tmp_path / "out")
    source, initializer = Source(EVIL, 3, 9), FolderImages(root=tmp_path / "out")
    together = imported(tmp_path / "out", source)
    labels, ranks = torch.arange(len(EVIL)).repeat_interleave(3), torch.arange(3).repeat(len(EVIL))
    for index in torch.randperm(len(labels)).split(4):
        part = initializer.images(labels[index], ranks[index], source, torch.Generator())
        assert torch.equal(part, together[index])
    with pytest.raises(GvbsmError, match=r"3 pictures where 4 are asked for"):
        initializer.images(torch.tensor([0]), torch.tensor([3]), source, torch.Generator())


def test_unequal_classes(tmp_path: Path) -> None:
    for name, count in (("ant", 1), ("bee", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("L", (8, 8)).save(tmp_path / name / f"{number}.png")
    with pytest.raises(GvbsmError, match="'ant' has 1 pictures and 'bee' has 2"):
        FolderImages(root=tmp_path).per_class()


@pytest.mark.parametrize(
    "manifest",
    [
        "no json",
        "{}",
        '{"classes": ["a"], "images": []}',
        '{"classes": ["a", "a"], "images": [{"file": "x.png", "label": 0}]}',
        '{"classes": ["a"], "images": [{"file": "../x.png", "label": 0}]}',
        '{"classes": ["a"], "images": [{"file": "/etc/passwd", "label": 0}]}',
        '{"classes": ["a"], "images": [{"file": "x.png", "label": 7}]}',
        '{"classes": ["a"], "images": [{"file": "x.png", "label": -1}]}',
        '{"classes": ["a"], "images": [{"file": 5, "label": 0}]}',
        "[]",
    ],
)
def test_a_wrong_manifest(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(GvbsmError, match=r"manifest\.json"):
        FolderImages(root=tmp_path).files()
