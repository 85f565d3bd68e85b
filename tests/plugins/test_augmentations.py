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

from gvbsm_plugins.augmentations import CropFlipRoll, Dsa, RandAugment, ResizedCrop, WholeImage
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
    Dsa(),
    Dsa(mode="all", per_image=False),
    RandAugment(),
]


@pytest.mark.parametrize("augmentation", ALL)
def test_same_generator_same_views(augmentation):
    state = torch.random.get_rng_state()
    one, two, other = (draw(augmentation, 40, 9, seed) for seed in (1, 1, 2))
    for part in ("boxes", "flips", "rolls", "colors", "angles", "cutouts"):
        first, second = getattr(one, part), getattr(two, part)
        assert first is second if first is None else torch.equal(first, second)
    images = torch.randn(40, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one.apply(images), two.apply(images))
    if not isinstance(augmentation, WholeImage):
        assert not torch.equal(one.apply(images), other.apply(images))
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


STRATEGY = "color_crop_cutout_flip_scale_rotate"


def dsa_parameters(operation: str, count: int, image_size: int) -> dict[str, np.ndarray]:
    """What DSA draws for images one by one, with its default settings, written again."""
    rng = np.random.default_rng(0)
    match operation:
        case "color":
            drawn = {"brightness": rng.random(count) - 0.5, "saturation": 2 * rng.random(count)}
            return {**drawn, "contrast": rng.random(count) + 0.5}
        case "crop":
            most = int(image_size * 0.125 + 0.5)
            return {"down": rng.integers(-most, most + 1, count)}
        case "cutout":
            side = int(image_size * 0.5 + 0.5)
            centre = rng.integers(0, image_size + (1 - side % 2), count)
            rows = np.clip(centre[:, None] - side // 2 + np.arange(side), 0, image_size - 1)
            return {"top": rows.min(1), "bottom": rows.max(1) + 1}
        case "scale":
            return {"height": np.round(image_size * (1 / 1.2 + rng.random(count) * (1.2 - 1 / 1.2)))}
        case "rotate":
            return {"angle": (rng.random(count) - 0.5) * 2 * 15}
    raise AssertionError(operation)


def parameters(view: View) -> dict[str, np.ndarray]:
    """The same of a view with every part."""
    columns = {"angle": view.angles, "down": view.boxes[:, 0], "height": view.boxes[:, 2]}
    columns |= dict(zip(("brightness", "saturation", "contrast"), view.colors.unbind(1), strict=True))
    columns |= {"top": view.cutouts[:, 0], "bottom": view.cutouts[:, 2]}
    return {name: column.double().numpy() for name, column in columns.items()}


@pytest.mark.parametrize("image_size", [32, 9])
@pytest.mark.parametrize("operation", ["color", "crop", "cutout", "scale", "rotate"])
def test_dsas_parameters_are_distributed_as_its_authors_draw_them(operation, image_size):
    count = 6000
    # without scale, which moves the box too
    strategy = STRATEGY if operation == "scale" else STRATEGY.replace("_scale", "")
    ours = parameters(draw(Dsa(strategy=strategy, mode="all"), count, image_size))
    for name, theirs in dsa_parameters(operation, count, image_size).items():
        assert distance(theirs, ours[name]) < 1.95 * math.sqrt(2 / count), name  # p = 0.001


def dsa_on_one_image(view: View, image: torch.Tensor) -> torch.Tensor:
    """DSA's operations on one image, with its own formulas, in a view's order."""
    brightness, saturation, contrast = view.colors[0].double()
    image = image + brightness
    grey = image.mean(0, keepdim=True)
    image = (image - grey) * saturation + grey
    image = (image - image.mean()) * contrast + image.mean()
    top, left = (int(part) for part in view.boxes[0, :2])
    size = image.shape[-1]
    padded = torch.nn.functional.pad(image, (size,) * 4)
    image = padded[:, top + size : top + 2 * size, left + size : left + 2 * size]
    image = image.flip(2) if bool(view.flips[0]) else image
    angle = view.angles[0].double() * math.pi / 180
    cos, sin = float(angle.cos()), float(angle.sin())
    theta = torch.tensor([[[cos, -sin, 0], [sin, cos, 0]]], dtype=torch.float64)
    grid = torch.nn.functional.affine_grid(theta, [1, *image.shape], align_corners=False)
    image = torch.nn.functional.grid_sample(image[None], grid, align_corners=False)[0]
    mask = torch.ones_like(image)
    cut_top, cut_left, cut_bottom, cut_right = view.cutouts[0].tolist()
    mask[:, cut_top:cut_bottom, cut_left:cut_right] = 0
    return image * mask


def test_dsa_of_an_image_is_its_operations_one_after_another():
    images = torch.randn(8, 3, 12, 12, dtype=torch.float64)
    view = draw(Dsa(strategy="color_crop_cutout_flip_rotate", mode="all"), 8, 12)
    seen = view.apply(images)
    for index in range(8):
        expected = dsa_on_one_image(view.select(torch.tensor([index])), images[index])
        torch.testing.assert_close(seen[index], expected, rtol=0, atol=1e-6)  # parts are in single precision


def test_dsas_scale_is_its_sampling_but_for_the_border_and_whole_pixels():
    images = torch.randn(60, 1, 20, 20, dtype=torch.float64)
    view = draw(Dsa(strategy="scale", mode="all"), 60, 20)
    assert 17 <= view.boxes[:, 2:].min() < 19
    assert 22 < view.boxes[:, 2:].max() <= 24
    even = (view.boxes[:, 2:] % 2 == 0).all(1)
    assert even.sum() > 5
    factors = view.boxes[:, 2:].double() / 20
    theta = torch.zeros(60, 2, 3, dtype=torch.float64)
    theta[:, 0, 0], theta[:, 1, 1] = factors[:, 1], factors[:, 0]
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    expected = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    seen = view.apply(images)[even][..., 2:-2, 2:-2]
    torch.testing.assert_close(seen, expected[even][..., 2:-2, 2:-2], rtol=0, atol=1e-5)


def test_dsa_applies_one_operation_at_random_or_all():
    count = 3000
    view = draw(Dsa(strategy="color_crop_cutout_rotate"), count, 16)
    used = [
        (view.colors != torch.tensor([0.0, 1.0, 1.0])).any(1),
        (view.boxes[:, :2] != 0).any(1),
        view.cutouts.any(1),
        view.angles != 0,
    ]
    assert int(torch.stack(used).int().sum(0).max()) == 1
    shares = [float(each.double().mean()) for each in used]
    assert shares == pytest.approx([0.25, 0.25 * 24 / 25, 0.25, 0.25], abs=0.03)
    everything = draw(Dsa(mode="all"), count, 16)
    assert bool((everything.colors[:, 1] != 1).all())
    assert bool(everything.cutouts.any(1).all())
    geometric = draw(Dsa(strategy="crop_flip"), 4, 16)
    assert (geometric.colors, geometric.angles, geometric.cutouts) == (None, None, None)


def test_a_siamese_view_is_one_for_the_batch():
    for mode in ("one", "all"):
        view = draw(Dsa(mode=mode, per_image=False), 5, 16, seed=3)
        image = torch.randn(1, 3, 16, 16).expand(5, 3, 16, 16)
        seen = view.apply(image)
        torch.testing.assert_close(seen, seen[:1].expand_as(seen))


def test_rand_augment_changes_images_by_its_operations_and_magnitude():
    count, strength = 4000, 0.6
    view = draw(RandAugment(num_ops=1, magnitude=6, flip=0), count, 20)
    brightness, saturation, contrast = view.colors.unbind(1)
    parts = {
        "brightness": (brightness, {-0.9 * strength, 0.0, 0.9 * strength}),
        "saturation": (saturation, {1 - 0.9 * strength, 1.0, 1 + 0.9 * strength}),
        "contrast": (contrast, {1 - 0.9 * strength, 1.0, 1 + 0.9 * strength}),
        "rotate": (view.angles, {-30 * strength, 0.0, 30 * strength}),
        "down": (view.boxes[:, 0], {-5.0, 0.0, 5.0}),  # 0.45 · 20 · 0.6 = 5.4
        "across": (view.boxes[:, 1], {-5.0, 0.0, 5.0}),
    }
    changed = []
    for name, (values, expected) in parts.items():
        found, counts = values.double().round(decimals=4).unique(return_counts=True)
        assert found.tolist() == pytest.approx(sorted(expected), abs=1e-3), name
        assert float(counts[0]) / count == pytest.approx(1 / 16, abs=0.02), name
        changed.append((values - sorted(expected)[1]).abs() > 1e-3)
    cut = view.cutouts
    assert int((cut[:, 2:] - cut[:, :2]).max()) == 6  # 20 · 0.5 · 0.6
    changed.append(cut.any(1))
    assert int(torch.stack(changed).int().sum(0).max()) == 1
    assert float(torch.stack(changed).any(0).double().mean()) == pytest.approx(7 / 8, abs=0.02)


def test_rand_augments_operations_add_up():
    view = draw(RandAugment(num_ops=2, magnitude=10), 2000, 20)
    assert float(view.angles.abs().max()) == pytest.approx(60)
    assert float(view.colors[:, 1].max()) == pytest.approx(1.9**2, rel=1e-4)
    still = draw(RandAugment(num_ops=0, flip=0), 4, 7)
    images = torch.randn(4, 3, 7, 7)
    torch.testing.assert_close(still.apply(images), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("augmentation", [Dsa(mode="all"), RandAugment(num_ops=4)], ids=lambda a: a.name)
def test_gradients_through_photometric_views(augmentation):
    images = torch.randn(3, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(draw(augmentation, 3, 5).apply, images)


@pytest.mark.parametrize("strategy", ["color_color", "colour", "", "color,crop"])
def test_dsas_strategy_names_its_operations(strategy):
    with pytest.raises(ValidationError, match="joined by _"):
        Dsa(strategy=strategy)
