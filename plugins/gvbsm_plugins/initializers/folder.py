"""The initializer that takes images from a folder: what others have distilled, or an export of ours."""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from gvbsm_plugins.pictures.decoding import BrokenPictureError, decode
from gvbsm_plugins.pictures.listing import class_folders, expand_user, image_files, printable, read_bytes
from gvbsm_registry import GvbsmError, Initializer, Source
from gvbsm_registry.artifacts import digest

if TYPE_CHECKING:
    from torch import Generator, Tensor

MANIFEST = "manifest.json"
SRE2L = re.compile(r"new(\d+)")


class FolderImages(Initializer):
    """Images from class folders; with zero iterations they are the condensed set.

    Takes what `gvbsm export --to imagefolder` writes (by its manifest), class folders of pictures (classes by
    name; below images/ or train/ too), and SRe2L's layout, newXXX/classXXX_idXXX.jpg (labels by number).
    Rank r is the r-th picture of its class by the manifest, else by name. Pictures of another size are
    resized.
    """

    name = "folder"
    uses_networks = False

    root: Path = Field(description="the folder that holds the manifest or the class folders")
    contents: str | None = Field(
        None,
        description='digest of the pictures ("now": of those that are there), by which a run is named that '
        "can do without them once it has its images",
    )

    @model_validator(mode="before")
    @classmethod
    def _digested(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("contents") == "now" and values.get("root"):
            return {**values, "contents": cls(root=values["root"])._digest()}
        return values

    def _digest(self) -> str:
        folder = expand_user(self.root)
        files = self.model_copy(update={"contents": None}).files()
        return digest([[str(path.relative_to(folder)), _sha256(path)] for path in files])

    @cached_property
    def _pictures(self) -> dict[str | int, list[Path]]:
        return list_pictures(self.root)

    def files(self) -> tuple[Path, ...]:
        """Return the manifest, if there is one, and the pictures by class and rank; nothing with `contents`.

        Raises GvbsmError if there are no pictures, or the manifest is broken.
        """
        if self.contents:
            return ()
        manifest = expand_user(self.root) / MANIFEST
        pictures = tuple(path for paths in self._pictures.values() for path in paths)
        return (manifest, *pictures) if manifest.is_file() else pictures

    def per_class(self) -> int | None:
        """Return how many pictures each class has; raises GvbsmError if not all have equally many."""
        counts = {name: len(paths) for name, paths in self._pictures.items()}
        if len(set(counts.values())) != 1:
            few, many = min(counts, key=lambda c: counts[c]), max(counts, key=lambda c: counts[c])
            raise GvbsmError(
                f"{self.root}: class {few!r} has {counts[few]} pictures and {many!r} has {counts[many]}; "
                "every class needs equally many"
            )
        return next(iter(counts.values()))

    def images(self, labels: Tensor, ranks: Tensor, source: Source, generator: Generator) -> Tensor:
        """Return the pictures; raises GvbsmError if a class or a picture is missing, or broken."""
        import torch

        if self.contents and self._digest() != self.contents:
            raise GvbsmError(f"{self.root}: its pictures have changed since the recipe was made; import anew")
        train = source.train
        by_label = _by_label(self._pictures, train.classes, self.root)
        images = []
        for label, rank in zip(labels.tolist(), ranks.tolist(), strict=True):
            paths = by_label[label]
            if rank >= len(paths):
                raise GvbsmError(
                    f"{self.root}: class {train.classes[label]!r} has {len(paths)} pictures where {rank + 1} "
                    f"are asked for; set synthesis.ipc = {len(paths)}"
                )
            path = os.fspath(paths[rank])
            try:
                pixels = decode(read_bytes(path), printable(path), train.image_size, train.channels)
            except BrokenPictureError as error:
                raise GvbsmError(f"{error.problem}; replace it") from error
            images.append(torch.tensor(pixels))
        return source.normalize(torch.stack(images))


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_bytes(os.fspath(path))).hexdigest()


def list_pictures(root: Path) -> dict[str | int, list[Path]]:
    """Return the pictures by class: by its name, or its label in SRe2L's layout; in the order of their ranks.

    Raises GvbsmError if there are none, or the manifest is broken or leads outside the folder.
    """
    folder = expand_user(root)
    if not folder.is_dir():
        raise GvbsmError(f"{folder}: no such folder; give the one that holds the class folders")
    if (folder / MANIFEST).is_file():
        return _from_manifest(folder)
    for inner in ("images", "train"):
        if (folder / inner).is_dir() and class_folders(folder / inner):
            folder = folder / inner
            break
    names = class_folders(folder)
    numbered = bool(names) and all(SRE2L.fullmatch(name) for name in names)
    by_class: dict[str | int, list[Path]] = {}
    for name, directory in names.items():
        match = SRE2L.fullmatch(name)
        pictures = [folder / directory / os.fsdecode(path) for path in image_files(folder / directory)]
        if pictures:
            by_class[int(match[1]) if numbered and match else name] = pictures
    if not by_class:
        raise GvbsmError(f"{folder}: holds no class folders with pictures; give the folder that does")
    return by_class


def _from_manifest(folder: Path) -> dict[str | int, list[Path]]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(read_bytes(os.fspath(path)))
        by_class: dict[str | int, list[Path]] = {str(name): [] for name in manifest["classes"]}
        names = list(by_class)
        for entry in manifest["images"]:
            inner, label = Path(entry["file"]), int(entry["label"])
            if inner.is_absolute() or ".." in inner.parts:
                raise GvbsmError(
                    f"{path}: names a file outside its folder ({entry['file']!r}); don't trust it"
                )
            if label < 0:
                raise IndexError(f"label {label}")
            by_class[names[label]].append(folder / inner)
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise GvbsmError(f"{path}: is not a manifest of a set ({error}); export it again") from error
    if len(names) != len(manifest["classes"]) or not all(by_class.values()):
        raise GvbsmError(f"{path}: classes have equal names or no picture; export it again")
    return by_class


def _by_label(
    by_class: dict[str | int, list[Path]], classes: tuple[str, ...], root: Path
) -> dict[int, list[Path]]:
    """Return the pictures by label; raises GvbsmError unless the classes are the data set's."""
    if all(isinstance(name, int) for name in by_class):
        by_label = {int(label): paths for label, paths in by_class.items()}
        if set(by_label) != set(range(len(classes))):
            raise GvbsmError(
                f"{root}: has folders new000 to new{max(by_label):03d}, not one for each of the "
                f"{len(classes)} classes; use the data set that it was made for"
            )
        return by_label
    missing = [name for name in classes if name not in by_class]
    extra = [str(name) for name in by_class if name not in classes]
    if missing or extra:
        raise GvbsmError(
            f"{root}: its classes are not the data set's (missing {missing[:3]}, unknown {extra[:3]}); "
            "use the data set that it was made for"
        )
    return {label: by_class[name] for label, name in enumerate(classes)}
