"""Data sets that the Hugging Face library `datasets` opens, from a folder or from the Hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gvbsm_plugins.datasets.base import PictureDataset, existing_folder
from gvbsm_plugins.pictures.decoding import BrokenPictureError, short_side
from gvbsm_plugins.pictures.listing import read_bytes
from gvbsm_registry import GvbsmError, artifacts

if TYPE_CHECKING:
    from torch import Tensor

    from gvbsm_registry import Split

TEST_SPLITS = ("test", "validation", "val", "valid")


class HuggingFace(PictureDataset):
    """An image data set from a folder (saved by `datasets`, or of parquet files) or from the Hub."""

    name = "huggingface"

    root: Path | None = Field(None, description="a folder saved by `datasets`, or one of parquet files")
    repository: str | None = Field(None, description='a data set on the Hub, "owner/name", instead of root')
    config: str | None = Field(None, description="which configuration of the data set")
    revision: str | None = Field(None, description="which commit, branch or tag on the Hub")
    image_column: str = Field("image", description="the column of pictures")
    label_column: str = Field("label", description="the column of class labels (numbers or texts)")
    train_split: str = Field("train", description="the split to train on")
    test_split: str | None = Field(
        None, description=f"the split to test on; default: {' or '.join(TEST_SPLITS)}"
    )
    image_size: int | None = Field(
        None, ge=1, description="height and width in pixels; by default the first picture's short side"
    )
    channels: Literal[1, 3] = Field(3, description="3: colour, 1: grey")

    def open(self, split: Literal["train", "test"], cache: Path) -> Split:
        """Open one split. Labels follow the ClassLabel's names, or else the sorted values of the train split.

        Raises GvbsmError if `datasets` is not installed, or a split, a column or a label is missing or of
        the wrong kind.
        """
        splits, origin = self._load(cache)
        train = self._pick(splits, [self.train_split], origin)
        table = train
        if split == "test":
            names = [self.test_split] if self.test_split else TEST_SPLITS
            table = self._pick(splits, names, origin)
        classes, codes = self._classes(train, origin)
        labels = self._labels(table, codes, origin)
        pictures = _Column(table, self.image_column, labels, f"{origin}, split {table.split or split}")
        image_size = self.image_size or self._first_size(_Column(train, self.image_column, labels, origin))
        return self._open(pictures, classes, image_size, self.channels, cache, pictures.origin)

    def _load(self, cache: Path) -> tuple[Any, str]:
        """Return the splits by name, and where they are from."""
        try:
            import datasets
        except ImportError as error:
            raise GvbsmError(
                "data set 'huggingface' needs the package `datasets`; pip install \"gvbsm[huggingface]\""
            ) from error
        if self.repository is not None and self.root is not None:
            raise GvbsmError("data set 'huggingface': both data.root and data.repository are set; keep one")
        store = os.fspath(cache / "huggingface")
        try:
            if self.repository is not None:
                hub = {"revision": self.revision, "cache_dir": store}
                return datasets.load_dataset(self.repository, self.config, **hub), self.repository
            root = existing_folder(self.root, self.name)
            if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
                splits = datasets.load_from_disk(os.fspath(root))
            else:
                splits = datasets.load_dataset(os.fspath(root.absolute()), self.config, cache_dir=store)
        except GvbsmError:
            raise
        except Exception as error:  # the library raises errors of its own, of pyarrow's and of fsspec's
            where = self.repository or self.root
            raise GvbsmError(
                f"{where}: `datasets` can't open it ({type(error).__name__}: {error}); "
                "check data.root or data.repository, and data.config"
            ) from error
        if not isinstance(splits, dict):
            raise GvbsmError(f"{root}: holds one split only; save a DatasetDict with train and test there")
        return splits, os.fspath(root.absolute())

    def _pick(self, splits: Any, names: Sequence[str], origin: str) -> Any:
        """Return the first split of these names."""
        for name in names:
            if name in splits:
                break
        else:
            raise GvbsmError(
                f"{origin}: has no split {' or '.join(map(repr, names))} but {', '.join(splits)}; "
                "set data.train_split and data.test_split"
            )
        table = splits[name]
        for option in ("image_column", "label_column"):
            if getattr(self, option) not in table.column_names:
                raise GvbsmError(
                    f"{origin}: split {name!r} has no column {getattr(self, option)!r} but "
                    f"{', '.join(table.column_names)}; set data.{option}"
                )
        if not len(table):
            raise GvbsmError(
                f"{origin}: split {name!r} is empty; set another data.train_split or data.test_split"
            )
        return table

    def _classes(self, train: Any, origin: str) -> tuple[list[str], dict[Any, int]]:
        """Return the class names, and label value → class number."""
        feature = train.features[self.label_column]
        names = getattr(feature, "names", None)
        if names is not None:
            return list(names), {number: number for number in range(len(names))}
        values = set(_values(train, self.label_column)) - {None}
        if not all(isinstance(value, (int, str)) for value in values):
            raise GvbsmError(f"{origin}: column {self.label_column!r} holds no labels; set data.label_column")
        ordered = sorted(values)
        return [str(value) for value in ordered], {value: number for number, value in enumerate(ordered)}

    def _labels(self, table: Any, codes: dict[Any, int], origin: str) -> Tensor:
        import torch

        values = _values(table, self.label_column)
        stray = next((value for value in values if value not in codes), None)
        if stray is not None or None in values:
            raise GvbsmError(
                f"{origin}: split {table.split} has the label {stray!r}, which is not a class of the split "
                f"{self.train_split!r}; set data.test_split or data.label_column"
            )
        return torch.tensor([codes[value] for value in values], dtype=torch.int64)

    def _first_size(self, pictures: _Column) -> int:
        for index in range(len(pictures)):
            try:
                return short_side(pictures.load(index), pictures.where(index))
            except BrokenPictureError:
                if not self.skip_broken:
                    raise
        raise GvbsmError(f"{pictures.origin}: holds no picture that can be decoded; set data.image_column")


def _values(table: Any, column: str) -> list[Any]:
    return list(table.select_columns([column]).with_format(None)[:][column])


class _Column:
    """A column of encoded pictures, memory-mapped by `datasets`."""

    def __init__(self, table: Any, column: str, labels: Tensor, origin: str) -> None:
        import datasets

        self.column, self.labels, self.origin = column, labels, origin
        encoded = table.select_columns([column]).with_format(None)
        try:
            # Undecoded, so that this package's own checks of size and format apply.
            self.table = encoded.cast_column(column, datasets.Image(decode=False))
        except Exception as error:
            raise GvbsmError(
                f"{origin}: column {column!r} holds no pictures ({encoded.features[column]}); "
                "set data.image_column"
            ) from error
        self.digest = artifacts.digest(
            [table._fingerprint, column, hashlib.sha256(labels.numpy().tobytes()).hexdigest()]
        )

    def __len__(self) -> int:
        return len(self.table)

    def where(self, index: int) -> str:
        return f"{self.origin}, row {index}"

    def load(self, index: int) -> bytes:
        picture = self.table[index][self.column]
        if picture is not None and picture["bytes"] is not None:
            return bytes(picture["bytes"])
        if picture is None or not picture["path"]:
            raise BrokenPictureError(self.where(index), "has no picture")
        return read_bytes(picture["path"])
