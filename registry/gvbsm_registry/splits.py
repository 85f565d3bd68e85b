"""An opened split of a labelled image set, whoever keeps its pixels."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Split(ABC):
    """Square images of one size with labels.

    classes: the class names; label k means `classes[k]`.
    labels: int64 [N], on the CPU.
    image_size: height and width in pixels; channels: 1 or 3.
    in_memory: whether `read` is as cheap as indexing. Where it is not, several worker processes
    read, each with a copy of the split.
    """

    classes: tuple[str, ...]
    labels: Tensor
    image_size: int
    channels: int
    in_memory: bool = True

    @abstractmethod
    def read(self, indices: Tensor) -> Tensor:
        """Return the images at `indices`, int64 [n], as uint8 [n, channels, S, S].

        Raises GvbsmError naming the file if one can't be decoded.
        """

    @property
    @abstractmethod
    def digest(self) -> str:
        """A hex digest that changes when images, labels, classes or their order change.

        The keys of all work on the data hold it.
        """

    def __len__(self) -> int:
        return len(self.labels)


class TensorSplit(Split):
    """A split held as one uint8 tensor [N, C, S, S]."""

    def __init__(self, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
        self.images, self.labels, self.classes = images, labels, tuple(classes)
        self.channels, self.image_size = images.shape[1], images.shape[-1]

    def read(self, indices: Tensor) -> Tensor:
        return self.images[indices.to(self.images.device)]

    @cached_property
    def digest(self) -> str:
        """A hex digest of images, labels and classes."""
        made = hashlib.sha256("\0".join(self.classes).encode())
        made.update(repr(tuple(self.images.shape)).encode())
        made.update(self.images.contiguous().cpu().numpy().data)
        made.update(self.labels.contiguous().cpu().numpy().data)
        return made.hexdigest()
