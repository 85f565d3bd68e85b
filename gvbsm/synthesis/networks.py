"""What populations draw from: the backbones, each with its matching terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from gvbsm.matching.forward import MatchedBackbone
from gvbsm.matching.frozen import freeze
from gvbsm_registry import GvbsmError, Network


@dataclass(frozen=True)
class PlannedNetwork:
    """A backbone that can be loaded.

    load: returns the trained module, in evaluation mode. match: makes the frozen module ready to be matched
    against. match_weight: factor on its matching terms.
    """

    name: str
    accuracy: float
    match_weight: float
    load: Callable[[], nn.Module]
    match: Callable[[nn.Module], MatchedBackbone]


class BackboneStock:
    """See `gvbsm_registry.Stock`; keeps what belongs to the networks that it has handed out."""

    def __init__(self, planned: Sequence[PlannedNetwork], images: Tensor, labels: Tensor) -> None:
        self._planned = planned
        self.names = [backbone.name for backbone in planned]
        self.accuracies = [backbone.accuracy for backbone in planned]
        self.images, self.labels = images, labels
        self._matched: dict[Network, tuple[MatchedBackbone, float]] = {}
        self._saved: dict[str, Tensor] = {}

    def pretrained(self, index: int, change: Callable[[nn.Module], None] | None = None) -> Network:
        """Load a backbone; see `gvbsm_registry.Stock.pretrained`."""
        planned = self._planned[index]
        module = planned.load()
        if change is not None:
            change(module)
        network = Network(planned.name, freeze(module))
        matched = planned.match(module)
        matched.restore(_below(self._saved, f"{len(self._matched)}."))
        self._matched[network] = matched, planned.match_weight
        return network

    def handed_out(self) -> list[Network]:
        """Return the networks that were drawn from here so far."""
        return list(self._matched)

    def matched(self, network: Network) -> tuple[MatchedBackbone, float]:
        """Return a network's matching terms, and the factor on them.

        Raises GvbsmError if the network was not drawn from here.
        """
        for known, matched in self._matched.items():
            if known.module is network.module:
                return matched
        raise GvbsmError(
            f"network {network.name!r} was not drawn from the stock, so that nothing is known of its "
            "statistics; a population returns networks of stock.pretrained"
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
