"""Cache files: they only save time, and are made anew if they can't be used."""

from __future__ import annotations

import logging
from pathlib import Path

from gvbsm_registry import Artifact, GvbsmError, artifacts

log = logging.getLogger(__name__)


def load_cached(path: Path, kind: str, key: str) -> Artifact | None:
    """Return the artifact in a cache file, or None if it is missing, broken or of another kind or key."""
    if not path.exists():
        return None
    try:
        artifact = artifacts.read(path, kind)
    except GvbsmError as error:
        log.warning("%s; making the cache file anew", error)
        return None
    return artifact if artifact.key == key else None


def save_cached(path: Path, artifact: Artifact) -> None:
    """Write a cache file if it can be written: a run on a read-only or full store still has its data."""
    try:
        artifacts.write(path, artifact)
    except GvbsmError as error:
        log.warning("%s; going on without a cache file", error)
