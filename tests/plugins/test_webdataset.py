"""WebDataset shards: equal to the same pictures in folders, indexed once, harmless whatever they name."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gvbsm_plugins.datasets import webdataset
from gvbsm_plugins.datasets.imagefolder import ImageFolder
from gvbsm_plugins.datasets.webdataset import WebDataset
from gvbsm_registry import GvbsmError
from gvbsm_registry.testing import check_dataset


def png(seed: int, size: tuple[int, int] = (12, 9)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def sample(name: str, seed: int, label: int) -> list[tuple[str, bytes]]:
    return [(f"{name}.png", png(seed)), (f"{name}.cls", str(label).encode()), (f"{name}.json", b"{}")]


def fill(root: Path, classes: int = 3, each: int = 4, shards: int = 2, names: bool = True) -> Path:
    for split, base in (("train", 0), ("val", 1000)):
        samples = [(n, n % classes) for n in range(classes * each)]
        for shard in range(shards):
            members = [m for n, k in samples[shard::shards] for m in sample(f"{n:05d}", base + n, k)]
            pack(root / f"{split}-{shard:04d}.tar", members)
    if names:
        (root / "classes.txt").write_text("".join(f"class {k}\n" for k in range(classes)))
    return root


@pytest.mark.parametrize("in_memory", [True, False])
def test_shards_hold_what_folders_hold(tmp_path: Path, in_memory: bool) -> None:
    root, folder = fill(tmp_path / "tar"), tmp_path / "folder"
    for split, base in (("train", 0), ("val", 1000)):
        for n in range(12):
            path = folder / split / f"class {n % 3}" / f"{n:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(base + n))
    for split in ("train", "test"):
        ours = WebDataset(root=root, image_size=8, in_memory=in_memory).open(split, tmp_path / "cache")
        theirs = ImageFolder(root=folder, image_size=8).open(split, tmp_path / "cache2")
        assert ours.classes == theirs.classes
        pictures = {
            (int(k), images.numpy().tobytes())
            for k, images in zip(ours.labels, ours.read(torch.arange(12)), strict=True)
        }
        assert pictures == {
            (int(k), images.numpy().tobytes())
            for k, images in zip(theirs.labels, theirs.read(torch.arange(12)), strict=True)
        }


def test_it_conforms(tmp_path: Path) -> None:
    check_dataset(WebDataset(root=fill(tmp_path / "tar"), image_size=8))


def test_without_names_classes_are_numbers_and_folders_hold_shards(tmp_path: Path) -> None:
    fill(tmp_path / "flat", names=False)
    root = tmp_path / "deep"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for path in (tmp_path / "flat").glob(f"{split}*.tar"):
            path.rename(root / split / f"{path.name[-5:-4]}.tar")
    split = WebDataset(root=root, image_size=8).open("train", tmp_path / "cache")
    assert split.classes == ("0", "1", "2")
    assert len(split) == 12


def test_the_index_is_made_once_and_anew_when_a_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "tar")
    data = WebDataset(root=root, image_size=8, in_memory=False)
    first = data.open("train", tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(webdataset, "_samples", lambda path: pytest.fail("indexed again"))
        again = data.open("train", tmp_path / "cache")
    assert again.digest == first.digest
    assert torch.equal(
        pickle.loads(pickle.dumps(again)).read(torch.tensor([3])), first.read(torch.tensor([3]))
    )
    pack(root / "train-0000.tar", sample("new", 77, 2))
    assert data.open("train", tmp_path / "cache").digest != first.digest
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"broken")
    assert len(data.open("train", tmp_path / "cache")) == 7


def test_names_in_a_shard_are_not_used_as_paths(tmp_path: Path) -> None:
    root = fill(tmp_path / "in" / "tar")
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hostile = [
        *sample("../../../escaped", 1, 0),
        *sample("/abs/olute", 2, 1),
        *sample("a\nb<b>", 3, 2),
        *sample("con", 4, 0),
    ]
    pack(root / "train-0000.tar", hostile)
    with tarfile.open(root / "train-0000.tar", "a") as tar:
        tar.addfile(link)
    split = WebDataset(root=root, image_size=8, in_memory=False).open("train", tmp_path / "in" / "cache")
    assert len(split) == 4 + 6
    split.read(torch.arange(10))
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert not any("escaped" in name or "olute" in name for name in made)
    assert not Path("/abs").exists()


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.png", png(0))], "no class"),
        ([("a.cls", b"1"), ("b.png", png(0))], "no class"),
        ([("a.png", png(0)), ("a.cls", b"-1")], "instead of a class number"),
        ([("a.png", png(0)), ("a.cls", b"9" * 1000)], "instead of a class number"),
        ([("a.png", png(0)), ("a.cls", "²".encode())], "instead of a class number"),
        ([("a.png", png(0)), ("a.cls", b"7")], "class 7"),
        ([("a.txt", b"")], None),
    ],
)
def test_samples_with_faults_are_named(
    tmp_path: Path, members: list[tuple[str, bytes]], said: str | None
) -> None:
    root = fill(tmp_path / "tar", shards=1)
    pack(root / "train-0000.tar", members)
    with pytest.raises(GvbsmError, match=said or "no picture") as error:
        WebDataset(root=root, image_size=8).open("train", tmp_path / "cache")
    assert str(root) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fault", ["zip", "text", "cut", "empty", "none"])
def test_files_that_are_no_shards(tmp_path: Path, fault: str) -> None:
    root = fill(tmp_path / "tar", shards=1)
    shard = root / "train-0000.tar"
    if fault == "zip":
        pack(shard, sample("a", 0, 0), "w:gz")
    elif fault == "text":
        shard.write_text("this is not a tar file" * 100)
    elif fault == "cut":
        os.truncate(shard, 700)
    elif fault == "empty":
        shard.write_bytes(b"")
    else:
        shard.unlink()
    with pytest.raises(GvbsmError, match=r"train") as error:
        WebDataset(root=root, image_size=8).open("train", tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_a_broken_picture_is_named_by_shard_and_place(tmp_path: Path) -> None:
    root = fill(tmp_path / "tar", shards=1)
    pack(root / "train-0000.tar", [("a.png", b"no picture"), ("a.cls", b"0"), *sample("b", 1, 1)])
    with pytest.raises(GvbsmError, match=r"train-0000.tar, byte 512"):
        WebDataset(root=root, image_size=8).open("train", tmp_path / "cache")


def test_the_index_is_compact(tmp_path: Path) -> None:
    root = fill(tmp_path / "tar")
    split = WebDataset(root=root, image_size=8, in_memory=False).open("train", tmp_path / "cache")
    index = split.pictures.index  # type: ignore[attr-defined]
    assert sum(tensor.element_size() for tensor in index.values()) == 20
