"""Reductions of activations that gradients go through: fused for speed, or plain for a compiler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy
import torch
from torch import Tensor

from gvbsm.matching.powers import (
    CHANNELS,
    Moments,
    averaged,
    channels_last,
    mean_and_variance,
    patched,
    powers_of,
    spread,
)


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
    """Average the maps of several sites, [2·G, C, *space] each from BatchMoments, by channel and by patch.

    sides: of the patches, CHANNELS among them. Returns for each side float64 [2·G, D], E[x] and E[x²] of all
    sites in turn. Backward: the maps' gradients, divided by the batch.
    """

    @staticmethod
    def forward(ctx: Any, sides: list[int], batch: int, *maps: Tensor) -> tuple[Tensor, ...]:
        ctx.sides, ctx.batch = sides, batch
        ctx.dtype, ctx.last = maps[0].dtype, channels_last(maps[0])
        ctx.counts, ctx.space = [part.shape[1] for part in maps], maps[0].shape[2:]
        powers = powers_of(torch.cat(maps, 1))
        return tuple(averaged(powers, side, ctx.counts) for side in sides)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        counts, sites = ctx.counts, len(ctx.counts)
        channels = grads[0].new_zeros(1, sum(counts), dtype=ctx.dtype)
        positions = grads[0].new_zeros(1, sites, *ctx.space, dtype=ctx.dtype)
        channel_count = channels.new_tensor(counts)
        for side, grad in zip(ctx.sides, grads, strict=True):
            share = grad.to(ctx.dtype) / ctx.batch
            if side == CHANNELS:
                channels = share / math.prod(ctx.space)
            else:
                by_site = share.unflatten(1, (sites, -1)) / channel_count[:, None]
                positions = positions + spread(by_site, side, ctx.space)
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


def plain_moments(batch: Tensor, sides: Sequence[int], centre: Tensor | None) -> dict[int, Moments]:
    """Return mean and biased variance of [G, B, C, *space] by side, [G, C] or [G, ⌈H/side⌉, ⌈W/side⌉] each.

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
    powers = torch.cat([deviation.sum(1), deviation.square().sum(1)]) * (1 / size)
    maps = powers.reshape(2 * groups, channels, -1).transpose(1, 2)  # channels last
    offsets = centre.flatten()
    found = {}
    for side in sides:
        with torch.autocast(wide.device.type, enabled=False):
            first, second = _cut(maps, space, side).chunk(2)
        if side == CHANNELS:
            mean, square, about = first.squeeze(1), second.squeeze(1), offsets
        else:
            about = offsets.mean()
            apart = offsets - about
            shape = [groups, *patched(space, side)]
            mean = (first + apart).mean(2).view(shape)
            square = (second + 2 * apart * first + apart**2).mean(2).view(shape)
        found[side] = mean + about, (square - mean.square()).clamp(min=0)
    return found


def _cut(maps: Tensor, space: Sequence[int], side: int) -> Tensor:
    """Average maps [N, H·W, C] by patch, [N, ⌈H/side⌉·⌈W/side⌉, C], or over all positions, [N, 1, C].

    By products with constant matrices, whose gradient a compiler writes to memory, once, instead of working
    it out for each number of the activation anew.
    """
    if side == CHANNELS:
        return _shares(math.prod(space), 0, maps.dtype, maps.device) @ maps
    count, _, channels = maps.shape
    rows = _shares(space[0], side, maps.dtype, maps.device) @ maps.reshape(count, space[0], -1)
    columns = rows.reshape(-1, space[1], channels)
    return (_shares(space[1], side, maps.dtype, maps.device) @ columns).reshape(count, -1, channels)


@lru_cache(maxsize=256)
def _shares(size: int, side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what averages `size` positions by `side` of them, [⌈size/side⌉, size]; the last may be fewer.

    side CHANNELS: over all, [1, size].
    """
    side = side or size
    member = numpy.arange(size) // side == numpy.arange(-(-size // side))[:, None]
    return torch.from_numpy(member / member.sum(1, keepdims=True)).to(device, dtype)
