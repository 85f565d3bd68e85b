"""What the data sets of this plugin share: the option `root`, checked, and those of encoded pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gvbsm_plugins.pictures.listing import expand_user
from gvbsm_plugins.pictures.splits import PixelFormat, open_pictures
from gvbsm_registry import Dataset, GvbsmError

if TYPE_CHECKING:
    from gvbsm_plugins.pictures.splits import Pictures
    from gvbsm_registry import Split

MAX_IN_MEMORY = 2 * 2**30


class PictureDataset(Dataset):
    """Options of every data set that is stored as encoded pictures."""

    skip_broken: bool = Field(False, description="go on without pictures that can't be decoded")
    in_memory: bool | Literal["auto"] = Field(
        "auto",
        description='decode once into memory and a cache file; "auto": if that is at most 2 GiB a split',
    )

    def _open(
        self,
        pictures: Pictures,
        classes: Sequence[str],
        image_size: int,
        channels: int,
        cache: Path,
        origin: str,
    ) -> Split:
        """Return `pictures` as a split; `origin` says where they are from, for cache files and messages."""
        in_memory = self.in_memory
        if in_memory == "auto":
            in_memory = len(pictures) * channels * image_size**2 <= MAX_IN_MEMORY
        pixel_format = PixelFormat(image_size, channels, self.skip_broken)
        return open_pictures(pictures, tuple(classes), pixel_format, cache, origin, in_memory)


def existing_folder(root: Path | None, dataset: str) -> Path:
    """Return `root` with `~` expanded.

    Raises GvbsmError if it was not given, does not exist or is not a folder.
    """
    if root is None:
        raise GvbsmError(
            f"data set {dataset!r} does not know where its files are; give --data DIR or set data.root"
        )
    folder = expand_user(root)
    if not folder.exists():
        raise GvbsmError(f"{folder}: no such folder; give the right one by --data DIR or data.root")
    if not folder.is_dir():
        raise GvbsmError(
            f"{folder}: is not a folder; give the folder of {dataset!r} by --data DIR or data.root"
        )
    return folder
