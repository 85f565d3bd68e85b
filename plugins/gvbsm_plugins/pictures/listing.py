"""Lists of image files, as compact as a list of paths can be."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence
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
        names = [entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
    pairs = sorted((printable(name), name) for name in names)
    classes = dict(pairs)
    if len(classes) < len(pairs):
        twice = next(shown for shown, name in pairs if classes[shown] != name)
        raise GvbsmError(f"{folder}: two class folders are called {twice!r} as text; rename one of them")
    return classes


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder or leads to one; a link that leads in a circle does not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def image_files(folder: Path) -> list[bytes]:
    """Return the paths, relative to `folder`, of all image files at any depth, sorted.

    Hidden files, files without an image's suffix and links to folders are left out: links may make a loop.
    """
    return sorted(_walk(folder, b""))


def _walk(folder: Path, prefix: bytes) -> Iterator[bytes]:
    with _scan(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = prefix + os.fsencode(entry.name)
            # A link that leads nowhere is a picture that is missing, not a special file to pass over.
            dangling = entry.is_symlink() and not os.path.exists(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder / entry.name, path + b"/")
            elif entry.name.lower().endswith(SUFFIXES) and (dangling or entry.is_file()):
                yield path


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
    changed: of when each file's contents, times or rights were last changed, which nobody can put back;
    another copy of the same files has other times.
    """

    folder: str
    names: bytes
    ends: np.ndarray
    labels: Tensor
    digest: str
    changed: str

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
        if not stat.S_ISREG(os.stat(path).st_mode):  # /dev/zero has no end, and a pipe no beginning
            raise OSError(errno.EINVAL, "it is no regular file")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise GvbsmError(
            f"{printable(path)}: can't be read ({error.strerror}); put it back or check its permissions"
        ) from error


def make_listing(folder: Path, files: Iterable[tuple[bytes, int]], skip_broken: bool) -> Listing:
    """Return the listing of (path relative to `folder`, label) pairs, in their order.

    Raises BrokenPictureError for a file that is missing, such as a link that leads nowhere, unless
    `skip_broken` leaves it out.
    """
    import numpy as np
    import torch

    names, ends, labels = bytearray(), array("q"), array("q")
    hasher, changed = hashlib.sha256(), hashlib.sha256()
    for path, label in files:
        full = os.path.join(os.fsencode(folder), path)
        try:
            found = os.stat(full)
        except OSError as error:
            if not skip_broken:
                raise BrokenPictureError(
                    printable(os.fsdecode(full)), f"can't be read ({error.strerror})"
                ) from error
            continue
        names += path
        ends.append(len(names))
        labels.append(label)
        hasher.update(b"%d %d %d %d " % (len(path), label, found.st_size, found.st_mtime_ns) + path)
        changed.update(b"%d " % found.st_ctime_ns)
    return Listing(
        os.fspath(folder),
        bytes(names),
        np.array(ends, dtype=np.int64),
        torch.from_numpy(np.array(labels, dtype=np.int64)),
        hasher.hexdigest(),
        changed.hexdigest(),
    )


def list_classes(folder: Path, classes: dict[str, str], skip_broken: bool) -> Listing:
    """Return the pictures in class folders (class name → path below `folder`), by label, then by path.

    Raises GvbsmError as `make_listing` does, and naming the folder of a class without pictures.
    """
    files = (
        (os.fsencode(below) + b"/" + path, label)
        for label, below in enumerate(classes.values())
        for path in image_files(folder / below)
    )
    listing = make_listing(folder, files, skip_broken)
    if empty := empty_classes(listing.labels, list(classes.values())):
        raise GvbsmError(
            f"{printable(os.fspath(folder / empty[0]))}: class folder without pictures; "
            "put some there, or remove the class from train and test"
        )
    return listing


def empty_classes(labels: Tensor, classes: Sequence[str]) -> list[str]:
    """Return the classes that no label, int64 [N], names."""
    counts = labels.bincount(minlength=len(classes)).tolist()
    return [name for name, count in zip(classes, counts, strict=True) if not count]
