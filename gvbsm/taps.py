"""Taps: one at each observed module; every reduction of an activation is computed once and shared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from gvbsm.powers import (
    CHANNELS,
    Moments,
    averaged,
    channels_last,
    mean_and_variance,
    moments,
    patched,
    powers_of,
    spread,
)
from gvbsm_registry import GvbsmError


class Taps:
    """Records the inputs of the modules at `sites` while used as a context around a forward pass.

    groups: equal image batches lie one after another in what the model is given.
    fused: as in GroupedActivation. centres: for sites that are not reduced by fused functions.
    `idle`: sites that will not be asked for in the next pass, so that nothing is reduced there beforehand.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[str],
        groups: int = 1,
        fused: bool = True,
        centres: Mapping[str, Tensor] | None = None,
    ) -> None:
        modules = dict(model.named_modules())
        self.sites = {site: modules[site] for site in sites}
        self.idle: set[str] = set()
        self._groups, self._fused, self._centres = groups, fused, centres or {}
        self._seen: dict[str, tuple[Tensor, int]] = {}
        self._shared: dict[int, GroupedActivation] = {}
        self._plans: dict[str, dict[int, None]] = {site: {} for site in self.sites}
        self._handles: list[Any] = []

    def __enter__(self) -> Taps:
        self._seen.clear()
        self._shared.clear()
        for site, module in self.sites.items():
            self._handles.append(module.register_forward_pre_hook(self._recorder(site)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _recorder(self, site: str) -> Any:
        plan = self._plans[site]

        def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            tensor = inputs[0]
            self._seen[site] = tensor, tensor._version
            # Reduced at once where it is known what will be asked: the activation is in the cache now, and
            # the backward pass reaches its gradient in turn instead of holding those of all sites.
            if self._fused and plan and site not in self.idle:
                self._activation(site, tensor).reduce()

        return record

    def _activation(self, site: str, tensor: Tensor) -> GroupedActivation:
        if id(tensor) not in self._shared:
            self._shared[id(tensor)] = GroupedActivation(
                tensor, self._groups, self._plans[site], self._fused, self._centres.get(site)
            )
        return self._shared[id(tensor)]

    def activations(self) -> dict[str, GroupedActivation]:
        """Return what each site saw; then forget it. Sites that saw the same tensor share one object.

        Raises GvbsmError if a site saw nothing or its input was changed in place afterwards.
        """
        found = {}
        for site in self.sites:
            if site not in self._seen:
                raise GvbsmError(f"site {site!r} is not reached in a forward pass; leave it out of the sites")
            tensor, version = self._seen[site]
            if tensor._version != version:
                raise GvbsmError(
                    f"the input of site {site!r} is changed in place by a later module; "
                    "build the backbone with inplace=False"
                )
            found[site] = self._activation(site, tensor)
        settle(list(self._shared.values()))
        self._seen.clear()
        self._shared.clear()
        return found


class GroupedActivation:
    """One site's input for G image batches in one tensor [G·B, C, H, W], with reductions by group.

    All reductions asked for are computed together, in one pass over the activation each way. `plan` remembers
    the patch sides asked for (CHANNELS among them) between forward passes, so that only the first pass
    computes them one by one. fused: by an autograd function with a backward pass of its own, which is fast
    eagerly; without, by plain operations that a compiler fuses with their neighbours, about `centre` (see
    `plain_moments`).
    """

    def __init__(
        self,
        tensor: Tensor,
        groups: int,
        plan: dict[int, None] | None = None,
        fused: bool = True,
        centre: Tensor | None = None,
    ) -> None:
        self.tensor, self.groups = tensor, groups
        self._plan = {} if plan is None else plan
        self._fused, self._centre = fused, centre
        self._found: dict[int, list[Moments]] = {}
        self.maps: Tensor | None = None

    def group(self, index: int) -> Activation:
        """Return what a matcher sees: batch `index` alone."""
        return Activation(self, index)

    def moments(self, side: int, index: int) -> Moments:
        """Return mean and biased variance of one group by channel [C], or by patch [⌈H/side⌉, ⌈W/side⌉].

        float32; float64 if the activation is.
        """
        if side not in self._found:
            self._plan[side] = None
            self.reduce()
            settle([self])
        return self._found[side][index]

    def reduce(self) -> None:
        """Pass over the activation; what the plan asks for is then to be made by `settle`."""
        if not self._fused:
            batch = self.tensor.unflatten(0, (self.groups, -1))
            for side, (mean, variance) in plain_moments(batch, self.wanted(), self._centre).items():
                self.found(side, list(zip(mean.unbind(0), variance.unbind(0), strict=True)))
        elif self.maps is None:
            self.maps = BatchPowers.apply(self.tensor, self.groups)

    def wanted(self) -> list[int]:
        """Return the sides that the plan asks for and that are not there yet."""
        return [side for side in self._plan if side not in self._found]

    def found(self, side: int, by_group: list[Moments]) -> None:
        """Take each group's moments of one side, flat or in shape."""
        if side != CHANNELS:
            shape = patched(self.tensor.shape[-2:], side)
            by_group = [(mean.view(shape), variance.view(shape)) for mean, variance in by_group]
        self._found[side] = by_group


class Activation:
    """One image batch at one site; see `gvbsm_registry.Activation`."""

    def __init__(self, whole: GroupedActivation, index: int) -> None:
        self._whole, self._index = whole, index

    @property
    def tensor(self) -> Tensor:
        whole = self._whole
        return whole.tensor if whole.groups == 1 else whole.tensor.chunk(whole.groups)[self._index]

    def channel_moments(self) -> Moments:
        return self._whole.moments(CHANNELS, self._index)

    def patch_moments(self, side: int) -> Moments:
        return self._whole.moments(side, self._index)


def settle(activations: Sequence[GroupedActivation]) -> None:
    """Make moments of what `GroupedActivation.reduce` left: for all sites of one shape at once."""
    waiting: dict[tuple[Any, ...], list[GroupedActivation]] = {}
    for activation in activations:
        if activation.maps is not None and activation.wanted():
            batch, _, *space = activation.tensor.shape
            kind = (batch, channels_last(activation.maps), *space)
            waiting.setdefault(kind, []).append(activation)
    if not waiting:
        return
    averages: list[Tensor] = []
    places, sizes = [], []
    groups = activations[0].groups
    for (batch, _, *space), alike in waiting.items():
        sides = list(dict.fromkeys(side for activation in alike for side in activation.wanted()))
        averages += Averages.apply(sides, batch // groups, *(activation.maps for activation in alike))
        for side in sides:
            places += [(activation, side) for activation in alike]
            patches = math.prod(patched(space, side)) if side != CHANNELS else 0
            sizes += [patches or activation.tensor.shape[1] for activation in alike]
    means, variances = moments(torch.cat(averages, 1).unflatten(0, (2, -1)))
    dtype = torch.promote_types(activations[0].tensor.dtype, torch.float32)
    by_group = [
        list(zip(mean.split(sizes), variance.split(sizes), strict=True))
        for mean, variance in zip(means.to(dtype).unbind(0), variances.to(dtype).unbind(0), strict=True)
    ]
    for (activation, side), *pairs in zip(places, *by_group, strict=True):
        activation.found(side, pairs)


class BatchPowers(torch.autograd.Function):
    """Reduce G batches [G·B, C, *space] to E[x] and E[x²] over the batch at each position: [2·G, C, *space].

    What is stored for E[x²] is the variance, so that no precision is lost where the mean is large; `Averages`
    knows. Gradients that come back are those of E[x] and E[x²] all the same: with them, the gradient in x is
    one fused multiply-add over the activation, dL/dx = (dL/dE[x] + 2 x dL/dE[x²]) / B.
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


class Averages(torch.autograd.Function):
    """Average the maps of several sites, [2·G, C, *space] each from BatchPowers, by channel and by patch.

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

    In plain operations, which a compiler fuses into those around: the moments are taken about constants, so
    that the gradient of each is one multiply-add. centre: a constant near the channels' means, [C, 1, …],
    without which float32 loses precision where a mean is many deviations.
    """
    wide = batch if batch.dtype == torch.float64 else batch.float()
    if centre is None:
        centre = wide.new_zeros((wide.shape[2],) + (1,) * (wide.ndim - 3))
    deviation = wide - centre
    first, second = deviation.mean(1), deviation.square().mean(1)
    found = {}
    for side in sides:
        if side == CHANNELS:
            mean, square = (
                power.flatten(2).mean(2) if power.ndim > 2 else power for power in (first, second)
            )
            offset = centre.flatten()
        else:
            offset = centre.mean()
            apart = centre - offset
            mean, square = _pooled(first + apart, side), _pooled(second + 2 * apart * first + apart**2, side)
        found[side] = mean + offset, (square - mean.square()).clamp(min=0)
    return found


def _pooled(maps: Tensor, side: int) -> Tensor:
    """Average [G, C, H, W] by patch, [G, ⌈H/side⌉, ⌈W/side⌉], in views, which a compiler can fuse.

    Patches at the lower and right border may hold fewer pixels.
    """
    average = maps.mean(1)
    for axis in (-2, -1):
        size = average.shape[axis]
        whole = size // side * side
        cut = average.narrow(axis, 0, whole).unflatten(axis, (whole // side, side))
        cut = cut.mean(axis if axis == -1 else -2)
        if whole < size:
            rest = average.narrow(axis, whole, size - whole).mean(axis, keepdim=True)
            cut = torch.cat([cut, rest], axis)
        average = cut
    return average
