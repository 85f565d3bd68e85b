"""Any folder of class folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gvbsm_plugins.datasets.base import PictureDataset, existing_folder
from gvbsm_plugins.pictures.decoding import BrokenPictureError, short_side
from gvbsm_plugins.pictures.index import cached_listing
from gvbsm_plugins.pictures.listing import class_folders, image_files, list_classes, printable, read_bytes
from gvbsm_registry import GvbsmError

if TYPE_CHECKING:
    from gvbsm_registry import Split

LARGEST_DEFAULT = 256


class ImageFolder(PictureDataset):
    """Pictures in class folders below `train/` and `test/` (or `val/`)."""

    name = "imagefolder"

    root: Path | None = Field(None, description="the folder that holds train/ and test/ (or val/)")
    image_size: int | None = Field(
        None, ge=1, description="height and width in pixels; by default the first picture's short side"
    )
    channels: Literal[1, 3] = Field(3, description="3: colour, 1: grey")

    def open(self, split: Literal["train", "test"], cache: Path) -> Split:
        """Open one split; labels follow the sorted names of the class folders.

        Raises GvbsmError, naming the path, if a folder is missing or empty, a class has no pictures, the
        classes of train and test differ, or a picture is broken.
        """
        root = existing_folder(self.root, self.name)
        train, test = _split_folders(root)
        classes, in_test = class_folders(train), class_folders(test)
        _check_classes(train, classes, test, in_test)
        folder, chosen = (train, classes) if split == "train" else (test, in_test)
        make = partial(list_classes, folder, chosen, self.skip_broken)
        listing = cached_listing(folder, chosen, self.skip_broken, cache, make)
        image_size = self.image_size or self._first_size(train, classes)
        origin = printable(os.path.abspath(folder))
        return self._open(listing, list(classes), image_size, self.channels, cache, origin)

    def _first_size(self, train: Path, classes: dict[str, str]) -> int:
        """Return the short side of the first training picture, for both splits."""
        for folder in classes.values():
            for path in image_files(train / folder):
                where = os.path.join(train, folder, os.fsdecode(path))
                try:
                    image_size = short_side(read_bytes(where), printable(where))
                except BrokenPictureError:
                    if not self.skip_broken:
                        raise
                    continue
                if image_size > LARGEST_DEFAULT:
                    raise GvbsmError(
                        f"{printable(where)}: a short side of {image_size} pixels is too long for a default; "
                        "set data.image_size, for instance data.image_size = 224"
                    )
                return image_size
        raise GvbsmError(f"{train}: holds no picture that can be decoded; check --data DIR or data.root")


def _split_folders(root: Path) -> tuple[Path, Path]:
    try:
        if next(os.scandir(root), None) is None:
            raise GvbsmError(f"{root}: is empty; put train/ and test/ there, or give another --data DIR")
    except OSError as error:
        raise GvbsmError(f"{root}: can't be listed ({error.strerror}); check its permissions") from error
    train = root / "train"
    if not train.is_dir():
        raise GvbsmError(
            f"{root}: has no folder 'train'; class folders belong in train/ and test/ (or val/) below it"
        )
    for name in ("test", "val"):
        if (root / name).is_dir():
            return train, root / name
    raise GvbsmError(
        f"{root}: has neither a folder 'test' nor 'val'; put the test pictures there, in class folders"
    )


def _check_classes(train: Path, in_train: Iterable[str], test: Path, in_test: Iterable[str]) -> None:
    for folder, names in ((train, in_train), (test, in_test)):
        if not names:
            raise GvbsmError(f"{folder}: holds no class folders; put each class's pictures in a folder there")
    only = {train: sorted(set(in_train) - set(in_test)), test: sorted(set(in_test) - set(in_train))}
    differing = [f"only in {folder.name}: {_some(names)}" for folder, names in only.items() if names]
    if differing:
        raise GvbsmError(
            f"{train.parent}: {train.name} and {test.name} have different classes ({'; '.join(differing)}); "
            "add or remove the class folders"
        )


def _some(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + rest
