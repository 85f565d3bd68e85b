"""A finished run, read from its folder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from gvbsm.recipe.loading import read_tables
from gvbsm.results.card import PICTURES, card, examples
from gvbsm.results.records import FILE, SET_KEY, read_records
from gvbsm_registry import Artifact, GvbsmError
from gvbsm_registry.artifacts import peek, read, replacing, write_text

IMAGES = "images.safetensors"


class FinishedRun:
    """A run folder as `gvbsm_registry.FinishedRun`: exporters, cards and reports read a run through it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def has_images(self) -> bool:
        """Whether the run has come as far as its distilled images."""
        return (self.folder / "distilled" / IMAGES).is_file()

    @cached_property
    def recipe(self) -> dict[str, Any]:
        return read_tables(self.folder / "recipe.toml")

    @cached_property
    def _distilled(self) -> Artifact:
        if not self.has_images:
            raise GvbsmError(
                f"{self.folder}: holds no distilled set (distilled/{IMAGES} is missing); "
                "finish it with 'gvbsm run'"
            )
        return read(self.folder / "distilled" / IMAGES, "distilled")

    @property
    def key(self) -> str:
        return self._distilled.key

    @property
    def images(self) -> Tensor:
        return self._distilled.tensors["images"]

    @property
    def labels(self) -> Tensor:
        return self._distilled.tensors["labels"]

    @property
    def meta(self) -> dict[str, Any]:
        return self._distilled.meta

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.meta["classes"])

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self.meta["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.meta["std"])

    @cached_property
    def baseline(self) -> tuple[Tensor, Tensor] | None:
        path = self._path("random")
        if not path.is_file() or not self.recipe.get("evaluation", {}).get("random_baseline", True):
            return None
        found = read(path, "distilled")
        ours, theirs = (
            [meta.get("ipc"), meta.get("provenance", {}).get("seed")] for meta in (self.meta, found.meta)
        )  # a baseline of earlier options is none of this set
        return (found.tensors["images"], found.tensors["labels"]) if ours == theirs else None

    def _path(self, name: str) -> Path:
        return self.folder / ("distilled" if name == "distilled" else f"baselines/{name}") / IMAGES

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        found = read_records(self.folder) if (self.folder / FILE).exists() else []
        return [record for record in found if self._is_of_these_images(record)]

    def _is_of_these_images(self, record: dict[str, Any]) -> bool:
        """Tell whether a record's student saw the images that are there now, as far as it says."""
        path, key = self._path(record["set"]), record.get(SET_KEY)
        return not key or not path.is_file() or peek(path)["key"] == key

    def write_card(self, destination: Path, opening: str, front: str = "") -> None:
        text = front + card(self, opening)
        with replacing(destination / PICTURES) as temporary:
            temporary.write_bytes(examples(self.images, self.labels))
        write_text(destination / "README.md", text)


def current_records(folder: Path) -> list[dict[str, Any]]:
    """Return a run's records; raises GvbsmError if there are none of the images that are there now."""
    found = read_records(folder)
    kept = FinishedRun(folder).records
    if found and not kept:
        raise GvbsmError(
            f"{folder / FILE}: is about other images than those beside it; run 'gvbsm evaluation {folder}'"
        )
    return kept
