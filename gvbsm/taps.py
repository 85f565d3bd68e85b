"""Taps: one at each observed module; every reduction of an activation is computed once and shared."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from gvbsm_registry import GvbsmError


class Taps:
    """Records the inputs of the modules at `sites` while used as a context around a forward pass."""

    def __init__(self, model: nn.Module, sites: Iterable[str]) -> None:
        modules = dict(model.named_modules())
        self.sites = {site: modules[site] for site in sites}
        self._seen: dict[str, tuple[Tensor, int]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Taps:
        self._seen.clear()
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
            self._seen[site] = inputs[0], inputs[0]._version

        return record

    def activations(self, groups: int = 1) -> dict[str, GroupedActivation]:
        """Return what each site saw, `groups` equal image batches lying one after another; then forget it.

        Sites that saw the same tensor share one object. Raises GvbsmError if a site saw nothing or its input
        was changed in place afterwards.
        """
        shared: dict[int, GroupedActivation] = {}
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
            found[site] = shared.setdefault(id(tensor), GroupedActivation(tensor, groups))
        self._seen.clear()
        return found


class GroupedActivation:
    """One site's input for G image batches in one tensor [G·B, C, H, W], with reductions by group.

    Everything derives from the mean and variance over the batch at each (channel, row, column), which cost
    one fused pass each way.
    """

    def __init__(self, tensor: Tensor, groups: int) -> None:
        self.tensor, self.groups = tensor, groups
        self._cache: dict[Any, tuple[Tensor, Tensor]] = {}

    def group(self, index: int) -> Activation:
        """Return what a matcher sees: batch `index` alone."""
        return Activation(self, index)

    def _maps(self) -> tuple[Tensor, Tensor]:
        if "maps" not in self._cache:
            batch = self.tensor.unflatten(0, (self.groups, -1))
            self._cache["maps"] = BatchMoments.apply(batch)
        return self._cache["maps"]

    def channel_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance by channel, float32 [G, C] each."""
        if "channel" not in self._cache:
            mean, variance = self._maps()
            space = tuple(range(2, mean.ndim))
            average = mean.mean(space) if space else mean
            spread = mean - average.reshape(average.shape + (1,) * len(space))
            total = variance + spread.square()
            self._cache["channel"] = average, total.mean(space) if space else total
        return self._cache["channel"]

    def patch_moments(self, side: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance by patch, float32 [G, ⌈H/side⌉, ⌈W/side⌉] each."""
        if side not in self._cache:
            mean, variance = self._maps()
            rows, columns = mean.shape[-2:]
            average = _pool(mean.mean(1), side)
            spread_out = average.repeat_interleave(side, -2).repeat_interleave(side, -1)
            spread = mean - spread_out[:, None, :rows, :columns]
            self._cache[side] = average, _pool((variance + spread.square()).mean(1), side)
        return self._cache[side]


class Activation:
    """One image batch at one site; see `gvbsm_registry.Activation`."""

    def __init__(self, whole: GroupedActivation, index: int) -> None:
        self._whole, self._index = whole, index

    @property
    def tensor(self) -> Tensor:
        whole = self._whole
        return whole.tensor if whole.groups == 1 else whole.tensor.chunk(whole.groups)[self._index]

    def channel_moments(self) -> tuple[Tensor, Tensor]:
        mean, variance = self._whole.channel_moments()
        return mean[self._index], variance[self._index]

    def patch_moments(self, side: int) -> tuple[Tensor, Tensor]:
        mean, variance = self._whole.patch_moments(side)
        return mean[self._index], variance[self._index]


def _pool(maps: Tensor, side: int) -> Tensor:
    """Average [G, H, W] by patch; patches at the lower and right border may hold fewer pixels."""
    return avg_pool2d(maps, side, ceil_mode=True)


class BatchMoments(torch.autograd.Function):
    """Mean and biased variance over the batch axis: [G, B, ...] to float32 [G, ...] each.

    Deviations are taken from the batch's first image, so that no precision is lost where the mean is large.
    The backward pass is a single fused multiply-add over the activation:
    dL/dx = (dL/dm + 2 dL/dv (x - m)) / B.
    """

    @staticmethod
    def forward(ctx: Any, batch: Tensor) -> tuple[Tensor, Tensor]:
        wide = batch if batch.dtype == torch.float64 else batch.float()
        first = wide[:, :1]
        deviation = wide - first
        shift = deviation.mean(1)
        variance = deviation.square_().mean(1) - shift.square()
        mean = shift + first.squeeze(1)
        ctx.save_for_backward(batch, mean)
        return mean, variance.clamp_(min=0)

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        batch, mean = ctx.saved_tensors
        scale = grad_variance * (2 / batch.shape[1])
        offset = grad_mean / batch.shape[1] - scale * mean
        grad = torch.addcmul(offset.unsqueeze(1), batch.to(offset.dtype), scale.unsqueeze(1))
        return grad.to(batch.dtype)
