"""Sweep files: found, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from gvbsm.recipe.composing import look_up, read_tables
from gvbsm.recipe.schema import Section
from gvbsm.sweeps.running import Axis, Overrides, Sweep, product, short_name, value_name, without_random
from gvbsm_registry import GvbsmError, Registry
from gvbsm_registry.messages import format_validation_error

SHIPPED = "sweeps/"
S = TypeVar("S", bound=Section)


class _Axis(Section):
    """[[vary]] One or several keys that are set to each of the values in turn."""

    key: str | Annotated[tuple[str, ...], Field(min_length=1)]
    values: tuple[Any, ...] = Field(min_length=1)
    labels: tuple[StrictBool | StrictInt | StrictFloat | StrictStr, ...] | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _a_label_for_each(self) -> _Axis:
        if self.labels is not None and len(self.labels) != len(self.values):
            counts = f"{len(self.values)} values and {len(self.labels)} labels"
            raise PydanticCustomError("gvbsm", "has {counts}; give one for each", {"counts": counts})
        return self

    def axis(self) -> Axis:
        """Return the axis with what was left out filled in."""
        keys = [self.key] if isinstance(self.key, str) else self.key
        labels = [value_name(value) for value in self.values] if self.labels is None else self.labels
        return self.name or short_name(keys[0]), keys, self.values, labels


class _SweepFile(Section):
    """A sweep file; the command line's recipe, overrides and seeds win."""

    recipe: str = "digits"
    description: str = ""
    reproduces: str = ""
    seeds: tuple[int, ...] = ()
    set: dict[str, Any] = {}
    vary: tuple[Any, ...] = Field(min_length=1)


def shipped(registry: Registry) -> dict[str, Path]:
    """Return the shipped sweep files by name: the recipes below `sweeps`."""
    names = sorted(name for name in registry.recipes() if name.startswith(SHIPPED))
    return {name.removeprefix(SHIPPED): registry.recipes()[name] for name in names}


def load(
    source: str, registry: Registry, recipe: str | None, overrides: Overrides, seeds: Sequence[int]
) -> Sweep | None:
    """Return the sweep file called `source` (a shipped name, or a path), or None if it is not a sweep.

    A sweep file is TOML: recipe, description, reproduces, seeds, [set] with dotted keys, and [[vary]] with
    `key` (one or several), `values`, and optionally `labels` (what tables call the values) and `name`.
    recipe, overrides and seeds come from the command line and win. Raises GvbsmError if anything is wrong.
    """
    if source in registry.recipes():  # a recipe wins over a sweep of the same name
        return None
    name = SHIPPED + source
    path, there = look_up(registry.recipe(name) if name in registry.recipes() else source)
    if not there:
        return None
    tables = read_tables(path)
    if "vary" not in tables:
        return None
    file = _checked(_SweepFile, tables, f"sweep {path}")
    axes = [_checked(_Axis, axis, f"sweep {path}: vary.{at}") for at, axis in enumerate(file.vary)]
    return Sweep(
        recipe or file.recipe,
        product(axis.axis() for axis in axes),
        without_random([*file.set.items(), *overrides]),
        tuple(seeds) or file.seeds or (None,),
        file.description,
        file.reproduces,
    )


def _checked(model: type[S], tables: Any, where: str) -> S:
    try:
        return model.model_validate(tables)
    except ValidationError as error:
        raise GvbsmError(f"{where}: {format_validation_error(error, model)}") from error
