"""Finds, reads and changes recipes; makes them of plain tables."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gvbsm.recipe.composing import LAYERS, compose, find, lay, read_tables, settle
from gvbsm.recipe.fields import Used, missing_plugins, origins
from gvbsm.recipe.schema import Recipe
from gvbsm.recipe.text import Setting
from gvbsm_registry import GvbsmError, Registry
from gvbsm_registry.messages import keyed, validation_errors

__all__ = ["change", "find", "load", "make", "override", "read_tables", "tables_of"]

Overrides = Sequence[tuple[str, Any]]
RENAMED = {
    "data.side": "data.image_size",
    "pretrain.floor": "pretrain.min_accuracy",
    "synthesis.loop": "synthesis.batching",
    "synthesis.average_start": "synthesis.ema_init",
    "synthesis.group": "synthesis.batches_per_step",
    "synthesis.matchers.*.first": "synthesis.matchers.*.first_site_weight",
    "synthesis.matchers.*.drop": "synthesis.matchers.*.drop_rate",
    "synthesis.matchers.*.side": "synthesis.matchers.*.patch_size",
    "synthesis.backbone_order": "synthesis.population.order",
    "synthesis.cross_entropy": "synthesis.terms.0.weight",
    "relabel.keep": "relabel.keep_fraction",
    "relabel.block": "relabel.epochs_per_file",
    "evaluation.plain": "evaluation.without_augmentation",
    "evaluation.full": "evaluation.full_baseline",
    "evaluation.random": "evaluation.random_baseline",
    "pretrain.momentum": "pretrain.optimizer.momentum",
    "pretrain.weight_decay": "pretrain.optimizer.weight_decay",
    "synthesis.betas": "synthesis.optimizer.betas",
    "evaluation.momentum": "evaluation.optimizer.momentum",
    "evaluation.weight_decay": "evaluation.optimizer.weight_decay",
}
"""What keys of versions before are called now; `*` stands for a position in a list."""


def load(source: str | Path, registry: Registry, overrides: Overrides = ()) -> Recipe:
    """Load a recipe by name or path and apply `overrides`, pairs of dotted key and value, in order.

    The keys `method` and `protocol` come first: they lay methods/VALUE, protocols/VALUE or a path over it.
    Raises GvbsmError if there is no such recipe, it is not TOML, or anything in it is wrong.
    """
    path = find(source, registry)
    return make(_overridden(tables_of(source, registry), registry, overrides), registry, str(path), overrides)


def change(recipe: Recipe, registry: Registry, overrides: Overrides) -> Recipe:
    """Return `recipe` with `overrides`, as `load` applies them; raises GvbsmError if anything is wrong."""
    return make(_overridden(recipe.tables(), registry, overrides), registry, recipe.name, overrides)


def tables_of(source: str | Path, registry: Registry, overrides: Overrides = ()) -> dict[str, Any]:
    """Return a recipe's tables as they are before defaults: what it extends, its own, `overrides`.

    Raises GvbsmError like `load`, but does not check what they say.
    """
    path = find(source, registry)
    tables = compose(path, registry)
    tables.setdefault("name", path.stem)
    return _overridden(tables, registry, overrides)


def _overridden(tables: dict[str, Any], registry: Registry, overrides: Overrides) -> dict[str, Any]:
    ranks = {layer: rank for rank, layer in enumerate(LAYERS)}
    for key, value in sorted(overrides, key=lambda pair: ranks.get(pair[0], len(ranks))):
        if key in LAYERS and value:
            tables = lay(tables, key, str(value), registry)
            continue
        changed = copy.deepcopy(tables)
        _write_out_default(changed, key)
        override(changed, key, value)
        tables = settle(tables, changed, {key.partition(".")[0]})
    return tables


def make(tables: Mapping[str, Any], registry: Registry, where: str, overrides: Overrides = ()) -> Recipe:
    """Check plain tables and make them a recipe.

    overrides: those that are in `tables` already, to be blamed for what is wrong with them. Raises GvbsmError
    naming every wrong key, and `where`, or the option of the command line that it comes from.
    """
    sections = ("pretrain", "measure", "synthesis", "relabel", "evaluation")
    try:
        made = Recipe.model_validate(
            {**{name: {} for name in sections}, **tables}, context={"registry": registry}
        )
    except ValidationError as error:
        raise GvbsmError(_told(tables, registry, where, overrides, error)) from error
    data = made.data_name or made.data.full_name
    published = tuple(row for row in made.published if row.data == data)
    return made.model_copy(update={"components": origins(registry, made), "published": published})


def _told(
    tables: Mapping[str, Any], registry: Registry, where: str, overrides: Overrides, error: ValidationError
) -> str:
    """Return the line for an error: the recipe's part names it, an option's part the option."""
    renamed = [
        (tuple(path.split(".")), f"is now called {_new_name(old, new)}")
        for old, new in RENAMED.items()
        for path in _paths(tables, old.split("."))
    ]
    theirs, own = [], []
    for key, line in renamed or validation_errors(error, Recipe):
        blamed = next((each for each in reversed(overrides) if _blamed(each, key)), None)
        if renamed:
            line = f"{'.'.join(key)} {line}"
            theirs.append(f"{_blamed(blamed, key)}: {line}") if blamed else own.append(line)
        elif blamed is None:
            own.append(keyed(key, line))
        else:  # an option for a component says which it is, and --set the key
            text, name = _blamed(blamed, key), ".".join(key)
            told = isinstance(blamed[1], (dict, list)) or name in text
            theirs.append(f"{text}: {line if told else keyed(key, line)}")
    layers = [f" with {key} {value}" for key, value in overrides if key in LAYERS and value]
    parts = [*theirs, *([f"recipe {where}{''.join(layers)}: {'; '.join(own)}"] if own else [])]
    return "; ".join(parts) + missing_plugins(registry, tables.get("components"))


def _blamed(override: tuple[str, Any], key: tuple[str, ...]) -> str:
    return override.blamed(key) if isinstance(override, Setting) else ""


def _new_name(old: str, new: str) -> str:
    """Return the last part of a key's new name, or all of it where the key has moved to another table."""
    above, _, last = new.rpartition(".")
    return last if above == old.rpartition(".")[0] else new


def _paths(tables: Any, parts: list[str], above: str = "") -> Iterator[str]:
    """Yield the dotted keys in `tables` that `parts` stands for, `*` being any position of a list."""
    if not parts:
        yield above[:-1]
    elif parts[0] == "*" and isinstance(tables, list):
        for position, item in enumerate(tables):
            yield from _paths(item, parts[1:], f"{above}{position}.")
    elif isinstance(tables, Mapping) and parts[0] in tables:
        yield from _paths(tables[parts[0]], parts[1:], f"{above}{parts[0]}.")


def _write_out_default(tables: dict[str, Any], key: str) -> None:
    """Write out the list (`synthesis.matchers.0`) or component that `key` leads into, if it was left out."""
    fields, table = Recipe.model_fields, tables
    for part, below in pairwise(key.split(".")):
        field = fields.get(part)
        if field is None or not isinstance(table, dict):
            return
        if below.isdecimal() and isinstance(field.default, tuple):
            table.setdefault(part, list(field.default))
            return
        if any(isinstance(mark, Used) for mark in field.metadata):
            table.setdefault(part, copy.deepcopy(field.default))
            return
        fields, table = getattr(field.annotation, "model_fields", {}), table.setdefault(part, {})


def override(tables: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key such as `synthesis.matchers.0.momentum` in plain tables.

    Raises GvbsmError if the key leads through something that is not a table or beyond the end of a list.
    """
    *parents, last = key.split(".")
    place: Any = tables
    for part in parents:
        if isinstance(place, list):
            place = place[_position(place, part, key)]
        else:
            if isinstance(place.get(part), str):  # a component given by name alone becomes a table
                place[part] = {"use": place[part]}
            place = place.setdefault(part, {})
        if not isinstance(place, (dict, list)):
            raise GvbsmError(f"--set {key}: {part!r} is not a table; give the key of a value")
    if isinstance(place, list):
        place[_position(place, last, key)] = value
    else:
        place[last] = value


def _position(place: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(place):
        raise GvbsmError(
            f"--set {key}: {part!r} is not a position in a list of {len(place)} (they start at 0)"
        )
    position = int(part)
    if isinstance(place[position], str):
        place[position] = {"use": place[position]}
    return position
