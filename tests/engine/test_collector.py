"""Reductions without gradients against the definitions, in float64."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.textbook import channel_moments, measure, patch_moments
from gvbsm.matching import activations as module
from gvbsm.matching.activations import Activation, GroupedActivation
from gvbsm.matching.asking import measured_sites
from gvbsm.matching.collector import StatisticsCollector
from gvbsm.matching.targets import target_name
from gvbsm.matching.terms import Matching
from gvbsm_registry import GvbsmError, Matcher, Registry


def reduced_once(x: Tensor) -> Activation:
    return GroupedActivation(x, 1, keep=False).group(0)


SIZES = st.tuples(*(st.integers(1, 9) for _ in range(4)))


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 5), st.sampled_from([0.0, 100.0]), st.booleans())
def test_moments_of_any_shape(shape: Any, patch_size: int, offset: float, last: bool) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) + offset
    wanted = [*channel_moments(x.double()).values(), *patch_moments(x.double(), patch_size).values()]
    batch = x.to(memory_format=torch.channels_last) if last else x
    reduced = reduced_once(batch)
    found = [*reduced.channel_moments(), *reduced.patch_moments(patch_size)]
    for got, expected in zip(found, wanted, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=2e-5)


def test_moments_about_parts_of_a_tensor() -> None:
    whole = torch.randn(6, 8, 4, 4).to(memory_format=torch.channels_last)
    for x in (whole.chunk(2, 1)[1], whole[::2], whole[:, :, 1:, ::2]):
        found = [*reduced_once(x).channel_moments(), *reduced_once(x).patch_moments(2)]
        wanted = [*channel_moments(x.double()).values(), *patch_moments(x.double(), 2).values()]
        for got, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_large_mean_costs_no_precision() -> None:
    x = torch.randn(64, 3, 8, 8, dtype=torch.float64) + 1000
    single = x.float()
    _, variance = reduced_once(single).channel_moments()
    torch.testing.assert_close(variance.double(), channel_moments(x)["var"], rtol=1e-3, atol=0)


def test_rows_without_space() -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    mean, variance = reduced_once(x).channel_moments()
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(variance, x.var(0, unbiased=False))


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
    plain = module.mean_and_variance
    monkeypatch.setattr(module, "mean_and_variance", lambda x, g: reduced.append(x.shape) or plain(x, g))
    matchers = _matchers(registry)
    taken = StatisticsCollector(model, matchers)
    for batch in (images, images + 1, images[:3]):  # site by site in the first, all together then
        reduced.clear()
        found = taken(batch)
        expected = measure(model, [batch])
        for matcher in matchers:
            for site, moments in expected[matcher.full_name].items():
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
    found = StatisticsCollector(Changing(), [channel])(images.clone())
    one, other = (found[target_name(channel, site, "mean")] for site in ("first", "second"))
    torch.testing.assert_close(one + 1, other)


def test_a_site_that_is_not_reached(registry: Registry) -> None:
    model = _Residual()
    model.add_module("idle", nn.Conv2d(2, 2, 1))
    with pytest.raises(GvbsmError, match="'idle' is not reached"):
        StatisticsCollector(model, _matchers(registry))(torch.randn(2, 2, 4, 4))


class Looking(Matcher):
    """Looks at the activation itself from the batch numbered `since` on."""

    name = "looking"
    since: int = 0
    site: str = "second"
    _batches: int = 0

    def sites(self, model: nn.Module) -> list[str]:
        return [self.site]

    def statistics(self, activation: Any) -> dict[str, Tensor]:
        self._batches += 1
        mean, _ = activation.channel_moments()
        return {"peak": activation.tensor.amax() if self._batches > self.since else mean.amax()}


def test_a_matcher_that_looks_at_the_activation_sees_it_in_every_batch() -> None:
    model, matcher = _Residual(), Looking()
    taken = StatisticsCollector(model, [matcher])
    for _ in range(3):
        images = torch.randn(4, 2, 6, 6)
        found = taken(images)[target_name(matcher, "second", "peak")]
        torch.testing.assert_close(found, model.first(images).relu().amax())


def test_looking_later_than_in_the_first_batch_is_no_different() -> None:
    model, matcher = _Residual(), Looking(since=1)
    taken, images = StatisticsCollector(model, [matcher]), torch.randn(4, 2, 6, 6)
    seen = model.first(images).relu()
    for expected in (seen.mean((0, 2, 3)).amax(), seen.amax()):
        torch.testing.assert_close(taken(images)[target_name(matcher, "second", "peak")], expected)


def test_a_matcher_that_looks_sees_what_the_module_was_given() -> None:
    class Keeping(_Residual):
        kept: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.kept = x.clone()
            first = self.first(self.kept)
            self.kept.add_(1)
            return first

    matcher, images = Looking(site="first"), torch.randn(4, 2, 6, 6)
    found = StatisticsCollector(Keeping(), [matcher])(images)
    torch.testing.assert_close(found[target_name(matcher, "first", "peak")], images.amax())


def test_no_activation_outlives_its_use(registry: Registry) -> None:
    alive: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            alive.append(sum(type(o) is Tensor and o.shape == (64, 8, 16, 16) for o in gc.get_objects()))
            return x

    blocks = [part for _ in range(6) for part in (nn.Conv2d(8, 8, 3, padding=1), Counting())]
    taken = StatisticsCollector(nn.Sequential(*blocks), _matchers(registry))
    images = torch.randn(64, 8, 16, 16)
    taken(images)
    taken(images)
    assert max(alive) <= 3, "the images, what a block is given and what it made"


def test_a_batchnorm_is_measured_where_it_does_not_know_its_statistics(registry: Registry) -> None:
    first, known = nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm2d(2)
    model, images = nn.Sequential(first, known).eval(), torch.randn(4, 2, 5, 5) + 3
    matcher = registry.create(Matcher, "bn")
    assert measured_sites(matcher, model) == ["0"]
    measured = StatisticsCollector(model, [matcher])(images)
    assert measured.keys() == {target_name(matcher, "0", name) for name in ("mean", "var")}
    torch.testing.assert_close(measured[target_name(matcher, "0", "mean")], images.mean((0, 2, 3)))
    (term,) = Matching(model, [matcher], measured).terms
    torch.testing.assert_close(
        term.statistics["mean"].targets, torch.cat([images.mean((0, 2, 3)), torch.zeros(2)])
    )


def test_a_network_without_sites_has_nothing_to_measure(registry: Registry) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    assert StatisticsCollector(model, _matchers(registry))(torch.randn(3, 2, 2, 2)) == {}


def test_looking_late_at_what_is_changed_in_place_is_no_different() -> None:
    class Changing(_Residual):
        def forward(self, x: Tensor) -> Tensor:
            middle = self.first(x).relu()
            second = self.second(middle)
            middle.zero_()
            return second

    model, matcher = Changing(), Looking(since=2)
    collector, images = StatisticsCollector(model, [matcher]), torch.randn(4, 2, 6, 6)
    for _ in range(5):
        peak = collector(images)[target_name(matcher, "second", "peak")]
    torch.testing.assert_close(peak, model.first(images).relu().amax())
