"""Data sets in MNIST's IDX files: MNIST, Fashion-MNIST, KMNIST and others of that form."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gvbsm_plugins.datasets.base import existing_folder
from gvbsm_plugins.pictures.listing import printable
from gvbsm_registry import Dataset, GvbsmError, Split, TensorSplit

if TYPE_CHECKING:
    from torch import Tensor

UNSIGNED_BYTES = 8
DEFLATE_AT_MOST = 1032
"""How many bytes one of a gzip file can become: a header that promises more is not true."""


class Idx(Dataset):
    """Grey images in IDX files, plain or .gz: a folder with MNIST's four files or others of that format.

    Debian's package dataset-fashion-mnist puts Fashion-MNIST's into /usr/share/datasets/fashion-mnist.
    """

    name = "idx"

    root: Path | None = Field(None, description="the folder that holds the four files")
    image_size: int | None = Field(None, ge=1, description="height and width; default: that of the files")
    padding: int = Field(0, ge=0, description="black pixels added on each side, before any resizing")
    class_names: tuple[str, ...] | None = Field(
        None, description="names of the classes 0, 1, …; default: their numbers"
    )
    train_images: str = Field("train-images-idx3-ubyte", description="file in root; .gz may be left out")
    train_labels: str = Field("train-labels-idx1-ubyte", description="file in root; .gz may be left out")
    test_images: str = Field("t10k-images-idx3-ubyte", description="file in root; .gz may be left out")
    test_labels: str = Field("t10k-labels-idx1-ubyte", description="file in root; .gz may be left out")

    def open(self, split: Literal["train", "test"], cache: Path) -> Split:
        """Return uint8 [N, 1, S, S] in the files' order.

        Raises GvbsmError, naming the file, if one is missing, is not an IDX file of bytes or is cut short, or
        if images and labels do not agree in number.
        """
        import torch

        root = existing_folder(self.root, self.name)
        images_file = self.train_images if split == "train" else self.test_images
        pixels = _read(root, images_file, 3)
        labels = {name: _read(root, getattr(self, f"{name}_labels"), 1) for name in ("train", "test")}
        truth = labels[split].long()
        if len(truth) != len(pixels):
            raise GvbsmError(
                f"{root}: {len(pixels)} {split} images, but {len(truth)} labels; use files of one data set"
            )
        last = max((int(part.max()) for part in labels.values() if len(part)), default=-1)
        names = self.class_names or tuple(str(number) for number in range(last + 1))
        if last >= len(names) or len(set(names)) != len(names):
            raise GvbsmError(
                f"data.class_names: {len(names)} names where {root} has classes 0 to {last}; "
                "name each class, and none twice"
            )
        pixels = torch.nn.functional.pad(pixels, (self.padding,) * 4)
        return TensorSplit(self._resized(pixels, root / images_file)[:, None], truth, names)

    def _resized(self, pixels: Tensor, path: Path) -> Tensor:
        """Return uint8 [N, S, S] of uint8 [N, H, W]: bilinear with antialiasing."""
        from torch.nn.functional import interpolate

        height, width = pixels.shape[1:]
        size = self.image_size
        if size is None and height != width:
            raise GvbsmError(f"{path}: images of {height}×{width} pixels are not square; set data.image_size")
        if size is None or (height, width) == (size, size):
            return pixels.contiguous()
        return interpolate(pixels[:, None], (size, size), mode="bilinear", antialias=True)[:, 0].contiguous()


def _read(root: Path, name: str, dimensions: int) -> Tensor:
    """Return an IDX file's bytes, uint8 of as many dimensions."""
    import torch

    path = _existing(root, name)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            if head[:4] != bytes([0, 0, UNSIGNED_BYTES, dimensions]) or len(head) < 4 + 4 * dimensions:
                raise GvbsmError(
                    f"{path}: is not an IDX file of bytes in {dimensions} dimensions; name the right file"
                )
            shape = [int.from_bytes(head[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(dimensions)]
            size = 1
            for length in shape:
                size *= length
            possible = path.stat().st_size * (DEFLATE_AT_MOST if path.suffix == ".gz" else 1)
            data = file.read(size) if size <= possible else b""
    except (OSError, EOFError, zlib.error) as error:
        raise GvbsmError(f"{path}: can't be read ({error}); replace the file") from error
    if len(data) != size:
        raise GvbsmError(
            f"{path}: is cut short, its head promises {'×'.join(map(str, shape))} bytes; replace it"
        )
    return (
        torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(shape)
        if size
        else torch.zeros(shape, dtype=torch.uint8)
    )


def _existing(root: Path, name: str) -> Path:
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            return path
    try:
        there = sorted(os.listdir(root))[:4]
    except OSError as error:
        raise GvbsmError(f"{root}: can't be read ({error.strerror}); check its permissions") from error
    raise GvbsmError(
        f"{root}: lacks {name} (or {name}.gz) and holds {', '.join(map(printable, there)) or 'nothing'}; "
        "give the folder of the four files by --data DIR, or their names"
    )
