"""Statistics of activations without gradients, reduced at once while the activation is in the cache."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gvbsm.matching import sites_of, target_name
from gvbsm.taps import GroupedActivation, settle
from gvbsm_registry import GvbsmError, Matcher

Taker = tuple[Matcher, str]


class Gauge:
    """Takes all statistics that `matchers` have in `module`, by target name.

    No activation is kept alive, so that measuring takes no more memory than inference. Where the matchers ask
    for moments alone, from the second batch on they are made for all sites together after the forward pass.
    """

    def __init__(self, module: nn.Module, matchers: Sequence[Matcher]) -> None:
        self.module = module
        modules = dict(module.named_modules())
        self._takers: dict[str, tuple[nn.Module, list[Taker]]] = {}
        for matcher in matchers:
            for site in sites_of(matcher, module):
                taker = matcher, target_name(matcher, site, "")
                self._takers.setdefault(site, (modules[site], []))[1].append(taker)
        self._plans: dict[str, dict[int, None]] = {site: {} for site in self._takers}
        self._late: set[str] = set()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return one batch's statistics, at least float32, on the module's device, of images [B, C, H, W].

        Raises GvbsmError if a site is not reached.
        """
        found: dict[str, dict[str, Tensor]] = {}
        late: dict[str, GroupedActivation] = {}
        activation_of = _Sharing(self._plans)

        def taking(site: str) -> Any:
            def take(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                activation = activation_of(site, inputs[0])
                if site in self._late:
                    activation.reduce()
                    late[site] = activation
                    return
                activation.looked_at = False
                found[site] = self._taken(site, activation)
                if not activation.looked_at:
                    self._late.add(site)

            return take

        handles = [
            module.register_forward_pre_hook(taking(site)) for site, (module, _) in self._takers.items()
        ]
        try:
            self.module(images)
        finally:
            for handle in handles:
                handle.remove()
        settle(list({id(activation): activation for activation in late.values()}.values()))
        for site, activation in late.items():
            found[site] = self._taken(site, activation)
        if missing := self._takers.keys() - found.keys():
            site = min(missing)
            raise GvbsmError(f"site {site!r} is not reached in a forward pass; leave it out of the sites")
        return {name: value for site in self._takers for name, value in found[site].items()}

    def _taken(self, site: str, activation: GroupedActivation) -> dict[str, Tensor]:
        seen = activation.group(0)
        return {
            prefix + name: value
            for matcher, prefix in self._takers[site][1]
            for name, value in matcher.statistics(seen).items()
        }


class _Sharing:
    """Gives sites that see the same tensor, unchanged, one object for it."""

    def __init__(self, plans: dict[str, dict[int, None]]) -> None:
        self._plans = plans
        self._known: dict[int, tuple[weakref.ref[Tensor], int, GroupedActivation]] = {}

    def __call__(self, site: str, tensor: Tensor) -> GroupedActivation:
        whose, version, activation = self._known.get(id(tensor), (None, 0, None))
        if activation is None or whose is None or whose() is not tensor or version != tensor._version:
            activation = GroupedActivation(tensor, 1, self._plans[site], keep=False)
            self._known[id(tensor)] = weakref.ref(tensor), tensor._version, activation
        return activation
