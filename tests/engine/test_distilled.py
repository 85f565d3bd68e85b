"""A condensed set opened as a torch data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import gvbsm
from gvbsm.distilled.dataset import DistilledDataset
from gvbsm.recipe import loading
from gvbsm_registry import GvbsmError
from gvbsm_registry.artifacts import read


@pytest.fixture(scope="module")
def folder(registry, toy_tables, shared_store, tmp_path_factory) -> Path:
    """OUT/distilled of a run with 5 epochs of labels in blocks of 2, IPC 2, 3 classes."""
    out = tmp_path_factory.mktemp("run")
    made = loading.make(
        {**toy_tables, "relabel": {"epochs": 5, "epochs_per_file": 2, "batch": 4}}, registry, "here"
    )
    gvbsm.run(
        made, out=out, store=shared_store, device="cpu", until="relabel", report=False, registry=registry
    )
    return out / "distilled"


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "set"))


def test_items_without_an_epoch_are_images_and_labels(folder):
    data = gvbsm.DistilledDataset(folder)
    stored = read(folder / "images.safetensors", "distilled")
    assert (len(data), data.epochs, data.classes) == (6, 5, ("ant", "bee", "cat"))
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.provenance["gvbsm"] == gvbsm.__version__
    for index in range(6):
        image, label = data[index]
        assert image.dtype == torch.float32
        assert isinstance(label, int)
        assert label == int(stored.tensors["labels"][index])
        expected = (stored.tensors["images"][index].double() / 255 - data.mean[0]) / data.std[0]
        torch.testing.assert_close(image.double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(data.normalized(), torch.stack([data[i][0] for i in range(6)]))
    with pytest.raises(IndexError):
        data[6]


@pytest.mark.parametrize("epoch", [None, 1])
def test_negative_indices_count_from_the_end(folder, epoch):
    data = DistilledDataset(folder)
    if epoch is not None:
        data.set_epoch(epoch)
    for index in range(6):
        ahead, back = data[index], data[index - 6]
        assert all(
            torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(ahead, back, strict=True)
        )
    assert not torch.equal(data[-1][0], data[0][0])
    for index in (6, -7):
        with pytest.raises(IndexError, match=rf"image {index} of a set of 6"):
            data[index]


def test_workers_that_live_on_show_the_new_epochs_views(folder):
    data, alone = DistilledDataset(folder), DistilledDataset(folder)
    loader = DataLoader(data, 2, num_workers=2, persistent_workers=True)
    seen = []
    for number in (None, 1, 3, 1):
        if number is not None:
            data.set_epoch(number)
            alone.set_epoch(number)
        shown = [torch.cat(parts) for parts in zip(*loader, strict=True)]
        expected = zip(*[alone[index] for index in range(6)], strict=True)
        for part, right in zip(shown, expected, strict=True):
            assert torch.equal(part, torch.stack([torch.as_tensor(one) for one in right]))
        seen.append(shown)
    assert [len(parts) for parts in seen] == [2, 3, 3, 3]
    assert not torch.equal(seen[1][0], seen[2][0])


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_any_loading_batch_size_gives_the_same_views(folder, size):
    data = DistilledDataset(folder)
    for number in (0, 3):
        epoch = data.epoch(number)
        everything = torch.arange(6)
        views = epoch.views.apply(data.normalized(), everything)
        truth = epoch.views.truth(data.labels, everything, 3, 8)
        data.set_epoch(number)
        loaded = [torch.cat(parts) for parts in zip(*DataLoader(data, size), strict=True)]
        iterated = [torch.cat(parts) for parts in zip(*data.batches(number, size), strict=True)]
        for found in (loaded, iterated):
            torch.testing.assert_close(found[0], views, rtol=0, atol=1e-6)
            assert torch.equal(found[1], epoch.logits)
            torch.testing.assert_close(found[2], truth)


def test_shuffled_batches_cover_the_epoch(folder):
    data = DistilledDataset(folder)
    logits = torch.cat([b[1] for b in data.batches(1, 4, torch.Generator().manual_seed(1))])
    expected = data.epoch(1).logits
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(logits, expected[order])


def test_item_reads_no_more_images_than_it_shows(folder, monkeypatch):
    data = DistilledDataset(folder)
    data.set_epoch(0)
    monkeypatch.setattr(DistilledDataset, "normalized", lambda self: pytest.fail("normalised the whole set"))
    assert data[3][0].shape == (1, 8, 8)


def test_epochs_repeat_when_they_run_out(folder):
    data = DistilledDataset(folder)
    assert torch.equal(data.epoch(7).logits, data.epoch(2).logits)
    assert torch.equal(data.epoch(7).views.view.boxes, data.epoch(2).views.view.boxes)
    assert not torch.equal(data.epoch(2).logits, data.epoch(3).logits)


def test_without_labels(copied):
    for path in copied.glob("labels-*"):
        path.unlink()
    data = DistilledDataset(copied)
    assert data.epochs == 0
    assert len(data[0]) == 2
    with pytest.raises(GvbsmError, match="holds no soft labels; run the relabel stage"):
        data.set_epoch(0)


def test_a_missing_block_is_named_when_it_is_needed(copied):
    (copied / "labels-00002.safetensors").unlink()
    data = DistilledDataset(copied)
    assert len(data[0]) == 2  # the images need no labels
    with pytest.raises(GvbsmError, match=r"epoch 2.*relabel"):
        data.epoch(2)


def test_labels_of_other_images_are_refused(copied, make_run):
    other = make_run(("seed", 9), ("relabel.epochs", 1)).until("relabel")
    shutil.copy(other.out / "distilled" / "labels-00000.safetensors", copied)
    with pytest.raises(GvbsmError, match="labels other images"):
        DistilledDataset(copied)


@pytest.mark.parametrize("name", ["images.safetensors", "labels-00002.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_file_is_refused_by_name(copied, name, damage):
    raw = (copied / name).read_bytes()
    damaged = raw[:-20] if damage == "cut" else raw[:-20] + bytes([raw[-20] ^ 1]) + raw[-19:]
    (copied / name).write_bytes(damaged)
    with pytest.raises(GvbsmError, match=f"{name}: truncated or altered"):
        DistilledDataset(copied).epoch(3)


def test_a_folder_without_a_set(tmp_path):
    with pytest.raises(GvbsmError, match=r"images\.safetensors: no such file"):
        DistilledDataset(tmp_path)
