"""WebDataset shards: pictures and their classes in tar files, read in place."""

from __future__ import annotations

import hashlib
import os
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gvbsm_plugins.datasets.base import PictureDataset, existing_folder
from gvbsm_plugins.pictures.cache import load_cached, save_cached
from gvbsm_plugins.pictures.decoding import BrokenPictureError
from gvbsm_plugins.pictures.listing import SUFFIXES, printable
from gvbsm_registry import Artifact, GvbsmError, artifacts

if TYPE_CHECKING:
    from torch import Tensor

    from gvbsm_registry import Split

LARGEST_PICTURE = 2**31 - 1  # bytes
LONGEST_LABEL = 20  # bytes of a .cls file


class WebDataset(PictureDataset):
    """Tar shards `train*.tar` and `test*.tar` (or `val*.tar`), in the folder or in folders of these names.

    A sample is a picture and a `.cls` file, the class's number as text, whose names agree up to the first
    dot. Nothing is extracted; the names in a shard are never used as paths.
    """

    name = "webdataset"

    root: Path | None = Field(None, description="the folder that holds the shards")
    image_size: int = Field(224, ge=1, description="height and width in pixels")
    channels: Literal[1, 3] = Field(3, description="3: colour, 1: grey")

    def open(self, split: Literal["train", "test"], cache: Path) -> Split:
        """Open one split. Classes are the lines of `classes.txt`, or numbers if there is no such file.

        The shards are indexed once; the index is cached until a shard changes. Raises GvbsmError,
        naming the shard, if one is not a plain tar file, or a sample has no class.
        """
        root = existing_folder(self.root, self.name)
        shards = {name: _shards(root, name) for name in ("train", "test")}
        pictures = Shards(shards[split], _index(shards[split], cache))
        classes = self._classes(root, shards, cache)
        highest = int(pictures.labels.max())
        if highest >= len(classes):
            raise GvbsmError(
                f"{root}: a {split} sample has class {highest}, but there are {len(classes)} "
                "classes (they are counted from 0); correct classes.txt or the shards"
            )
        origin = printable(os.path.abspath(root))
        return self._open(pictures, classes, self.image_size, self.channels, cache, origin)

    def _classes(self, root: Path, shards: dict[str, list[Path]], cache: Path) -> list[str]:
        path = root / "classes.txt"
        if not path.is_file():
            indices = [_index(paths, cache) for paths in shards.values()]
            last = max(int(index["labels"].max()) for index in indices)
            count = sum(len(index["labels"]) for index in indices)
            if last >= count:
                raise GvbsmError(
                    f"{root}: a sample is of class {last}, of {count} pictures in all; classes count from 0"
                )
            return [str(number) for number in range(last + 1)]
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise GvbsmError(f"{path}: can't be read as text ({error}); put one class on a line") from error
        if len(set(names)) != len(names):
            raise GvbsmError(f"{path}: names a class twice; every class needs a name of its own")
        return names


class Shards:
    """The pictures of some shards by their place in the files: 20 bytes a picture."""

    def __init__(self, paths: list[Path], index: dict[str, Tensor]) -> None:
        self.paths, self.index = paths, index
        self.labels = index["labels"].long()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        hasher = hashlib.sha256(artifacts.canonical(_stamps(self.paths)).encode())
        for name in sorted(self.index):
            hasher.update(self.index[name].numpy().data)
        return hasher.hexdigest()

    def where(self, index: int) -> str:
        shard, start, _ = self._place(index)
        return f"{printable(os.fspath(self.paths[shard]))}, byte {start}"

    def load(self, index: int) -> bytes:
        shard, start, size = self._place(index)
        try:
            with self.paths[shard].open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise GvbsmError(
                f"{self.paths[shard]}: can't be read ({error.strerror}); check that the shard is still there"
            ) from error
        if len(data) != size:
            raise BrokenPictureError(self.where(index), "the shard is cut short")
        return data

    def _place(self, index: int) -> tuple[int, int, int]:
        shard, start, size = (int(self.index[name][index]) for name in ("shard", "start", "size"))
        return shard, start, size


def _shards(root: Path, split: str) -> list[Path]:
    for name in ("train",) if split == "train" else ("test", "val"):
        shards = sorted([*root.glob(f"{name}*.tar"), *(root / name).glob("*.tar")])
        if shards:
            return shards
    other = "" if split == "train" else " or val*.tar"
    raise GvbsmError(
        f"{root}: holds no {split}*.tar{other}; put the shards there, or give another --data DIR"
    )


def _stamps(paths: list[Path]) -> list[list[object]]:
    try:
        return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    except OSError as error:
        raise GvbsmError(f"{error.filename}: can't be read ({error.strerror}); check the shard") from error


def _index(paths: list[Path], cache: Path) -> dict[str, Tensor]:
    """Return where each picture lies: shard int32, start int64, size int32 and labels int32, [N] each."""
    import numpy as np
    import torch

    key = artifacts.digest(["webdataset", os.path.abspath(paths[0].parent), _stamps(paths)])
    path = cache / f"shards-{key[:24]}.safetensors"
    if (cached := load_cached(path, "shards", key)) is not None:
        return cached.tensors
    columns = {"shard": array("i"), "start": array("q"), "size": array("i"), "labels": array("i")}
    for number, shard in enumerate(paths):
        for start, size, label in _samples(shard):
            for name, value in zip(columns, (number, start, size, label), strict=True):
                columns[name].append(value)
    if not columns["labels"]:
        raise GvbsmError(f"{paths[0]}: holds no picture with a class (.cls), nor do the shards beside it")
    tensors = {name: torch.from_numpy(np.array(column)) for name, column in columns.items()}
    save_cached(path, Artifact("shards", key, tensors, {}))
    return tensors


def _samples(path: Path) -> Iterator[tuple[int, int, int]]:
    """Yield (start, size, label) of every picture of a shard, in the order of the file."""
    sample, picture, label = None, None, None
    try:
        length = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every member
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("it is cut short")
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if (folder, stem) != sample:
                    if picture is not None:
                        yield (*picture, _require_label(label, path, sample))
                    sample, picture, label = (folder, stem), None, None
                if f".{suffix.lower()}" in SUFFIXES:
                    if member.size > LARGEST_PICTURE:
                        raise tarfile.ReadError(f"{printable(member.name)!r} is larger than a picture can be")
                    picture = (member.offset_data, member.size)
                elif suffix.lower() == "cls":
                    label = _label(tar, member, path)
    except (tarfile.TarError, OSError, EOFError, MemoryError, OverflowError) as error:
        raise GvbsmError(
            f"{path}: can't be read as a tar file without compression ({error}); unpack or replace it"
        ) from error
    if picture is not None:
        yield (*picture, _require_label(label, path, sample))


def _require_label(label: int | None, path: Path, sample: tuple[str, str] | None) -> int:
    if label is None:
        name = printable("/".join(sample or ()))
        raise GvbsmError(f"{path}: sample {name!r} has no class; add a file .cls that holds its number")
    return label


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    file = tar.extractfile(member)
    text = file.read(LONGEST_LABEL).decode("ascii", "replace").strip() if file else ""
    if not text.isdecimal() or len(text) > 8:
        raise GvbsmError(
            f"{path}: {printable(member.name)!r} holds {text!r} instead of a class number, counted from 0"
        )
    return int(text)
