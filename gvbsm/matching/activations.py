"""Records activations; every reduction of one is computed once and shared."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from gvbsm.matching.moments import (
    BatchMoments,
    ByChannel,
    ByPatch,
    Moments,
    PooledMoments,
    Reduction,
    central_moments,
    channels_last,
    compilable_moments,
    mean_and_variance,
    merge_moments,
)
from gvbsm_registry import GvbsmError

Wanted = tuple[Reduction, bool]
"""A reduction, and whether it is of the parts of image batches, or of whole ones."""


class ActivationRecorder:
    """Records the inputs of the modules at `sites` while used as a context around a forward pass.

    groups: equal image batches lie one after another in what the model is given. parts: so do equal parts in
    each of those, such as its classes, that have moments of their own.
    fused: as in GroupedActivation. centres: for sites that are not reduced by fused functions.
    visit: called in the pass with each site and what it sees; the activations themselves are then not kept
    alive, but only what `visit` had reduced.
    plans: what was asked of each site in earlier passes; it decides what is computed together.
    `idle`: sites that will not be asked for in the next pass, so that nothing is reduced there beforehand.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[str],
        groups: int = 1,
        fused: bool = True,
        centres: Mapping[str, Tensor] | None = None,
        visit: Callable[[str, GroupedActivation], None] | None = None,
        parts: int = 1,
    ) -> None:
        modules = dict(model.named_modules())
        self.sites = {site: modules[site] for site in sites}
        self.idle: set[str] = set()
        self._groups, self._parts = groups, parts
        self._fused, self._centres, self._visit = fused, centres or {}, visit
        self._seen: dict[str, GroupedActivation] = {}
        self._shared: dict[int, GroupedActivation] = {}
        self.plans: dict[str, dict[Wanted, None]] = {site: {} for site in self.sites}
        self._handles: list[Any] = []

    def __enter__(self) -> ActivationRecorder:
        self._forget()
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
        plan = self.plans[site]

        def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            activation = self._seen[site] = self._activation(site, inputs[0])
            if self._visit is not None:
                self._visit(site, activation)
            # Reduced at once where it is known what will be asked: the activation is in the cache now, and
            # the backward pass reaches its gradient in turn instead of holding those of all sites.
            elif self._fused and plan and site not in self.idle:
                activation.reduce()

        return record

    def _activation(self, site: str, tensor: Tensor) -> GroupedActivation:
        """Return what stands for a site's input: one object for all sites that see it unchanged."""
        shared = self._shared.get(id(tensor))
        if shared is None or not shared.is_of(tensor):
            plan, centre = self.plans[site], self._centres.get(site)
            keep = self._visit is None
            shared = GroupedActivation(tensor, self._groups, plan, self._fused, centre, keep, self._parts)
            self._shared[id(tensor)] = shared
        return shared

    def activations(self) -> dict[str, GroupedActivation]:
        """Return what each site saw; then forget it. Sites that saw the same tensor share one object.

        Raises GvbsmError if a site saw nothing, or if activations are kept and one was changed in place.
        """
        for site in self.sites:
            if site not in self._seen:
                raise GvbsmError(f"site {site!r} is not reached in a forward pass; leave it out of the sites")
            if self._visit is None and self._seen[site].is_changed():
                raise GvbsmError(
                    f"the input of site {site!r} is changed in place by a later module; "
                    "build the backbone with inplace=False"
                )
        activations = {site: self._seen[site] for site in self.sites}
        finalize(list(dict.fromkeys(activations.values())))
        self._forget()
        return activations

    def _forget(self) -> None:
        self._seen.clear()
        self._shared.clear()


def inputs_of(module: nn.Module, sites: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Return what the modules at `sites` are given in a forward pass of `images`, by site."""
    with ActivationRecorder(module, sites) as recorder:
        module(images)
    return {site: activation.tensor for site, activation in recorder.activations().items()}


class GroupedActivation:
    """One site's input for G image batches in one tensor [G·B, C, H, W], with reductions by group.

    An image batch may be in `parts` equal parts, such as its classes, with reductions of their own.

    All reductions asked for are computed together, in one pass over the activation each way. `plan` remembers
    what was asked for between forward passes, so that only the first pass computes one by one. fused: by an
    autograd function with a backward pass of its own, which is fast eagerly; without, by plain operations
    that a compiler fuses with their neighbours, about `centre` (see `compilable_moments`). keep: hold the
    activation itself; without, it is there only while the model holds it, and later by `recompute`.
    """

    def __init__(
        self,
        tensor: Tensor,
        groups: int,
        plan: dict[Wanted, None] | None = None,
        fused: bool = True,
        centre: Tensor | None = None,
        keep: bool = True,
        parts: int = 1,
    ) -> None:
        self.groups, self.parts = groups, parts
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.recompute: Callable[[], Tensor] | None = None
        self.looked_at = False
        self._tensor: Callable[[], Tensor | None] = (lambda: tensor) if keep else weakref.ref(tensor)
        self._version = tensor._version
        self._plan = {} if plan is None else plan
        self._fused, self._centre = fused, centre
        self._stacked: dict[Wanted, Moments] = {}
        self._moments: dict[Wanted, list[Moments]] = {}
        self.maps: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        """The activation, as the module was given it; that somebody looked is noted in `looked_at`.

        Raises RuntimeError if it is there no more and cannot be recomputed.
        """
        self.looked_at = True
        tensor = self._tensor()
        if tensor is None or self.is_changed():
            if self.recompute is None:
                raise RuntimeError("an activation is asked for that is no longer what the module was given")
            tensor = self.recompute()
        return tensor

    def is_of(self, tensor: Tensor) -> bool:
        """Tell whether this stands for `tensor` as it is now."""
        return self._tensor() is tensor and not self.is_changed()

    def is_changed(self) -> bool:
        """Tell whether the tensor was changed in place since it was recorded."""
        tensor = self._tensor()
        return tensor is not None and tensor._version != self._version

    def group(self, index: int) -> Activation:
        """Return what a matcher sees: batch `index` alone."""
        return Activation(self, index)

    def part(self, index: int) -> Activation:
        """Return what a matcher sees of one part alone, counted over the parts of all batches."""
        return Activation(self, index, is_part=self.parts > 1)

    def moments(self, reduction: Reduction, index: int, is_part: bool = False) -> Moments:
        """Return mean and biased variance of one group, or of one part, by a reduction, in its shape.

        float32; float64 if the activation is.
        """
        wanted = (reduction, is_part)
        if wanted not in self._moments:
            shape = [-1, *self.shape_of(reduction)]
            mean, variance = (moment.view(shape).unbind(0) for moment in self.stacked(wanted))
            self._moments[wanted] = list(zip(mean, variance, strict=True))
        return self._moments[wanted][index]

    def stacked(self, wanted: Wanted) -> Moments:
        """Return `moments` of all groups, or all parts, flat: [their number, D] each."""
        if wanted not in self._stacked:
            self._plan[wanted] = None
            self.reduce()
            finalize([self])
        return self._stacked[wanted]

    def which(self, value: Tensor, index: int, is_part: bool) -> tuple[Wanted, int] | None:
        """Tell which moments of group, or part, `index` a tensor is: 0 the mean, 1 the variance; or None."""
        for wanted, each in self._moments.items():
            for position, moment in enumerate(each[index] if wanted[1] == is_part else ()):
                if moment is value:
                    return wanted, position
        return None

    def reduce(self) -> None:
        """Pass over the activation; what the plan asks for is then to be made by `finalize`."""
        if self._fused and self.maps is not None:
            return
        tensor = self._tensor()
        assert tensor is not None, "reduced while the model holds it"
        number = self.groups * self.parts
        if self._fused:
            reduce = BatchMoments.apply if torch.is_grad_enabled() else mean_and_variance
            self.maps = reduce(tensor, number)
        else:
            pending = self.pending()
            reductions = list(dict.fromkeys(reduction for reduction, _ in pending))
            made = compilable_moments(tensor.unflatten(0, (number, -1)), reductions, self._centre)
            for reduction, is_part in pending:
                mean, var = made[reduction] if is_part else merge_moments(made[reduction], self.parts)
                self.set_moments((reduction, is_part), (mean.flatten(1), var.flatten(1)))

    def pending(self) -> list[Wanted]:
        """Return the reductions, of groups or of parts, that the plan asks for and that are not there yet."""
        return [wanted for wanted in self._plan if wanted not in self._stacked]

    def set_moments(self, wanted: Wanted, moments: Moments) -> None:
        """Take the moments of all groups, or of all parts, by one reduction: [their number, D] each."""
        self._stacked[wanted] = moments

    def shape_of(self, reduction: Reduction) -> list[int]:
        """Return the shape of the mean, and of the variance, by a reduction."""
        return reduction.shape(self.shape[1], self.shape[2:])


class Activation:
    """One image batch at one site, or a part of one; see `gvbsm_registry.Activation`."""

    def __init__(self, whole: GroupedActivation, index: int, is_part: bool = False) -> None:
        self._whole, self._index, self._is_part = whole, index, is_part

    @property
    def tensor(self) -> Tensor:
        whole = self._whole
        number = whole.groups * whole.parts if self._is_part else whole.groups
        return whole.tensor if number == 1 else whole.tensor.chunk(number)[self._index]

    def channel_moments(self) -> Moments:
        return self._whole.moments(ByChannel(), self._index, self._is_part)

    def patch_moments(self, patch_size: int) -> Moments:
        return self._whole.moments(ByPatch.within(patch_size, self._whole.shape), self._index, self._is_part)


def finalize(activations: Sequence[GroupedActivation]) -> None:
    """Make moments of what `GroupedActivation.reduce` left: for all sites of one shape at once."""
    waiting: dict[tuple[Any, ...], list[GroupedActivation]] = {}
    for activation in activations:
        if activation.maps is not None and activation.pending():
            batch, _, *space = activation.shape
            kind = (batch, channels_last(activation.maps), *space)
            waiting.setdefault(kind, []).append(activation)
    if not waiting:
        return
    pooled: list[Tensor] = []
    places: list[tuple[GroupedActivation, Reduction]] = []
    number, parts = activations[0].groups * activations[0].parts, activations[0].parts
    for (batch, *_), alike in waiting.items():
        reductions = list(dict.fromkeys(reduction for one in alike for reduction, _ in one.pending()))
        pooled += PooledMoments.apply(reductions, batch // number, *(one.maps for one in alike))
        places += [(activation, reduction) for reduction in reductions for activation in alike]
    sizes = [math.prod(activation.shape_of(reduction)) for activation, reduction in places]
    dtype = torch.promote_types(activations[0].dtype, torch.float32)
    moments = central_moments(torch.cat(pooled, 1).unflatten(0, (2, -1)))
    for is_part in {part for activation in activations for _, part in activation.pending()}:
        means, variances = moments if is_part else merge_moments(moments, parts)
        pairs = zip(means.to(dtype).split(sizes, 1), variances.to(dtype).split(sizes, 1), strict=True)
        for (activation, reduction), pair in zip(places, pairs, strict=True):
            activation.set_moments((reduction, is_part), pair)
