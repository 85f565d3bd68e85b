"""Opens labelled pictures as a split: decoded once into memory and a cache file, or streaming."""

from __future__ import annotations

import hashlib
import logging
import os
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field

from gvbsm_plugins.datasets.kept import keep, kept
from gvbsm_plugins.datasets.pictures import BrokenPictureError, decode
from gvbsm_registry import Artifact, Dataset, GvbsmError, Split, TensorSplit, artifacts

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

log = logging.getLogger(__name__)

MEMORY = 2 * 2**30
CHUNK = 128
# Bytes of a picture below which one thread decodes fastest.
SMALL = 16 * 2**10
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
class Form:
    """What becomes of a picture: uint8 [C, S, S]; broken ones are errors or left out."""

    image_size: int
    channels: int
    skip_broken: bool


class PictureDataset(Dataset):
    """Options of every data set that is kept as encoded pictures."""

    skip_broken: bool = Field(False, description="go on without pictures that can't be decoded")
    in_memory: bool | Literal["auto"] = Field(
        "auto",
        description='decode once into memory and a cache file; "auto": if that is at most 2 GiB a split',
    )

    def _open(
        self, pictures: Pictures, classes: Sequence[str], form: Form, cache: Path, origin: str
    ) -> Split:
        """Return `pictures` as a split; `origin` says where they are from, for cache files and messages."""
        names = tuple(classes)
        size = len(pictures) * form.channels * form.image_size**2
        if size <= MEMORY if self.in_memory == "auto" else self.in_memory:
            return _in_memory(pictures, names, form, cache, origin)
        return _streaming(pictures, names, form, cache, origin)


class PictureSplit(Split):
    """A split that decodes pictures when they are read; what it keeps grows with an index alone.

    chosen: int64 [n], the pictures that take part, or None for all.
    """

    in_memory = False

    def __init__(
        self, pictures: Pictures, classes: tuple[str, ...], form: Form, chosen: Tensor | None = None
    ) -> None:
        self.pictures, self.classes, self.form, self.chosen = pictures, classes, form, chosen
        self.labels = pictures.labels if chosen is None else pictures.labels[chosen]
        self.image_size, self.channels = form.image_size, form.channels

    def read(self, indices: Tensor) -> Tensor:
        import torch

        images = torch.empty(len(indices), self.channels, self.image_size, self.image_size, dtype=torch.uint8)
        rows = images.numpy()
        within = indices.cpu() if self.chosen is None else self.chosen[indices.cpu()]
        count = len(self.pictures)
        for row, index in enumerate(within.tolist()):
            if not -count <= index < count:
                raise IndexError(f"index {index} is out of range for {count} pictures")
            rows[row] = _decoded(self.pictures, index % count, self.form)
        return images

    @cached_property
    def digest(self) -> str:
        left = "all" if self.chosen is None else hashlib.sha256(self.chosen.numpy().tobytes()).hexdigest()
        return artifacts.digest([self.pictures.digest, self.classes, asdict(self.form), left])


def _in_memory(
    pictures: Pictures, classes: tuple[str, ...], form: Form, cache: Path, origin: str
) -> TensorSplit:
    import torch

    key = _key(pictures, classes, form, origin)
    path = cache / f"pixels-{key[:24]}.safetensors"
    shape = (len(pictures), form.channels, form.image_size, form.image_size)
    tensors = _cached(path, "pixels", key)
    if tensors is None or not _fits(tensors, shape):
        images = torch.empty(shape, dtype=torch.uint8)
        intact = _decode_all(pictures, form, images.numpy())
        tensors = {"images": images[intact] if not intact.all() else images, "intact": intact}
        keep(path, Artifact("pixels", key, tensors, {"provenance": {"from": origin}}))
    intact = tensors["intact"]
    labels = pictures.labels[intact]
    _check_left(pictures, intact, labels, classes, origin)
    return TensorSplit(tensors["images"], labels, classes)


def _streaming(
    pictures: Pictures, classes: tuple[str, ...], form: Form, cache: Path, origin: str
) -> PictureSplit:
    if not form.skip_broken:
        return PictureSplit(pictures, classes, form)
    # Labels must be known before pictures are read, so every picture is tried once; the answer is kept.
    key = _key(pictures, classes, form, origin)
    path = cache / f"intact-{key[:24]}.safetensors"
    tensors = _cached(path, "intact", key)
    if tensors is None or tuple(tensors["intact"].shape) != (len(pictures),):
        tensors = {"intact": _decode_all(pictures, form, None)}
        keep(path, Artifact("intact", key, tensors, {"provenance": {"from": origin}}))
    intact = tensors["intact"]
    _check_left(pictures, intact, pictures.labels[intact], classes, origin)
    chosen = None if bool(intact.all()) else intact.nonzero().flatten()
    return PictureSplit(pictures, classes, form, chosen)


def _key(pictures: Pictures, classes: tuple[str, ...], form: Form, origin: str) -> str:
    import PIL

    # Pillow brings its own JPEG decoder: another version may decode to other pixels.
    return artifacts.digest([pictures.digest, classes, asdict(form), origin, DECODER, PIL.__version__])


def _cached(path: Path, kind: str, key: str) -> dict[str, Tensor] | None:
    artifact = kept(path, kind, key)
    return artifact.tensors if artifact is not None and "intact" in artifact.tensors else None


def _fits(tensors: dict[str, Tensor], shape: tuple[int, ...]) -> bool:
    intact, images = tensors["intact"], tensors.get("images")
    if images is None or tuple(intact.shape) != shape[:1]:
        return False
    return tuple(images.shape) == (int(intact.sum()), *shape[1:])


def _decode_all(pictures: Pictures, form: Form, images: np.ndarray | None) -> Tensor:
    """Decode every picture, into `images` if given; return which are intact, bool [N].

    Raises BrokenPictureError for the first broken one unless they are to be skipped.
    """
    import torch

    intact = torch.ones(len(pictures), dtype=torch.bool)

    def work(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(pictures))):
            try:
                pixels = _decoded(pictures, index, form)
            except BrokenPictureError:
                if not form.skip_broken:
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
        small = len(pictures.load(0)) < SMALL
    except BrokenPictureError:
        small = False
    if small:
        # Python's own lock is held for most of a small picture: more threads only wait for it.
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decoded(pictures: Pictures, index: int, form: Form) -> np.ndarray:
    return decode(pictures.load(index), pictures.where(index), form.image_size, form.channels)


def _check_left(
    pictures: Pictures, intact: Tensor, labels: Tensor, classes: tuple[str, ...], origin: str
) -> None:
    broken = (~intact).nonzero().flatten()
    if not len(broken):
        return
    first = pictures.where(int(broken[0]))
    log.warning("%s: left out %d of %d pictures as broken, first %s", origin, len(broken), len(intact), first)
    counts = labels.bincount(minlength=len(classes)).tolist()
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise GvbsmError(
            f"{origin}: every picture of class {empty[0]!r} is broken, first {first}; "
            "replace them or remove the class from train and test"
        )
