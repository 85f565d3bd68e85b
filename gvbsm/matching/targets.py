"""The targets of matchers: what they are stored as, and what there is at a site."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from gvbsm.matching.asking import known_targets
from gvbsm_registry import GvbsmError, Matcher
from gvbsm_registry.artifacts import digest

BY_CLASS = "by_class/"
"""What the names of targets begin with that each class has its own of."""


def target_name(matcher: Matcher, site: str, statistic: str, by_class: bool = False) -> str:
    """The name under which a measured target is stored: the matcher's measuring options, site, statistic.

    by_class: it is of every class by itself, [K, *the statistic's shape].
    """
    name = f"{digest(matcher.measured_by())[:12]}/{site}/{statistic}"
    return BY_CLASS + name if by_class else name


def targets_at(
    matcher: Matcher, site: str, module: nn.Module, measured: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the targets at a site: those that its module knows, or those that were measured."""
    known = known_targets(matcher, module)
    if known is not None:
        return known
    prefix = target_name(matcher, site, "")
    stored = {name.removeprefix(prefix): t for name, t in measured.items() if name.startswith(prefix)}
    if not stored:
        raise GvbsmError(
            f"matcher {matcher.full_name!r} has no measured targets for site {site!r}; run the measure stage"
        )
    return stored


def class_targets(
    matcher: Matcher, site: str, measured: Mapping[str, Tensor], classes: Tensor
) -> dict[str, Tensor]:
    """Return the targets at a site for each of `classes`, [G, *shape] by statistic."""
    prefix = target_name(matcher, site, "", by_class=True)
    stored = {name.removeprefix(prefix): t for name, t in measured.items() if name.startswith(prefix)}
    if not stored:
        raise GvbsmError(
            f"matcher {matcher.full_name!r} has no targets measured by class for site {site!r}; run the "
            "measure stage"
        )
    targets = {}
    for name, tensor in stored.items():
        targets[name] = tensor[classes.to(tensor.device)]
        lacking = classes[~targets[name].reshape(len(classes), -1).isfinite().all(1).to(classes.device)]
        if len(lacking):
            raise GvbsmError(
                f"matcher {matcher.full_name!r} has no finite targets for class {int(lacking[0])} at site "
                f"{site!r}: the class has no training image, or the statistic is not finite there; leave the "
                "class out, or set by_class = 0"
            )
    return targets
