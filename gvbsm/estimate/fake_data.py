"""Data for trials: noise in place of a data set, and a few images in place of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gvbsm_registry import Dataset, Split


class FakeData(Dataset):
    """Noise in place of a data set that is not at hand; made when it is read, so that it takes no memory."""

    name = "fake_data"

    images: int = Field(ge=1)
    tests: int = Field(ge=1)
    classes: int = Field(ge=1)
    image_size: int = Field(ge=1)
    channels: int = Field(3, ge=1)

    @staticmethod
    def like(images: int, tests: int, classes: int, image_size: int, channels: int) -> FakeData:
        """Return fake data that states its pixels' mean and deviation, so that no one measures them."""
        return FakeData(
            images=images,
            tests=tests,
            classes=classes,
            image_size=image_size,
            channels=channels,
            mean=(0.5,) * channels,
            std=(0.29,) * channels,
        )

    def open(self, split: Literal["train", "test"], cache: Path) -> Split:
        return _Noise(self, self.images if split == "train" else self.tests)


class _Noise(Split):
    def __init__(self, data: FakeData, count: int) -> None:
        self.classes = tuple(str(label) for label in range(data.classes))
        self.labels = torch.arange(count) % data.classes
        self.image_size, self.channels = data.image_size, data.channels

    def read(self, indices: Tensor) -> Tensor:
        shape = (len(indices), self.channels, self.image_size, self.image_size)
        return torch.randint(256, shape, dtype=torch.uint8)

    @property
    def digest(self) -> str:
        return f"noise {len(self.labels)} {len(self.classes)} {self.image_size} {self.channels}"


class Subset(Split):
    """`count` images of the split `full`, evenly spread; if it has fewer, some more than once."""

    def __init__(self, full: Split, count: int) -> None:
        self.full = full
        self.indices = torch.arange(count) * max(1, len(full) // count) % len(full)
        self.labels, self.classes = full.labels[self.indices], full.classes
        self.image_size, self.channels, self.in_memory = full.image_size, full.channels, full.in_memory

    def read(self, indices: Tensor) -> Tensor:
        return self.full.read(self.indices[indices])

    @property
    def digest(self) -> str:
        return f"{len(self.indices)} of {self.full.digest}"


class OneClass(Split):
    """The images of another split, all of its first class."""

    def __init__(self, full: Split) -> None:
        self.full, self.classes, self.labels = full, full.classes, torch.zeros_like(full.labels)
        self.image_size, self.channels, self.in_memory = full.image_size, full.channels, full.in_memory

    def read(self, indices: Tensor) -> Tensor:
        return self.full.read(indices)

    @property
    def digest(self) -> str:
        return f"one class of {self.full.digest}"
