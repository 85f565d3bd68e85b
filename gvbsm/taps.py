"""Taps: one at each observed module; every reduction of an activation is computed once and shared."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from gvbsm_registry import GvbsmError


class Taps:
    """Records the inputs of the modules at `sites` while used as a context around a forward pass.

    `idle`: sites that will not be asked for in the next pass, so that nothing is reduced there beforehand.
    """

    def __init__(self, model: nn.Module, sites: Iterable[str]) -> None:
        modules = dict(model.named_modules())
        self.sites = {site: modules[site] for site in sites}
        self._seen: dict[str, tuple[Tensor, int]] = {}
        self._shared: dict[int, GroupedActivation] = {}
        self._how: tuple[int, bool] | None = None
        self.idle: set[str] = set()
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
        def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            tensor = inputs[0]
            self._seen[site] = tensor, tensor._version
            # Reduced at once where it is known what will be asked: the activation is in the cache now, and
            # the backward pass reaches its gradient in turn instead of holding those of all sites.
            if self._how is not None and self._how[1] and self._plans[site] and site not in self.idle:
                self._activation(site, tensor).reduce()

        return record

    def _activation(self, site: str, tensor: Tensor) -> GroupedActivation:
        assert self._how is not None
        if id(tensor) not in self._shared:
            self._shared[id(tensor)] = GroupedActivation(
                tensor, self._how[0], self._plans[site], self._how[1]
            )
        return self._shared[id(tensor)]

    def activations(self, groups: int = 1, fused: bool = True) -> dict[str, GroupedActivation]:
        """Return what each site saw, `groups` equal image batches lying one after another; then forget it.

        Sites that saw the same tensor share one object; `fused` as in GroupedActivation. Raises GvbsmError if
        a site saw nothing or its input was changed in place afterwards.
        """
        if self._how != (groups, fused):
            self._how = groups, fused
            self._shared.clear()
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
        self._seen.clear()
        self._shared.clear()
        return found


class GroupedActivation:
    """One site's input for G image batches in one tensor [G·B, C, H, W], with reductions by group.

    All reductions asked for are computed together, in one pass over the activation each way. `plan` remembers
    the patch sides asked for (0 stands for channels) between forward passes, so that only the first pass
    computes them one by one. `fused`: one autograd function with a backward pass of its own, which is fast
    eagerly; without, plain operations that a compiler fuses with their neighbours.
    """

    def __init__(
        self, tensor: Tensor, groups: int, plan: dict[int, None] | None = None, fused: bool = True
    ) -> None:
        self.tensor, self.groups, self.fused = tensor, groups, fused
        self._plan = {} if plan is None else plan
        self._found: dict[int, tuple[Tensor, Tensor]] = {}
        self._split: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def group(self, index: int) -> Activation:
        """Return what a matcher sees: batch `index` alone."""
        return Activation(self, index)

    def channel_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance by channel, float32 (float64 if the activation is) [G, C] each."""
        return self.patch_moments(0)

    def patch_moments(self, side: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance by patch of `side` pixels, [G, ⌈H/side⌉, ⌈W/side⌉] each.

        A `side` of 0 stands for channels.
        """
        if side not in self._found:
            self._plan[side] = None
            self.reduce()
        return self._found[side]

    def reduce(self) -> None:
        """Compute all moments that the plan asks for and that are not there yet."""
        sides = [wanted for wanted in self._plan if wanted not in self._found]
        if sides:
            batch = self.tensor.unflatten(0, (self.groups, -1))
            flat = BatchMoments.apply(batch, sides) if self.fused else moments(batch, sides)
            pairs = zip(flat[::2], flat[1::2], strict=True)
            self._found.update(zip(sides, pairs, strict=True))

    def group_moments(self, side: int, index: int) -> tuple[Tensor, Tensor]:
        """Return the moments of one group, without the leading axis."""
        if side not in self._split:
            mean, variance = self.patch_moments(side)
            self._split[side] = list(zip(mean.unbind(0), variance.unbind(0), strict=True))
        return self._split[side][index]


class Activation:
    """One image batch at one site; see `gvbsm_registry.Activation`."""

    def __init__(self, whole: GroupedActivation, index: int) -> None:
        self._whole, self._index = whole, index

    @property
    def tensor(self) -> Tensor:
        whole = self._whole
        return whole.tensor if whole.groups == 1 else whole.tensor.chunk(whole.groups)[self._index]

    def channel_moments(self) -> tuple[Tensor, Tensor]:
        return self._whole.group_moments(0, self._index)

    def patch_moments(self, side: int) -> tuple[Tensor, Tensor]:
        return self._whole.group_moments(side, self._index)


def moments(batch: Tensor, sides: list[int]) -> tuple[Tensor, ...]:
    """What BatchMoments computes, in plain operations, float32 throughout: for the compiler."""
    wide = batch if batch.dtype == torch.float64 else batch.float()
    first = wide[:, :1].detach()  # any constant will do: neither moment depends on what is subtracted
    deviation = wide - first
    shift = deviation.mean(1)
    mean = shift + first.squeeze(1)
    variance = deviation.square().mean(1) - shift.square()
    found = []
    for side in sides:
        average = _average(mean, side)
        spread = mean - _repeat(average, side, mean.shape)
        found += [average, _average(variance + spread.square(), side).clamp(min=0)]
    return tuple(found)


def _repeat(averages: Tensor, side: int, shape: torch.Size) -> Tensor:
    """Put averages [G, C] or [G, ⌈H/s⌉, ⌈W/s⌉] back to where they were taken, broadcastable to `shape`."""
    if side == 0:
        return averages.reshape(averages.shape + (1,) * (len(shape) - 2))
    wide = averages.repeat_interleave(side, -2).repeat_interleave(side, -1)
    return wide[:, None, : shape[-2], : shape[-1]]


class BatchMoments(torch.autograd.Function):
    """Means and biased variances of [G, B, C, *space] by channel and by patch, in one pass each way.

    Forward: mean m and variance v over the batch at each position, the deviations taken from the batch's
    first image so that no precision is lost where the mean is large; then E[x] = m and E[x²] = v + m², in
    float64 on maps B times smaller than the activation, are averaged by channel or patch.
    Backward: one fused multiply-add over the activation, dL/dx = (dL/dE[x] + 2 x dL/dE[x²]) / B.
    """

    @staticmethod
    def forward(ctx: Any, batch: Tensor, sides: list[int]) -> tuple[Tensor, ...]:
        wide = batch if batch.dtype == torch.float64 else batch.float()
        first = wide[:, :1]
        deviation = wide - first
        shift = deviation.mean(1)
        powers = torch.empty((2, *shift.shape), dtype=torch.float64, device=batch.device)
        torch.add(shift, first.squeeze(1), out=powers[0])
        powers[1].copy_(deviation.square_().mean(1).addcmul_(shift, shift, value=-1).clamp_(min=0))
        powers[1].addcmul_(powers[0], powers[0])
        found, means = [], []
        for side in sides:
            mean, square = _average(powers.flatten(0, 1), side).unflatten(0, (2, -1)).unbind(0)
            means.append(mean)
            variance = torch.addcmul(square, mean, mean, value=-1).clamp_(min=0)
            found += [mean.to(wide.dtype), variance.to(wide.dtype)]
        ctx.save_for_backward(batch, *means)
        ctx.sides = sides
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        batch, *means = ctx.saved_tensors
        shape = (2, batch.shape[0], *batch.shape[2:])
        total: Tensor | None = None
        for side, mean, by_mean, by_variance in zip(ctx.sides, means, grads[::2], grads[1::2], strict=True):
            by_power = torch.stack([by_mean - 2 * mean * by_variance, by_variance.double()])
            spread = _spread(by_power / batch.shape[1], side, shape)
            total = spread if total is None else total + spread
        assert total is not None
        offset, slope = total.to(torch.promote_types(batch.dtype, torch.float32)).unbind(0)
        grad = torch.addcmul(offset.unsqueeze(1), batch.to(offset.dtype), slope.unsqueeze(1), value=2)
        return grad.to(batch.dtype), None


def _average(maps: Tensor, side: int) -> Tensor:
    """Average maps [N, C, *space] by channel (side 0): [N, C], or by patch: [N, ⌈H/s⌉, ⌈W/s⌉].

    Patches at the lower and right border may hold fewer pixels.
    """
    if side == 0:
        return maps.flatten(2).mean(2) if maps.ndim > 2 else maps
    return avg_pool2d(maps.mean(1), side, ceil_mode=True)


def _spread(grads: Tensor, side: int, shape: tuple[int, ...]) -> Tensor:
    """The transpose of `_average`: gradients of averages to those of maps of `shape`, broadcastable."""
    if side == 0:
        space = shape[3:]
        return (grads / math.prod(space)).reshape(grads.shape + (1,) * len(space))
    maps = grads.new_empty(shape[0], shape[1], *shape[3:])
    spread = torch.ops.aten.avg_pool2d_backward(
        grads, maps, [side, side], [side, side], [0, 0], True, True, None
    )
    return (spread / shape[2]).unsqueeze(2)
