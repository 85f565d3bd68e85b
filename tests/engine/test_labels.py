"""The layout of label files: exact replay, bytes, pruning, and files that can't be decoded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRun
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gvbsm.distilled import labels
from gvbsm.distilled.dataset import DistilledDataset, LabelBlocks
from gvbsm.distilled.views import EpochViews, draw
from gvbsm.stages import pretrain, relabel
from gvbsm_registry import Codec, GvbsmError, Registry, View, identity_view
from gvbsm_registry.artifacts import Artifact, read, write


def stored(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def drawn(registry: Registry, count: int, image_size: int, **options: Any) -> list[EpochViews]:
    from gvbsm_registry import Augmentation

    augmentation = registry.create(Augmentation, {"use": "resized_crop", **options})
    found = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        groups = torch.randperm(count, generator=generator).split(20)
        found.append(draw(augmentation, groups, image_size, 1.0, 1.0, generator))
    return found


def same(one: EpochViews, other: EpochViews) -> bool:
    pairs = [
        (one.view.boxes, other.view.boxes),
        (one.view.flips, other.view.flips),
        (one.view.rolls, other.view.rolls),
        (one.partners, other.partners),
        (one.boxes, other.boxes),
        (one.view.colors, other.view.colors),
        (one.view.angles, other.view.angles),
        (one.view.cutouts, other.view.cutouts),
    ]
    return all(
        a is b if a is None or b is None else torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs
    )


@pytest.mark.parametrize(
    ("count", "image_size", "most"), [(50, 8, 10), (300, 32, 11), (300, 224, 11), (60, 288, 18)]
)
def test_views_replay_to_the_bit_from_few_bytes(
    registry: Registry, count: int, image_size: int, most: int
) -> None:
    epochs = drawn(registry, count, image_size, roll=2)
    coded = [{"x": torch.zeros(count, 0)} for _ in epochs]
    packed = labels.pack(epochs, coded)
    for number, views in enumerate(epochs):
        assert same(labels.views_of(packed, number, count), views)
    assert stored(packed) <= most * count * len(epochs)


def test_fractional_boxes_are_kept_as_they_are() -> None:
    boxes = torch.rand(9, 4, generator=torch.Generator().manual_seed(0)) * 8
    view = View(boxes, torch.arange(9) % 2 == 0, torch.zeros(9, 2, dtype=torch.int64))
    views = EpochViews(view, torch.arange(9), torch.zeros(9, 4, dtype=torch.int64))
    packed = labels.pack([views], [{"x": torch.zeros(9, 0)}])
    assert same(labels.views_of(packed, 0, 9), views)
    assert packed["cutmix"].shape == (1, 1, 4)


def photometric(count: int, seed: int, **parts: bool) -> EpochViews:
    """Views of which some epochs have colours, angles or cutouts."""
    generator = torch.Generator().manual_seed(seed)
    view = replace(
        identity_view(count, 8),
        colors=torch.rand(count, 3, generator=generator) if parts.get("colors") else None,
        angles=torch.rand(count, generator=generator) * 30 if parts.get("angles") else None,
        cutouts=torch.randint(0, 9, (count, 4), generator=generator) if parts.get("cutouts") else None,
    )
    return EpochViews(view, torch.arange(count), torch.zeros(count, 4, dtype=torch.int64))


def test_photometric_parts_replay_to_the_bit_and_cost_nothing_where_there_are_none() -> None:
    plain, colors, cutouts = (
        [photometric(9, seed, **{name: True}) for seed in range(2)] for name in ("none", "colors", "cutouts")
    )
    coded = [{"x": torch.zeros(9, 0)}] * 2
    least, colored, cut = (labels.pack(epochs, coded) for epochs in (plain, colors, cutouts))
    assert stored(colored) - stored(least) == 2 * 9 * 3 * 4
    assert stored(cut) - stored(least) == 2 * 9 * 4
    for packed, epochs in ((least, plain), (colored, colors), (cut, cutouts)):
        for number, views in enumerate(epochs):
            assert same(labels.views_of(packed, number, 9), views)


def test_epochs_with_other_parts_than_the_next_replay_the_same_images() -> None:
    epochs = [photometric(9, 1, colors=True), photometric(9, 2, angles=True, cutouts=True)]
    packed = labels.pack(epochs, [{"x": torch.zeros(9, 0)}] * 2)
    images, index = torch.randn(9, 3, 8, 8), torch.arange(9)
    for number, views in enumerate(epochs):
        seen = labels.views_of(packed, number, 9).apply(images, index)
        torch.testing.assert_close(seen, views.apply(images, index), rtol=0, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20))
def test_the_least_type_holds_every_value(values: list[int]) -> None:
    wide = torch.tensor(values)
    small = labels.smallest_exact_dtype(wide)
    assert small.long().tolist() == values
    width = next(b for b in (1, 2, 4) if all(-(2 ** (8 * b - 1)) <= v < 2 ** (8 * b - 1) for v in values))
    assert small.element_size() <= width


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3).flatmap(lambda e: st.integers(1, 40).map(lambda n: (e, n))), st.integers(0, 2**32))
def test_bits_unpack_to_what_was_packed(shape: tuple[int, int], seed: int) -> None:
    flags = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = labels.to_bits(flags)
    assert packed.shape == (shape[0], -(-shape[1] // 8))
    for row, bits in zip(flags, packed, strict=True):
        assert torch.equal(labels.from_bits(bits, shape[1]), row)


def relabelled(make: MakeRun, out: str, *changes: tuple[str, Any]) -> Path:
    run = make(*changes, out=out)
    run.until("relabel")
    return run.out / "distilled"


CODECS = ["fp16", "int8", {"use": "topk", "k": 2}]


def test_every_codec_stores_the_same_views_and_its_own_logits(make_run: MakeRun, registry: Registry) -> None:
    sets = [
        relabelled(make_run, f"out{number}", ("relabel.codec", codec)) for number, codec in enumerate(CODECS)
    ]
    full = DistilledDataset(sets[0])
    for folder, name in zip(sets, CODECS, strict=True):
        found, codec = DistilledDataset(folder), registry.create(Codec, name)
        assert found.epochs == 4
        for epoch in range(4):
            assert same(found.epoch(epoch).views, full.epoch(epoch).views)
            logits = full.epoch(epoch).logits
            expected = codec.decode(codec.encode(logits), 3)
            assert torch.allclose(found.epoch(epoch).logits, expected, atol=0.05 if name == "int8" else 5e-3)


def test_labels_are_the_ensembles_on_the_replayed_views(make_run: MakeRun) -> None:
    run = make_run(("relabel.epochs_per_file", 3))
    run.until("relabel")
    modules = [pretrain.load_backbone(run.context, unit) for unit in run.backbones()]
    found = DistilledDataset(run.out / "distilled")
    for epoch in (0, 2, 3):
        for views, logits, _ in found.batches(epoch, 4):
            with torch.no_grad():
                expected = torch.stack([module(views) for module in modules]).mean(0)
            assert torch.allclose(logits, expected, atol=0.02, rtol=2e-3)


def test_pruned_labels_are_the_first_epochs_and_come_round(make_run: MakeRun) -> None:
    full = DistilledDataset(relabelled(make_run, "full"))
    few = DistilledDataset(relabelled(make_run, "few", ("relabel.keep_fraction", 0.5)))
    assert (full.epochs, few.epochs) == (4, 2)
    for epoch in range(4):
        assert same(few.epoch(epoch).views, full.epoch(epoch % 2).views)
        assert torch.equal(few.epoch(epoch).logits, full.epoch(epoch % 2).logits)
    assert 2 * few._blocks.bytes == pytest.approx(full._blocks.bytes, rel=0.1)


def test_at_least_one_epoch_is_kept(make_run: MakeRun) -> None:
    section = make_run(("relabel.keep_fraction", 0.001)).recipe.relabel
    assert relabel.kept_epochs(section) == 1


def altered(folder: Path, **changes: Any) -> Path:
    path = folder / "labels-00000.safetensors"
    artifact = read(path)
    write(path, Artifact(artifact.kind, artifact.key, artifact.tensors, {**artifact.meta, **changes}))
    return path


def test_labels_of_an_unknown_codec_or_layout_are_refused(make_run: MakeRun) -> None:
    folder = relabelled(make_run, "out")
    key = read(folder / "images.safetensors").key
    path = altered(folder, codec={"use": "zip"})
    with pytest.raises(GvbsmError, match="zip") as error:
        LabelBlocks(folder, key, 20).epoch(0)
    assert str(path) in str(error.value)
    altered(folder, codec={"use": "fp16"}, layout=99)
    with pytest.raises(GvbsmError, match="layout"):
        LabelBlocks(folder, key, 20).epoch(0)
    assert json.loads(json.dumps(read(path).meta))["layout"] == 99


def test_logits_that_are_not_finite_are_refused(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    run.until("synthesis")
    lost = torch.full((4, 3), torch.nan)
    monkeypatch.setattr(relabel, "load_teacher", lambda *_: lambda seen: lost[: len(seen)])
    with pytest.raises(GvbsmError, match=r"epoch 0 are not finite"):
        run.until("relabel")
    assert not list(run.out.rglob("labels-*"))
