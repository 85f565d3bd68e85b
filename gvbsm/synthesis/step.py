"""One synthesis step: computed for all image batches together, seen by each term for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Generator, Tensor

from gvbsm.matching.activations import inputs_of
from gvbsm.runtime import asking
from gvbsm.synthesis.networks import BackboneStock
from gvbsm.synthesis.real import Drawn, RealImages
from gvbsm_registry import Augmentation, Component, GvbsmError, Matcher, Network, View


class JointStep:
    """A step on G image batches of B images, `images` [G·B, C, H, W]; see `gvbsm_registry.SynthesisStep`.

    All that is random is drawn here, from each batch's generator, in an order that does not depend on who
    asks for what. matchers: by the names of their terms.
    """

    def __init__(
        self,
        index: int,
        steps: int,
        images: Tensor,
        labels: Tensor,
        networks: Sequence[Network],
        stock: BackboneStock,
        matchers: dict[str, Matcher],
        augmentation: Augmentation,
        generators: Sequence[Generator],
        reals: RealImages,
    ) -> None:
        self.index, self.steps, self.images, self.labels = index, steps, images, labels
        self.networks, self.matchers, self._stock = networks, matchers, stock
        self.batches = len(generators)
        self.size = len(images) // self.batches
        side, progress = images.shape[-1], index / steps
        self.views = [
            asking.drawn(augmentation, self.size, side, each, progress=progress) for each in generators
        ]
        self._reals, self._seeds = reals, reals.seeds()
        sites = [len(stock.matched(network)[0].sites) for network in networks]
        drawn = [[torch.rand(count, generator=each) for count in sites] for each in generators]
        self._uniforms = [torch.stack(of_network) for of_network in zip(*drawn, strict=True)]
        self._observed: dict[Network, tuple[Tensor, dict[str, Tensor]]] = {}
        self._inputs: dict[tuple[Network, tuple[str, ...]], dict[str, Tensor]] = {}

    @cached_property
    def seen(self) -> Tensor:
        """The views of all images."""
        return View.join(self.views).apply(self.images)

    def logits(self, network: Network) -> Tensor:
        """The logits of all views, [G·B, K]."""
        return self._observe(network)[0]

    def _observe(self, network: Network) -> tuple[Tensor, dict[str, Tensor]]:
        if network not in self._observed:
            matched, _ = self._stock.matched(network)
            uniforms = self._uniforms[self.networks.index(network)]
            self._observed[network] = matched.observe(self.seen, uniforms.to(self.seen.device), self.labels)
        return self._observed[network]

    def matched(self, name: str) -> Tensor | None:
        """The term of the matcher called `name`, summed over networks and batches; None without a site."""
        terms = [
            network.weight * self._stock.matched(network)[1] * term
            for network in self.networks
            if (term := self._observe(network)[1].get(name)) is not None
        ]
        return torch.stack(terms).sum() if terms else None

    def inputs(self, network: Network, sites: Sequence[str]) -> dict[str, Tensor]:
        """What the modules at `sites` are given for all views."""
        asked = network, tuple(sites)
        if asked not in self._inputs:
            self._inputs[asked] = inputs_of(network.module, sites, self.seen)
        return self._inputs[asked]

    def real(self, batch: int, labels: Tensor, per_class: int, same_view: bool) -> Drawn:
        """Real images for one image batch, whose images that take part have `labels`."""
        views = self.views[batch] if same_view else None
        side, progress = self.images.shape[-1], self.index / self.steps
        return self._reals.draw(self._seeds[batch], labels, per_class, views, side=side, progress=progress)


class BatchStep:
    """What a step is for one of its image batches: see `gvbsm_registry.SynthesisStep`."""

    def __init__(self, joint: JointStep, batch: int) -> None:
        self._joint, self._batch = joint, batch
        self.index, self.steps, self.networks = joint.index, joint.steps, joint.networks
        self._real: dict[tuple[int, bool], Drawn] = {}

    def _own(self, values: Tensor) -> Tensor:
        return values.split(self._joint.size)[self._batch]

    @cached_property
    def labels(self) -> Tensor:
        """The classes of this batch's images."""
        return self._own(self._joint.labels)

    @cached_property
    def images(self) -> Tensor:
        """This batch's images."""
        return self._own(self._joint.images)

    @property
    def view(self) -> View:
        """This batch's views."""
        return self._joint.views[self._batch]

    @cached_property
    def seen(self) -> Tensor:
        """The views of this batch's images."""
        return self._own(self._joint.seen)

    def logits(self, network: Network) -> Tensor:
        """The logits of this batch's views."""
        return self._own(self._joint.logits(network))

    def real(self, per_class: int, *, same_view: bool = False) -> Drawn:
        """Real images of this batch's classes, drawn when they are first asked for."""
        asked = per_class, same_view
        if asked not in self._real:
            self._real[asked] = self._joint.real(self._batch, self.labels, per_class, same_view)
        return self._real[asked]

    def features(self, network: Network, images: Tensor | None = None) -> Tensor:
        """What the last linear layer is given, or the logits."""
        linear = [name for name, part in network.module.named_modules() if isinstance(part, torch.nn.Linear)]
        if linear:
            return self.inputs(network, linear[-1:], images)[linear[-1]].flatten(1)
        if images is None:
            return self.logits(network).flatten(1)
        logits: Tensor = network.module(images)
        return logits.flatten(1)

    def inputs(
        self, network: Network, sites: Sequence[str], images: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the modules at `sites` are given for this batch's views, or for other images."""
        if images is not None:
            return inputs_of(network.module, sites, images)
        return {site: self._own(value) for site, value in self._joint.inputs(network, sites).items()}

    def matched(self, matcher: Component) -> Tensor:
        """A matcher's term; raises GvbsmError if it has no site in the networks."""
        names = [name for name, known in self._joint.matchers.items() if known == matcher]
        term = self._joint.matched(names[0]) if names and self._joint.batches == 1 else None
        if term is None:
            raise GvbsmError(
                f"matcher {matcher.full_name!r} has no site in {', '.join(n.name for n in self.networks)}; "
                "leave it out, or take networks that it can look at"
            )
        return term
