"""What a unit of work can reach beside its own options and inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from gvbsm.runtime.asking import built
from gvbsm.runtime.data import Data
from gvbsm.runtime.reporting import MessageReporter, Reporter
from gvbsm_registry import Backbone, Component, GvbsmError, Registry, Split

C = TypeVar("C", bound=Component)
S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Context:
    """Where a unit is worked at: the opened data set, the components, the device, the reporter."""

    data: Data
    registry: Registry
    device: torch.device
    reporter: Reporter

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process there is no one to report to until one is put in."""
        return _unheard, (self.data, self.registry, self.device)

    def create(self, kind: type[C], table: Mapping[str, Any] | str) -> C:
        """Return the component that a unit's option describes; raises GvbsmError if it can't be made."""
        return self.registry.create(kind, table)

    def section(self, kind: type[S], options: Mapping[str, Any]) -> S:
        """Return the recipe's section that a unit's option holds, its components made."""
        return kind.model_validate(options, context={"registry": self.registry})

    def build(self, backbone: Backbone) -> nn.Module:
        """Build a backbone for this data set, in evaluation mode, on the device."""
        train = self.data.train
        return (
            built(backbone, len(self.data.classes), train.image_size, train.channels).to(self.device).eval()
        )

    def normalize(self, images: Tensor) -> Tensor:
        """Return uint8 [n, C, H, W] as normalised float32 on the device."""
        return self.data.normalization.normalize(images, self.device)

    def batches(self, split: Split, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (normalised images, labels) on the device, for each of `parts`, indices int64 [n]."""
        if split.in_memory:
            for part in parts:
                yield self.normalize(split.read(part)), split.labels[part].to(self.device)
            return
        loader = DataLoader(
            _Batches(split),
            sampler=_Order(parts),
            batch_size=None,
            num_workers=max(1, (torch.get_num_threads() + 1) // 2),
            prefetch_factor=2,
            pin_memory=self.device.type == "cuda",
        )
        read = _read(loader)
        for part, images in zip(parts, read, strict=True):
            if isinstance(images, GvbsmError):
                raise images
            yield self.normalize(images), split.labels[part].to(self.device)


def _read(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield what a loader reads; raises GvbsmError if one of its processes is killed."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise GvbsmError(
            "a process that reads images was killed, as happens where memory ends; lower the batch, or the "
            "number of threads (OMP_NUM_THREADS), and run again: finished work is kept"
        ) from error


def _unheard(data: Data, registry: Registry, device: torch.device) -> Context:
    return Context(data, registry, device, MessageReporter(lambda message: None))


class _Batches(TorchDataset):
    """Lets a DataLoader's workers read whole batches."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, indices: Tensor) -> Tensor | GvbsmError:
        """Read a batch; an error is handed back as it is, for the loader would wrap it into a traceback."""
        try:
            return self.split.read(indices)
        except GvbsmError as error:
            return error


class _Order(Sampler):
    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)
