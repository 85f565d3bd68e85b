"""The opened data set: what units of work need of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gvbsm.distilled.normalized import Normalization
from gvbsm.runtime.splits import open_split
from gvbsm_registry import Artifact, Dataset, GvbsmError, Split
from gvbsm_registry.artifacts import canonical, digest

LARGEST_SAMPLE = 4096
"""How many images of a streamed split its channel statistics are taken from."""


@dataclass(frozen=True)
class Data:
    """Both splits of a data set.

    name: what the data set is called. key: the digest of contents and normalisation.
    origin: the data set and the folder of its cache, from which another process opens it again; without,
    the splits themselves are sent there.
    """

    train: Split
    test: Split
    normalization: Normalization
    key: str
    name: str
    origin: tuple[Dataset, Path] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; label k means `classes[k]`."""
        return self.train.classes

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self.origin is None:
            return Data, (self.train, self.test, self.normalization, self.key, self.name)
        dataset, cache = self.origin
        return _open_again, (type(dataset), canonical(dataset.model_dump(mode="json")), cache)

    def check_classes(self, artifact: Artifact, what: str) -> None:
        """Raise GvbsmError, naming `what`, unless an artifact was made for the same classes in this order."""
        check_classes(tuple(artifact.meta["classes"]), self.classes, what)


@lru_cache(maxsize=1)
def _open_again(kind: type[Dataset], options: str, cache: Path) -> Data:
    """Open a data set in a worker, where many units of work share it."""
    return open_data(kind.model_validate_json(options), cache)


def open_data(dataset: Dataset, cache: Path) -> Data:
    """Open both splits of a data set; `cache` is a folder for decoded pixels.

    Raises GvbsmError if one can't be opened or is empty, or the two do not have the same classes.
    """
    train, test = (_open_split(dataset, split, cache) for split in ("train", "test"))
    check_classes(test.classes, train.classes, f"{dataset.full_name}: the test split")
    normalization = normalization_of(dataset, train)
    key = digest([train.digest, test.digest, [normalization.mean, normalization.std]])
    return Data(train, test, normalization, key, dataset.full_name, (dataset, cache))


def _open_split(dataset: Dataset, name: Any, cache: Path) -> Split:
    split: Split = open_split(dataset, name, cache)
    if dataset.only is not None:
        split = ClassSubset(split, chosen_classes(dataset.only, split.classes))
    if len(split) == 0:
        raise GvbsmError(f"{dataset.full_name}: the {name} split holds no image; check its folder")
    return split


class ClassSubset(Split):
    """The images of some classes of the split `full`, whose labels are `kept`; renumbered in that order."""

    def __init__(self, full: Split, kept: Sequence[int]) -> None:
        self.full = full
        self.classes = tuple(full.classes[label] for label in kept)
        self.image_size, self.channels, self.in_memory = full.image_size, full.channels, full.in_memory
        renumbered = torch.full((len(full.classes),), -1)
        renumbered[list(kept)] = torch.arange(len(kept))
        labels = renumbered[full.labels.cpu()]
        self.indices = (labels >= 0).nonzero().flatten()
        self.labels = labels[self.indices]

    def read(self, indices: Tensor) -> Tensor:
        return self.full.read(self.indices[indices.cpu()])

    @property
    def digest(self) -> str:
        return digest([self.full.digest, self.classes])


def chosen_classes(only: Sequence[int | str], classes: tuple[str, ...]) -> list[int]:
    """Return the labels of classes by name or number; raises GvbsmError if one is not there, or twice."""
    kept = []
    for each in only:
        known = each in classes if isinstance(each, str) else 0 <= each < len(classes)
        if not known:
            shown = ", ".join(classes[:10]) + (", …" if len(classes) > 10 else "")
            raise GvbsmError(
                f"data.only: {each!r} is not one of the {len(classes)} classes ({shown}); give names, or "
                f"numbers from 0 to {len(classes) - 1}"
            )
        kept.append(classes.index(each) if isinstance(each, str) else each)
    if len(set(kept)) < len(kept):
        raise GvbsmError("data.only: names a class twice; give each class once")
    return kept


def normalization_of(dataset: Dataset, train: Split) -> Normalization:
    """Return the channel statistics that the data set states, or else those of its training pixels.

    Raises GvbsmError if it states another number of them than there are channels.
    """
    for name, stated in (("mean", dataset.mean), ("std", dataset.std)):
        if stated is not None and len(stated) != train.channels:
            raise GvbsmError(f"data.{name}: needs {train.channels} values, one a channel")
    if dataset.mean is not None and dataset.std is not None:
        return Normalization(dataset.mean, dataset.std)
    measured = _measure_channels(train)
    return Normalization(dataset.mean or measured.mean, dataset.std or measured.std)


def _measure_channels(train: Split) -> Normalization:
    """Take the statistics of all pixels, or of an even sample of the images where they are streamed."""
    count = len(train)
    sample = count if train.in_memory else min(count, LARGEST_SAMPLE)
    pixels = train.read(torch.linspace(0, count - 1, sample).long()).transpose(0, 1).flatten(1)
    mean, std = [], []
    for channel in pixels:
        counts = torch.bincount(channel.int(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 255
        average = (counts * values).sum() / counts.sum()
        deviation = ((counts * (values - average) ** 2).sum() / counts.sum()).sqrt()
        mean.append(round(float(average), 6))
        std.append(round(max(float(deviation), 1e-3), 6))
    return Normalization(tuple(mean), tuple(std))


def check_classes(stated: tuple[str, ...], expected: tuple[str, ...], what: str) -> None:
    """Raise GvbsmError, naming `what` and the first differences, unless the classes agree in order."""
    if stated == expected:
        return
    missing = [name for name in expected if name not in stated][:3]
    extra = [name for name in stated if name not in expected][:3]
    detail = f"lacks {missing}, has {extra} instead" if missing or extra else "has them in another order"
    raise GvbsmError(
        f"{what} has {len(stated)} classes that do not agree with the training split's {len(expected)}: "
        f"it {detail}; use the data set it was made for"
    )
