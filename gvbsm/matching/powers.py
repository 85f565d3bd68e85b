"""PooledMoments of x and x² over a batch: what means and variances of any cut through it are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

CHANNELS = 0
"""Stands among patch sides for the average by channel."""

Moments = tuple[Tensor, Tensor]


def mean_and_variance(batch: Tensor, groups: int = 1) -> Tensor:
    """Return mean and biased variance over each of G batches at each position, of x [G·B, C, *space].

    [2·G, C, *space]: all means, then all variances, in the memory layout of x (channels last, or first).
    float32; float64 if x is.
    """
    wide = batch if batch.dtype == torch.float64 else batch.float()
    last = channels_last(batch)
    rows = wide.permute(0, 2, 3, 1) if last else wide
    parts = rows.reshape(groups, len(rows) // groups, -1)
    if parts.device.type == "cpu":
        # What BatchNorm takes its statistics with, each position a channel: vectorised, in the cache, without
        # a copy of the squares; torch's sum and var over the batch are two and thirty times slower.
        found = [torch.ops.aten.batch_norm_update_stats.default(part, None, None, 0.0) for part in parts]
        maps = torch.stack([part for which in zip(*found, strict=True) for part in which])
    else:
        variance, mean = torch.var_mean(parts, 1, correction=0)
        maps = torch.cat([mean, variance])
    maps = maps.view(-1, *rows.shape[1:])
    return maps.permute(0, 3, 1, 2) if last else maps


def channels_last(x: Tensor) -> bool:
    """Tell whether the channels of [N, C, H, W] lie next to one another in memory."""
    return x.ndim == 4 and x.stride(1) == 1 and x.stride(3) != 1


def powers_of(maps: Tensor) -> Tensor:
    """Return E[x] and E[x²] in float64, [2·G, ...], of means and variances as from `mean_and_variance`.

    It is here that precision could be lost where a mean is large, and in float64 it is not.
    """
    powers = maps.to(torch.float64, copy=True)
    first, second = powers.chunk(2)
    second.addcmul_(first, first)
    return powers


def patched(space: Sequence[int], side: int) -> list[int]:
    """Return how many patches there are along each axis; the last may hold fewer pixels."""
    return [-(-size // side) for size in space]


def averaged(powers: Tensor, side: int, counts: Sequence[int]) -> Tensor:
    """Average powers [N, ΣC, *space] of several sites, which have `counts` channels.

    By channel, [N, ΣC]; or by patch of `side` pixels and site, [N, sites · ⌈H/side⌉ · ⌈W/side⌉].
    """
    if side == CHANNELS:
        return powers.flatten(2).mean(2) if powers.ndim > 2 else powers
    if len(counts) == 1:  # channels first: fewer numbers are left to be pooled
        return avg_pool2d(powers.mean(1, keepdim=True), side, ceil_mode=True).flatten(1)
    pooled = avg_pool2d(powers, side, ceil_mode=True).flatten(2)
    means = [part.mean(1) for part in pooled.split(list(counts), 1)]
    return torch.cat(means, 1)


def spread(by_patch: Tensor, side: int, space: Sequence[int]) -> Tensor:
    """Take gradients of patches' averages [N, sites, ⌈H/side⌉·⌈W/side⌉] to positions, [N, sites, H, W]."""
    grads = by_patch.reshape(*by_patch.shape[:2], *patched(space, side))
    maps = grads.new_empty(*grads.shape[:2], *space)
    return torch.ops.aten.avg_pool2d_backward(
        grads, maps, [side, side], [side, side], [0, 0], True, True, None
    )


def moments(averages: Tensor) -> Moments:
    """Return mean and biased variance from averages of x and x² [2, ...]."""
    mean, square = averages.unbind(0)
    return mean, torch.addcmul(square, mean, mean, value=-1).clamp(min=0)
