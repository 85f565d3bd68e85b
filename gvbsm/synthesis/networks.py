"""What populations draw from: the backbones, each with its matching terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import Tensor, nn

from gvbsm.matching.forward import MatchedBackbone
from gvbsm.matching.frozen import freeze
from gvbsm_registry import GvbsmError, Network


@dataclass(frozen=True)
class PlannedNetwork:
    """A backbone that can be built, and loaded if it was trained.

    build: returns an untrained module, in evaluation mode, by torch's global generator. load: the trained
    one. accuracy: None if it was not trained. match: makes the frozen module ready to be matched against; an
    untrained one (True) has nothing to be compared with. match_weight: factor on its matching terms.
    """

    name: str
    accuracy: float | None
    match_weight: float
    build: Callable[[], nn.Module]
    load: Callable[[], nn.Module]
    match: Callable[[nn.Module, bool], MatchedBackbone]


class BackboneStock:
    """See `gvbsm_registry.Stock`; keeps what belongs to the networks that it has handed out."""

    def __init__(self, planned: Sequence[PlannedNetwork], images: Tensor, labels: Tensor) -> None:
        self._planned = planned
        self.names = [backbone.name for backbone in planned]
        self.accuracies = [each.accuracy for each in planned if each.accuracy is not None]
        self.images, self.labels = images, labels
        self._matched: dict[Network, tuple[MatchedBackbone, float]] = {}
        # There may be one for every step: they go when the population lets go of them.
        self._fresh: WeakSet[nn.Module] = WeakSet()
        self._saved: dict[str, Tensor] = {}

    def pretrained(self, index: int, change: Callable[[nn.Module], None] | None = None) -> Network:
        """Load a backbone; see `gvbsm_registry.Stock.pretrained`."""
        planned = self._planned[index]
        if planned.accuracy is None:
            raise GvbsmError(
                f"the population asks for the pretrained network {planned.name!r}, but says keeps = 'none', "
                "so that none was trained; ask its author to correct it"
            )
        module = planned.load()
        if change is not None:
            change(module)
        network = Network(planned.name, freeze(module))
        matched = planned.match(module, False)
        matched.restore(_below(self._saved, f"{len(self._matched)}."))
        self._matched[network] = matched, planned.match_weight
        return network

    def fresh(self, index: int, seed: int) -> Network:
        """Build a backbone; see `gvbsm_registry.Stock.fresh`."""
        planned = self._planned[index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            module = freeze(planned.build())
        self._fresh.add(module)
        return Network(planned.name, module)

    def handed_out(self) -> list[Network]:
        """Return the pretrained networks that were drawn from here so far."""
        return list(self._matched)

    def matched(self, network: Network) -> tuple[MatchedBackbone, float]:
        """Return a network's matching terms, and the factor on them.

        Raises GvbsmError if the network was not drawn from here.
        """
        for known, matched in self._matched.items():
            if known.module is network.module:
                return matched
        if network.module in self._fresh:
            return self._planned[self.names.index(network.name)].match(network.module, True), 1.0
        raise GvbsmError(
            f"network {network.name!r} was not drawn from the stock, so that nothing is known of its "
            "statistics; a population returns networks of stock.pretrained or stock.fresh"
        )

    def state(self) -> dict[str, Tensor]:
        """Return what the networks' matching terms remember, by the order in which they were handed out."""
        return {
            f"{number}.{name}": tensor
            for number, (matched, _) in enumerate(self._matched.values())
            for name, tensor in matched.state().items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned, for networks handed out already and for those to come."""
        self._saved = dict(state)
        for number, (matched, _) in enumerate(self._matched.values()):
            matched.restore(_below(state, f"{number}."))


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
