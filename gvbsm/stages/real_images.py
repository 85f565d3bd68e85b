"""Hands initializers real images, and a backbone's opinion of them."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from gvbsm.matching.activations import ActivationRecorder
from gvbsm.runtime.units import Unit
from gvbsm.runtime.workspace import Workspace
from gvbsm.stages import pretrain
from gvbsm_registry import Artifact, Split
from gvbsm_registry.artifacts import digest, read, write

FEATURE_BATCH = 256


class Source:
    """See `gvbsm_registry.Source`; `backbone_unit` is the pretrained backbone whose features count."""

    def __init__(self, workspace: Workspace, backbone_unit: Unit) -> None:
        self._workspace, self._unit = workspace, backbone_unit
        self.prepared: dict[str, Tensor] = {}
        self.prepared = self._prepare()

    @property
    def train(self) -> Split:
        return self._workspace.train

    @property
    def seed(self) -> int:
        return self._workspace.recipe.seed

    @property
    def classes(self) -> int:
        return len(self._workspace.classes)

    @cached_property
    def _pretrained(self) -> tuple[nn.Module, str]:
        module = pretrain.load(self._workspace, self._unit)
        linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
        return module, linear[-1] if linear else ""

    @torch.no_grad()
    def features(self, indices: Tensor) -> Tensor:
        """What the last linear layer sees, or the logits if there is none; float32 [n, D] on the CPU."""
        module, head = self._pretrained
        found = []
        for images, _ in self._workspace.batches(self.train, indices.split(FEATURE_BATCH)):
            if not head:
                found.append(module(images).flatten(1).cpu())
                continue
            with ActivationRecorder(module, [head]) as taps:
                module(images)
            found.append(taps.activations()[head].tensor.flatten(1).cpu())
        return torch.cat(found)

    def backbone(self) -> nn.Module:
        """A fresh, untrained copy of the first backbone, on the run's device."""
        fresh = self._workspace.recipe.backbones[0].model_copy(update={"weights": None})
        return self._workspace.build(fresh)

    def normalize(self, images: Tensor) -> Tensor:
        return self._workspace.normalize(images)

    def _prepare(self) -> dict[str, Tensor]:
        """Return what the initializer prepares, from the store if it is there."""
        initializer = self._workspace.recipe.synthesis.initializer
        key = digest([initializer.to_recipe(), self._workspace.data_key, self._unit.key, self.seed])
        path = self._workspace.store / "derived" / f"{key}.safetensors"
        if path.exists():
            return read(path, "derived").tensors
        tensors = initializer.prepare(self)
        if tensors:
            write(path, Artifact("derived", key, tensors, {"initializer": initializer.full_name}))
        return tensors
