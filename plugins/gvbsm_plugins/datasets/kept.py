"""Files that keep what took long to make: they only save time, and are made anew if they can't be used."""

from __future__ import annotations

import logging
from pathlib import Path

from gvbsm_registry import Artifact, GvbsmError, artifacts

log = logging.getLogger(__name__)


def kept(path: Path, kind: str, key: str) -> Artifact | None:
    """Return the artifact in a cache file, or None if there is none of this kind and key that is sound."""
    if not path.exists():
        return None
    try:
        artifact = artifacts.read(path, kind)
    except GvbsmError as error:
        log.warning("%s (made anew now)", error)
        return None
    return artifact if artifact.key == key else None


def keep(path: Path, artifact: Artifact) -> None:
    """Write a cache file if it can be written: a run on a read-only or full store still has its data."""
    try:
        artifacts.write(path, artifact)
    except GvbsmError as error:
        log.warning("%s (going on without a cache file)", error)
