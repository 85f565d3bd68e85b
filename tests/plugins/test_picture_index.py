"""The cached listing of a large image folder: used while nothing changed, and never when something did."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gvbsm_plugins.datasets import ImageFolder, imagefolder
from gvbsm_plugins.pictures import index
from gvbsm_plugins.pictures.listing import Listing
from gvbsm_registry import artifacts

OLD = time.time() - 60


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes with a folder in one of them, all left alone for a minute."""
    monkeypatch.setattr(index, "CACHED_FROM", 5)
    for split in ("train", "test"):
        for where in ("ant", "bee", "bee/inner"):
            folder = tmp_path / "data" / split / where
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")
    settle(tmp_path / "data")
    return tmp_path / "data"


def settle(root: Path) -> None:
    for where, _, _ in os.walk(root):
        os.utime(where, (OLD, OLD))


def opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """Return the training split, streaming, and how many times a split was listed for it."""
    listed = []
    real = imagefolder.list_classes

    def counted(*arguments: Any) -> Listing:
        listed.append(arguments)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(imagefolder, "list_classes", counted)
        dataset = ImageFolder(root=root, in_memory=False)
        return dataset.open("train", root.parent / "cache"), len(listed)


def test_it_is_listed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, listed = opened(root, monkeypatch)
    assert listed == 1
    second, listed = opened(root, monkeypatch)
    assert listed == 0
    assert second.digest == first.digest
    assert torch.equal(second.labels, first.labels)
    every = torch.arange(len(first.labels))
    assert torch.equal(second.read(every), first.read(every))


@pytest.mark.parametrize("where", ["ant", "bee/inner"])
@pytest.mark.parametrize("change", ["added", "removed", "renamed", "folder"])
def test_a_change_is_noticed(root: Path, monkeypatch: pytest.MonkeyPatch, where: str, change: str) -> None:
    opened(root, monkeypatch)
    folder = root / "train" / where
    if change == "added":
        Image.new("RGB", (4, 4)).save(folder / "9.png")
    elif change == "removed":
        (folder / "1.png").unlink()
    elif change == "renamed":
        (folder / "1.png").rename(folder / "8.png")
    else:
        (folder / "deeper").mkdir()
        Image.new("RGB", (4, 4)).save(folder / "deeper" / "0.png")
    again, listed = opened(root, monkeypatch)
    assert listed == 1
    assert len(again.labels) == {"removed": 8, "renamed": 9}.get(change, 10)


def test_a_folder_changed_just_now_is_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(root / "train" / "ant")
    opened(root, monkeypatch)
    assert opened(root, monkeypatch)[1] == 1


def test_a_small_folder_is_listed_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "CACHED_FROM", 100)
    opened(root, monkeypatch)
    assert opened(root, monkeypatch)[1] == 1


def test_a_broken_index_is_made_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = opened(root, monkeypatch)
    (path,) = (root.parent / "cache").glob("folder-*.safetensors")
    for damage in (path.read_bytes()[:-9], b"", _of_another_kind(path)):
        path.write_bytes(damage)
        again, listed = opened(root, monkeypatch)
        assert listed == 1
        assert again.digest == first.digest


def _of_another_kind(path: Path) -> bytes:
    """A sound file of the same key that holds something else."""
    artifact = artifacts.read(path, "folder")
    del artifact.tensors["changed"]
    artifacts.write(path, artifact)
    return path.read_bytes()
