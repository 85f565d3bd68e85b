"""IDX files, made here byte by byte, and Fashion-MNIST's own where they are installed."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.mnist import read_image_file, read_label_file

from gvbsm_plugins.datasets import Idx
from gvbsm_registry import GvbsmError

FASHION = Path("/usr/share/datasets/fashion-mnist")
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def encoded(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def write(path: Path, content: bytes, packed: bool) -> None:
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def make(root: Path, packed: bool = False, shape: tuple[int, int] = (6, 6)) -> dict[str, np.ndarray]:
    """Write a data set of 3 classes: 7 images to train, 4 to test."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for prefix, count in (("train", 7), ("t10k", 4)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = (np.arange(count) % 3).astype(np.uint8)
    for name, values in arrays.items():
        write(root / name, encoded(values), packed)
    return arrays


@pytest.mark.parametrize("packed", [False, True])
def test_files_plain_or_packed(tmp_path: Path, packed: bool) -> None:
    arrays = make(tmp_path, packed)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        found = Idx(root=tmp_path).open(split, tmp_path)  # type: ignore[arg-type]
        images, labels = (arrays[f"{prefix}-{what}"] for what in ("images-idx3-ubyte", "labels-idx1-ubyte"))
        assert torch.equal(found.read(torch.arange(len(found))), torch.from_numpy(images)[:, None])
        assert found.labels.tolist() == labels.tolist()
        assert found.classes == ("0", "1", "2")
        if not packed:
            read = read_image_file(str(tmp_path / f"{prefix}-images-idx3-ubyte"))
            assert torch.equal(found.read(torch.arange(len(found)))[:, 0], read)
            assert torch.equal(found.labels, read_label_file(str(tmp_path / f"{prefix}-labels-idx1-ubyte")))


def test_padding_sizes_and_names(tmp_path: Path) -> None:
    arrays = make(tmp_path)
    images = torch.from_numpy(arrays["train-images-idx3-ubyte"])
    padded = Idx(root=tmp_path, padding=2).open("train", tmp_path)
    assert (padded.image_size, padded.channels) == (10, 1)
    pixels = padded.read(torch.arange(7))[:, 0]
    assert torch.equal(pixels[:, 2:8, 2:8], images)
    assert int(pixels.sum()) == int(images.sum())
    names = ("ant", "bee", "cat")
    small = Idx(root=tmp_path, image_size=4, class_names=names).open("train", tmp_path)
    assert (small.image_size, small.classes) == (4, names)
    for index, seen in enumerate(small.read(torch.arange(7))[:, 0].int()):
        expected = Image.fromarray(images[index].numpy()).resize((4, 4), Image.Resampling.BILINEAR)
        assert int((seen - torch.from_numpy(np.array(expected)).int()).abs().max()) <= 1


def test_files_of_other_names_and_shapes(tmp_path: Path) -> None:
    make(tmp_path, shape=(5, 8))
    for name in NAMES:
        (tmp_path / name).rename(tmp_path / f"my-{name}")
    options = dict(zip(("train_images", "train_labels", "test_images", "test_labels"), NAMES, strict=True))
    options = {option: f"my-{name}" for option, name in options.items()}
    with pytest.raises(GvbsmError, match=r"5×8 pixels are not square; set data\.image_size"):
        Idx(root=tmp_path, **options).open("test", tmp_path)
    found = Idx(root=tmp_path, image_size=8, **options).open("test", tmp_path)
    assert found.read(torch.arange(2)).shape == (2, 1, 8, 8)


def damaged(content: bytes, how: str) -> bytes:
    match how:
        case "short":
            return content[:-1]
        case "head":
            return content[:9]
        case "empty":
            return b""
        case "type":
            return content[:2] + b"\x0d" + content[3:]
        case "dimensions":
            return content[:3] + b"\x01" + content[4:]
        case "bomb":
            return content[:4] + b"\xff" * 12 + content[16:]
    raise AssertionError(how)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("short", "is cut short"),
        ("bomb", "is cut short"),
        ("head", "is not an IDX file of bytes in 3 dimensions"),
        ("empty", "is not an IDX file"),
        ("type", "is not an IDX file"),
        ("dimensions", "is not an IDX file"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, packed: bool, how: str, told: str) -> None:
    content = encoded(make(tmp_path, packed)[NAMES[0]])
    write(tmp_path / NAMES[0], damaged(content, how), packed)
    with pytest.raises(GvbsmError, match=f"train-images-idx3-ubyte.*{told}"):
        Idx(root=tmp_path).open("train", tmp_path)


CONTENTS = [b"not gzip", gzip.compress(bytes(range(100)))[:-20], b"\x1f\x8b\x08" + b"\xff" * 40]


@pytest.mark.parametrize("content", CONTENTS, ids=["not gzip", "cut", "damaged"])
def test_broken_gzip_files_are_named(tmp_path: Path, content: bytes) -> None:
    make(tmp_path, packed=True)
    (tmp_path / f"{NAMES[0]}.gz").write_bytes(content)
    with pytest.raises(GvbsmError, match=r"train-images-idx3-ubyte\.gz"):
        Idx(root=tmp_path).open("train", tmp_path)


def test_what_is_missing_or_does_not_agree_is_said(tmp_path: Path) -> None:
    with pytest.raises(GvbsmError, match=r"give --data DIR or set data\.root"):
        Idx().open("train", tmp_path)
    arrays = make(tmp_path)
    with pytest.raises(GvbsmError, match=r"2 names where .* has classes 0 to 2"):
        Idx(root=tmp_path, class_names=("ant", "bee")).open("train", tmp_path)
    with pytest.raises(GvbsmError, match="none twice"):
        Idx(root=tmp_path, class_names=("ant", "bee", "ant")).open("train", tmp_path)
    write(tmp_path / NAMES[1], encoded(arrays[NAMES[1]][:5]), packed=False)
    with pytest.raises(GvbsmError, match="7 train images, but 5 labels"):
        Idx(root=tmp_path).open("train", tmp_path)
    (tmp_path / NAMES[0]).unlink()
    with pytest.raises(GvbsmError, match=r"lacks train-images-idx3-ubyte \(or .*gz\) and holds t10k"):
        Idx(root=tmp_path).open("train", tmp_path)


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_as_debian_ships_it(tmp_path: Path) -> None:
    data = Idx(root=FASHION, padding=2)
    for split, count in (("train", 60000), ("test", 10000)):
        found = data.open(split, tmp_path)  # type: ignore[arg-type]
        assert found.read(torch.tensor([0, count - 1])).shape == (2, 1, 32, 32)
        assert found.labels.bincount().tolist() == [count // 10] * 10
    assert found.classes == tuple("0123456789")
