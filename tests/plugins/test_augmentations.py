from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torchvision.transforms import RandomCrop, RandomResizedCrop
from torchvision.transforms import functional as reference

from gvbsm_plugins.augmentations import CropFlipRoll, ResizedCrop, WholeImage
from gvbsm_registry import Augmentation, View, identity_view


def draw(augmentation: Augmentation, count: int, image_size: int, seed: int = 0) -> View:
    view = augmentation.draw(count, image_size, torch.Generator().manual_seed(seed))
    assert len(view) == count
    assert view.boxes.shape == (count, 4)
    assert view.boxes.is_floating_point()
    assert view.flips.shape == (count,)
    assert view.flips.dtype == torch.bool
    assert view.rolls.shape == (count, 2)
    assert view.rolls.dtype == torch.int64
    return view


ALL = [
    WholeImage(),
    CropFlipRoll(roll=3),
    CropFlipRoll(padding=0, per_image=True, roll=2),
    ResizedCrop(roll=1),
]


@pytest.mark.parametrize("augmentation", ALL)
def test_same_generator_same_views(augmentation):
    state = torch.random.get_rng_state()
    one, two, other = (draw(augmentation, 40, 9, seed) for seed in (1, 1, 2))
    for part in ("boxes", "flips", "rolls"):
        assert torch.equal(getattr(one, part), getattr(two, part))
    if not isinstance(augmentation, WholeImage):
        assert not torch.equal(one.flips, other.flips)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert draw(augmentation, 0, 9).apply(torch.zeros(0, 1, 9, 9)).shape == (0, 1, 9, 9)


def test_none_changes_nothing():
    torch.manual_seed(0)
    images = torch.randn(3, 2, 7, 7)
    assert torch.equal(draw(WholeImage(), 3, 7).apply(images), images)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 33), st.integers(0, 5), st.integers(0, 40), st.booleans(), st.integers(0, 999))
def test_crop_flip_roll_is_pad_crop_flip_roll(image_size, padding, roll, per_image, seed):
    view = draw(CropFlipRoll(padding=padding, roll=roll, per_image=per_image), 6, image_size, seed)
    assert (view.boxes[:, 2:] == image_size).all()
    assert (view.boxes[:, :2].abs() <= padding).all()
    assert (view.rolls.abs() <= roll).all()
    if not per_image:
        assert (view.rolls == view.rolls[0]).all()
    images = torch.randn(6, 3, image_size, image_size, generator=torch.Generator().manual_seed(seed))
    for index, seen in enumerate(view.apply(images)):
        top, left = (int(offset) + padding for offset in view.boxes[index, :2])
        expected = reference.crop(
            reference.pad(images[index], [padding] * 4), top, left, image_size, image_size
        )
        expected = reference.hflip(expected) if view.flips[index] else expected
        assert torch.equal(seen, expected.roll(view.rolls[index].tolist(), (1, 2)))


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def test_crop_offsets_flips_and_rolls_are_uniform():
    view = draw(CropFlipRoll(padding=2, roll=3, flip=0.3, per_image=True), 20000, 8)
    cells = (view.boxes[:, 0] + 2) * 5 + view.boxes[:, 1] + 2
    assert chi_square(np.bincount(cells.long().numpy(), minlength=25)) < 51.2  # 24 degrees, p = 0.001
    rolls = (view.rolls[:, 0] + 3) * 7 + view.rolls[:, 1] + 3
    assert chi_square(np.bincount(rolls.numpy(), minlength=49)) < 84.0  # 48 degrees, p = 0.001
    assert view.flips.float().mean().item() == pytest.approx(0.3, abs=0.015)
    assert not draw(CropFlipRoll(flip=0), 100, 8).flips.any()
    assert draw(CropFlipRoll(flip=1), 100, 8).flips.all()
    torch.manual_seed(0)
    padded = torch.zeros(1, 12, 12)
    drawn = {RandomCrop.get_params(padded, (8, 8))[:2] for _ in range(2000)}
    assert {(int(t) + 2, int(left) + 2) for t, left in view.boxes[:, :2].tolist()} == drawn


def distance(one: np.ndarray, two: np.ndarray) -> float:
    """The two-sample Kolmogorov–Smirnov statistic."""
    values = np.union1d(one, two)
    ranks = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (one, two)]
    return float(np.abs(ranks[0] - ranks[1]).max())


@pytest.mark.parametrize(
    ("image_size", "scale", "ratio"),
    [(32, (0.08, 1.0), (3 / 4, 4 / 3)), (8, (0.5, 1.0), (3 / 4, 4 / 3)), (20, (0.3, 1.0), (0.4, 1.1))],
)
def test_resized_crop_is_distributed_like_torchvision(image_size, scale, ratio):
    torch.manual_seed(0)
    image, count = torch.zeros(1, image_size, image_size), 6000
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])
    ours = draw(ResizedCrop(scale=scale, ratio=ratio), count, image_size, 1).boxes.double().numpy()
    assert np.array_equal(ours, ours.round())
    assert (ours >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= image_size).all()
    views = {
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "height": lambda box: box[:, 2],
        "width": lambda box: box[:, 3],
        "area": lambda box: box[:, 2] * box[:, 3],
        "shape": lambda box: box[:, 3] / box[:, 2],
        "bottom": lambda box: box[:, 0] + box[:, 2],
        "diagonal": lambda box: box[:, 0] - box[:, 1],
    }
    for name, view in views.items():
        assert distance(view(theirs), view(ours)) < 1.95 * math.sqrt(2 / count), name  # p = 0.001


@pytest.mark.parametrize(
    ("image_size", "ratio"), [(9, (1.5, 2.0)), (10, (0.3, 0.6)), (2, (5.0, 6.0)), (1, (3.0, 3.0))]
)
def test_resized_crop_falls_back_to_torchvisions_centre(image_size, ratio):
    """The whole area in another shape never fits, so every box is the fallback."""
    ours = draw(ResizedCrop(scale=(1, 1), ratio=ratio), 5, image_size).boxes
    if image_size > 2:
        theirs = RandomResizedCrop.get_params(torch.zeros(1, image_size, image_size), [1.0, 1.0], list(ratio))
        assert ours.tolist() == [list(map(float, theirs))] * 5
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= image_size).all()


def test_resized_crop_of_the_whole_is_the_whole():
    view = draw(ResizedCrop(scale=(1, 1), ratio=(1, 1), flip=0), 4, 7)
    assert torch.equal(view.boxes, identity_view(4, 7).boxes)


def cda_smallest_crop(step: int, steps: int, milestone: float) -> float:
    """CDA's lower bound of the area at a step, written as its authors do."""
    if step < steps * milestone:
        return 0.08 + (1 - 0.08) * (1 + math.cos(math.pi * step / (steps * milestone))) / 2
    return 0.08


@pytest.mark.parametrize("milestone", [1.0, 0.5])
def test_curriculum_follows_cdas_curve(milestone):
    """At one shape of box the area is uniform between the curve and 1."""
    augmentation = ResizedCrop(curriculum=milestone, ratio=(1, 1))
    for step in range(0, 101, 10):
        generator = torch.Generator().manual_seed(step)
        boxes = augmentation.draw(2000, 1000, generator, progress=step / 100).boxes.double()
        low = cda_smallest_crop(step, 100, milestone)
        uniform = low + (1 - low) * np.linspace(0, 1, 2001)
        area = (boxes[:, 2] * boxes[:, 3] / 1e6).numpy()
        assert area.min() == pytest.approx(low, abs=0.01)
        assert np.abs(np.sort(area) - uniform[1:]).max() < 0.05
    assert torch.equal(draw(augmentation, 9, 20).boxes, draw(ResizedCrop(ratio=(1, 1)), 9, 20).boxes)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (0, 1)},
        {"curriculum": 1.5},
        {"curriculum": -0.1},
        {"scale": (0.5, 0.2)},
        {"scale": (0.5, 1.2)},
        {"ratio": (2, 1)},
        {"flip": 2},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(ValidationError):
        ResizedCrop(**options)


def test_tables_make_the_same_augmentation():
    augmentation = ResizedCrop(scale=(0.2, 0.9), roll=4)
    table = augmentation.to_recipe()
    assert table.pop("use") == "resized_crop"
    assert ResizedCrop.model_validate(table) == augmentation
