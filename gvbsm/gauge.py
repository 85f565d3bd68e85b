"""Statistics of activations without gradients, reduced at once while the activation is in the cache."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, mse_loss

from gvbsm.matching import sites_of, target_name
from gvbsm_registry import GvbsmError, Matcher

BLOCK = 2**19
"""Numbers that are squared at a time on a CPU, so that they stay in its cache."""


class Reduced:
    """One site's input, [B, ...]; see `gvbsm_registry.Activation`. Reductions are float64.

    It does not keep the input alive, so that measuring takes no more memory than inference.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = weakref.ref(tensor), tensor._version
        self._powers: Tensor | None = None
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def tensor(self) -> Tensor:
        tensor = self._tensor()
        assert tensor is not None, "an activation is at hand while its site is passed"
        return tensor

    def is_of(self, tensor: Tensor) -> bool:
        """Tell whether this is `tensor` as it is now."""
        return self._tensor() is tensor and self._version == tensor._version

    def channel_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance by channel, [C] each."""
        return self._moments(0)

    def patch_moments(self, side: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance by patch, [⌈H/side⌉, ⌈W/side⌉] each."""
        return self._moments(side)

    def _moments(self, side: int) -> tuple[Tensor, Tensor]:
        if side not in self._found:
            if self._powers is None:
                self._powers = _mean_powers(self.tensor)
            if side:
                mean, square = avg_pool2d(self._powers.mean(1), side, ceil_mode=True)
            else:
                mean, square = self._powers.flatten(2).mean(2) if self._powers.ndim > 2 else self._powers
            self._found[side] = mean, (square - mean.square()).clamp_(min=0)
        return self._found[side]


def _mean_powers(x: Tensor) -> Tensor:
    """Return E[x] and E[x²] over the batch at each position, float64 [2, ...], of x [B, ...].

    E[x²] is made of mean and variance, and squared in float64: no precision is lost where the mean is large.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    mean = _batch_mean(wide)
    powers = torch.stack([mean, _variance(wide, mean)]).double()
    powers[1].addcmul_(powers[0], powers[0])
    return powers


def _batch_mean(x: Tensor) -> Tensor:
    """Return the mean over the batch, [...], of x [B, ...]."""
    if x.is_cuda:
        return x.mean(0)
    # A product with a vector reads the memory twice as fast as torch's sum over the first axis.
    return (x.new_full((1, len(x)), 1 / len(x)) @ x.flatten(1)).reshape(x.shape[1:])


def _variance(x: Tensor, mean: Tensor) -> Tensor:
    """Return the biased variance over the batch, [...], of x [B, ...].

    On a CPU it works on BLOCK numbers at a time in one piece of memory, which stays in the cache.
    """
    if x.is_cuda:
        return mse_loss(x, mean.expand_as(x), reduction="none").mean(0)
    count = min(len(x), max(1, BLOCK // max(mean.numel(), 1)))
    squares = x.new_empty((count, *mean.shape))
    total = torch.zeros_like(mean)
    for part in x.split(count):
        room = squares[: len(part)]
        torch.ops.aten.mse_loss.out(part, mean.expand_as(part), 0, out=room)
        total.add_(_batch_mean(room), alpha=len(part) / len(x))
    return total


class Gauge:
    """Takes all statistics that `matchers` have in `module`, by target name."""

    def __init__(self, module: nn.Module, matchers: Sequence[Matcher]) -> None:
        self.module = module
        modules = dict(module.named_modules())
        self._takers: dict[str, tuple[nn.Module, list[tuple[Matcher, str]]]] = {}
        for matcher in matchers:
            for site in sites_of(matcher, module):
                taker = matcher, target_name(matcher, site, "")
                self._takers.setdefault(site, (modules[site], []))[1].append(taker)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return one batch's statistics, float64 on the module's device, of images [B, C, H, W].

        Raises GvbsmError if a site is not reached.
        """
        found: dict[str, Tensor] = {}
        seen: dict[int, Reduced] = {}
        reached = set()

        def reduced(tensor: Tensor) -> Reduced:
            known = seen.get(id(tensor))  # where the input is that of a site before
            if known is None or not known.is_of(tensor):
                known = seen[id(tensor)] = Reduced(tensor)
            return known

        def taking(site: str, takers: list[tuple[Matcher, str]]) -> Any:
            def take(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                reached.add(site)
                activation = reduced(inputs[0])
                for matcher, prefix in takers:
                    for name, value in matcher.statistics(activation).items():
                        found[prefix + name] = value.double()

            return take

        handles = [
            module.register_forward_pre_hook(taking(site, takers))
            for site, (module, takers) in self._takers.items()
        ]
        try:
            self.module(images)
        finally:
            for handle in handles:
                handle.remove()
        if missing := self._takers.keys() - reached:
            site = min(missing)
            raise GvbsmError(f"site {site!r} is not reached in a forward pass; leave it out of the sites")
        return found
