"""Lists of image files, as compact as a list of paths can be."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gvbsm_plugins.pictures.decoding import BrokenPictureError
from gvbsm_registry import GvbsmError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")


def expand_user(path: Path) -> Path:
    """Return `path` with `~` expanded. Raises GvbsmError if it names a user who does not exist."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise GvbsmError(f"{path}: {error}; write the path in full") from error


def printable(name: str) -> str:
    """Return a file's name as text that UTF-8 can hold: bytes that are not UTF-8 become `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def class_folders(folder: Path) -> dict[str, str]:
    """Return class name → folder name, sorted by class name, for the folders directly in `folder`."""
    with _scan(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return dict(sorted((printable(name), name) for name in names))


def image_files(folder: Path) -> list[tuple[bytes, os.DirEntry[str]]]:
    """Return (path relative to `folder`, entry) of all image files at any depth, sorted by path.

    Hidden files, files without an image's suffix and links to folders are left out: links may make a loop.
    """
    return sorted(_walk(folder, b""), key=lambda pair: pair[0])


def _walk(folder: Path, prefix: bytes) -> Iterator[tuple[bytes, os.DirEntry[str]]]:
    with _scan(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = prefix + os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder / entry.name, path + b"/")
            elif entry.name.lower().endswith(SUFFIXES) and (entry.is_file() or _dangling(entry)):
                yield path, entry


def _dangling(entry: os.DirEntry[str]) -> bool:
    """Tell whether a link leads nowhere: a picture that is missed, and not a special file to pass over."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def _scan(folder: Path) -> os._ScandirIterator[str]:
    try:
        return os.scandir(os.fspath(folder))
    except OSError as error:
        raise GvbsmError(f"{folder}: can't be listed ({error.strerror}); check its permissions") from error


@dataclass(frozen=True)
class Listing:
    """N labelled image files: about their paths' length plus 16 bytes each, whatever N is.

    names: the paths relative to `folder`, joined; the i-th ends at `ends[i]` (int64 [N]) and begins where
    the one before ends. labels: int64 [N]. digest: of (path, size, time of change, label) of each file.
    """

    folder: str
    names: bytes
    ends: np.ndarray
    labels: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.ends)

    def where(self, index: int) -> str:
        """Return the path of a file as printable text."""
        return printable(self._path(index))

    def _path(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return os.path.join(self.folder, os.fsdecode(self.names[start : int(self.ends[index])]))

    def load(self, index: int) -> bytes:
        """Return the bytes of a file. Raises GvbsmError if it can't be read."""
        return read_bytes(self._path(index))


def read_bytes(path: str) -> bytes:
    """Return the contents of a file. Raises GvbsmError if it can't be read, even with `skip_broken`."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise GvbsmError(
            f"{printable(path)}: can't be read ({error.strerror}); put it back or check its permissions"
        ) from error


def make_listing(folder: Path, files: Iterable[tuple[bytes, int, os.stat_result]]) -> Listing:
    """Return the listing of (path relative to `folder`, label, stat) triples, in their order."""
    import numpy as np
    import torch

    names, ends, labels = bytearray(), array("q"), array("q")
    hasher = hashlib.sha256()
    for path, label, stat in files:
        names += path
        ends.append(len(names))
        labels.append(label)
        hasher.update(b"%d %d %d %d " % (len(path), label, stat.st_size, stat.st_mtime_ns) + path)
    return Listing(
        os.fspath(folder),
        bytes(names),
        np.array(ends, dtype=np.int64),
        torch.from_numpy(np.array(labels, dtype=np.int64)),
        hasher.hexdigest(),
    )


def list_classes(folder: Path, classes: dict[str, str], skip_broken: bool) -> Listing:
    """Return the pictures in class folders (class name → path below `folder`), by label, then by path.

    Raises GvbsmError naming the folder of a class without pictures, or a link that leads nowhere (which
    `skip_broken` passes over).
    """

    def entries() -> Iterator[tuple[bytes, int, os.stat_result]]:
        for label, below in enumerate(classes.values()):
            count = 0
            for path, entry in image_files(folder / below):
                try:
                    stat = entry.stat()
                except OSError as error:
                    if not skip_broken:
                        raise BrokenPictureError(
                            printable(entry.path), f"can't be read ({error.strerror})"
                        ) from error
                    continue
                count += 1
                yield os.fsencode(below) + b"/" + path, label, stat
            if not count:
                raise GvbsmError(
                    f"{printable(os.fspath(folder / below))}: class folder without pictures; "
                    "put some there, or remove the class from train and test"
                )

    return make_listing(folder, entries())
