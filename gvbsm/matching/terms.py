"""Matching: targets, running averages and the stop-gradient form, for every matcher alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from gvbsm.matching.activations import GroupedActivation
from gvbsm_registry import Component, GvbsmError, Matcher
from gvbsm_registry.artifacts import digest


def target_name(matcher: Matcher, site: str, statistic: str) -> str:
    """The name under which a measured target is stored: the matcher's measuring options, site, statistic."""
    return f"{digest(matcher.measured_by())[:12]}/{site}/{statistic}"


def sites_of(matcher: Matcher, model: nn.Module) -> list[str]:
    """Return a matcher's sites in a model, checked.

    Raises GvbsmError if the matcher names a module that the model does not have.
    """
    sites = matcher.sites(model)
    known = dict(model.named_modules())
    for site in sites:
        if site not in known:
            raise GvbsmError(
                f"matcher {matcher.full_name!r} names the site {site!r}, which the backbone lacks"
            )
    return list(sites)


def measured_sites(matcher: Matcher, model: nn.Module) -> list[str]:
    """Return the sites of a matcher whose modules do not know their targets, so that they are measured.

    Raises GvbsmError as `sites_of` does.
    """
    modules = dict(model.named_modules())
    return [site for site in sites_of(matcher, model) if matcher.targets(modules[site]) is None]


def term_names(components: Sequence[Component]) -> list[str]:
    """Name each component's term by its full name, numbered where one is used more than once."""
    names = [component.full_name for component in components]
    return [
        name if names.count(name) == 1 else f"{name}-{names[: position + 1].count(name)}"
        for position, name in enumerate(names)
    ]


class Statistic:
    """One named statistic of one matcher at all its S sites, laid out flat: D numbers a batch.

    Keeps the running averages of Eq. 6, [G, D], for G image batches side by side.
    """

    def __init__(self, targets: Sequence[Tensor], groups: int, start: Literal["first", "zero"]) -> None:
        self.targets = torch.cat([target.reshape(-1) for target in targets])
        counts = [target.numel() for target in targets]
        self.bounds = [(sum(counts[:site]), sum(counts[: site + 1])) for site in range(len(counts))]
        sizes = torch.tensor(counts, device=self.targets.device)
        self.sites = len(targets)
        self.site = torch.repeat_interleave(torch.arange(self.sites, device=sizes.device), sizes)
        self.average = self.targets.new_zeros(groups, len(self.targets))
        self.seen = torch.full((groups, self.sites), start == "zero", device=sizes.device)

    def joined(self, name: str, by_group: Sequence[Sequence[Mapping[str, Tensor] | None]]) -> Tensor:
        """Return this statistic of all groups and sites, [G, D]; the running average where there is none."""
        return torch.stack(
            [
                torch.cat(
                    [
                        self.average[index, start:end] if statistics is None else statistics[name].flatten()
                        for statistics, (start, end) in zip(at_sites, self.bounds, strict=True)
                    ]
                )
                for index, at_sites in enumerate(by_group)
            ]
        )

    def update_and_distance(self, current: Tensor, keep: Tensor, momentum: float) -> Tensor:
        """Advance the averages; return ‖μ_l − t − stop_grad(μ_l − μ_total)‖₂, [G, S] (one sum of Eq. 14).

        current: [G, D], the batches' statistics. keep: bool [G, S], the sites that are not dropped; the
        others' running averages stay as they are.
        """
        now = current.detach()
        blended = momentum * self.average + (1 - momentum) * now
        blended = torch.where(self.seen[:, self.site], blended, now)
        self.average = torch.where(keep[:, self.site], blended, self.average)
        self.seen = self.seen | keep
        form = current - self.targets - (now - self.average)
        squares = form.new_zeros(len(form), self.sites).index_add(1, self.site, form.square())
        return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()


class MatcherTerm:
    """One matcher's term in the loss, with its S sites' targets and running averages."""

    def __init__(
        self,
        name: str,
        matcher: Matcher,
        model: nn.Module,
        measured: Mapping[str, Tensor],
        groups: int,
        start: Literal["first", "zero"],
    ) -> None:
        self.name, self.matcher = name, matcher
        modules = dict(model.named_modules())
        parameter = next(model.parameters(), torch.empty(0))
        targets = {s: _targets(matcher, s, modules[s], measured) for s in sites_of(matcher, model)}
        self.sites = list(targets)
        self._shapes = {site: _shapes(tensors) for site, tensors in targets.items()}
        first = targets[self.sites[0]]
        for site, shapes in self._shapes.items():
            if shapes.keys() != first.keys():
                raise self._misfit(site, f"those of site {self.sites[0]!r}", _shapes(first))
        self.statistics = {
            name: Statistic([tensors[name].to(parameter) for tensors in targets.values()], groups, start)
            for name in first
        }
        weights = [matcher.first_site_weight] + [1.0] * (len(targets) - 1)
        self.site_weights = torch.tensor(weights, device=parameter.device)

    def statistics_of(
        self, activations: Mapping[str, GroupedActivation], groups: int, skipped: Set[str]
    ) -> list[Tensor]:
        """Return each statistic of the image batches, flat over the sites: [G, D]; see `Matching`.

        Raises GvbsmError if a site's targets have other names or shapes.
        """
        by_group: list[list[Mapping[str, Tensor] | None]] = [[] for _ in range(groups)]
        for site in self.sites:
            for index, at_sites in enumerate(by_group):
                if site in skipped:
                    at_sites.append(None)
                    continue
                statistics = self.matcher.statistics(activations[site].group(index))
                if _shapes(statistics) != self._shapes[site]:
                    raise self._misfit(site, "its statistics", _shapes(statistics))
                at_sites.append(statistics)
        return [statistic.joined(name, by_group) for name, statistic in self.statistics.items()]

    def step_loss(self, statistics: Iterable[Tensor], keep: Tensor) -> Tensor:
        """Advance the running averages; return the weighted term, summed over the image batches.

        statistics: from `statistics_of`. keep: bool [G, S], the sites that are not dropped.
        """
        distances = [
            statistic.update_and_distance(current, keep, self.matcher.momentum)
            for statistic, current in zip(self.statistics.values(), statistics, strict=True)
        ]
        return self.matcher.weight * (torch.stack(distances).sum(0) * (self.site_weights * keep)).sum()

    def _misfit(self, site: str, other: str, shapes: Mapping[str, Sequence[int]]) -> GvbsmError:
        return GvbsmError(
            f"matcher {self.matcher.full_name!r} at site {site!r}: its targets are "
            f"{_described(self._shapes[site])}, but {other} are {_described(shapes)}; if another version "
            "measured them, delete them from the store and run the measure stage again"
        )


class Matching:
    """The matching terms of one backbone: L'_BN, L'_Conv and whatever else the matchers are.

    A matcher that has no site in the backbone has no term; without any site there is none at all.
    """

    def __init__(
        self,
        model: nn.Module,
        matchers: Sequence[Matcher],
        measured: Mapping[str, Tensor],
        groups: int = 1,
        start: Literal["first", "zero"] = "zero",
    ) -> None:
        self.groups = groups
        self.terms = [
            MatcherTerm(name, matcher, model, measured, groups, start)
            for name, matcher in zip(term_names(matchers), matchers, strict=True)
            if sites_of(matcher, model)
        ]
        self.sites = list(dict.fromkeys(site for term in self.terms for site in term.sites))
        self.device = next(model.parameters(), torch.empty(0)).device
        number = {site: index for index, site in enumerate(self.sites)}
        self._positions = [
            torch.tensor([number[site] for site in term.sites], device=self.device) for term in self.terms
        ]

    def skipped(self, uniforms: Tensor) -> list[set[str]]:
        """Return, for each term, the sites that it skips in every image batch; see `step_losses`."""
        most = dict(zip(self.sites, uniforms.amax(0).tolist(), strict=True))
        return [{site for site in t.sites if most[site] < t.matcher.drop_rate} for t in self.terms]

    def statistics_of(
        self, activations: Mapping[str, GroupedActivation], skipped: Sequence[set[str]] | None = None
    ) -> list[Tensor]:
        """Return each matcher's statistics of the image batches, flat over its sites: [G, D] each.

        In the order of terms, then of their statistics; `step_losses` takes them. At `skipped` sites nothing
        is computed: the running averages stand in, which the loss then leaves out. Raises GvbsmError if
        targets do not fit the statistics.
        """
        leave = skipped or [set()] * len(self.terms)
        return [
            statistic
            for term, sites in zip(self.terms, leave, strict=True)
            for statistic in term.statistics_of(activations, self.groups, sites)
        ]

    def step_losses(self, statistics: Sequence[Tensor], uniforms: Tensor) -> dict[str, Tensor]:
        """Advance the running averages; return each weighted term, summed over the image batches, by name.

        statistics: from `statistics_of`. uniforms: [G, number of self.sites] in 0..1; a matcher skips a site
        where its `drop_rate` exceeds it, so that matchers with equal β_dr skip the same sites.
        """
        current = iter(statistics)
        losses = {}
        for term, positions in zip(self.terms, self._positions, strict=True):
            keep = uniforms[:, positions] >= term.matcher.drop_rate
            losses[term.name] = term.step_loss(islice(current, len(term.statistics)), keep)
        return losses

    def state(self) -> dict[str, Tensor]:
        """Return the running averages, and which of them have begun, by term and statistic."""
        return {
            f"{part}/{term.name}/{name}": tensor
            for term in self.terms
            for name, statistic in term.statistics.items()
            for part, tensor in (("average", statistic.average), ("seen", statistic.seen))
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned, if anything."""
        for term in self.terms:
            for name, statistic in term.statistics.items():
                if f"average/{term.name}/{name}" in state:
                    statistic.average = state[f"average/{term.name}/{name}"].to(self.device)
                    statistic.seen = state[f"seen/{term.name}/{name}"].to(self.device)


def _targets(
    matcher: Matcher, site: str, module: nn.Module, measured: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    known = matcher.targets(module)
    if known is not None:
        return known
    prefix = target_name(matcher, site, "")
    stored = {name.removeprefix(prefix): t for name, t in measured.items() if name.startswith(prefix)}
    if not stored:
        raise GvbsmError(
            f"matcher {matcher.full_name!r} has no measured targets for site {site!r}; run the measure stage"
        )
    return stored


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _described(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "none"
