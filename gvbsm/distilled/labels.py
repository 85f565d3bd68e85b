"""How a block of soft labels is laid out in a file: coded logits, and views stored compactly but exactly.

A view's numbers are whole and small for most augmentations. Each tensor is stored in the least of the types
below that holds its values exactly, and but once where it is the same for all images; flips are packed as
bits. So a view of a resized crop with CutMix takes about 10 bytes instead of 33, and replays bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gvbsm.distilled.views import EpochViews
from gvbsm_registry import Codec, GvbsmError, Registry, discover

TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32)
CODED = "logits."
LAYOUT = 3
VIEW = ("crop", "roll", "partner", "cutmix", "color", "angle", "cutout", "image")


def pack(epochs: list[EpochViews], coded: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return what a file of E epochs of N images holds.

    The parts of the codec, `logits.NAME`: [E, N, …]. crop (top, left, height, width) and cutmix (top, left,
    bottom, right): [E, N, 4], roll (down, right): [E, N, 2], partner: [E, N]; color (brightness, saturation,
    contrast): [E, N, 3], angle: [E, N], cutout (top, left, bottom, right): [E, N, 4] where any view has them;
    of the least type that holds them, and [E, 1, …] where they are the same for all images of each epoch.
    flip: uint8 [E, ⌈N/8⌉], bits.
    """
    stored = EpochViews.join(epochs).tensors()
    tensors = {name: part.reshape(len(epochs), -1, *part.shape[1:]) for name, part in stored.items()}
    flips = tensors.pop("flip")
    packed = {name: _shared(smallest_exact_dtype(tensor)) for name, tensor in tensors.items()}
    packed["flip"] = to_bits(flips)
    for name in coded[0]:
        packed[CODED + name] = torch.stack([parts[name] for parts in coded])
    return packed


def views_of(tensors: dict[str, Tensor], epoch: int, count: int) -> EpochViews:
    """Return the views of `count` images in the epoch at position `epoch` of a file."""
    one = {
        name: tensors[name][epoch].expand(count, *tensors[name].shape[2:])[None]
        for name in VIEW
        if name in tensors
    }
    one["flip"] = from_bits(tensors["flip"][epoch], count)[None]
    return EpochViews.from_tensors(one, 0)


def logits_of(tensors: dict[str, Tensor], epoch: int, codec: Codec, classes: int) -> Tensor:
    """Return the decoded logits, float32 [N, classes], of the epoch at position `epoch` of a file."""
    parts = {
        name.removeprefix(CODED): tensor[epoch] for name, tensor in tensors.items() if name.startswith(CODED)
    }
    return codec.decode(parts, classes)


def codec_of(meta: dict[str, Any], where: object, registry: Registry | None = None) -> Codec:
    """Return the codec that a label file names; raises GvbsmError if it can't be made, naming the file.

    registry: what it is looked for in; by default the installed plugins.
    """
    if meta.get("layout") != LAYOUT:
        raise GvbsmError(f"{where}: has another layout of labels than this gvbsm reads; run relabel again")
    try:
        return (registry or discover()).create(Codec, meta["codec"])
    except GvbsmError as error:
        raise GvbsmError(f"{where}: its labels can't be decoded: {error}") from error


def smallest_exact_dtype(values: Tensor) -> Tensor:
    """Return `values` in the least integer type that holds them exactly, or as they are if none does."""
    low, high = values.amin(), values.amax()
    for kind in TYPES:
        limits = torch.iinfo(kind)
        if low >= limits.min and high <= limits.max:
            small = values.to(kind)
            if torch.equal(small.to(values.dtype), values):
                return small
    return values


def _shared(values: Tensor) -> Tensor:
    """Return [E, N, …] as [E, 1, …] if all N are equal in every epoch."""
    first = values[:, :1]
    return first.contiguous() if bool((values == first).all()) else values


def to_bits(flags: Tensor) -> Tensor:
    """Pack bool [E, N] as uint8 [E, ⌈N/8⌉], the first flag in the lowest bit."""
    return torch.from_numpy(np.packbits(flags.numpy(), axis=1, bitorder="little"))


def from_bits(packed: Tensor, count: int) -> Tensor:
    """Unpack uint8 [⌈count/8⌉] to bool [count]."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count, bitorder="little")).bool()
