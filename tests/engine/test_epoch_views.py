"""An epoch's views against torchvision, one image at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import functional as reference

from gvbsm.distilled import normalized
from gvbsm.distilled import views as views_module
from gvbsm.distilled.views import EpochViews, draw
from gvbsm_registry import Augmentation


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def single(image: Tensor, box: Tensor, flip: Tensor, roll: Tensor) -> Tensor:
    """One view by torchvision: crop (what lies outside is 0), resize, flip; then roll."""
    top, left, height, width = (int(part) for part in box)
    padded = reference.pad(image, [20] * 4)
    seen = reference.resized_crop(
        padded, top + 20, left + 20, height, width, list(image.shape[-2:]), antialias=False
    )
    return (reference.hflip(seen) if bool(flip) else seen).roll(roll.tolist(), (-2, -1))


def by_image(views: EpochViews, images: Tensor) -> Tensor:
    """All views with CutMix, one image and one paste at a time."""
    geometry = (views.view.boxes, views.view.flips, views.view.rolls)
    plain = [single(image, *parts) for image, *parts in zip(images, *geometry, strict=True)]
    mixed = []
    for own, partner, box in zip(plain, views.partners, views.boxes, strict=True):
        top, left, bottom, right = box.tolist()
        mixed.append(own.clone())
        mixed[-1][:, top:bottom, left:right] = plain[int(partner)][:, top:bottom, left:right]
    return torch.stack(mixed)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["none", "crop_flip_roll", "resized_crop"]),
    count=st.integers(1, 9),
    size=st.integers(1, 9),
    image_size=st.integers(2, 15),
    channels=st.sampled_from([1, 3]),
    cutmix=st.sampled_from([0.0, 0.5, 1.0]),
    alpha=st.sampled_from([0.3, 1.0, 2.0]),
    seed=st.integers(0, 10**6),
)
def test_views_equal_torchvisions(registry, name, count, size, image_size, channels, cutmix, alpha, seed):
    augmentation = registry.create(Augmentation, {"use": name, **({} if name == "none" else {"roll": 3})})
    groups = torch.randperm(count, generator=generator(seed)).split(size)
    views = draw(augmentation, groups, image_size, cutmix, alpha, generator(seed))
    images = randn(count, channels, image_size, image_size, seed=seed)
    expected = by_image(views, images)
    # Boxes, and so the places between pixels, are in single precision.
    torch.testing.assert_close(views.apply(images, torch.arange(count)), expected, rtol=0, atol=2e-5)
    order = torch.randperm(count, generator=generator(seed + 1))
    for index in order.split(2):
        torch.testing.assert_close(views.apply(images, index), expected[index], rtol=0, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 8), image_size=st.integers(2, 12), seed=st.integers(0, 10**6))
def test_truth_mixes_by_area(registry, count, image_size, seed):
    views = draw(
        registry.create(Augmentation, "none"), (torch.arange(count),), image_size, 1.0, 1.0, generator(seed)
    )
    labels = torch.randint(3, (count,), generator=generator(seed))
    truth = views.truth(labels, torch.arange(count), 3, image_size)
    for index in range(count):
        expected = torch.zeros(3)
        for row in range(image_size):
            for column in range(image_size):
                top, left, bottom, right = views.boxes[index].tolist()
                pasted = top <= row < bottom and left <= column < right
                expected[labels[views.partners[index] if pasted else index]] += 1 / image_size**2
        torch.testing.assert_close(truth[index], expected, rtol=0, atol=1e-5)


def test_stored_views_come_back_equal(registry):
    augmentation = registry.create(Augmentation, {"use": "resized_crop", "roll": 5})
    epochs = [draw(augmentation, (torch.arange(6),), 9, 1.0, 1.0, generator(seed)) for seed in range(3)]
    stored = {name: torch.stack([e.tensors()[name] for e in epochs]) for name in epochs[0].tensors()}
    assert {name: part.dtype for name, part in stored.items()} == {
        "crop": torch.float32,
        "flip": torch.bool,
        "roll": torch.int32,
        "partner": torch.int32,
        "cutmix": torch.int32,
    }
    images = randn(6, 1, 9, 9)
    for number, views in enumerate(epochs):
        back = EpochViews.from_tensors(stored, number)
        assert torch.equal(back.apply(images, torch.arange(6)), views.apply(images, torch.arange(6)))


def test_mixing_stays_within_groups_and_pairs_by_a_permutation(registry):
    groups = torch.randperm(20, generator=generator(0)).split(7)
    views = draw(registry.create(Augmentation, "none"), groups, 16, 1.0, 1.0, generator(1))
    for group in groups:
        assert sorted(views.partners[group].tolist()) == sorted(group.tolist())
        assert (views.boxes[group] == views.boxes[group[0]]).all()
    assert len(views.boxes.unique(dim=0)) > 1


def test_without_mixing_every_view_is_its_own(registry):
    augmentation = registry.create(Augmentation, "resized_crop")
    mixed = draw(augmentation, (torch.arange(5),), 8, 1.0, 1.0, generator(3))
    never = draw(augmentation, (torch.arange(5),), 8, 0.0, 1.0, generator(3))
    images, all_ = randn(5, 1, 8, 8), torch.arange(5)
    alone = never.apply(images, all_)
    assert torch.equal(alone, mixed.without_mixing().apply(images, all_))
    assert torch.equal(alone, never.view.apply(images))
    assert not torch.equal(alone, mixed.apply(images, all_))


@pytest.mark.parametrize("kept", [0.0, 0.25, 0.6, 0.99])
def test_a_box_has_the_area_that_is_not_kept_unless_the_border_cuts_it(registry, monkeypatch, kept):
    image_size, groups = 1000, torch.arange(500).split(1)
    monkeypatch.setattr(views_module, "_beta", lambda alpha, generator: kept)
    views = draw(registry.create(Augmentation, "none"), groups, image_size, 1.0, 1.0, generator(7))
    top, left, bottom, right = views.boxes.unbind(1)
    assert ((top >= 0) & (left >= 0) & (bottom <= image_size) & (right <= image_size)).all()
    within = (top > 0) & (left > 0) & (bottom < image_size) & (right < image_size)
    areas = (bottom - top) * (right - left) / image_size**2
    assert (areas <= 1 - kept + 1e-9).all()
    assert (areas[within] >= 1 - kept - 0.004).all()
    assert bool(within.any()) == (kept > 0)
    centres = (top + bottom)[within].double() / 2 / image_size
    assert kept < 0.9 or (
        float(centres.mean()) == pytest.approx(0.5, abs=0.05) and float(centres.max()) > 0.9
    )


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_groups_are_mixed_with_the_chance_given(registry, chance):
    views = draw(
        registry.create(Augmentation, "none"), torch.arange(3000).split(1), 64, chance, 0.5, generator(7)
    )
    mixed = float(views.boxes.any(1).float().mean())  # of λ near 1 the box is empty
    assert chance * 0.9 - 0.03 < mixed < chance + 0.03


@pytest.mark.parametrize(("alpha", "variance"), [(1.0, 1 / 12), (0.5, 1 / 8), (4.0, 1 / 36)])
def test_shares_are_drawn_from_beta(alpha, variance):
    source = generator(3)
    drawn = torch.tensor([views_module._beta(alpha, source) for _ in range(4000)])
    assert bool(((drawn >= 0) & (drawn <= 1)).all())
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(drawn.var()) == pytest.approx(variance, rel=0.1)


def test_a_set_too_large_for_floats_is_normalised_as_it_is_read(registry, monkeypatch):
    monkeypatch.setattr(normalized, "AT_ONCE", 100)
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator(0))
    asked = []

    class Counting(normalized.Normalization):
        def normalize(self, images, device="cpu"):
            asked.append(len(images))
            return super().normalize(images, device)

    lazily = normalized.LazyNormalizedImages(images, Counting((0.5,) * 3, (1.0,) * 3))
    assert asked == []
    index = torch.tensor([5, 0, 2])
    assert torch.equal(lazily[index], images[index].float() / 255 - 0.5)
    augmentation = registry.create(Augmentation, "resized_crop")
    views = draw(augmentation, (torch.arange(6),), 8, 1.0, 1.0, generator(1))
    whole = views.apply(images.float() / 255 - 0.5, index)
    assert torch.equal(views.apply(lazily, index), whole)
    assert max(asked) == 3
