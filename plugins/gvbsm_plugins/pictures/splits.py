"""Opens labelled pictures as a split: decoded once into memory and a cache file, or streaming."""

from __future__ import annotations

import hashlib
import logging
import os
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gvbsm_plugins.pictures.cache import load_cached, save_cached
from gvbsm_plugins.pictures.decoding import BrokenPictureError, decode
from gvbsm_plugins.pictures.listing import empty_classes
from gvbsm_registry import Artifact, GvbsmError, Split, TensorSplit, artifacts

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

log = logging.getLogger(__name__)

CHUNK = 128  # pictures that a thread decodes at a time
ONE_THREAD_BELOW = 16 * 2**10  # bytes of a picture
# Raised when `decode` changes what it returns, so that older cache files are made anew.
DECODER = 1


class Pictures(Protocol):
    """N encoded pictures with labels, int64 [N], and a digest of both; picklable."""

    @property
    def labels(self) -> Tensor: ...
    @property
    def digest(self) -> str: ...
    @abstractmethod
    def where(self, index: int) -> str: ...
    @abstractmethod
    def load(self, index: int) -> bytes: ...
    @abstractmethod
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class PixelFormat:
    """What pictures are decoded to, uint8 [C, S, S]; broken ones are errors or left out."""

    image_size: int
    channels: int
    skip_broken: bool


def open_pictures(
    pictures: Pictures,
    classes: tuple[str, ...],
    pixel_format: PixelFormat,
    cache: Path,
    origin: str,
    in_memory: bool,
) -> Split:
    """Return `pictures` as a split, decoded at once or when they are read.

    origin: where the pictures are from, for cache files and messages. Raises BrokenPictureError for the first
    broken picture unless they are to be skipped, and GvbsmError if that leaves a class empty.
    """
    if not in_memory and not pixel_format.skip_broken:
        return PictureSplit(pictures, classes, pixel_format)
    # Labels must be known before pictures are read, so every picture is tried once in a stream too.
    tensors = _decode_once(
        pictures, classes, pixel_format, cache, origin, "pixels" if in_memory else "intact"
    )
    intact = tensors["intact"]
    _check_remaining(pictures, intact, classes, origin)
    if in_memory:
        return TensorSplit(tensors["images"], pictures.labels[intact], classes)
    chosen = None if bool(intact.all()) else intact.nonzero().flatten()
    return PictureSplit(pictures, classes, pixel_format, chosen)


class PictureSplit(Split):
    """A split that decodes pictures when they are read; what it keeps grows with an index alone.

    chosen: int64 [n], the pictures that take part, or None for all.
    """

    in_memory = False

    def __init__(
        self,
        pictures: Pictures,
        classes: tuple[str, ...],
        pixel_format: PixelFormat,
        chosen: Tensor | None = None,
    ) -> None:
        self.pictures, self.classes, self.pixel_format, self.chosen = pictures, classes, pixel_format, chosen
        self.labels = pictures.labels if chosen is None else pictures.labels[chosen]
        self.image_size, self.channels = pixel_format.image_size, pixel_format.channels

    def read(self, indices: Tensor) -> Tensor:
        import torch

        images = torch.empty(len(indices), self.channels, self.image_size, self.image_size, dtype=torch.uint8)
        rows = images.numpy()
        within = indices.cpu() if self.chosen is None else self.chosen[indices.cpu()]
        count = len(self.pictures)
        for row, index in enumerate(within.tolist()):
            if not -count <= index < count:
                raise IndexError(f"index {index} is out of range for {count} pictures")
            rows[row] = _decoded(self.pictures, index % count, self.pixel_format)
        return images

    @cached_property
    def digest(self) -> str:
        left = "all" if self.chosen is None else hashlib.sha256(self.chosen.numpy().tobytes()).hexdigest()
        return artifacts.digest([self.pictures.digest, self.classes, asdict(self.pixel_format), left])


def _decode_once(
    pictures: Pictures,
    classes: tuple[str, ...],
    pixel_format: PixelFormat,
    cache: Path,
    origin: str,
    kind: str,
) -> dict[str, Tensor]:
    """Return `intact`, bool [N], and of the kind "pixels" the intact `images` too; cached in a file."""
    import PIL
    import torch

    # Pillow brings its own JPEG decoder: another version may decode to other pixels.
    versions = [DECODER, PIL.__version__]
    stamps = [pictures.digest, getattr(pictures, "changed", "")]
    key = artifacts.digest([*stamps, classes, asdict(pixel_format), origin, *versions])
    path = cache / f"{kind}-{key[:24]}.safetensors"
    shape = (len(pictures), pixel_format.channels, pixel_format.image_size, pixel_format.image_size)
    cached = load_cached(path, kind, key)
    if cached is not None and _fits(cached.tensors, shape, kind):
        return cached.tensors
    images = torch.empty(shape, dtype=torch.uint8) if kind == "pixels" else None
    intact = _decode_all(pictures, pixel_format, None if images is None else images.numpy())
    tensors = {"intact": intact}
    if images is not None:
        tensors["images"] = images if intact.all() else images[intact]
    save_cached(path, Artifact(kind, key, tensors, {"provenance": {"from": origin}}))
    return tensors


def _fits(tensors: dict[str, Tensor], shape: tuple[int, ...], kind: str) -> bool:
    intact, images = tensors.get("intact"), tensors.get("images")
    if intact is None or tuple(intact.shape) != shape[:1]:
        return False
    if kind == "intact":
        return True
    return images is not None and tuple(images.shape) == (int(intact.sum()), *shape[1:])


def _decode_all(pictures: Pictures, pixel_format: PixelFormat, images: np.ndarray | None) -> Tensor:
    """Decode every picture, into `images` if given; return which are intact, bool [N].

    Raises BrokenPictureError for the first broken one unless they are to be skipped.
    """
    import torch

    intact = torch.ones(len(pictures), dtype=torch.bool)

    def work(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(pictures))):
            try:
                pixels = _decoded(pictures, index, pixel_format)
            except BrokenPictureError:
                if not pixel_format.skip_broken:
                    raise
                intact[index] = False
            else:
                if images is not None:
                    images[index] = pixels

    pool = ThreadPoolExecutor(_threads(pictures))
    try:
        for _ in pool.map(work, range(0, len(pictures), CHUNK)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return intact


def _threads(pictures: Pictures) -> int:
    """Return how many threads decode fastest, judged by the first picture."""
    try:
        one_thread = len(pictures.load(0)) < ONE_THREAD_BELOW
    except BrokenPictureError:
        one_thread = False
    if one_thread:
        # Python's own lock is held for most of a small picture: more threads only wait for it.
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decoded(pictures: Pictures, index: int, pixel_format: PixelFormat) -> np.ndarray:
    return decode(pictures.load(index), pictures.where(index), pixel_format.image_size, pixel_format.channels)


def _check_remaining(pictures: Pictures, intact: Tensor, classes: tuple[str, ...], origin: str) -> None:
    broken = (~intact).nonzero().flatten()
    if not len(broken):
        return
    first = pictures.where(int(broken[0]))
    log.warning("%s: left out %d of %d pictures as broken, first %s", origin, len(broken), len(intact), first)
    if empty := empty_classes(pictures.labels[intact], classes):
        raise GvbsmError(
            f"{origin}: every picture of class {empty[0]!r} is broken, first {first}; "
            "replace them or remove the class from train and test"
        )
