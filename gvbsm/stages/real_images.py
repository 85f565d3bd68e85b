"""Hands initializers real images, and a backbone's opinion of them."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from gvbsm.matching.activations import ActivationRecorder
from gvbsm.runtime.context import Context
from gvbsm.runtime.units import Payload, Unit
from gvbsm.stages.pretrain import load_backbone, untrained
from gvbsm_registry import Initializer, Split

FEATURE_BATCH = 256


class RealData:
    """See `gvbsm_registry.Source`. backbone_unit: the pretrained backbone whose features count."""

    def __init__(
        self, context: Context, seed: int, backbone_unit: Unit, prepared: dict[str, Tensor] | None = None
    ) -> None:
        self._context, self._unit = context, backbone_unit
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
    def _pretrained(self) -> tuple[nn.Module, str]:
        module = load_backbone(self._context, self._unit)
        linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
        return module, linear[-1] if linear else ""

    @torch.no_grad()
    def features(self, indices: Tensor) -> Tensor:
        """What the last linear layer sees, or the logits if there is none; float32 [n, D] on the CPU."""
        module, head = self._pretrained
        features = []
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
        return self._context.build(untrained(self._context, self._unit))

    def normalize(self, images: Tensor) -> Tensor:
        """Return uint8 images as normalised floats on the run's device."""
        return self._context.normalize(images)


def prepare_initializer(context: Context, unit: Unit) -> Payload:
    """Do what an initializer works out once for a data set, backbone and seed."""
    initializer = context.create(Initializer, unit.options["initializer"])
    source = RealData(context, unit.options["seed"], unit.input("backbone"))
    return initializer.prepare(source), {"classes": list(context.data.classes)}
