"""Records activations; every reduction of one is computed once and shared."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from gvbsm.matching.powers import CHANNELS, Moments, channels_last, mean_and_variance, moments, patched
from gvbsm.matching.reductions import BatchMoments, PooledMoments, plain_moments
from gvbsm_registry import GvbsmError


class ActivationRecorder:
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

    def __enter__(self) -> ActivationRecorder:
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


class ActivationFreed(GvbsmError):
    """An activation is asked for after the model has let it go."""


class GroupedActivation:
    """One site's input for G image batches in one tensor [G·B, C, H, W], with reductions by group.

    All reductions asked for are computed together, in one pass over the activation each way. `plan` remembers
    the patch sides asked for (CHANNELS among them) between forward passes, so that only the first pass
    computes them one by one. fused: by an autograd function with a backward pass of its own, which is fast
    eagerly; without, by plain operations that a compiler fuses with their neighbours, about `centre` (see
    `plain_moments`). keep: hold the activation itself; without, it is there only while the model holds it.
    """

    def __init__(
        self,
        tensor: Tensor,
        groups: int,
        plan: dict[int, None] | None = None,
        fused: bool = True,
        centre: Tensor | None = None,
        keep: bool = True,
    ) -> None:
        self.groups = groups
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self._tensor: Callable[[], Tensor | None] = (lambda: tensor) if keep else weakref.ref(tensor)
        self._version = tensor._version
        self._plan = {} if plan is None else plan
        self._fused, self._centre = fused, centre
        self._found: dict[int, list[Moments]] = {}
        self.maps: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        """The activation. Raises ActivationFreed if nothing holds it any more, or it was changed."""
        tensor = self._tensor()
        if tensor is None or tensor._version != self._version:
            raise ActivationFreed("an activation is asked for that is no longer what the module was given")
        return tensor

    def is_of(self, tensor: Tensor) -> bool:
        """Tell whether this stands for `tensor` as it is now."""
        return self._tensor() is tensor and tensor._version == self._version

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
            reduce = BatchMoments.apply if torch.is_grad_enabled() else mean_and_variance
            self.maps = reduce(self.tensor, self.groups)

    def wanted(self) -> list[int]:
        """Return the sides that the plan asks for and that are not there yet."""
        return [side for side in self._plan if side not in self._found]

    def found(self, side: int, by_group: list[Moments]) -> None:
        """Take each group's moments of one side, flat or in shape."""
        if side != CHANNELS:
            shape = patched(self.shape[-2:], side)
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
            batch, _, *space = activation.shape
            kind = (batch, channels_last(activation.maps), *space)
            waiting.setdefault(kind, []).append(activation)
    if not waiting:
        return
    averages: list[Tensor] = []
    places, sizes = [], []
    groups = activations[0].groups
    for (batch, _, *space), alike in waiting.items():
        sides = list(dict.fromkeys(side for activation in alike for side in activation.wanted()))
        averages += PooledMoments.apply(sides, batch // groups, *(activation.maps for activation in alike))
        for side in sides:
            places += [(activation, side) for activation in alike]
            patches = math.prod(patched(space, side)) if side != CHANNELS else 0
            sizes += [patches or activation.shape[1] for activation in alike]
    means, variances = moments(torch.cat(averages, 1).unflatten(0, (2, -1)))
    dtype = torch.promote_types(activations[0].dtype, torch.float32)
    by_group = [
        list(zip(mean.split(sizes), variance.split(sizes), strict=True))
        for mean, variance in zip(means.to(dtype).unbind(0), variances.to(dtype).unbind(0), strict=True)
    ]
    for (activation, side), *pairs in zip(places, *by_group, strict=True):
        activation.found(side, pairs)
