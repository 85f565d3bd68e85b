"""Which classes an image batch holds, for matching by class."""

from __future__ import annotations

import torch
from torch import Tensor

from gvbsm_registry import GvbsmError


def classes_of_batches(labels: Tensor | None, groups: int) -> Tensor:
    """Return the classes of G image batches, int64 [G, n], from their labels [G·B].

    Raises GvbsmError unless each batch holds n classes equally often, the images of one after another.
    """
    if labels is None:
        raise GvbsmError(
            "matching by class asks for each image's label, which are not known here; set by_class = 0"
        )
    if groups == 0 or len(labels) % groups:
        raise _unequal(labels)
    found = []
    for batch in labels.view(groups, -1):
        classes, counts = torch.unique_consecutive(batch, return_counts=True)
        if len(classes.unique()) < len(classes) or len(counts.unique()) > 1:
            raise _unequal(batch)
        found.append(classes)
    if len({len(classes) for classes in found}) > 1:
        raise _unequal(labels)
    return torch.stack(found)


def _unequal(labels: Tensor) -> GvbsmError:
    shown = ", ".join(str(label) for label in labels[:12].tolist()) + (", …" if len(labels) > 12 else "")
    return GvbsmError(
        "matching by class asks for image batches that hold each of their classes equally often, the images "
        f"of a class one after another, but one has the labels {shown}; set the matchers' by_class = 0, or "
        "leave out what makes such batches"
    )
