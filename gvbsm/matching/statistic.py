"""A statistic's running averages and its distance from the targets, in the stop-gradient form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor


class Statistic:
    """One named statistic of one matcher at all its S sites, laid out flat: D numbers a batch.

    Keeps the running averages of Eq. 6, [G, D], for G image batches side by side, or G classes of theirs.
    targets: flat, of each site: [its share of D], or [G, its share of D] where each group has its own.
    """

    def __init__(self, targets: Sequence[Tensor], groups: int, start: Literal["first", "zero"]) -> None:
        self.targets = torch.cat(list(targets), -1)
        counts = [target.shape[-1] for target in targets]
        self.bounds = [(sum(counts[:site]), sum(counts[: site + 1])) for site in range(len(counts))]
        sizes = torch.tensor(counts, device=self.targets.device)
        self.sites = len(targets)
        self.site = torch.repeat_interleave(torch.arange(self.sites, device=sizes.device), sizes)
        self.average = self.targets.new_zeros(groups, sum(counts))
        self.seen = torch.full((groups, self.sites), start == "zero", device=sizes.device)

    def joined(self, name: str, at_sites: Sequence[Mapping[str, Tensor] | None]) -> Tensor:
        """Return this statistic of all groups and sites, [G, D]; the running average where there is none."""
        return torch.cat(
            [
                self.average[:, start:end] if statistics is None else statistics[name]
                for statistics, (start, end) in zip(at_sites, self.bounds, strict=True)
            ],
            1,
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
