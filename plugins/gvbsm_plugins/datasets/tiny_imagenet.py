"""Tiny-ImageNet in the layout in which it is published."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gvbsm_plugins.datasets.base import PictureDataset, existing_folder
from gvbsm_plugins.pictures.listing import (
    Listing,
    class_folders,
    empty_classes,
    list_classes,
    make_listing,
    printable,
)
from gvbsm_registry import GvbsmError

if TYPE_CHECKING:
    from gvbsm_registry import Split

IMAGE_SIZE = 64
FOLDER = "tiny-imagenet-200"


class TinyImageNet(PictureDataset):
    """200 classes of 64×64 colour pictures, 500 each to train; its validation pictures are the test split."""

    name = "tiny_imagenet"

    root: Path | None = Field(None, description=f"the folder {FOLDER}, or the one that holds it")
    mean: tuple[float, ...] | None = Field((0.4802, 0.4481, 0.3975), description="channel means in 0..1")
    std: tuple[float, ...] | None = Field((0.2770, 0.2691, 0.2821), description="channel deviations")

    def open(self, split: Literal["train", "test"], cache: Path) -> Split:
        """Open one split, [N, 3, 64, 64]; classes are the sorted WordNet ids, grey pictures become RGB.

        Raises GvbsmError, naming the path, if a folder or a file is missing, malformed or broken.
        """
        root = existing_folder(self.root, self.name)
        root = root / FOLDER if (root / FOLDER).is_dir() else root
        train = root / "train"
        if not train.is_dir():
            raise GvbsmError(
                f"{root}: has no folder 'train'; unpack tiny-imagenet-200.zip and give its folder {FOLDER}"
            )
        classes = _classes(root, train)
        if split == "train":
            folders = {name: os.path.join(name, "images") for name in classes}
            for below in folders.values():
                if not (train / below).is_dir():
                    raise GvbsmError(f"{train / below}: no such folder; unpack tiny-imagenet-200.zip anew")
            listing = list_classes(train, folders, self.skip_broken)
        else:
            listing = self._annotated(root / "val", classes)
        return self._open(listing, classes, IMAGE_SIZE, 3, cache, printable(os.path.abspath(root / split)))

    def _annotated(self, val: Path, classes: list[str]) -> Listing:
        labels = {name: label for label, name in enumerate(classes)}
        annotations = val / "val_annotations.txt"

        def entries() -> Iterator[tuple[bytes, int]]:
            seen = set()
            for number, line in enumerate(_lines(annotations), 1):
                if not line.strip():
                    continue
                name, wnid = _parsed(line, f"{annotations}, line {number}", labels)
                if name in seen:
                    raise GvbsmError(
                        f"{annotations}, line {number}: {name!r} is listed twice; remove one line"
                    )
                seen.add(name)
                yield os.fsencode(name), labels[wnid]

        listing = make_listing(val / "images", entries(), self.skip_broken)
        if empty := empty_classes(listing.labels, classes):
            raise GvbsmError(
                f"{annotations}: has no picture of class {empty[0]!r} ({len(empty)} such in all); "
                "unpack tiny-imagenet-200.zip anew, or remove these classes from train and wnids.txt"
            )
        return listing


def _classes(root: Path, train: Path) -> list[str]:
    folders = class_folders(train)
    listed = root / "wnids.txt"
    if not folders:
        raise GvbsmError(f"{train}: holds no class folders; unpack tiny-imagenet-200.zip anew")
    if not listed.exists():
        return list(folders)
    names = sorted({line.strip() for line in _lines(listed)} - {""})
    missing = sorted(set(names) - set(folders)) + sorted(set(folders) - set(names))
    if missing:
        raise GvbsmError(
            f"{listed}: differs from the folders in {train}, first in {missing[0]!r}; unpack "
            "tiny-imagenet-200.zip anew, or remove wnids.txt to take the folders"
        )
    return names


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise GvbsmError(
            f"{path}: no such file; it gives the classes of val/images: unpack tiny-imagenet-200.zip anew"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise GvbsmError(f"{path}: can't be read ({error}); unpack tiny-imagenet-200.zip anew") from error


def _parsed(line: str, where: str, labels: dict[str, int]) -> tuple[str, str]:
    """Return (file name, WordNet id) from a line of tab-separated name, id and box."""
    fields = line.split("\t")
    if len(fields) < 2 or not fields[0] or Path(fields[0]).name != fields[0]:
        raise GvbsmError(
            f"{where}: is malformed, a line reads NAME.JPEG, tab, class, tab, box; got {line[:80]!r}; "
            "unpack tiny-imagenet-200.zip anew"
        )
    if fields[1].strip() not in labels:
        raise GvbsmError(
            f"{where}: class {fields[1]!r} has no folder in train; unpack tiny-imagenet-200.zip anew"
        )
    return fields[0], fields[1].strip()
