from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from gvbsm_plugins import matchers
from gvbsm_plugins.matchers import BatchNormMatcher, ConvChannelMatcher, ConvPatchMatcher
from gvbsm_registry import Matcher


class PlainActivation:
    """The contract's reductions, patch by patch, nothing shared."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def channel_moments(self):
        means, variances = [], []
        for channel in range(self.tensor.shape[1]):
            values = self.tensor[:, channel].reshape(-1)
            means.append(values.sum() / values.numel())
            variances.append(((values - means[-1]) ** 2).sum() / values.numel())
        return torch.stack(means), torch.stack(variances)

    def patch_moments(self, patch_size):
        height, width = self.tensor.shape[-2:]
        shape = (math.ceil(height / patch_size), math.ceil(width / patch_size))
        means, variances = [], []
        for top in range(0, height, patch_size):
            for left in range(0, width, patch_size):
                values = self.tensor[:, :, top : top + patch_size, left : left + patch_size].reshape(-1)
                means.append(values.sum() / values.numel())
                variances.append(((values - means[-1]) ** 2).sum() / values.numel())
        return torch.stack(means).reshape(shape), torch.stack(variances).reshape(shape)


def channel_cells(shape):
    """For each statistic, the mask of the activation's elements that it is taken over."""
    for channel in range(shape[1]):
        mask = np.zeros(shape, bool)
        mask[:, channel] = True
        yield mask


def patch_cells(shape, patch_size):
    rows = np.arange(shape[2]) // patch_size
    columns = np.arange(shape[3]) // patch_size
    for row in range(rows[-1] + 1):
        for column in range(columns[-1] + 1):
            mask = np.zeros(shape, bool)
            mask[:, :, np.outer(rows == row, columns == column)] = True
            yield mask


SHAPES = [(3, 2, 7, 7), (2, 3, 14, 14), (1, 1, 5, 9), (1, 4, 1, 1), (4, 1, 8, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("matcher", [BatchNormMatcher(), ConvChannelMatcher(), ConvPatchMatcher()])
def test_statistics_and_gradients_equal_the_definition(matcher: Matcher, shape):
    """Mean and biased variance over each cell; their gradients are w/n and 2 w (x - mean)/n."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    statistics = matcher.statistics(PlainActivation(x))
    assert set(statistics) == {"mean", "var"}
    patched = isinstance(matcher, ConvPatchMatcher)
    cells = list(patch_cells(shape, 4) if patched else channel_cells(shape))
    expected = (math.ceil(shape[2] / 4), math.ceil(shape[3] / 4)) if patched else (shape[1],)
    assert statistics["mean"].shape == statistics["var"].shape == expected

    weights = {name: torch.randn(expected, generator=generator, dtype=torch.float64) for name in statistics}
    sum((statistics[name] * weights[name]).sum() for name in statistics).backward()
    values, gradient = x.detach().numpy(), np.zeros(shape)
    for index, cell in enumerate(cells):
        mean, count = values[cell].mean(), cell.sum()
        assert statistics["mean"].flatten()[index].item() == pytest.approx(mean, abs=1e-12)
        variance = ((values[cell] - mean) ** 2).mean()
        assert statistics["var"].flatten()[index].item() == pytest.approx(variance, abs=1e-12)
        gradient[cell] += weights["mean"].flatten()[index].item() / count
        gradient[cell] += weights["var"].flatten()[index].item() * 2 * (values[cell] - mean) / count
    np.testing.assert_allclose(x.grad.numpy(), gradient, atol=1e-12)


def test_patch_size_is_an_option():
    x = torch.arange(49.0).reshape(1, 1, 7, 7)
    assert ConvPatchMatcher(patch_size=3).statistics(PlainActivation(x))["mean"].shape == (3, 3)
    single = ConvPatchMatcher(patch_size=16).statistics(PlainActivation(x))
    assert single["mean"].item() == 24.0
    with pytest.raises(ValidationError):
        ConvPatchMatcher(patch_size=0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.norm = nn.GroupNorm(4, 4)
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.LazyLinear(3), nn.BatchNorm1d(3))


def test_sites_in_order():
    model = Net()
    assert BatchNormMatcher().sites(model) == ["stem.1", "head.3"]
    assert ConvChannelMatcher().sites(model) == ConvPatchMatcher().sites(model) == ["stem.0", "head.0"]
    assert BatchNormMatcher().sites(nn.Linear(2, 2)) == []
    assert BatchNormMatcher().sites(nn.BatchNorm2d(2)) == [""]


def test_batchnorm_knows_its_targets():
    """One batch through a cumulative BatchNorm leaves its mean and unbiased variance there."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, momentum=None).double()
    x = torch.randn(5, 3, 7, 7, dtype=torch.float64)
    norm(x)
    targets = BatchNormMatcher().targets(norm)
    statistics = BatchNormMatcher().statistics(PlainActivation(x))
    count = 5 * 7 * 7
    torch.testing.assert_close(targets["mean"], statistics["mean"])
    torch.testing.assert_close(targets["var"], statistics["var"] * count / (count - 1))
    assert BatchNormMatcher().targets(nn.BatchNorm2d(3, track_running_stats=False)) is None
    assert ConvChannelMatcher().targets(nn.Conv2d(1, 1, 1)) is None
    assert ConvPatchMatcher().targets(nn.Conv2d(1, 1, 1)) is None


def test_measured_targets_depend_on_the_patch_size_alone():
    assert ConvPatchMatcher(patch_size=8, weight=3, drop_rate=0.4).measured_by() == {
        "use": "conv_patch",
        "patch_size": 8,
    }
    assert {c.name for c in matchers.gvbsm_components()} == {"bn", "conv_channel", "conv_patch"}
    assert all(c().drop_rate == 0 for c in matchers.gvbsm_components())


def test_variances_of_batchnorm_may_count_more():
    """‖μ − μ_t‖ + 11 ‖σ² − σ²_t‖: statistics and targets alike."""
    norm = torch.nn.BatchNorm2d(3)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    activation = PlainActivation(torch.randn(4, 3, 5, 5))
    plain, weighed = BatchNormMatcher(), BatchNormMatcher(variance_weight=11.0)
    for one, other in (
        (plain.statistics(activation), weighed.statistics(activation)),
        (plain.targets(norm), weighed.targets(norm)),
    ):
        torch.testing.assert_close(other["var"], 11 * one["var"])
        assert torch.equal(other["mean"], one["mean"])
    assert plain.measured_by() != weighed.measured_by()
