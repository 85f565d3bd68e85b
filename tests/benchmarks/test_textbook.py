"""The textbook step against transcriptions of the equations written differently, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.textbook import (
    MATCHERS,
    TextbookStep,
    channel_moments,
    densification,
    measure,
    patch_moments,
)

LABELS = torch.tensor([0, 0, 1, 1, 1, 2])


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.SiLU(),
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.get_buffer("running_mean"))
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    return model.eval().requires_grad_(False)


def _images(seed: int, image_size: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 2, image_size, image_size, generator=generator, dtype=torch.float64)


def _inputs(model: nn.Module, images: Tensor, kind: type[nn.Module]) -> dict[str, Tensor]:
    """What each module of a kind sees, by walking through the Sequential by hand."""
    seen = {}
    for name, module in model.named_children():
        if isinstance(module, kind):
            seen[name] = images
        images = module(images)
    return seen


def _norms(matcher: str, x: Tensor) -> list[Tensor]:
    """The statistics by sums of powers, pixel by pixel for patches: nothing shared with the textbook."""
    if matcher != "conv_patch":
        count = x.numel() / x.shape[1]
        mean = torch.einsum("bchw->c", x) / count
        return [mean, torch.einsum("bchw,bchw->c", x, x) / count - mean**2]
    down, across = math.ceil(x.shape[2] / 4), math.ceil(x.shape[3] / 4)
    sums = torch.zeros(3, down, across, dtype=x.dtype)
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            pixel = x[:, :, row, column]
            powers = torch.stack([pixel.new_tensor(pixel.numel()), pixel.sum(), pixel.square().sum()])
            place = torch.zeros(down, across, dtype=x.dtype)
            place[row // 4, column // 4] = 1
            sums = sums + powers[:, None, None] * place
    mean = sums[1] / sums[0]
    return [mean, sums[2] / sums[0] - mean**2]


def _step(model: nn.Module, **options: object) -> TextbookStep:
    targets = measure(model, [_images(1), _images(2)])
    return TextbookStep(model, targets=targets, **options)  # type: ignore[arg-type]


def _numeric(function: Callable[[Tensor], Tensor], images: Tensor, places: list[int]) -> Tensor:
    slopes = []
    for place in places:
        nudge = torch.zeros_like(images)
        nudge.view(-1)[place] = 1e-5
        slopes.append((function(images + nudge) - function(images - nudge)) / 2e-5)
    return torch.stack(slopes)


@pytest.mark.parametrize("shape", [(6, 2, 8, 8), (3, 1, 7, 7), (2, 3, 14, 10), (1, 1, 1, 1), (2, 2, 3, 9)])
def test_moments_equal_sums_of_powers(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    for matcher, got in (("bn", channel_moments(x)), ("conv_patch", patch_moments(x, 4))):
        mean, var = _norms(matcher, x)
        torch.testing.assert_close(got["mean"], mean)
        torch.testing.assert_close(got["var"], var)


def test_momentum_zero_is_equation_1() -> None:
    model, images = _model(), _images(3)
    step = _step(model, momentum=0.0, weight=0.01, first_site_weight=10.0)
    _, terms = step.loss(images, LABELS)
    for matcher in MATCHERS:
        kind = nn.BatchNorm2d if matcher == "bn" else nn.Conv2d
        expected = 0.0
        for index, (site, x) in enumerate(_inputs(model, images, kind).items()):
            wanted = step.targets[matcher][site]
            for value, target in zip(_norms(matcher, x), (wanted["mean"], wanted["var"]), strict=True):
                expected += (10 if index == 0 else 1) * 0.01 * float((value - target).square().sum()) ** 0.5
        assert terms[matcher].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("start", ["zero", "first"])
def test_value_is_the_distance_of_the_running_average(start: str) -> None:
    model = _model()
    step = _step(model, momentum=0.8, start=start, first_site_weight=1.0, weight=1.0, dd_weight=0.0)
    batches = [_images(seed) for seed in (3, 4, 5)]
    for images in batches:
        total, terms = step.loss(images, LABELS)
    for matcher in MATCHERS:
        kind = nn.BatchNorm2d if matcher == "bn" else nn.Conv2d
        seen = [_inputs(model, images, kind) for images in batches]
        expected = 0.0
        for site in seen[0]:
            series = [_norms(matcher, inputs[site]) for inputs in seen]
            for place, name in enumerate(("mean", "var")):
                a, b, c = (statistics[place] for statistics in series)
                first = a if start == "first" else 0.2 * a
                average = 0.64 * first + 0.16 * b + 0.2 * c
                expected += float((average - step.targets[matcher][site][name]).norm())
        assert terms[matcher].item() == pytest.approx(expected, rel=1e-10)
    assert total.item() == pytest.approx(sum(term.item() for term in terms.values()))
    assert "dd" not in terms


def test_gradient_without_averages_is_that_of_finite_differences() -> None:
    model = _model()
    step = _step(model, momentum=0.0, dd_weight=0.0)
    images = _images(3).requires_grad_()
    (gradient,) = torch.autograd.grad(step.loss(images, LABELS)[0], images)
    places = [0, 13, 200, 411, 587]
    numeric = _numeric(lambda x: step.loss(x, LABELS)[0], images.detach(), places)
    torch.testing.assert_close(gradient.view(-1)[places], numeric, rtol=1e-6, atol=1e-8)


def test_gradient_with_averages_goes_through_the_batch_alone() -> None:
    """Direction (average - target) / its norm, path through the batch's statistics, for one norm."""
    model = _model()
    options = {"bn": False, "conv_patch": False, "momentum": 0.8, "first_site_weight": 1.0, "weight": 1.0}
    step = _step(model, dd_weight=0.0, **options)
    step.loss(_images(4), LABELS)
    before = {key: value.clone() for key, value in step.averages.items()}
    images = _images(5).requires_grad_()
    (gradient,) = torch.autograd.grad(step.loss(images, LABELS)[1]["conv_channel"], images)

    def linear(x: Tensor) -> Tensor:
        total = x.new_zeros(())
        for site, seen in _inputs(model, x, nn.Conv2d).items():
            constant = _inputs(model, images.detach(), nn.Conv2d)[site]
            pairs = zip(_norms("conv_channel", seen), _norms("conv_channel", constant), strict=True)
            for name, (value, fixed) in zip(("mean", "var"), pairs, strict=True):
                average = 0.8 * before["conv_channel", site, name] + 0.2 * fixed
                away = average - step.targets["conv_channel"][site][name]
                total = total + (away / away.norm() * value).sum()
        return total

    places = [1, 50, 300, 444]
    numeric = _numeric(linear, images.detach(), places)
    torch.testing.assert_close(gradient.view(-1)[places], numeric, rtol=1e-6, atol=1e-8)


def test_a_norm_of_zero_has_gradient_zero() -> None:
    model, images = _model(), _images(3)
    seen = _inputs(model, images, nn.Conv2d)
    targets = {
        "conv_channel": {site: channel_moments(x) for site, x in seen.items()},
        "conv_patch": {site: patch_moments(x, 4) for site, x in seen.items()},
    }
    step = TextbookStep(model, targets=targets, bn=False, momentum=0.0, dd_weight=0.0)
    images.requires_grad_()
    _, terms = step.loss(images, LABELS)
    for matcher in ("conv_channel", "conv_patch"):
        assert terms[matcher].item() == 0
        (gradient,) = torch.autograd.grad(terms[matcher], images, retain_graph=True)
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_dropped_sites_neither_count_nor_move_their_average() -> None:
    model = _model()
    step = _step(model, drop_rate=0.4, momentum=0.8)
    step.loss(_images(3), LABELS)
    before = dict(step.averages)
    uniforms = {"0": 0.39, "1": 0.4, "3": 0.9, "4": 0.0}
    _, terms = step.loss(_images(4), LABELS, uniforms)
    for key, average in step.averages.items():
        assert torch.equal(average, before[key]) == (key[1] in ("0", "4"))
    _, all_dropped = step.loss(_images(4), LABELS, dict.fromkeys("0134", 0.1))
    assert all(all_dropped[matcher].item() == 0 for matcher in MATCHERS)
    assert all(terms[matcher].item() > 0 for matcher in MATCHERS)


def test_densification_is_equation_5() -> None:
    images = _images(3).requires_grad_()
    loss = densification(images, LABELS)

    def transcribed(x: Tensor, frozen: Tensor) -> Tensor:
        total = x.new_zeros(())
        for label in (0, 1, 2):
            values, fixed = [t.flatten(1)[label == LABELS] for t in (x, frozen)]
            p = torch.linalg.svdvals(fixed).square().div(4).softmax(0)
            q = torch.linalg.svdvals(values).square().softmax(0)
            total = total + (p * (p / q).log()).sum()
        return total

    frozen = images.detach()
    torch.testing.assert_close(loss, transcribed(frozen, frozen))
    (gradient,) = torch.autograd.grad(loss, images)
    places = [0, 99, 250, 587]
    numeric = _numeric(lambda x: transcribed(x, frozen), frozen, places)
    torch.testing.assert_close(gradient.view(-1)[places], numeric, rtol=1e-5, atol=1e-7)
    assert densification(frozen[:3], torch.tensor([0, 1, 2])).item() == 0


def test_densification_pools_large_images_to_32() -> None:
    images = _images(6, image_size=64) / 8
    pooled = images.view(6, 2, 32, 2, 32, 2).mean(dim=(3, 5))
    torch.testing.assert_close(densification(images, LABELS), densification(pooled, LABELS))


def test_measured_means_are_those_of_one_big_batch_and_weigh_by_size() -> None:
    model, images = _model(), _images(3, image_size=8)
    parts, whole = measure(model, [images[:4], images[4:]]), measure(model, [images])
    for matcher, sites in whole.items():
        for site, moments in sites.items():
            torch.testing.assert_close(parts[matcher][site]["mean"], moments["mean"])
    first, last = (channel_moments(part)["var"] for part in (images[:4], images[4:]))
    torch.testing.assert_close(parts["conv_channel"]["0"]["var"], (4 * first + 2 * last) / 6)


def test_hooks_are_gone_after_a_step() -> None:
    model = _model()
    _step(model).loss(_images(3), LABELS)
    assert not any(module._forward_pre_hooks for module in model.modules())
