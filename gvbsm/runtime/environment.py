"""What a run finds on this machine: its device, its store of shared artifacts."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from platformdirs import user_cache_path

from gvbsm.runtime.folders import check_folder
from gvbsm.runtime.remote_store import RemoteStore, is_url
from gvbsm_registry import GvbsmError
from gvbsm_registry.artifacts import digest

WHOLE_URL = re.compile(r"memory://|[a-z][a-z0-9+.-]+://.", re.IGNORECASE)


def choose_device(name: str) -> torch.device:
    """Return the device called "auto", "cpu" or "cuda"; raises GvbsmError if there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if re.fullmatch(r"cpu|cuda(:\d{1,4})?", name) is None:
        raise GvbsmError(f"--device {name}: unknown device; use auto, cpu or cuda")
    device = torch.device(name)
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise GvbsmError(f"--device {name}: this machine has no such CUDA device; use --device cpu")
    return device


def open_store(place: str | Path | None) -> tuple[Path, RemoteStore | None]:
    """Return the local folder of a store, and the store itself if `place` is a URL: the folder is its cache.

    place: a folder, a URL that fsspec knows, or None for the user's cache folder.
    """
    if place is None:
        return user_cache_path("gvbsm", False), None
    if is_url(str(place)) and (isinstance(place, Path) or not WHOLE_URL.match(place)):
        raise GvbsmError(
            f"--store {place}: is neither a folder nor a whole URL; write SCHEME://PLACE, as text"
        )
    if isinstance(place, str) and is_url(place):
        remote = RemoteStore(place)
        return user_cache_path("gvbsm", False) / "remote" / digest(remote.url)[:16], remote
    return check_folder(place, "--store"), None
