"""Hands initializers real images, and the backbones' opinion of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Generator, Tensor, nn

from gvbsm.matching.activations import ActivationRecorder
from gvbsm.runtime.blame import calling, refuse, returned
from gvbsm.runtime.context import Context
from gvbsm.runtime.units import Payload, Unit
from gvbsm.stages.pretrain import load_backbone, member, untrained
from gvbsm_registry import CommitteeMember, GvbsmError, Initializer, Split

FEATURE_BATCH = 256
PREPARED = "a dict of named tensors"
START = "finite normalised images, float [n, C, S, S], one for each label"


class RealData:
    """See `gvbsm_registry.Source`. backbones: the pretrained ones; the features are those of the first."""

    def __init__(
        self,
        context: Context,
        seed: int,
        backbones: Sequence[Unit],
        prepared: dict[str, Tensor] | None = None,
    ) -> None:
        self._context, self._backbones = context, backbones
        self.seed, self.prepared = seed, prepared or {}

    @property
    def train(self) -> Split:
        """The training split."""
        return self._context.data.train

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self._context.data.classes)

    @cached_property
    def committee(self) -> Sequence[CommitteeMember]:
        """All pretrained backbones, in the recipe's order, on the run's device; loaded when asked for."""
        return (self._first, *map(self._load, self._backbones[1:]))

    @cached_property
    def _first(self) -> CommitteeMember:
        return self._load(self._first_unit())

    def _first_unit(self) -> Unit:
        if not self._backbones:
            raise GvbsmError(
                "the initializer asks for a network, but has uses_networks = False, so that there is none; "
                "ask its author to correct it"
            )
        return self._backbones[0]

    def _load(self, unit: Unit) -> CommitteeMember:
        known = member(unit)
        return CommitteeMember(known.name, known.accuracy, load_backbone(self._context, unit))

    @torch.no_grad()
    def features(self, indices: Tensor) -> Tensor:
        """What the last linear layer sees, or the logits if there is none; float32 [n, D] on the CPU."""
        module = self._first.module
        linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
        head, features = linear[-1] if linear else "", []
        for images, _ in self._context.batches(self.train, indices.split(FEATURE_BATCH)):
            if not head:
                features.append(module(images).flatten(1).cpu())
                continue
            with ActivationRecorder(module, [head]) as recorder:
                module(images)
            features.append(recorder.activations()[head].tensor.flatten(1).cpu())
        return torch.cat(features)

    def backbone(self) -> nn.Module:
        """A fresh, untrained copy of the first backbone, on the run's device."""
        return self._context.build(untrained(self._context, self._first_unit()))

    def normalize(self, images: Tensor) -> Tensor:
        """Return uint8 images as normalised floats on the run's device."""
        return self._context.normalize(images)


def prepare_initializer(context: Context, unit: Unit) -> Payload:
    """Do what an initializer works out once for a data set, backbones and seed."""
    initializer = context.create(Initializer, unit.options["initializer"])
    source = RealData(context, unit.options["seed"], unit.input_list("backbones"))
    with calling(initializer, "prepare", PREPARED):
        prepared: object = initializer.prepare(source)
    if not isinstance(prepared, dict) or not all(isinstance(part, Tensor) for part in prepared.values()):
        raise refuse(initializer, "prepare", type(prepared).__name__, PREPARED)
    return prepared, {"classes": list(context.data.classes)}


def starting_images(
    initializer: Initializer, labels: Tensor, ranks: Tensor, source: RealData, generator: Generator
) -> Tensor:
    """Return the images before step 0, of each (label, rank): float [n, C, S, S], finite."""
    with calling(initializer, "images", START):
        images = initializer.images(labels, ranks, source, generator)
    train = source.train
    shape = (len(labels), train.channels, train.image_size, train.image_size)
    return returned(initializer, "images", images, START, shape=shape, finite=True)
