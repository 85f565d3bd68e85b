"""Kinds of networks, and of what many of them say together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from gvbsm_registry.kinds.component import Component

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


class Backbone(Component):
    """A classifier: it is matched against in synthesis, labels, and serves as student."""

    kind = "backbone"

    weights: str | None = Field(
        None, description='"DEFAULT" (the provider\'s own), a .safetensors or weights-only .pth file, or none'
    )
    match_weight: float = Field(1.0, ge=0, description="factor on all matching terms of this backbone")

    @abstractmethod
    def build(self, classes: int, image_size: int, channels: int) -> Module:
        """Return a module: float [B, channels, S, S], normalised, to logits [B, classes].

        Fresh parameters come from torch's global generator, which the engine seeds. With `weights` they are
        loaded; raises GvbsmError if they do not fit, naming the file.
        """

    def files(self) -> tuple[Path, ...]:
        """Return the weights file, if `weights` is the path of one that exists."""
        if self.weights in (None, "DEFAULT"):
            return ()
        path = Path(self.weights).expanduser()
        return (path,) if path.is_file() else ()


@dataclass(frozen=True)
class Member:
    """A network of a committee: its name, and its accuracy on the real test split, 0 to 1."""

    name: str
    accuracy: float


class Ensembler(Component):
    """A committee's logits → one (Eq. 8)."""

    kind = "ensembler"

    @abstractmethod
    def combine(self, logits: Tensor, members: Sequence[Member]) -> Tensor:
        """Return [B, K] from the stacked logits [S, B, K] of S networks: `members`, in that order."""
