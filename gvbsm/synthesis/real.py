"""Real images beside the synthetic ones of a step, drawn anew for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Generator, Tensor

from gvbsm.runtime import asking
from gvbsm.synthesis.images import resized
from gvbsm_registry import Augmentation, GvbsmError, Source, View

Drawn = tuple[Tensor, Tensor]


class RealImages:
    """The training split by class, and a random stream for each image batch (`generators`)."""

    def __init__(self, source: Source, augmentation: Augmentation, generators: Sequence[Generator]) -> None:
        self.source, self.augmentation, self.generators = source, augmentation, generators

    @cached_property
    def _members(self) -> Sequence[Tensor]:
        """The training images of each class."""
        labels = self.source.train.labels.cpu()
        counts = torch.bincount(labels, minlength=self.source.classes)
        return labels.argsort(stable=True).split(counts.tolist())

    def seeds(self) -> list[int]:
        """Draw a step's seed for each image batch, whether real images are asked for or not."""
        return [int(torch.randint(2**62, (), generator=each)) for each in self.generators]

    def draw(self, seed: int, labels: Tensor, per_class: int, views: View | None, **where: float) -> Drawn:
        """Return images of the classes in `labels`, as `gvbsm_registry.SynthesisStep.real` does.

        They depend on the seed and the number alone, not on what else was asked for. views: those of the
        images of `labels`, to be shared; None draws them. where: side, in pixels, and progress of the step.
        """
        generator = torch.Generator().manual_seed(seed)
        known = labels.cpu()
        classes = known.unique().tolist()
        chosen = [self._drawn(label, per_class, generator) for label in classes]
        index = torch.cat(chosen)
        truth = torch.tensor(classes).repeat_interleave(torch.tensor([len(each) for each in chosen]))
        side, progress = int(where["side"]), where["progress"]
        images = resized(self.source.normalize(self.source.train.read(index)), side)
        if views is None:
            views = asking.drawn(self.augmentation, len(index), side, generator, progress=progress)
        else:
            rows = [(known == label).nonzero().flatten() for label in classes]
            taken = [own[torch.arange(len(each)) % len(own)] for own, each in zip(rows, chosen, strict=True)]
            views = views.select(torch.cat(taken))
        return views.apply(images).to(labels.device), truth.to(labels.device)

    def _drawn(self, label: int, per_class: int, generator: Generator) -> Tensor:
        members = self._members[label]
        if len(members) == 0:
            name = self.source.train.classes[label]
            raise GvbsmError(
                f"class {name!r} has no training image for a term that asks for real ones; leave the class "
                "out (data.only)"
            )
        return members[torch.randperm(len(members), generator=generator)[:per_class]]
