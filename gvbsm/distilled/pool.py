"""Pruned labels: a pool of labelled views that students draw from, in place of whole epochs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Generator, Tensor

from gvbsm.distilled.labels import CODED
from gvbsm.distilled.views import EpochViews
from gvbsm_registry import Codec


@dataclass(frozen=True)
class LabelPool:
    """V labelled views, `views.images` says of which images.

    pruning: what was kept, "batches" or "classes". sizes: how many views were labelled together, batch by
    batch. parts: the logits as the codec stores them, [V, …] each. labels: int64 [N], of the images.
    """

    pruning: str
    views: EpochViews
    sizes: tuple[int, ...]
    parts: dict[str, Tensor]
    codec: Codec
    labels: Tensor
    classes: int

    @property
    def batches(self) -> tuple[Tensor, ...]:
        """The positions, int64 [n], of the views that were labelled (and mixed with each other) together."""
        return torch.arange(len(self.views.partners)).split(self.sizes)

    def logits(self, positions: Tensor) -> Tensor:
        """Return the decoded logits of the views at `positions`, float32 [n, classes]."""
        return self.codec.decode({name: part[positions] for name, part in self.parts.items()}, self.classes)

    def draw_batches(self, generator: Generator) -> Iterator[Tensor]:
        """Yield kept batches without end: each once in random order, then all again in another."""
        batches = self.batches
        for place in _shuffled(torch.arange(len(batches)), generator):
            yield batches[place]

    def draw_epochs(self, generator: Generator) -> Iterator[Tensor]:
        """Yield epochs without end: positions [N], as many of each class as it has images, in random order.

        A class's views are all drawn once before one is drawn again.
        """
        assert self.views.images is not None
        of_view = self.labels[self.views.images]
        each = torch.bincount(self.labels, minlength=self.classes).tolist()
        streams = [_shuffled((of_view == label).nonzero().flatten(), generator) for label in range(len(each))]
        while True:
            drawn = [list(islice(stream, count)) for stream, count in zip(streams, each, strict=True)]
            order = torch.tensor([place for places in drawn for place in places])
            yield order[torch.randperm(len(order), generator=generator)]


def _shuffled(values: Tensor, generator: Generator) -> Iterator[int]:
    """Yield `values` without end: all in random order, then all in another."""
    while len(values):
        yield from values[torch.randperm(len(values), generator=generator)].tolist()


def chained(parts: list[EpochViews]) -> EpochViews:
    """Return views one after another, `partners` counting on; each part says its images."""
    counts = [len(part.partners) for part in parts]
    starts = torch.tensor([0, *counts[:-1]]).cumsum(0).tolist()
    joined = EpochViews.join(parts)
    offsets = torch.cat([torch.full((count,), start) for count, start in zip(counts, starts, strict=True)])
    return replace(joined, partners=joined.partners + offsets)


def coded_parts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a pool file's coded logits by the codec's names, [V, …] each."""
    return {name.removeprefix(CODED): part[0] for name, part in tensors.items() if name.startswith(CODED)}
