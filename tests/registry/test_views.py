from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as reference

from gvbsm_registry import View, identity_view


def view(boxes, flips=None, rolls=None) -> View:
    boxes = torch.as_tensor(boxes, dtype=torch.float64)
    flips = torch.zeros(len(boxes), dtype=torch.bool) if flips is None else torch.tensor(flips)
    rolls = torch.zeros(len(boxes), 2, dtype=torch.int64) if rolls is None else torch.tensor(rolls)
    return View(boxes, flips, rolls)


def peer(image, box, flip: bool, roll) -> torch.Tensor:
    """torchvision's crop and resize, flip, and torch's roll, on one image."""
    top, left, height, width = (int(part) for part in box)
    # torchvision's own padding takes the wrong pixels for a box that misses the image altogether.
    padded, size = reference.pad(image, [30] * 4), image.shape[-2:]
    seen = reference.resized_crop(padded, top + 30, left + 30, height, width, size, antialias=False)
    return (reference.hflip(seen) if flip else seen).roll(tuple(roll), (-2, -1))


@st.composite
def cases(draw):
    height, width = draw(st.integers(1, 17)), draw(st.integers(1, 17))
    count = draw(st.integers(1, 4))
    boxes, flips, rolls = [], [], []
    for _ in range(count):
        boxes.append(
            [
                draw(st.integers(-5, height + 3)),
                draw(st.integers(-5, width + 3)),
                draw(st.integers(1, height + 6)),
                draw(st.integers(1, width + 6)),
            ]
        )
        flips.append(draw(st.booleans()))
        rolls.append([draw(st.integers(-40, 40)), draw(st.integers(-40, 40))])
    images = torch.randn(count, draw(st.integers(1, 3)), height, width, dtype=torch.float64)
    return images, boxes, flips, rolls


@settings(max_examples=150, deadline=None)
@given(cases())
def test_equal_to_torchvision(case):
    images, boxes, flips, rolls = case
    seen = view(boxes, flips, rolls).apply(images)
    assert seen.shape == images.shape
    assert seen.dtype == images.dtype
    for index, image in enumerate(images):
        torch.testing.assert_close(
            seen[index], peer(image, boxes[index], flips[index], rolls[index]), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("image_size", [32, 64, 224])
def test_float32_boxes_equal_torchvision(image_size):
    generator = torch.Generator().manual_seed(image_size)
    images = torch.randn(6, 3, image_size, image_size, generator=generator)
    sizes = torch.randint(image_size // 4, image_size + 1, (6, 2), generator=generator)
    corners = (torch.rand(6, 2, generator=generator) * (image_size - sizes + 1)).floor()
    boxes = torch.cat([corners, sizes], 1).float()
    seen = View(boxes, torch.ones(6, dtype=torch.bool), torch.full((6, 2), 5)).apply(images)
    for index, image in enumerate(images):
        expected = peer(image, boxes[index], True, (5, 5))
        torch.testing.assert_close(seen[index], expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("image_size", [1, 2, 7, 8, 14, 28, 31, 32, 64, 96, 224])
def test_whole_pixels_move_to_the_bit(image_size):
    """A crop of the image's own size only moves pixels, whatever the size, in float32 and bfloat16."""
    offset = min(4, image_size)
    boxes = torch.tensor(
        [[-offset, offset, image_size, image_size], [0, 0, image_size, image_size]], dtype=torch.float32
    )
    moved = View(boxes, torch.tensor([True, False]), torch.tensor([[3, -2], [0, 0]]))
    for dtype in (torch.float32, torch.bfloat16):
        images = torch.randn(2, 1, image_size, image_size).to(dtype)
        padded = reference.pad(images[0], [offset] * 4)
        expected = reference.hflip(reference.crop(padded, 0, 2 * offset, image_size, image_size)).roll(
            (3, -2), (1, 2)
        )
        seen = moved.apply(images)
        assert torch.equal(seen[0], expected)
        assert torch.equal(seen[1], images[1])
        assert torch.equal(identity_view(2, image_size).apply(images), images)


def test_what_lies_outside_is_zero():
    images = torch.ones(2, 1, 6, 6)
    outside = view([[6, 0, 6, 6], [-20, -20, 9, 9]]).apply(images)
    assert (outside == 0).all()


@settings(max_examples=15, deadline=None)
@given(cases())
def test_gradient_is_that_of_torchvision(case):
    images, boxes, flips, rolls = case
    weights = torch.randn_like(images)
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    (view(boxes, flips, rolls).apply(ours) * weights).sum().backward()
    seen = torch.stack([peer(*each) for each in zip(theirs, boxes, flips, rolls, strict=True)])
    (seen * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


def test_gradient_equals_finite_differences():
    images = torch.randn(2, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    some = view([[1, -2, 3, 6], [0, 1, 5, 4]], [True, False], [[1, -3], [0, 2]])
    assert torch.autograd.gradcheck(some.apply, images)


def test_autocast_does_not_blur_views():
    """A view that is replayed must be the one that was labelled, under whatever precision."""
    images = torch.randn(3, 1, 8, 8)
    some = view([[1, 2, 5, 4], [0, 0, 8, 8], [-2, 3, 8, 8]]).apply
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = some(images)
    assert seen.dtype == torch.float32
    assert torch.equal(seen, some(images))


def test_a_view_is_of_each_image_alone():
    images = torch.randn(4, 1, 6, 6)
    views = view([[0, 0, 6, 6], [1, 1, 3, 4], [2, 0, 4, 4], [-1, 2, 6, 6]], [0, 1, 0, 1], [[0, 1]] * 4)
    views = View(views.boxes, views.flips.bool(), views.rolls)
    index = torch.tensor([3, 0, 1])
    torch.testing.assert_close(views.select(index).apply(images[index]), views.apply(images)[index])
    images[2] = torch.inf
    assert views.apply(images)[[0, 1, 3]].isfinite().all()
    assert len(views) == 4


def random_view(count: int, image_size: int, seed: int = 0) -> View:
    """A view with every part there is."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    corners, sizes = uniform(-2, 3, count, 2).round(), uniform(2, image_size, count, 2).round()
    low, extent = uniform(0, image_size - 1, count, 2).long(), uniform(0, image_size, count, 2).long()
    return View(
        torch.cat([corners, sizes], 1),
        uniform(0, 1, count) < 0.5,
        uniform(-3, 4, count, 2).long(),
        torch.stack([uniform(-0.5, 0.5, count), uniform(0, 2, count), uniform(0.5, 1.5, count)], 1),
        uniform(-180, 180, count),
        torch.cat([low, (low + extent).clamp(max=image_size)], 1),
    )


def plainly(image, brightness, saturation, contrast):
    """DSA's three colour operations on one image, one after another."""
    image = image + brightness
    grey = image.mean(0, keepdim=True)
    image = (image - grey) * saturation + grey
    mean = image.mean()
    return (image - mean) * contrast + mean


@pytest.mark.parametrize(("channels", "image_size"), [(3, 8), (1, 9), (3, 15)])
def test_all_parts_equal_one_operation_after_another(channels, image_size):
    images = torch.randn(6, channels, image_size, image_size, dtype=torch.float64)
    some = random_view(6, image_size)
    weights = torch.randn_like(images)
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    seen, expected = some.apply(ours), []
    for index, image in enumerate(theirs):
        colored = plainly(image, *some.colors[index])
        moved = peer(colored, some.boxes[index], bool(some.flips[index]), some.rolls[index].tolist())
        bilinear = reference.InterpolationMode.BILINEAR
        turned = reference.rotate(moved, float(some.angles[index]), bilinear)
        top, left, bottom, right = some.cutouts[index].tolist()
        kept = torch.ones_like(turned)
        kept[:, top:bottom, left:right] = 0
        expected.append(turned * kept)
    # torchvision's rotation is in single precision.
    torch.testing.assert_close(seen, torch.stack(expected), rtol=0, atol=2e-5)
    (seen * weights).sum().backward()
    (torch.stack(expected) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=2e-5)


def test_gradients_of_all_parts_equal_finite_differences():
    images = torch.randn(3, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(random_view(3, 5).apply, images)


def test_turns_of_images_that_are_not_square_keep_shapes():
    """By 180 degrees any image is turned to the bit, but for rounding; by 90 a square part of it."""
    images = torch.randn(2, 1, 6, 10, dtype=torch.float64)
    plain = view([[0, 0, 6, 10]] * 2)
    half = View(plain.boxes, plain.flips, plain.rolls, angles=torch.tensor([180.0, 90.0]))
    seen = half.apply(images)
    torch.testing.assert_close(seen[0], images[0].flip(1, 2))
    torch.testing.assert_close(seen[1, :, :, 2:8], images[1, :, :, 2:8].rot90(1, (1, 2)))
    assert (seen[1, :, :, :2] == 0).all()


def test_neutral_parts_change_nothing():
    images = torch.randn(4, 3, 7, 7)
    plain, other = identity_view(4, 7), random_view(2, 7)
    joined = View.join([identity_view(2, 7), other, identity_view(2, 7)])
    assert len(joined) == 6
    neutral = joined.select(torch.tensor([0, 1, 4, 5]))
    torch.testing.assert_close(neutral.apply(images), plain.apply(images), rtol=0, atol=1e-5)
    assert View.join([plain, plain]).colors is None
    assert torch.equal(View.join([plain]).boxes, plain.boxes)


def test_joined_views_are_those_joined():
    images = torch.randn(7, 3, 6, 6, dtype=torch.float64)
    views = [random_view(3, 6, 1), identity_view(2, 6), random_view(2, 6, 2)]
    together = View.join(views).apply(images)
    apart = [each.apply(part) for each, part in zip(views, images.split([3, 2, 2]), strict=True)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1e-12)
    index = torch.tensor([6, 0, 4])
    torch.testing.assert_close(View.join(views).select(index).apply(images[index]), together[index])
