"""Reductions without gradients against the definitions, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.textbook import channel_moments, measure, patch_moments
from gvbsm import gauge, powers
from gvbsm.gauge import Gauge, Reduced
from gvbsm.matching import target_name
from gvbsm_registry import GvbsmError, Matcher, Registry

SIZES = st.tuples(*(st.integers(1, 9) for _ in range(4)))


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 5), st.sampled_from([0.0, 100.0]), st.sampled_from([1, 50, 2**19]))
def test_moments_of_any_shape(shape: Any, side: int, offset: float, block: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) + offset
    wanted = [*channel_moments(x.double()).values(), *patch_moments(x.double(), side).values()]
    before, powers.BLOCK = powers.BLOCK, block
    try:
        reduced = Reduced(x)
        found = [*reduced.channel_moments(), *reduced.patch_moments(side)]
    finally:
        powers.BLOCK = before
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


def test_a_large_mean_costs_no_precision() -> None:
    x = torch.randn(64, 3, 8, 8, dtype=torch.float64) + 1000
    single = x.float()
    _, variance = Reduced(single).channel_moments()
    torch.testing.assert_close(variance, channel_moments(x)["var"], rtol=1e-3, atol=0)


def test_rows_without_space() -> None:
    x = torch.randn(6, 5)
    mean, variance = Reduced(x).channel_moments()
    torch.testing.assert_close(mean, x.double().mean(0))
    torch.testing.assert_close(variance, x.double().var(0, unbiased=False))


def _matchers(registry: Registry) -> list[Matcher]:
    return [registry.create(Matcher, name) for name in ("conv_channel", "conv_patch")]


class _Residual(nn.Module):
    """Two convolutions see one tensor, with others in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.shortcut = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()) + self.shortcut(x)


def test_every_site_of_a_network(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = _Residual().double(), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    reduced = []
    plain = gauge.mean_and_variance
    monkeypatch.setattr(gauge, "mean_and_variance", lambda x: reduced.append(x.shape) or plain(x))
    matchers = _matchers(registry)
    found = Gauge(model, matchers)(images)
    expected = measure(model, [images])
    for matcher in matchers:
        for site, moments in expected[matcher.title].items():
            for name, value in moments.items():
                torch.testing.assert_close(found[target_name(matcher, site, name)], value)
    assert len(reduced) == 2, "the shared tensor is reduced once, for both matchers"
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_tensor_changed_in_place_is_reduced_again(registry: Registry) -> None:
    class Changing(_Residual):
        def forward(self, x: Tensor) -> Tensor:
            first = self.first(x)
            x.add_(1)
            return first + self.second(x) + self.shortcut(x)

    images = torch.randn(4, 2, 6, 6)
    (channel, *_) = _matchers(registry)
    found = Gauge(Changing(), [channel])(images.clone())
    one, other = (found[target_name(channel, site, "mean")] for site in ("first", "second"))
    torch.testing.assert_close(one + 1, other)


def test_a_site_that_is_not_reached(registry: Registry) -> None:
    model = _Residual()
    model.add_module("idle", nn.Conv2d(2, 2, 1))
    with pytest.raises(GvbsmError, match="'idle' is not reached"):
        Gauge(model, _matchers(registry))(torch.randn(2, 2, 4, 4))
