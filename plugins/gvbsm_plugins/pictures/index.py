"""Caches the listing of an image folder so large that listing it takes long."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gvbsm_plugins.pictures.cache import load_cached, save_cached
from gvbsm_plugins.pictures.listing import Listing
from gvbsm_registry import Artifact, artifacts

if TYPE_CHECKING:
    from torch import Tensor

CACHED_FROM = 100_000
"""Pictures from which on a listing is cached. Smaller folders are listed anew by every run."""

UNCHANGED_FOR = 2_000_000_000
"""Nanoseconds for which a folder must have been left alone: a later change has another time for certain."""


def cached_listing(
    folder: Path, classes: Mapping[str, str], skip_broken: bool, cache: Path, make: Callable[[], Listing]
) -> Listing:
    """Return the listing that `make` makes, or the cached one if no folder below `folder` has changed since.

    A picture that is overwritten in place changes no folder, and goes unnoticed; `touch` its folder.
    """
    place = os.path.abspath(folder)
    key = artifacts.digest(["folder", place, list(classes.items()), skip_broken])
    path = cache / f"folder-{key[:24]}.safetensors"
    if (cached := _load_unchanged(path, key, folder)) is not None:
        return cached
    began = time.time_ns()
    listing = make()
    if len(listing) >= CACHED_FROM:
        stamps = _stamps(folder)
        if max(stamps.values()) < began - UNCHANGED_FOR:
            _save(path, key, listing, stamps)
    return listing


def _stamps(folder: Path) -> dict[str, int]:
    """Return the time of change, in nanoseconds, of every folder at and below `folder`, by relative path."""
    stamps = {}
    for where, below, _ in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        stamps[os.path.relpath(where, folder)] = os.stat(where).st_mtime_ns
    return stamps


def _load_unchanged(path: Path, key: str, folder: Path) -> Listing | None:
    """Return the cached listing if there is one and no folder has changed since."""
    artifact = load_cached(path, "folder", key)
    if artifact is None:
        return None
    tensors = artifact.tensors
    try:
        stamps = zip(_split(tensors["folders"]), tensors["changed"].tolist(), strict=True)
        if any(os.stat(folder / name).st_mtime_ns != changed for name, changed in stamps):
            return None
        return Listing(
            os.fspath(folder),
            tensors["names"].numpy().tobytes(),
            tensors["ends"].numpy(),
            tensors["labels"],
            artifact.meta["listing"],
            artifact.meta["changed"],
        )
    except (OSError, KeyError, ValueError):
        return None  # a folder is gone, or another version wrote the file


def _split(names: Tensor) -> list[str]:
    """Return names that were stored joined by NUL, which no path holds."""
    return os.fsdecode(names.numpy().tobytes()).split("\0")


def _save(path: Path, key: str, listing: Listing, stamps: dict[str, int]) -> None:
    import torch

    tensors = {
        "names": torch.frombuffer(bytearray(listing.names), dtype=torch.uint8),
        "ends": torch.from_numpy(listing.ends),
        "labels": listing.labels,
        "folders": torch.frombuffer(bytearray(os.fsencode("\0".join(stamps))), dtype=torch.uint8),
        "changed": torch.tensor(list(stamps.values())),
    }
    save_cached(
        path, Artifact("folder", key, tensors, {"listing": listing.digest, "changed": listing.changed})
    )
