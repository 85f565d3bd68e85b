"""Statistics of activations without gradients, reduced at once while the activation is in the cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gvbsm.matching.activations import ActivationRecorder, GroupedActivation
from gvbsm.matching.asking import measured_sites, sites_of, statistics_of
from gvbsm.matching.targets import target_name
from gvbsm_registry import Matcher


class StatisticsCollector:
    """Takes the statistics of `matchers` at all sites of `module` that do not know them, by target name.

    by_class: those of one class, which no module knows, so that it takes them at all sites.

    Moments are made for all sites together after the forward pass, of what was reduced in it: no activation
    is kept alive, so that measuring takes no more memory than inference. Statistics of matchers that look at
    the activation itself are taken in the pass; so are all in the first, which tells who looks.
    """

    def __init__(self, module: nn.Module, matchers: Sequence[Matcher], by_class: bool = False) -> None:
        self.module = module
        self._matchers: dict[str, list[tuple[Matcher, str]]] = {}
        for matcher in matchers:
            for site in (sites_of if by_class else measured_sites)(matcher, module):
                prefix = target_name(matcher, site, "", by_class)
                self._matchers.setdefault(site, []).append((matcher, prefix))
        self._recorder = ActivationRecorder(module, self._matchers, visit=self._visit)
        self._looking: dict[str, bool] = {}
        self._images = torch.empty(0)
        self._statistics: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return one batch's statistics, at least float32, on the module's device, of images [B, C, H, W].

        Nothing, if there is no site to measure. Raises GvbsmError if a site is not reached.
        """
        if not self._matchers:
            return {}
        self._images, self._statistics = images, {}
        with self._recorder:
            self.module(images)
        for site, activation in self._recorder.activations().items():
            if site not in self._statistics:
                self._take(site, activation)
            self._looking[site] = self._looking.get(site, False) or activation.looked_at
        statistics, self._images, self._statistics = self._statistics, torch.empty(0), {}
        return {name: value for site in self._matchers for name, value in statistics[site].items()}

    def _visit(self, site: str, activation: GroupedActivation) -> None:
        activation.recompute = lambda: self._input_of(site)
        if self._looking.get(site, True):
            self._take(site, activation)
        else:
            activation.reduce()

    def _take(self, site: str, activation: GroupedActivation) -> None:
        seen = activation.group(0)
        self._statistics[site] = {
            prefix + name: value
            for matcher, prefix in self._matchers[site]
            for name, value in statistics_of(matcher, seen).items()
        }

    def _input_of(self, site: str) -> Tensor:
        """Return a site's input by another pass, for a matcher that did not look in any batch before."""
        copies: list[Tensor] = []
        with ActivationRecorder(
            self.module, [site], visit=lambda _, activation: copies.append(activation.tensor.clone())
        ):
            self.module(self._images)
        return copies[-1]
