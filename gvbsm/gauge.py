"""Statistics of activations without gradients, reduced at once while the activation is in the cache."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gvbsm.matching import sites_of, target_name
from gvbsm.powers import CHANNELS, Moments, averaged, mean_and_variance, moments, patched, powers_of
from gvbsm_registry import GvbsmError, Matcher


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

    def channel_moments(self) -> Moments:
        """Mean and biased variance by channel, [C] each."""
        return self._moments(CHANNELS)

    def patch_moments(self, side: int) -> Moments:
        """Mean and biased variance by patch, [⌈H/side⌉, ⌈W/side⌉] each."""
        mean, variance = self._moments(side)
        shape = patched(self.tensor.shape[-2:], side)
        return mean.view(shape), variance.view(shape)

    def _moments(self, side: int) -> Moments:
        if side not in self._found:
            if self._powers is None:
                self._powers = powers_of(mean_and_variance(self.tensor))
            self._found[side] = moments(averaged(self._powers, side, [self.tensor.shape[1]]))
        return self._found[side]


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
