"""The data sets, against real files made here and against torchvision's own readers."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from gvbsm_plugins import datasets as plugin
from gvbsm_plugins.datasets import (
    Cifar10,
    Cifar100,
    Digits,
    HuggingFace,
    ImageFolder,
    TinyImageNet,
    base,
)
from gvbsm_plugins.pictures import decoding, splits
from gvbsm_registry import Dataset, GvbsmError, TensorSplit, artifacts


def save(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def make_folder(
    root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 3, test: str = "test"
) -> Path:
    seed = 0
    for split in ("train", test):
        for name in classes:
            for number in range(count):
                seed += 1
                save(root / split / name / f"{number}.png", seed)
    return root


def opened(dataset: Dataset, cache: Path, split: str = "train") -> Any:
    return dataset.open(split, cache)  # type: ignore[arg-type]


def message(dataset: Dataset, cache: Path, split: str = "train") -> str:
    with pytest.raises(GvbsmError) as caught:
        opened(dataset, cache, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def both(root: Path, tmp_path: Path, **options: object) -> Iterator:
    for in_memory in (True, False):
        yield ImageFolder(root=root, in_memory=in_memory, **options), tmp_path / f"cache-{in_memory}"


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


# -- digits


def test_digits_are_a_fixed_stratified_partition(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    before = torch.get_rng_state(), pickle.dumps(np.random.get_state())
    train, test = (opened(Digits(), tmp_path, split) for split in ("train", "test"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert pickle.dumps(np.random.get_state()) == before[1]
    assert (len(train), len(test)) == (1347, 450)
    assert train.classes == tuple("0123456789")
    assert (train.image_size, train.channels, train.images.dtype) == (8, 1, torch.uint8)
    source = load_digits()
    counts = np.bincount(source.target)
    assert (np.abs(test.labels.bincount().numpy() - counts / 4) < 1).all()

    def rows(images: Any, labels: Any) -> list[tuple[int, ...]]:
        return sorted(
            (*image.ravel().tolist(), int(label)) for image, label in zip(images, labels, strict=True)
        )

    ours = rows(np.concatenate([train.images, test.images]), np.concatenate([train.labels, test.labels]))
    theirs = rows(np.floor(source.images * (255 / 16) + 0.5).astype(np.uint8), source.target)
    assert ours == theirs
    assert opened(Digits(), tmp_path).digest == train.digest != test.digest


# -- imagefolder: pixels, labels, cache


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [8, 13, 20])
def test_imagefolder_decodes_like_torchvision(tmp_path: Path, image_size: int, channels: int) -> None:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder as Theirs

    root = make_folder(tmp_path / "data", count=1, test="val")
    sizes = [(8, 8), (13, 9), (9, 14), (20, 20), (31, 16), (16, 33)]
    for number, size in enumerate(sizes):
        save(root / "train" / "cat" / f"x{number}.jpg", number, size)
        save(root / "train" / "dog" / f"x{number}.png", number, size, mode="L")
        save(root / "train" / "dog" / "deeper" / f"x{number}.bmp", number, size)
    steps = [transforms.Resize(image_size), transforms.CenterCrop(image_size), transforms.PILToTensor()]
    if channels == 1:
        # Not torchvision's Grayscale, which would see what its loader has made RGB of.
        steps.insert(0, transforms.Lambda(lambda picture: picture.convert("L")))
    theirs = Theirs(
        root / "train", transforms.Compose(steps), loader=lambda path: Image.open(path).convert("RGB")
    )
    for data, cache in both(root, tmp_path, image_size=image_size, channels=channels):
        ours = opened(data, cache)
        assert ours.classes == tuple(theirs.classes)
        assert ours.in_memory == data.in_memory
        assert (ours.image_size, ours.channels, len(ours)) == (image_size, channels, len(theirs))
        by_path = {Path(path).relative_to(root): k for k, (path, _) in enumerate(theirs.samples)}
        paths = sorted(by_path, key=lambda path: (path.parts[1], os.fsencode(path)))
        images = ours.read(torch.arange(len(ours)))
        for k, path in enumerate(paths):
            expected, label = theirs[by_path[path]]
            assert label == ours.labels[k]
            assert torch.equal(images[k], expected), path


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40))
def test_any_size_is_fitted_like_torchvision(width: int, height: int, image_size: int) -> None:
    import io

    from torchvision.transforms import functional

    picture = Image.fromarray(
        np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )
    file = io.BytesIO()
    picture.save(file, "png")
    expected = functional.center_crop(functional.resize(picture, [image_size]), [image_size, image_size])
    ours = decoding.decode(file.getvalue(), "here", image_size, 3)
    assert torch.equal(torch.from_numpy(ours.copy()), functional.pil_to_tensor(expected))


def test_sixteen_bits_and_palettes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", count=1)
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(deep).save(root / "train" / "cat" / "deep.png")
    save(root / "train" / "cat" / "colours.gif", 5)
    split = opened(ImageFolder(root=root, channels=1), tmp_path)
    assert torch.equal(split.read(torch.tensor([2]))[0, 0], torch.from_numpy(deep >> 8).to(torch.uint8))


def test_default_side_is_the_first_training_picture(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    save(root / "train" / "cat" / "+first.png", size=(40, 12))
    for split in ("train", "test"):
        assert opened(ImageFolder(root=root), tmp_path, split).image_size == 12
    save(root / "train" / "cat" / "+first.png", size=(300, 400))
    assert "data.image_size = 224" in message(ImageFolder(root=root), tmp_path)


def test_odd_names_hidden_files_and_links(tmp_path: Path) -> None:
    odd = ("a b", "<b>&amp;", "né", "日本", "x'\"y", "Z", "a,b;c", "line\nbreak")
    root = make_folder(tmp_path / "data", odd, count=2)
    os.rename(root / "train" / "Z", os.fsencode(root / "train") + b"/Z\xff")
    os.rename(root / "test" / "Z", os.fsencode(root / "test") + b"/Z\xff")
    (root / "train" / ".hidden").mkdir()
    cat = root / "train" / "a b"
    for name in (".0.png", "notes.txt", "Thumbs.db", "noext"):
        (cat / name).write_bytes(b"nothing")
    os.symlink("..", cat / "loop", target_is_directory=True)
    os.symlink("loop.png", cat / "loop.png", target_is_directory=False)
    os.unlink(cat / "loop.png")
    os.mkfifo(cat / "pipe.png")
    os.symlink(root / "train" / "né" / "0.png", cat / "linked.png")
    for data, cache in both(root, tmp_path):
        split = opened(data, cache)
        assert split.classes == tuple(sorted((*(name for name in odd if name != "Z"), "Z\\xff")))
        counts = split.labels.bincount().tolist()
        assert counts == [3 if name == "a b" else 2 for name in split.classes]
        assert len(split.read(torch.arange(len(split)))) == len(split)
        assert split.digest
        assert opened(data, cache).digest == split.digest


def test_second_open_reads_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "data")
    data, cache = ImageFolder(root=root), tmp_path / "cache"
    first = opened(data, cache)
    assert isinstance(first, TensorSplit)
    decode = decoding.decode

    def never(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(splits, "decode", never)
    again = opened(data, cache)
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, first.labels)
    assert again.digest == first.digest
    with pytest.raises(AssertionError):
        opened(ImageFolder(root=root, image_size=5), cache)
    monkeypatch.setattr(splits, "decode", decode)
    save(root / "train" / "dog" / "1.png", seed=99)
    changed = opened(data, cache)
    assert changed.digest != first.digest
    assert not torch.equal(changed.images[4], first.images[4])


@pytest.mark.parametrize("damage", ["truncated", "altered", "text", "empty"])
def test_a_broken_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    root, cache = make_folder(tmp_path / "data"), tmp_path / "cache"
    data = ImageFolder(root=root)
    first = opened(data, cache)
    (file,) = cache.glob("pixels-*")
    good = file.read_bytes()
    altered = good[:-1] + bytes([good[-1] ^ 1])
    file.write_bytes({"truncated": good[:-9], "altered": altered, "text": b"hello", "empty": b""}[damage])
    assert torch.equal(opened(data, cache).images, first.images)
    assert artifacts.read(file, "pixels").key == artifacts.peek(file)["key"]
    assert torch.equal(opened(data, cache).images, first.images)


def test_an_unwritable_cache_costs_time_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, cache = make_folder(tmp_path / "data"), tmp_path / "cache"
    cache.write_text("a file where a folder belongs")
    assert len(opened(ImageFolder(root=root), cache)) == 6
    assert "without a cache" in caplog.text


# -- streaming


def test_streaming_equals_in_memory_and_survives_workers(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader
    from torch.utils.data import Dataset as TorchDataset

    root = make_folder(tmp_path / "data")
    (one, cache), (two, _) = both(root, tmp_path)
    memory, stream = opened(one, cache), opened(two, cache)
    everything = torch.arange(len(memory))
    assert not stream.in_memory
    assert torch.equal(stream.labels, memory.labels)
    copied = pickle.loads(pickle.dumps(stream))
    assert copied.digest == stream.digest
    assert torch.equal(copied.read(everything.flip(0)), memory.read(everything.flip(0)))
    assert torch.equal(stream.read(torch.tensor([-1])), memory.read(torch.tensor([-1])))
    assert stream.read(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 8, 8)
    with pytest.raises(IndexError):
        stream.read(torch.tensor([6]))

    class Batches(TorchDataset):
        def __len__(self) -> int:
            return len(stream)

        def __getitem__(self, index: int) -> torch.Tensor:
            return stream.read(torch.tensor([index]))[0]

    loaded = torch.cat(list(DataLoader(Batches(), batch_size=2, num_workers=1)))
    assert torch.equal(loaded, memory.images)


def test_streaming_digest_follows_the_listing(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    data = ImageFolder(root=root, in_memory=False)
    digests = {opened(data, tmp_path).digest}
    os.utime(root / "train" / "dog" / "1.png", ns=(0, 12345))
    digests.add(opened(data, tmp_path).digest)
    os.rename(root / "train" / "dog" / "1.png", root / "train" / "dog" / "9.png")
    digests.add(opened(data, tmp_path).digest)
    digests.add(opened(ImageFolder(root=root, in_memory=False, image_size=7), tmp_path).digest)
    assert len(digests) == 4
    assert opened(data, tmp_path).digest in digests


def test_auto_streams_above_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "data")
    monkeypatch.setattr(base, "MAX_IN_MEMORY", 6 * 3 * 8 * 8)
    assert opened(ImageFolder(root=root), tmp_path).in_memory
    monkeypatch.setattr(base, "MAX_IN_MEMORY", 6 * 3 * 8 * 8 - 1)
    assert not opened(ImageFolder(root=root), tmp_path).in_memory


def test_the_index_is_compact(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", count=1)
    for split in ("train", "test"):
        picture = (root / split / "cat" / "0.png").read_bytes()
        for name in ("cat", "dog") if split == "train" else ():
            for number in range(1500):
                (root / split / name / f"{number:08}.png").write_bytes(picture)
    data = ImageFolder(root=root, in_memory=False, image_size=8)
    opened(data, tmp_path)
    tracemalloc.start()
    split = opened(data, tmp_path)
    split.read(torch.arange(10))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(split) == 3002
    assert kept / len(split) < 80


# -- imagefolder: faults


def test_root_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--data DIR or set data.root" in message(ImageFolder(), tmp_path)
    gone = tmp_path / "gone"
    assert str(gone) in (text := message(ImageFolder(root=gone), tmp_path))
    assert "no such folder" in text
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in message(ImageFolder(root=tmp_path / "file"), tmp_path)
    (tmp_path / "void").mkdir()
    assert "is empty" in message(ImageFolder(root=tmp_path / "void"), tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    make_folder(tmp_path / "data")
    assert len(opened(ImageFolder(root=Path("~/data")), tmp_path)) == 6
    with pytest.raises(ValidationError, match="write the path in full"):
        ImageFolder(root=Path("~nobody-of-that-name/x"))


def test_layout_faults(tmp_path: Path) -> None:
    root = tmp_path / "data"
    save(root / "cat" / "0.png")
    assert "no folder 'train'" in message(ImageFolder(root=root), tmp_path)
    save(root / "train" / "cat" / "0.png")
    assert "neither a folder 'test' nor 'val'" in message(ImageFolder(root=root), tmp_path)
    (root / "val").mkdir()
    text = message(ImageFolder(root=root), tmp_path)
    assert str(root / "val") in text
    assert "no class folders" in text
    save(root / "val" / "cat" / "0.png")
    assert len(opened(ImageFolder(root=root), tmp_path, "test")) == 1


@pytest.mark.parametrize("content", [None, "notes.txt", ".hidden.png"])
def test_a_class_without_pictures_is_named(tmp_path: Path, content: str | None) -> None:
    root = make_folder(tmp_path / "data")
    for split in ("train", "test"):
        save(root / split / "owl" / "0.png")
    for split in ("train", "test"):
        (root / split / "owl" / "0.png").unlink()
        if content:
            (root / split / "owl" / content).write_text("x")
        for data, cache in both(root, tmp_path):
            text = message(data, cache, split)
            assert str(root / split / "owl") in text
            assert "without pictures" in text
        save(root / split / "owl" / "0.png")


def test_different_classes_are_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    save(root / "train" / "owl" / "0.png")
    save(root / "test" / "ape" / "0.png")
    for split in ("train", "test"):
        text = message(ImageFolder(root=root), tmp_path, split)
        assert "only in train: 'owl'" in text
        assert "only in test: 'ape'" in text


def break_picture(root: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = root / "train" / "cat" / {"truncated": "1b.jpg", "text": "1b.png"}.get(how, "1b.png")
    if how == "truncated":
        return truncate(save(path, size=(64, 64)))
    if how == "text":
        path.write_text("this is not a picture")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "dangling":
        os.symlink("nowhere.png", path)
    elif how == "header":
        save(path)
        path.write_bytes(path.read_bytes()[:20])
    elif how == "postscript":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    elif how == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        save(path, size=(50, 50))
    elif how == "strip":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        save(path, size=(900, 1))
    return path


@pytest.mark.parametrize(
    "how", ["truncated", "text", "empty", "dangling", "header", "postscript", "bomb", "strip"]
)
def test_a_broken_picture_is_named_or_skipped(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(tmp_path / "data")
    intact = opened(ImageFolder(root=root), tmp_path / "before").images
    path = break_picture(root, how, monkeypatch)
    for data, cache in both(root, tmp_path):
        with pytest.raises(GvbsmError) as caught:
            opened(data, cache).read(torch.arange(7))
        assert str(path) in str(caught.value)
        assert "skip_broken" in str(caught.value)
        assert not list(cache.glob("*.safetensors"))
    for data, cache in both(root, tmp_path, skip_broken=True):
        for _ in range(2):
            split = opened(data, cache)
            assert split.labels.tolist() == [0, 0, 0, 1, 1, 1]
            assert torch.equal(split.read(torch.arange(6)), intact)
        if how != "dangling":
            assert str(path) in caplog.text
            assert split.digest != opened(data.model_copy(update={"image_size": 7}), cache).digest


def test_bombs_and_the_first_broken_picture(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    bomb = root / "train" / "cat" / "+first.png"
    # 60000 by 60000 pixels, says the header; a real bomb's compressed zeros would follow.
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I", 9999) + b"IDAT" + bytes(99))
    text = message(ImageFolder(root=root), tmp_path)
    assert str(bomb) in text
    assert "decompression bomb" in text
    split = opened(ImageFolder(root=root, skip_broken=True), tmp_path)
    assert (split.image_size, len(split)) == (8, 6)


def test_all_pictures_of_a_class_broken(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", count=2)
    for path in (root / "train" / "cat").iterdir():
        path.write_text("no")
    for data, cache in both(root, tmp_path, skip_broken=True):
        assert "every picture of class 'cat' is broken" in message(data, cache)


def test_a_picture_that_vanishes_is_no_broken_picture(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    split = opened(ImageFolder(root=root, in_memory=False, skip_broken=True), tmp_path)
    (root / "train" / "cat" / "1.png").unlink()
    with pytest.raises(GvbsmError, match=r"1\.png: can't be read"):
        split.read(torch.arange(6))


# -- cifar


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """torchvision's files, made small, with torchvision's checksums set to theirs."""
    from torchvision.datasets import CIFAR10, CIFAR100

    hundred = request.param == "cifar100"
    kind = CIFAR100 if hundred else CIFAR10
    folder = tmp_path / "data" / kind.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    key, names = ("fine_labels", kind.meta["key"]) if hundred else ("labels", kind.meta["key"])
    contents: dict[str, object] = {kind.meta["filename"]: {names: ["ape", "bee", "cow"]}}
    for name, _ in kind.train_list + kind.test_list:
        pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        contents[name] = {"data": pixels, key: rng.integers(0, 3, 4).tolist()}
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    for listed in ("train_list", "test_list"):
        monkeypatch.setattr(kind, listed, [[name, sums[name]] for name, _ in getattr(kind, listed)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})
    return (Cifar100 if hundred else Cifar10), kind, tmp_path / "data", contents


@pytest.mark.parametrize("cifar", ["cifar10", "cifar100"], indirect=True)
def test_cifar_from_its_files(cifar: Any, tmp_path: Path) -> None:
    data, kind, root, contents = cifar
    for given_root in (root, root / kind.base_folder):
        for split, listed in (("train", kind.train_list), ("test", kind.test_list)):
            ours = opened(data(root=given_root), tmp_path, split)
            entries = [contents[name] for name, _ in listed]
            pixels = np.concatenate([entry["data"].reshape(-1, 3, 32, 32) for entry in entries])
            labels = [k for entry in entries for k in (entry.get("labels") or entry["fine_labels"])]
            assert np.array_equal(ours.images.numpy(), pixels)
            assert ours.labels.tolist() == labels
            assert ours.classes == ("ape", "bee", "cow")
            assert (ours.image_size, ours.channels) == (32, 3)


@pytest.mark.parametrize("cifar", ["cifar10", "cifar100"], indirect=True)
def test_cifar_faults(cifar: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, kind, root, _ = cifar
    test = root / kind.base_folder / kind.test_list[0][0]

    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    test.write_bytes(pickle.dumps(Payload()))
    text = message(data(root=root), tmp_path)
    assert str(test) in text
    assert "MD5" in text
    assert not (tmp_path / "ran").exists()
    test.unlink()
    text = message(data(root=root), tmp_path)
    assert test.name in text
    assert "data.download = true" in text
    assert kind.filename in text
    assert "--data DIR" in message(data(), tmp_path)
    assert "no such folder" in message(data(root=tmp_path / "gone"), tmp_path)

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    assert "no network" in message(data(root=root, download=True), tmp_path)


# -- tiny_imagenet

WNIDS = ("n02", "n01", "n10")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    root = tmp_path / "data" / "tiny-imagenet-200"
    for k, wnid in enumerate(WNIDS):
        for number in range(2):
            mode = "L" if number else "RGB"
            save(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", k * 2 + number, (64, 64), mode)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("boxes")
    lines = []
    for number in range(12):
        save(
            root / "val" / "images" / f"val_{number}.JPEG",
            50 + number,
            (64, 64),
            "L" if number % 2 else "RGB",
        )
        lines.append(f"val_{number}.JPEG\t{WNIDS[number * 5 % 3]}\t0\t1\t62\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    save(root / "test" / "images" / "test_0.JPEG", 1, (64, 64))
    return root


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("above", [True, False])
def test_tiny_imagenet_layout(tiny: Path, tmp_path: Path, listed: bool, above: bool) -> None:
    if not listed:
        (tiny / "wnids.txt").unlink()
    data = TinyImageNet(root=tiny.parent if above else tiny)
    train, val = (opened(data, tmp_path / "cache", split) for split in ("train", "test"))
    assert train.classes == val.classes == ("n01", "n02", "n10")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (train.image_size, train.channels, len(val)) == (64, 3, 12)
    for k in range(12):
        with Image.open(tiny / "val" / "images" / f"val_{k}.JPEG") as picture:
            expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(val.images[k].numpy(), expected)
        assert val.classes[val.labels[k]] == WNIDS[k * 5 % 3]
    with Image.open(tiny / "train" / "n01" / "images" / "n01_1.JPEG") as picture:
        assert picture.mode == "L"
        assert np.array_equal(train.images[1, 2].numpy(), np.asarray(picture))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("val_0.JPEG n01", "line 13: is malformed"),
        ("../val_0.JPEG\tn01", "line 13: is malformed"),
        ("val_0.JPEG\tn01", "line 13: 'val_0.JPEG' is listed twice"),
        ("val_99.JPEG\tn01", "val_99.JPEG: can't be read"),
        ("val_99.JPEG\tn77", "line 13: class 'n77' has no folder"),
    ],
)
def test_tiny_imagenet_annotation_faults(tiny: Path, tmp_path: Path, line: str, told: str) -> None:
    with (tiny / "val" / "val_annotations.txt").open("a") as file:
        file.write(line + "\n")
    assert told in message(TinyImageNet(root=tiny), tmp_path, "test")
    assert len(opened(TinyImageNet(root=tiny), tmp_path)) == 6


def test_tiny_imagenet_faults(tiny: Path, tmp_path: Path) -> None:
    data, annotations = TinyImageNet(root=tiny), tiny / "val" / "val_annotations.txt"
    good = annotations.read_text()
    annotations.write_text("".join(line for line in good.splitlines(True) if "n10" not in line))
    assert "no picture of class 'n10'" in message(data, tmp_path, "test")
    annotations.write_bytes(b"\xff\xfe\x00")
    assert "can't be read" in message(data, tmp_path, "test")
    annotations.unlink()
    assert f"{annotations}: no such file" in message(data, tmp_path, "test")
    annotations.write_text(good)
    truncate(tiny / "val" / "images" / "val_3.JPEG")
    assert "val_3.JPEG: is broken" in message(data, tmp_path, "test")
    kept = opened(TinyImageNet(root=tiny, skip_broken=True), tmp_path, "test")
    assert [kept.classes[k] for k in kept.labels] == [WNIDS[k * 5 % 3] for k in range(12) if k != 3]
    (tiny / "wnids.txt").write_text("n01\nn02\n")
    assert "differs from the folders" in message(data, tmp_path)
    (tiny / "wnids.txt").unlink()
    (tiny / "train" / "n01" / "images").rename(tiny / "train" / "n01" / "pictures")
    assert "n01/images: no such folder" in message(data, tmp_path)
    (tiny / "train").rename(tiny / "elsewhere")
    assert "has no folder 'train'" in message(data, tmp_path)


# -- huggingface


def hub_columns(count: int, seed: int) -> dict[str, list]:
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in range(count)]
    return {"image": images, "label": [k % 3 for k in range(count)]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip("datasets", reason="the extra gvbsm[huggingface] is not installed")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    library.disable_progress_bars()
    return library


def hub_dict(hub: Any, labels: str = "names") -> Any:
    feature = {
        "names": hub.ClassLabel(names=["zebra", "ant", "bee"]),
        "texts": hub.Value("string"),
        "numbers": hub.Value("int64"),
    }[labels]
    features = hub.Features({"image": hub.Image(), "label": feature})
    made = {}
    for name, count, seed in (("train", 7, 0), ("validation", 4, 1)):
        columns = hub_columns(count, seed)
        if labels == "texts":
            columns["label"] = [("zebra", "ant", "bee")[k] for k in columns["label"]]
        elif labels == "numbers":
            columns["label"] = [k * 10 + 5 for k in columns["label"]]
        made[name] = hub.Dataset.from_dict(columns, features=features)
    return hub.DatasetDict(made)


@pytest.mark.parametrize("form", ["disk", "parquet"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_huggingface_local(hub: Any, tmp_path: Path, form: str, in_memory: bool) -> None:
    root = tmp_path / "data"
    splits = hub_dict(hub)
    if form == "disk":
        splits.save_to_disk(root)
    else:
        root.mkdir()
        for name, table in splits.items():
            table.to_parquet(root / f"{name}-00000.parquet")
    data = HuggingFace(root=root, in_memory=in_memory)
    for split, count, seed in (("train", 7, 0), ("test", 4, 1)):
        for _ in range(2):
            ours = opened(data, tmp_path / "cache", split)
            assert ours.classes == ("zebra", "ant", "bee")
            assert ours.in_memory == in_memory
            columns = hub_columns(count, seed)
            assert ours.labels.tolist() == columns["label"]
            copied = pickle.loads(pickle.dumps(ours))
            assert copied.digest == ours.digest
            for k, image in enumerate(columns["image"]):
                pixels = copied.read(torch.tensor([k]))[0].permute(1, 2, 0).numpy()
                assert np.array_equal(pixels, np.asarray(image))


@pytest.mark.parametrize(
    ("labels", "classes"), [("texts", ("ant", "bee", "zebra")), ("numbers", ("5", "15", "25"))]
)
def test_huggingface_plain_labels_are_sorted(
    hub: Any, tmp_path: Path, labels: str, classes: tuple[str, ...]
) -> None:
    hub_dict(hub, labels).save_to_disk(tmp_path / "data")
    split = opened(HuggingFace(root=tmp_path / "data"), tmp_path / "cache")
    expected = [
        ("zebra", "ant", "bee")[k % 3] if labels == "texts" else str(k % 3 * 10 + 5) for k in range(7)
    ]
    assert split.classes == classes
    assert [split.classes[k] for k in split.labels] == expected


def test_huggingface_faults(hub: Any, tmp_path: Path) -> None:
    root, cache = tmp_path / "data", tmp_path / "cache"
    hub_dict(hub).save_to_disk(root)
    told = message(HuggingFace(root=root, label_column="fine"), cache)
    assert "no column 'fine' but image, label" in told
    assert "data.label_column" in told
    assert "no column 'img'" in message(HuggingFace(root=root, image_column="img"), cache)
    assert "no split 'training' but train, validation" in message(
        HuggingFace(root=root, train_split="training"), cache
    )
    assert "no split 'exam'" in message(HuggingFace(root=root, test_split="exam"), cache, "test")
    assert "holds no pictures" in message(HuggingFace(root=root, image_column="label"), cache)
    assert "keep one" in message(HuggingFace(root=root, repository="a/b"), cache)
    assert "--data DIR" in message(HuggingFace(), cache)
    assert "no such folder" in message(HuggingFace(root=tmp_path / "gone"), cache)
    (tmp_path / "void").mkdir()
    assert "can't open it" in message(HuggingFace(root=tmp_path / "void"), cache)
    hub_dict(hub)["train"].save_to_disk(tmp_path / "single")
    assert "one split only" in message(HuggingFace(root=tmp_path / "single"), cache)


def test_huggingface_broken_pictures_and_labels(hub: Any, tmp_path: Path) -> None:
    good = hub_columns(3, 0)
    features = hub.Features({"image": hub.Image(), "label": hub.Value("int64")})
    encoded = hub.Dataset.from_dict(good, features=features).cast_column("image", hub.Image(decode=False))
    rows = encoded[:]
    rows["image"][1]["bytes"] = b"no picture"
    broken = hub.Dataset.from_dict(rows, features=features)
    stray = hub.Dataset.from_dict({**hub_columns(3, 1), "label": [0, 1, 9]}, features=features)
    hub.DatasetDict({"train": broken, "test": stray}).save_to_disk(tmp_path / "data")
    data = HuggingFace(root=tmp_path / "data")
    assert "row 1: is not a picture" in message(data, tmp_path)
    assert "label 9" in message(data, tmp_path, "test")
    told = message(HuggingFace(root=tmp_path / "data", skip_broken=True), tmp_path)
    assert "every picture of class '1' is broken" in told


def test_huggingface_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'pip install "gvbsm[huggingface]"' in message(HuggingFace(root=tmp_path), tmp_path)


# -- the plugin


def test_every_component_has_help_and_a_recipe_table() -> None:
    components = plugin.gvbsm_components()
    names = ["digits", "imagefolder", "idx", "cifar10", "cifar100", "tiny_imagenet"]
    names += ["huggingface", "webdataset"]
    assert [component.name for component in components] == names
    for component in components:
        assert issubclass(component, Dataset)
        assert all(field.description for field in component.model_fields.values())
        made = component()
        table = made.to_recipe()
        assert table.pop("use") == component.name
        assert component.model_validate(table) == made


def test_listing_the_plugin_imports_nothing_heavy() -> None:
    import subprocess

    code = "import sys, gvbsm_plugins.datasets as d; d.gvbsm_components(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "torchvision", "numpy", "PIL", "sklearn", "datasets"} & set(loaded)


@pytest.fixture(autouse=True)
def _warnings_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
