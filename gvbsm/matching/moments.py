"""Means and variances of activations by channel and by patch: fused for speed, or plain for a compiler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ByChannel:
    """The reduction over batch and space, to one number for each channel."""

    def shape(self, channels: int, space: Sequence[int]) -> list[int]:
        """Return the shape of what an activation [B, channels, *space] is reduced to."""
        return [channels]


@dataclass(frozen=True)
class ByPatch:
    """The reduction over batch, channels and the pixels of a patch, to one number for each patch."""

    patch_size: int

    @classmethod
    def within(cls, patch_size: int, shape: Sequence[int]) -> ByPatch:
        """Return the reduction of maps [B, C, *space]; a patch beyond them is the whole map."""
        return cls(min(patch_size, max(1, *shape[2:])))

    def shape(self, channels: int, space: Sequence[int]) -> list[int]:
        """Return the shape of what an activation [B, channels, *space] is reduced to."""
        return patch_grid(space, self.patch_size)


Reduction = ByChannel | ByPatch


def patch_grid(space: Sequence[int], patch_size: int) -> list[int]:
    """Return how many patches there are along each axis; the last may hold fewer pixels."""
    return [-(-size // patch_size) for size in space]


def channels_last(x: Tensor) -> bool:
    """Tell whether the channels of [N, C, H, W] lie next to one another in memory."""
    return x.ndim == 4 and x.stride(1) == 1 and x.stride(3) != 1


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
        by_group = [torch.ops.aten.batch_norm_update_stats.default(part, None, None, 0.0) for part in parts]
        maps = torch.stack([part for moment in zip(*by_group, strict=True) for part in moment])
    else:
        variance, mean = torch.var_mean(parts, 1, correction=0)
        maps = torch.cat([mean, variance])
    maps = maps.view(-1, *rows.shape[1:])
    return maps.permute(0, 3, 1, 2) if last else maps


class BatchMoments(torch.autograd.Function):
    """Reduce G batches [G·B, C, *space] to E[x] and E[x²] over the batch at each position: [2·G, C, *space].

    What is stored for E[x²] is the variance, so that no precision is lost where the mean is large;
    `PooledMoments` knows. Gradients that come back are those of E[x] and E[x²] all the same: with them,
    the gradient in x is one fused multiply-add over the activation, dL/dx = (dL/dE[x] + 2 x dL/dE[x²]) / B.
    """

    @staticmethod
    def forward(ctx: Any, batch: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(batch)
        return mean_and_variance(batch, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (batch,) = ctx.saved_tensors
        offset, slope = grads[0].chunk(2)
        wide = batch.to(offset.dtype)
        if len(offset) == 1:
            return torch.addcmul(offset, wide, slope, value=2).to(batch.dtype), None
        by_group = wide.unflatten(0, (len(offset), -1))
        grad = torch.addcmul(offset.unsqueeze(1), by_group, slope.unsqueeze(1), value=2)
        return grad.flatten(0, 1).to(batch.dtype), None


class PooledMoments(torch.autograd.Function):
    """Pool the maps of several sites, [2·G, C, *space] each from BatchMoments, by each of `reductions`.

    Returns for each reduction float64 [2·G, D], E[x] and E[x²] of all sites in turn. Backward: the maps'
    gradients, divided by the batch.
    """

    @staticmethod
    def forward(ctx: Any, reductions: list[Reduction], batch: int, *maps: Tensor) -> tuple[Tensor, ...]:
        ctx.reductions, ctx.batch = reductions, batch
        ctx.dtype, ctx.last = maps[0].dtype, channels_last(maps[0])
        ctx.counts, ctx.space = [part.shape[1] for part in maps], maps[0].shape[2:]
        raw = raw_moments(torch.cat(maps, 1))
        return tuple(pool(raw, reduction, ctx.counts) for reduction in reductions)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        counts, sites = ctx.counts, len(ctx.counts)
        channels = grads[0].new_zeros(1, sum(counts), dtype=ctx.dtype)
        positions = grads[0].new_zeros(1, sites, *ctx.space, dtype=ctx.dtype)
        channel_count = channels.new_tensor(counts)
        for reduction, grad in zip(ctx.reductions, grads, strict=True):
            share = grad.to(ctx.dtype) / ctx.batch
            if isinstance(reduction, ByChannel):
                channels = share / math.prod(ctx.space)
            else:
                by_site = share.unflatten(1, (sites, -1)) / channel_count[:, None]
                positions = positions + unpool_grad(by_site, reduction.patch_size, ctx.space)
        by_position = positions.unsqueeze(2).unbind(1)
        by_channel = channels.reshape(*channels.shape, *(1 for _ in ctx.space)).split(counts, 1)
        if ctx.last:
            sums = [
                torch.add(c.movedim(1, -1), p.movedim(1, -1)).movedim(-1, 1)
                for c, p in zip(by_channel, by_position, strict=True)
            ]
        else:
            sums = [c + p for c, p in zip(by_channel, by_position, strict=True)]
        return None, None, *sums


def raw_moments(maps: Tensor) -> Tensor:
    """Return E[x] and E[x²] in float64, [2·G, ...], of means and variances as from `mean_and_variance`.

    It is here that precision could be lost where a mean is large, and in float64 it is not.
    """
    raw = maps.to(torch.float64, copy=True)
    first, second = raw.chunk(2)
    second.addcmul_(first, first)
    return raw


def central_moments(raw: Tensor) -> Moments:
    """Return mean and biased variance from E[x] and E[x²], [2, ...]."""
    mean, square = raw.unbind(0)
    return mean, torch.addcmul(square, mean, mean, value=-1).clamp(min=0)


def merge_moments(moments: Moments, parts: int) -> Moments:
    """Return mean and biased variance of each run of `parts` equally large parts, [N·parts, ...] → [N, ...].

    The mean of the means; the mean of the variances plus the variance of the means, which loses no precision.
    """
    if parts == 1:
        return moments
    means, variances = (moment.unflatten(0, (-1, parts)) for moment in moments)
    mean = means.mean(1)
    return mean, variances.mean(1) + (means - mean.unsqueeze(1)).square().mean(1)


def pool(raw: Tensor, reduction: Reduction, counts: Sequence[int]) -> Tensor:
    """Average raw moments [N, ΣC, *space] of several sites, which have `counts` channels.

    By channel, [N, ΣC]; or by patch and site, [N, sites · ⌈H/patch_size⌉ · ⌈W/patch_size⌉].
    """
    if isinstance(reduction, ByChannel):
        return raw.flatten(2).mean(2) if raw.ndim > 2 else raw
    size = reduction.patch_size
    if len(counts) == 1:  # channels first: fewer numbers are left to be pooled
        return avg_pool2d(raw.mean(1, keepdim=True), size, ceil_mode=True).flatten(1)
    pooled = avg_pool2d(raw, size, ceil_mode=True).flatten(2)
    return torch.cat([part.mean(1) for part in pooled.split(list(counts), 1)], 1)


def unpool_grad(by_patch: Tensor, patch_size: int, space: Sequence[int]) -> Tensor:
    """Take gradients of patches' averages [N, sites, patches] to positions, [N, sites, H, W]."""
    grads = by_patch.reshape(*by_patch.shape[:2], *patch_grid(space, patch_size))
    maps = grads.new_empty(*grads.shape[:2], *space)
    size = [patch_size, patch_size]
    return torch.ops.aten.avg_pool2d_backward(grads, maps, size, size, [0, 0], True, True, None)


def compilable_moments(
    batch: Tensor, reductions: Sequence[Reduction], centre: Tensor | None
) -> dict[Reduction, Moments]:
    """Return mean and biased variance of [G, B, C, *space] by reduction, [G, *its shape] each.

    In plain operations, which a compiler fuses into those around. The moments are taken about constants and
    averaged over space by products with matrices, so that what comes back is one multiply-add by position
    and channel. centre: a constant near the channels' means, [C, 1, …], without which float32 loses precision
    where a mean is many deviations.
    """
    wide = batch if batch.dtype == torch.float64 else batch.float()
    groups, size, channels, *space = wide.shape
    if centre is None:
        centre = wide.new_zeros((channels,) + (1,) * len(space))
    deviation = wide - centre
    raw = torch.cat([deviation.sum(1), deviation.square().sum(1)]) * (1 / size)
    maps = raw.reshape(2 * groups, channels, -1).transpose(1, 2)  # channels last
    offsets = centre.flatten()
    moments: dict[Reduction, Moments] = {}
    for reduction in reductions:
        with torch.autocast(wide.device.type, enabled=False):
            first, second = _pool_by_matrix(maps, space, reduction).chunk(2)
        if isinstance(reduction, ByChannel):
            mean, square, about = first.squeeze(1), second.squeeze(1), offsets
        else:
            about = offsets.mean()
            apart = offsets - about
            shape = [groups, *reduction.shape(channels, space)]
            mean = (first + apart).mean(2).view(shape)
            square = (second + 2 * apart * first + apart**2).mean(2).view(shape)
        moments[reduction] = mean + about, (square - mean.square()).clamp(min=0)
    return moments


def _pool_by_matrix(maps: Tensor, space: Sequence[int], reduction: Reduction) -> Tensor:
    """Average maps [N, H·W, C] by patch, [N, ⌈H/patch_size⌉·⌈W/patch_size⌉, C], or by channel, [N, 1, C].

    By products with constant matrices, whose gradient a compiler writes to memory, once, instead of working
    it out for each number of the activation anew.
    """
    if isinstance(reduction, ByChannel):
        positions = math.prod(space)
        return _averaging(positions, positions, maps.dtype, maps.device) @ maps
    count, _, channels = maps.shape
    down, across = (_averaging(size, reduction.patch_size, maps.dtype, maps.device) for size in space)
    columns = (down @ maps.reshape(count, space[0], -1)).reshape(-1, space[1], channels)
    return (across @ columns).reshape(count, -1, channels)


@lru_cache(maxsize=256)
def _averaging(size: int, patch_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix that averages `size` positions by patch, [⌈size/patch_size⌉, size]."""
    member = numpy.arange(size) // patch_size == numpy.arange(-(-size // patch_size))[:, None]
    return torch.from_numpy(member / member.sum(1, keepdims=True)).to(device, dtype)
