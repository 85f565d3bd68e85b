"""Statistics of activations without gradients, reduced at once while the activation is in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gvbsm.matching.activations import ActivationFreed, GroupedActivation, settle
from gvbsm.matching.terms import sites_of, target_name
from gvbsm_registry import GvbsmError, Matcher

Taker = tuple[Matcher, str]


class StatisticsCollector:
    """Takes all statistics that `matchers` have in `module`, by target name.

    Moments are made for all sites together after the forward pass, of what was reduced on the way: no
    activation is kept alive, so that measuring takes no more memory than inference. Where a matcher looks at
    the activation itself, its statistics are taken on the way.
    """

    def __init__(self, module: nn.Module, matchers: Sequence[Matcher]) -> None:
        self.module = module
        modules = dict(module.named_modules())
        self._takers: dict[str, tuple[nn.Module, list[Taker]]] = {}
        for matcher in matchers:
            for site in sites_of(matcher, module):
                taker = matcher, target_name(matcher, site, "")
                self._takers.setdefault(site, (modules[site], []))[1].append(taker)
        self._kinds = {
            site: tuple(id(matcher) for matcher, _ in takers) for site, (_, takers) in self._takers.items()
        }
        self._looking: set[str] = set()
        self._sharing = _Sharing()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return one batch's statistics, at least float32, on the module's device, of images [B, C, H, W].

        Raises GvbsmError if a site is not reached.
        """
        looking = None
        while looking != self._looking:
            looking = set(self._looking)
            found = self._found(images)
        if missing := self._takers.keys() - found.keys():
            site = min(missing)
            raise GvbsmError(f"site {site!r} is not reached in a forward pass; leave it out of the sites")
        return {name: value for site in self._takers for name, value in found[site].items()}

    def _found(self, images: Tensor) -> dict[str, dict[str, Tensor]]:
        """Return the statistics by site; where some cannot be taken any more, their sites are `_looking`."""
        found: dict[str, dict[str, Tensor]] = {}
        late: dict[str, GroupedActivation] = {}

        def taking(site: str) -> Any:
            def take(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                activation = self._sharing.activation(inputs[0], self._kinds[site])
                if site in self._looking:
                    found[site] = self._taken(site, activation)
                else:
                    activation.reduce()
                    late[site] = activation

            return take

        handles = [
            module.register_forward_pre_hook(taking(site)) for site, (module, _) in self._takers.items()
        ]
        try:
            self.module(images)
        finally:
            for handle in handles:
                handle.remove()
            self._sharing.forget()
        for site, activation in late.items():
            if activation.wanted():
                settle(list(dict.fromkeys(late.values())))
            try:
                found[site] = self._taken(site, activation)
            except ActivationFreed:
                self._looking.add(site)
        return found

    def _taken(self, site: str, activation: GroupedActivation) -> dict[str, Tensor]:
        seen = activation.group(0)
        return {
            prefix + name: value
            for matcher, prefix in self._takers[site][1]
            for name, value in matcher.statistics(seen).items()
        }


class _Sharing:
    """Gives sites that see the same tensor, unchanged, one object for it; of one shape, one plan."""

    def __init__(self) -> None:
        self._plans: dict[Any, dict[int, None]] = {}
        self._known: dict[int, GroupedActivation] = {}

    def activation(self, tensor: Tensor, kind: Any) -> GroupedActivation:
        """Return what stands for a tensor at a site; sites of one `kind` are asked the same questions."""
        known = self._known.get(id(tensor))
        if known is None or not known.is_of(tensor):
            plan = self._plans.setdefault((kind, tensor.shape[1:]), {})
            known = self._known[id(tensor)] = GroupedActivation(tensor, 1, plan, keep=False)
        return known

    def forget(self) -> None:
        """Forget the tensors; the plans stay."""
        self._known.clear()
