"""Matching: targets, running averages and the stop-gradient form, for every matcher alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from gvbsm.matching.activations import GroupedActivation, Wanted
from gvbsm.matching.asking import sites_of, statistics_of
from gvbsm.matching.classes import classes_of_batches
from gvbsm.matching.statistic import Statistic
from gvbsm.matching.targets import class_targets, targets_at
from gvbsm_registry import Component, GvbsmError, Matcher


def term_names(components: Sequence[Component]) -> list[str]:
    """Name each component's term by its full name, numbered where one is used more than once."""
    names = [component.full_name for component in components]
    return [
        name if names.count(name) == 1 else f"{name}-{names[: position + 1].count(name)}"
        for position, name in enumerate(names)
    ]


class MatcherTerm:
    """One matcher's term in the loss, with its S sites' targets and running averages.

    classes: int64 [G], for the part of a term that is matched by class: its G groups are the classes of the
    image batches, one after another, and their targets those of these classes. share: of the term's weight.
    """

    def __init__(
        self,
        name: str,
        matcher: Matcher,
        model: nn.Module,
        measured: Mapping[str, Tensor],
        groups: int,
        start: Literal["first", "zero"],
        classes: Tensor | None = None,
        share: float = 1.0,
    ) -> None:
        self.name, self.matcher, self.groups = name, matcher, groups
        self.by_class, self.weight = classes is not None, matcher.weight * share
        modules = dict(model.named_modules())
        parameter = next(model.parameters(), torch.empty(0))
        if classes is None:
            targets = {s: targets_at(matcher, s, modules[s], measured) for s in sites_of(matcher, model)}
        else:
            targets = {s: class_targets(matcher, s, measured, classes) for s in sites_of(matcher, model)}
        self.sites = list(targets)
        self._moments: dict[str, dict[str, tuple[Wanted, int]]] = {}
        self._shapes = {site: _shapes(tensors, self.by_class) for site, tensors in targets.items()}
        first = targets[self.sites[0]]
        for site, shapes in self._shapes.items():
            if shapes.keys() != first.keys():
                raise self._misfit(site, f"those of site {self.sites[0]!r}", _shapes(first, self.by_class))
        shape = (groups, -1) if self.by_class else (-1,)
        flat = {
            name: [tensors[name].to(parameter).reshape(shape) for tensors in targets.values()]
            for name in first
        }
        self.statistics = {name: Statistic(at_sites, groups, start) for name, at_sites in flat.items()}
        weights = [matcher.first_site_weight] + [1.0] * (len(targets) - 1)
        self.site_weights = torch.tensor(weights, device=parameter.device)

    def statistics_of(self, activations: Mapping[str, GroupedActivation], skipped: Set[str]) -> list[Tensor]:
        """Return each statistic of the image batches, or of their classes, flat over the sites: [G, D].

        Raises GvbsmError if a site's targets have other names or shapes.
        """
        at_sites = [None if site in skipped else self._of(activations[site], site) for site in self.sites]
        return [statistic.joined(name, at_sites) for name, statistic in self.statistics.items()]

    def _of(self, seen: GroupedActivation, site: str) -> Mapping[str, Tensor]:
        """Return a site's statistics, [G, D] each.

        Where they are moments as they are, which the first step tells, they are taken for all groups at once.
        """
        if moments := self._moments.get(site):
            return {name: seen.stacked(wanted)[position] for name, (wanted, position) in moments.items()}
        by_group = []
        for index in range(self.groups):
            activation = seen.part(index) if self.by_class else seen.group(index)
            by_group.append(statistics_of(self.matcher, activation))
            if _shapes(by_group[-1]) != self._shapes[site]:
                raise self._misfit(site, "its statistics", _shapes(by_group[-1]))
        if site not in self._moments:
            self._moments[site] = self._taken_from(seen, by_group)
        return {
            name: torch.stack([statistics[name].flatten() for statistics in by_group]) for name in by_group[0]
        }

    def _taken_from(
        self, seen: GroupedActivation, by_group: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, tuple[Wanted, int]]:
        """Return which moments the statistics of all groups are; {} if one is something else."""
        is_part = self.by_class and seen.parts > 1
        found: dict[str, tuple[Wanted, int]] = {}
        for index, statistics in enumerate(by_group):
            for name, value in statistics.items():
                which = seen.which(value, index, is_part)
                if which is None or found.setdefault(name, which) != which:
                    return {}
        return found

    def step_loss(self, statistics: Iterable[Tensor], keep: Tensor) -> Tensor:
        """Advance the running averages; return the weighted term, summed over the image batches.

        statistics: from `statistics_of`. keep: bool [G, S], the sites that are not dropped.
        """
        distances = [
            statistic.update_and_distance(current, keep, self.matcher.momentum)
            for statistic, current in zip(self.statistics.values(), statistics, strict=True)
        ]
        return self.weight * (torch.stack(distances).sum(0) * (self.site_weights * keep)).sum()

    def _misfit(self, site: str, other: str, shapes: Mapping[str, Sequence[int]]) -> GvbsmError:
        return GvbsmError(
            f"matcher {self.matcher.full_name!r} at site {site!r}: its targets are "
            f"{_described(self._shapes[site])}, but {other} are {_described(shapes)}; if another version "
            "measured them, delete them from the store and run the measure stage again"
        )


class Matching:
    """The matching terms of one backbone: L'_BN, L'_Conv and whatever else the matchers are.

    A matcher that has no site in the backbone has no term; without any site there is none at all. One that
    matches by class has two: (1 − β) of it is of whole image batches, β of it the mean over the classes in a
    batch. labels: of the images, int64 [G·B], which say what classes those are; only needed then.
    """

    def __init__(
        self,
        model: nn.Module,
        matchers: Sequence[Matcher],
        measured: Mapping[str, Tensor],
        groups: int = 1,
        start: Literal["first", "zero"] = "zero",
        *,
        labels: Tensor | None = None,
    ) -> None:
        self.groups, self.parts = groups, 1
        named = {
            name: matcher
            for name, matcher in zip(term_names(matchers), matchers, strict=True)
            if sites_of(matcher, model)
        }
        classes: Tensor | None = None
        if any(matcher.by_class for matcher in named.values()):
            classes = classes_of_batches(labels, groups)
            self.parts = classes.shape[1]
        self._classes, self._known = classes, labels
        self.terms = []
        for name, matcher in named.items():
            share = matcher.by_class
            if share < 1:
                self.terms.append(MatcherTerm(name, matcher, model, measured, groups, start, None, 1 - share))
            if share > 0:
                assert classes is not None
                each = classes.flatten()
                term = MatcherTerm(name, matcher, model, measured, len(each), start, each, share / self.parts)
                self.terms.append(term)
        self.sites = list(dict.fromkeys(site for term in self.terms for site in term.sites))
        self.device = next(model.parameters(), torch.empty(0)).device
        number = {site: index for index, site in enumerate(self.sites)}
        self._positions = [
            torch.tensor([number[site] for site in term.sites], device=self.device) for term in self.terms
        ]

    def check(self, labels: Tensor) -> None:
        """Raise GvbsmError if images with these labels can't be matched by class as those before.

        There may be fewer of each class, as long as there are equally many.
        """
        if self._classes is None or labels is self._known:
            return
        if not torch.equal(classes_of_batches(labels, self.groups), self._classes):
            raise GvbsmError(
                "matching by class asks for images of the same classes in every step; set by_class = 0, or "
                "leave out what takes the images of some classes away"
            )

    def skipped(self, uniforms: Tensor) -> list[set[str]]:
        """Return, for each term, the sites that it skips in every image batch; see `step_losses`."""
        most = dict(zip(self.sites, uniforms.amax(0).tolist(), strict=True))
        return [{site for site in t.sites if most[site] < t.matcher.drop_rate} for t in self.terms]

    def statistics_of(
        self, activations: Mapping[str, GroupedActivation], skipped: Sequence[set[str]] | None = None
    ) -> list[Tensor]:
        """Return each matcher's statistics of the image batches, flat over its sites: [G, D] each.

        Of their classes, one batch's after another's, where these are matched. In the order of terms, then of
        their statistics; `step_losses` takes them. At `skipped` sites nothing is computed: the running
        averages stand in, which the loss then leaves out. Raises GvbsmError if targets do not fit the
        statistics.
        """
        leave = skipped or [set()] * len(self.terms)
        return [
            statistic
            for term, sites in zip(self.terms, leave, strict=True)
            for statistic in term.statistics_of(activations, sites)
        ]

    def step_losses(self, statistics: Sequence[Tensor], uniforms: Tensor) -> dict[str, Tensor]:
        """Advance the running averages; return each weighted term, summed over the image batches, by name.

        statistics: from `statistics_of`. uniforms: [G, number of self.sites] in 0..1; a matcher skips a site
        where its `drop_rate` exceeds it, so that matchers with equal β_dr skip the same sites.
        """
        current = iter(statistics)
        losses: dict[str, Tensor] = {}
        for term, positions in zip(self.terms, self._positions, strict=True):
            keep = uniforms[:, positions] >= term.matcher.drop_rate
            if term.by_class:
                keep = keep.repeat_interleave(self.parts, 0)
            loss = term.step_loss(islice(current, len(term.statistics)), keep)
            losses[term.name] = losses[term.name] + loss if term.name in losses else loss
        return losses

    def state(self) -> dict[str, Tensor]:
        """Return the running averages, and which of them have begun, by term and statistic."""
        return {
            f"{part}/{place}": tensor
            for place, statistic in self._statistics().items()
            for part, tensor in (("average", statistic.average), ("seen", statistic.seen))
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned, if anything."""
        for place, statistic in self._statistics().items():
            if f"average/{place}" in state:
                statistic.average = state[f"average/{place}"].to(self.device)
                statistic.seen = state[f"seen/{place}"].to(self.device)

    def _statistics(self) -> dict[str, Statistic]:
        """Return all statistics by the term's number and their name."""
        return {
            f"{number}/{name}": statistic
            for number, term in enumerate(self.terms)
            for name, statistic in term.statistics.items()
        }


def _shapes(tensors: Mapping[str, Tensor], by_class: bool = False) -> dict[str, torch.Size]:
    """Return the shapes of statistics; of targets that each class has its own of, without the first axis."""
    return {name: tensor.shape[1:] if by_class else tensor.shape for name, tensor in tensors.items()}


def _described(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "none"
