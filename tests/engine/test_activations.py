"""ActivationRecorder and the shared reductions, against definitions and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gvbsm.matching import activations as module
from gvbsm.matching.activations import Activation, ActivationRecorder, BatchMoments, GroupedActivation
from gvbsm_registry import GvbsmError


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(x: Tensor, groups: int = 1) -> list[Activation]:
    """What matchers see of x, group by group."""
    whole = GroupedActivation(x, groups)
    return [whole.group(index) for index in range(groups)]


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((4, 2, 3, 3), 1), ((6, 1, 4, 1), 3), ((3, 2, 5, 3), 3), ((6, 3), 2), ((4, 2, 3), 2)],
)
def test_moments_pass_gradcheck(shape, groups):
    def moments(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            moment
            for activation in seen(x, groups)
            for moment in (
                *activation.channel_moments(),
                *(activation.patch_moments(2) if x.ndim == 4 else ()),
            )
        )

    assert torch.autograd.gradcheck(moments, (randn(*shape).requires_grad_(),))


def definition(x: Tensor, patch_size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Both reductions of one image batch, cell by cell."""
    channels = [x[:, c] for c in range(x.shape[1])]
    down, across = math.ceil(x.shape[2] / patch_size), math.ceil(x.shape[3] / patch_size)
    patches = [
        x[:, :, row * patch_size : (row + 1) * patch_size, column * patch_size : (column + 1) * patch_size]
        for row in range(down)
        for column in range(across)
    ]

    def moments(cells, shape):
        means = torch.stack([cell.sum() / cell.numel() for cell in cells])
        squares = torch.stack(
            [(cell - m).square().sum() / cell.numel() for cell, m in zip(cells, means, strict=True)]
        )
        return means.reshape(shape), squares.reshape(shape)

    return {"channel": moments(channels, (x.shape[1],)), "patch": moments(patches, (down, across))}


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 3),
    batch=st.integers(1, 4),
    channels=st.integers(1, 4),
    height=st.integers(1, 15),
    width=st.integers(1, 15),
    patch_size=st.integers(1, 16),
    seed=st.integers(0, 99),
)
def test_moments_equal_the_definition_with_gradients(
    groups, batch, channels, height, width, patch_size, seed
):
    x = randn(groups * batch, channels, height, width, seed=seed).requires_grad_()
    y = x.detach().clone().requires_grad_()
    ours, theirs = torch.zeros(()), torch.zeros(())
    for index, activation in enumerate(seen(x, groups)):
        expected = definition(y[index * batch : (index + 1) * batch], patch_size)
        assert torch.equal(activation.tensor, x[index * batch : (index + 1) * batch])
        for found, wanted in (
            (activation.channel_moments(), expected["channel"]),
            (activation.patch_moments(patch_size), expected["patch"]),
        ):
            for kind, (a, b) in enumerate(zip(found, wanted, strict=True)):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
                weights = randn(*a.shape, seed=seed + 7 * index + kind)
                ours, theirs = ours + (a * weights).sum(), theirs + (b * weights).sum()
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(8, 3, 7, 7), (40, 2, 14, 14)])
def test_single_precision_where_the_mean_is_a_thousand_deviations(shape):
    x = (1000 + randn(*shape)).float().requires_grad_()
    wide = x.detach().double().requires_grad_()
    (single,), (double,) = seen(x), seen(wide)
    for one, other in zip(
        [*single.channel_moments(), *single.patch_moments(4)],
        [*double.channel_moments(), *double.patch_moments(4)],
        strict=True,
    ):
        torch.testing.assert_close(one.double(), other, rtol=2e-4, atol=0)
        weights = randn(*one.shape)
        (grad,) = torch.autograd.grad((one * weights.float()).sum(), x, retain_graph=True)
        (right,) = torch.autograd.grad((other * weights).sum(), wide, retain_graph=True)
        assert float((grad.double() - right).norm() / right.norm()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_reduces_in_single(dtype):
    x = randn(6, 3, 7, 7).to(dtype).requires_grad_()
    mean, variance = seen(x)[0].channel_moments()
    assert mean.dtype == variance.dtype == torch.float32
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=0, atol=1e-6)
    variance.sum().backward()
    assert x.grad.dtype == dtype


def test_flat_inputs_have_channel_moments():
    x = randn(6, 5)
    for activation, rows in zip(seen(x, 2), x.split(3), strict=True):
        mean, variance = activation.channel_moments()
        torch.testing.assert_close(mean, rows.mean(0))
        torch.testing.assert_close(variance, rows.var(0, unbiased=False))


@pytest.mark.parametrize("shape", [(4, 3, 9, 9), (6, 2, 5, 3), (4, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_plain_operations_give_the_same_about_any_centre(shape, groups):
    x = (5 + randn(*shape)).requires_grad_()
    centre = 4 + randn(shape[1], *[1 for _ in shape[2:]], seed=1)
    plain = GroupedActivation(x, groups, fused=False, centre=centre)
    for index, activation in enumerate(seen(x, groups)):
        wanted, found = list(activation.channel_moments()), list(plain.group(index).channel_moments())
        if len(shape) > 2:
            wanted += activation.patch_moments(4)
            found += plain.group(index).patch_moments(4)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
            weights = randn(*one.shape, seed=2)
            grads = [torch.autograd.grad((m * weights).sum(), x, retain_graph=True)[0] for m in (one, other)]
            torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


class Shared(nn.Module):
    """Two convolutions and a BatchNorm that see the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.left, self.right = nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.norm(x)
        return self.left(x) + self.right(x)


def test_a_tensor_seen_by_several_sites_is_reduced_once(monkeypatch):
    model, calls = Shared().double().eval(), []

    class Counting:
        @staticmethod
        def apply(*arguments: object) -> object:
            calls.append(arguments)
            return BatchMoments.apply(*arguments)

    monkeypatch.setattr(module, "BatchMoments", Counting)
    recorder = ActivationRecorder(model, ["norm", "left", "right"], groups=2)
    for _ in range(2):  # on require, then beforehand
        calls.clear()
        with recorder:
            model(randn(4, 2, 5, 5))
        found = recorder.activations()
        for site in found.values():
            for index in range(2):
                site.group(index).channel_moments()
                site.group(index).patch_moments(4)
                site.group(index).patch_moments(2)
        assert len(calls) == 1
        assert found["norm"] is found["left"] is found["right"]


def test_an_input_changed_in_place_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3))
    model[1] = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))  # writes into what it was given
    with ActivationRecorder(model, ["1.0"]) as recorder:
        model(randn(2, 1, 9, 9).float())
    with pytest.raises(GvbsmError, match=r"'1\.0'.*in place.*inplace=False"):
        recorder.activations()


def test_an_output_changed_in_place_is_none_of_a_sites_business():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 3))
    with ActivationRecorder(model, ["0", "1", "3"]) as recorder:
        model(randn(2, 1, 9, 9).float())
    assert set(recorder.activations()) == {"0", "1", "3"}


def test_a_site_that_is_not_reached_is_refused():
    model = Shared().double()
    model.register_module("spare", nn.Conv2d(2, 2, 3).double())
    with ActivationRecorder(model, ["left", "spare"]) as recorder:
        model(randn(2, 2, 5, 5))
    with pytest.raises(GvbsmError, match="'spare' is not reached"):
        recorder.activations()


def test_hooks_go_whatever_happens():
    model = Shared().double()
    with pytest.raises(RuntimeError), ActivationRecorder(model, ["left", "right"]):
        model(randn(2, 5, 5, 5))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_recorder_forgets_what_they_handed_out():
    model = Shared().double()
    with ActivationRecorder(model, ["left"]) as recorder:
        model(randn(2, 2, 5, 5))
        recorder.activations()
        with pytest.raises(GvbsmError, match="not reached"):
            recorder.activations()
        model(randn(2, 2, 6, 6))
        assert recorder.activations()["left"].tensor.shape == (2, 2, 6, 6)
