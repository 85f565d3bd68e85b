"""What exporters are given: a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class FinishedRun(Protocol):
    """A run folder, read as it is asked. What it lacks raises a GvbsmError that says how to make it."""

    @property
    def folder(self) -> Path:
        """The run folder, for messages; read through the rest of this interface."""

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe as plain tables, every default written out."""

    @property
    def key(self) -> str:
        """The digest of all that the distilled images were made from."""

    @property
    def images(self) -> Tensor:
        """The distilled images, uint8 [N, C, H, W]."""

    @property
    def labels(self) -> Tensor:
        """Their labels, int64 [N]; label k means `classes[k]`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, by label."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Channel means in 0..1 by which images are normalised."""

    @property
    def std(self) -> tuple[float, ...]:
        """Channel deviations by which images are normalised."""

    @property
    def meta(self) -> dict[str, Any]:
        """What else the set says of itself: `ipc`, `data` (the data set's name), `provenance`."""

    @property
    def baseline(self) -> tuple[Tensor, Tensor] | None:
        """As many random real images and their labels, like `images` and `labels`; None if not made."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of results.json; none if the run has not been evaluated."""

    def write_card(self, destination: Path, opening: str, front: str = "") -> None:
        """Write the set's card, README.md with example pictures, into the folder `destination`.

        opening: Python lines that open what lies beside the card. front: text before it, as a YAML header.
        """
