"""What matchers are asked, with what the contract says about their answers."""

from __future__ import annotations

from torch import Tensor, nn

from gvbsm.matching.activations import Activation
from gvbsm.runtime.blame import calling, describe_tensor, refuse
from gvbsm_registry import GvbsmError, Matcher

SITES = "a list of names of the model's modules"
TARGETS = "None, or a dict of named float tensors"
STATISTICS = "a dict of named float tensors, differentiable"


def sites_of(matcher: Matcher, model: nn.Module) -> list[str]:
    """Return a matcher's sites in a model, checked.

    Raises GvbsmError if the matcher names a module that the model does not have.
    """
    with calling(matcher, "sites", SITES):
        sites: object = matcher.sites(model)
    if not isinstance(sites, list | tuple) or not all(isinstance(site, str) for site in sites):
        raise refuse(matcher, "sites", type(sites).__name__, SITES)
    known = dict(model.named_modules())
    for site in sites:
        if site not in known:
            raise GvbsmError(
                f"matcher {matcher.full_name!r} names the site {site!r}, which the backbone lacks"
            )
    return list(sites)


def measured_sites(matcher: Matcher, model: nn.Module) -> list[str]:
    """Return the sites of a matcher whose modules do not know their targets, so that they are measured.

    Of the data set's targets: those of its classes no module knows. Raises GvbsmError as `sites_of` does.
    """
    modules = dict(model.named_modules())
    return [site for site in sites_of(matcher, model) if known_targets(matcher, modules[site]) is None]


def known_targets(matcher: Matcher, module: nn.Module) -> dict[str, Tensor] | None:
    """Return a matcher's targets at a site if the site's module knows them."""
    with calling(matcher, "targets", TARGETS):
        targets = matcher.targets(module)
    return None if targets is None else named_tensors(matcher, "targets", targets, TARGETS)


def named_tensors(matcher: Matcher, method: str, given: object, asks: str) -> dict[str, Tensor]:
    """Return `given` if it is a dict of named float tensors; raises ComponentError if not."""
    if not isinstance(given, dict) or not given:
        raise refuse(matcher, method, type(given).__name__ if given else "nothing", asks)
    for name, value in given.items():
        if not (isinstance(name, str) and isinstance(value, Tensor) and value.is_floating_point()):
            raise refuse(matcher, method, f"{describe_tensor(value)} as {name!r}", asks)
    return given


def statistics_of(matcher: Matcher, activation: Activation) -> dict[str, Tensor]:
    """Return a matcher's statistics of an activation, checked."""
    with calling(matcher, "statistics", STATISTICS):
        statistics: object = matcher.statistics(activation)
    return named_tensors(matcher, "statistics", statistics, STATISTICS)
