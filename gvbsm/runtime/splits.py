"""Opened splits, checked: what a data set hands over is what the contract asks for, or its name is told."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gvbsm.runtime.blame import calling, describe_tensor, refuse, returned
from gvbsm_registry import Dataset, Split, TensorSplit

SPLIT = "a Split with int64 labels, each the number of one of its class names, which all differ"
PIXELS = "uint8 images [n, channels, S, S], one for each index"


class CheckedSplit(Split):
    """A data set's split, whose failures are told under the data set's name; else as it is."""

    def __init__(self, dataset: Dataset, inner: Split) -> None:
        self.dataset, self.inner = dataset, inner
        self.classes, self.labels = tuple(inner.classes), inner.labels
        self.image_size, self.channels = inner.image_size, inner.channels
        self.in_memory = inner.in_memory

    def read(self, indices: Tensor) -> Tensor:
        with calling(self.dataset, "read", PIXELS):
            images = self.inner.read(indices)
        shape = (len(indices), self.channels, self.image_size, self.image_size)
        return returned(self.dataset, "read", images, PIXELS, shape=shape, dtype=torch.uint8)

    @cached_property
    def digest(self) -> str:
        asks = "a digest of its contents, a string"
        with calling(self.dataset, "digest", asks):
            made: object = self.inner.digest
        if not isinstance(made, str) or not made:
            raise refuse(self.dataset, "digest", repr(made), asks)
        return made

    def __getattr__(self, name: str) -> Any:
        """What the split has beside the contract; those that know it may ask for it."""
        if name.startswith("__") or "inner" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.inner, name)


def open_split(dataset: Dataset, name: Any, cache: Path) -> CheckedSplit:
    """Open one split of a data set, whole; raises GvbsmError if it is not what the contract asks for."""
    with calling(dataset, "open", SPLIT):
        split = dataset.open(name, cache)
    if not isinstance(split, Split):
        raise refuse(dataset, "open", type(split).__name__, SPLIT)
    with calling(dataset, "open", SPLIT):
        checked = CheckedSplit(dataset, split)
    labels: object = checked.labels
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
        raise refuse(dataset, "open", f"labels that are {describe_tensor(labels)}", SPLIT)
    if len(labels) == 0:  # said by those who open it
        return checked
    _check_classes(dataset, checked.classes, labels)
    if isinstance(split, TensorSplit) and len(split.images) != len(labels):
        raise refuse(dataset, "open", f"{len(split.images)} images and {len(labels)} labels", SPLIT)
    checked.read(torch.tensor([0, len(labels) - 1]))
    return checked


def _check_classes(dataset: Dataset, classes: tuple[str, ...], labels: Tensor) -> None:
    if not all(isinstance(name, str) for name in classes):
        raise refuse(dataset, "open", f"class names {classes[:3]!r}, which are not strings", SPLIT)
    twice = next((name for index, name in enumerate(classes) if name in classes[:index]), None)
    if len(set(classes)) < len(classes):
        raise refuse(dataset, "open", f"two classes called {twice!r}", SPLIT)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise refuse(dataset, "open", f"labels from {low} to {high} for {len(classes)} classes", SPLIT)
