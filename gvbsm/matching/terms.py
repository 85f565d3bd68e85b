"""Matching: targets, running averages and the stop-gradient form, for every matcher alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def needs_measuring(matcher: Matcher, model: nn.Module) -> bool:
    """Whether a matcher has sites in a model whose targets the modules themselves do not know."""
    modules = dict(model.named_modules())
    return any(matcher.targets(modules[site]) is None for site in sites_of(matcher, model))


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
                        self.average[index, start:end] if found is None else found[name].flatten()
                        for found, (start, end) in zip(at_sites, self.bounds, strict=True)
                    ]
                )
                for index, at_sites in enumerate(by_group)
            ]
        )

    def norms(self, current: Tensor, keep: Tensor, momentum: float) -> Tensor:
        """Return ‖μ_l − t − stop_grad(μ_l − μ_total)‖₂ by batch and site, [G, S] (one sum of Eq. 14).

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


class Matching:
    """The matching terms of one backbone: L'_BN, L'_Conv and whatever else the matchers are."""

    def __init__(
        self,
        model: nn.Module,
        matchers: Sequence[Matcher],
        measured: Mapping[str, Tensor],
        groups: int = 1,
        start: Literal["first", "zero"] = "zero",
    ) -> None:
        modules = dict(model.named_modules())
        self.groups = groups
        self.matchers = [matcher for matcher in matchers if sites_of(matcher, model)]
        self.sites_by_matcher = [sites_of(matcher, model) for matcher in self.matchers]
        self.sites = list(dict.fromkeys(site for sites in self.sites_by_matcher for site in sites))
        parameter = next(model.parameters())
        self.statistics: list[dict[str, Statistic]] = []
        for matcher, sites in zip(self.matchers, self.sites_by_matcher, strict=True):
            targets = [_targets(matcher, site, modules[site], measured) for site in sites]
            names = list(targets[0])
            self.statistics.append(
                {name: Statistic([t[name].to(parameter) for t in targets], groups, start) for name in names}
            )
        self.terms = term_names(self.matchers)
        number = {site: index for index, site in enumerate(self.sites)}
        device = parameter.device
        self.positions = [
            torch.tensor([number[site] for site in sites], device=device) for sites in self.sites_by_matcher
        ]
        self.weights = [
            torch.tensor([matcher.first_site_weight] + [1.0] * (len(sites) - 1), device=device)
            for matcher, sites in zip(self.matchers, self.sites_by_matcher, strict=True)
        ]

    def skipped(self, uniforms: Tensor) -> list[set[str]]:
        """Return, for each matcher, the sites that it skips in every image batch; see `losses`."""
        most = dict(zip(self.sites, uniforms.amax(0).tolist(), strict=True))
        return [
            {site for site in sites if most[site] < matcher.drop_rate}
            for matcher, sites in zip(self.matchers, self.sites_by_matcher, strict=True)
        ]

    def statistics_of(
        self, activations: Mapping[str, GroupedActivation], skipped: Sequence[set[str]] | None = None
    ) -> list[Tensor]:
        """Return each matcher's statistics of the image batches, flat over its sites: [G, D] each.

        In the order of matchers, then of their statistics; `losses` takes them. At `skipped` sites nothing is
        computed: the running averages stand in, which the loss then leaves out.
        """
        flat = []
        for place, (matcher, sites, statistics) in enumerate(
            zip(self.matchers, self.sites_by_matcher, self.statistics, strict=True)
        ):
            leave = skipped[place] if skipped is not None else ()
            by_group = [
                [None if s in leave else matcher.statistics(activations[s].group(index)) for s in sites]
                for index in range(self.groups)
            ]
            flat += [statistic.joined(name, by_group) for name, statistic in statistics.items()]
        return flat

    def losses(self, statistics: Sequence[Tensor], uniforms: Tensor) -> dict[str, Tensor]:
        """Return each matcher's weighted term, summed over the image batches, by term name.

        statistics: from `statistics_of`. uniforms: [G, number of self.sites] in 0..1; a matcher skips a site
        where its `drop_rate` exceeds it, so that matchers with equal β_dr skip the same sites.
        """
        current = iter(statistics)
        found = {}
        for place, (term, matcher) in enumerate(zip(self.terms, self.matchers, strict=True)):
            keep = uniforms[:, self.positions[place]] >= matcher.drop_rate
            norms = [
                statistic.norms(next(current), keep, matcher.momentum)
                for statistic in self.statistics[place].values()
            ]
            total = torch.stack(norms).sum(0)
            found[term] = matcher.weight * (total * (self.weights[place] * keep)).sum()
        return found


def _targets(
    matcher: Matcher, site: str, module: nn.Module, measured: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    known = matcher.targets(module)
    if known is not None:
        return known
    prefix = target_name(matcher, site, "")
    found = {name.removeprefix(prefix): t for name, t in measured.items() if name.startswith(prefix)}
    if not found:
        raise GvbsmError(f"matcher {matcher.full_name!r} has no measured targets; run the measure stage")
    return found


def term_names(components: Sequence[Component]) -> list[str]:
    """Name each matcher's term by its title, numbered where one is used more than once."""
    titles = [component.full_name for component in components]
    return [
        title if titles.count(title) == 1 else f"{title}-{titles[: position + 1].count(title)}"
        for position, title in enumerate(titles)
    ]
