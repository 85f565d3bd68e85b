"""Runs one recipe at many settings: comparisons of initializers, sweeps over keys, sweep files."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gvbsm import pipeline
from gvbsm.recipe.loading import find, read_tables
from gvbsm.recipe.text import parse_component, parse_value, split_list
from gvbsm.results.scores import csv_text
from gvbsm_registry import GvbsmError, Registry
from gvbsm_registry.artifacts import digest, write_text
from gvbsm_registry.discovery import unknown_name

Overrides = list[tuple[str, Any]]
SWEEP_KEYS = ("recipe", "reproduces", "seeds", "set", "vary")
AXIS_KEYS = ("key", "values", "labels", "name")


@dataclass(frozen=True)
class Point:
    """One setting: `labels` says which, column → value, for tables and plots; `overrides` makes it."""

    labels: dict[str, Any]
    overrides: Overrides

    def folder(self, seed: int | None, common: Overrides) -> str:
        """A folder name that a person can read and that no other point has."""
        told = [f"{name}-{value}" for name, value in self.labels.items()]
        told += [] if seed is None else [f"seed-{seed}"]
        text = re.sub(r"[^A-Za-z0-9.=-]+", "-", "_".join(told).replace("_", "~")).replace("~", "_")
        return f"{text[:80].strip('-_.')}-{digest([self.labels, self.overrides, common, seed])[:6]}"


@dataclass(frozen=True)
class Sweep:
    """A recipe (name or path), what is set for all points, the points, and the recipe seeds of each."""

    recipe: str
    points: list[Point]
    overrides: Overrides = field(default_factory=list)
    seeds: tuple[int | None, ...] = (None,)
    reproduces: str = ""


def run(sweep: Sweep, out: Path, registry: Registry, **where: Any) -> list[dict[str, Any]]:
    """Run what is missing of a sweep, each point and seed in a run folder of its own below `out`.

    Returns the records of all points, each with its point's labels under "point"; they are written to
    `out`/results.json and results.csv too. Points share the store, so that equal backbones and statistics
    are made once. where: arguments of `gvbsm.pipeline.run`. Raises GvbsmError like it.
    """
    tables = read_tables(find(sweep.recipe, registry))
    records = []
    for point, seed in itertools.product(sweep.points, sweep.seeds):
        chosen = [*sweep.overrides, *point.overrides, *([] if seed is None else [("seed", seed)])]
        chosen = [pair for key, value in chosen for pair in expand(tables, key, value)]
        folder = pipeline.run(
            sweep.recipe,
            out=out / point.folder(seed, sweep.overrides),
            overrides=chosen,
            registry=registry,
            **where,
        )
        for record in pipeline.results(folder):
            recipe_seed = {} if seed is None else {"recipe_seed": seed}
            records.append({**record, **recipe_seed, "point": point.labels, "folder": folder.name})
    text = json.dumps({"schema": 1, "reproduces": sweep.reproduces, "records": records}, indent=1)
    write_text(out / "results.json", text + "\n")
    write_text(out / "results.csv", csv_text({**r, **_flat(r["point"])} for r in records))
    return records


def _flat(labels: dict[str, Any]) -> dict[str, Any]:
    return {f"point {name}": value for name, value in labels.items()}


def expand(tables: dict[str, Any], key: str, value: Any) -> Overrides:
    """Return the settings that `key` means: `*` in it stands for every position of a list of the recipe.

    Raises GvbsmError if the recipe has no list there.
    """
    before, star, after = key.partition(".*")
    if not star:
        return [(key, value)]
    place: Any = tables
    for part in before.split("."):
        place = place.get(part) if isinstance(place, dict) else None
    if not isinstance(place, list) or not place:
        raise GvbsmError(f"{key}: the recipe has no list {before!r} for '*' to go through; write it there")
    return [pair for index in range(len(place)) for pair in expand(tables, f"{before}.{index}{after}", value)]


def parse_vary(text: str) -> tuple[str, list[Any]]:
    """Return (key, values) of `KEY=V,V,...`; commas inside brackets or quotes belong to a value.

    Raises GvbsmError if `text` is nothing of the kind.
    """
    key, equals, values = text.partition("=")
    found = [parse_value(value.strip()) for value in split_list(values)]
    if not equals or not key.strip() or not found:
        raise GvbsmError(f"--vary {text}: is not KEY=VALUE,VALUE; write for example synthesis.ipc=1,10")
    return key.strip(), found


def product(axes: Iterable[tuple[str, Sequence[str], Sequence[Any], Sequence[Any]]]) -> list[Point]:
    """Return the points of all combinations of axes: (name, keys, values, what to call each value)."""
    chosen = [
        [(name, keys, value, label) for value, label in zip(values, labels, strict=True)]
        for name, keys, values, labels in axes
    ]
    return [
        Point(
            {name: label for name, _, _, label in combination},
            [(key, value) for _, keys, value, _ in combination for key in keys],
        )
        for combination in itertools.product(*chosen)
    ]


def short_name(key: str) -> str:
    """Return what tables call a key: its last part."""
    return key.rsplit(".", 1)[-1]


def vary(recipe: str, varied: Sequence[str], overrides: Overrides, seeds: Sequence[int]) -> Sweep:
    """Return the sweep of `gvbsm sweep RECIPE --vary KEY=V,V …`; raises GvbsmError for a wrong axis."""
    parsed = [parse_vary(text) for text in varied]
    names = [short_name(key) for key, _ in parsed]
    axes = [
        (
            short_name(key) if names.count(short_name(key)) == 1 else key,
            [key],
            values,
            list(map(show, values)),
        )
        for key, values in parsed
    ]
    return Sweep(recipe, product(axes), _without_random(overrides), tuple(seeds) or (None,))


def show(value: Any) -> Any:
    """Return how tables and folder names call a value: numbers and texts as they are, components by name."""
    if isinstance(value, dict):
        rest = [f"{key}={show(inner)}" for key, inner in value.items() if key != "use"]
        return " ".join([str(value.get("use", "")), *rest]).strip()
    if isinstance(value, list):
        return "+".join(str(show(inner)) for inner in value) or "none"
    return value if isinstance(value, int | float | str) else str(value)


def compare(
    recipe: str,
    coresets: Sequence[str],
    distilled: Sequence[str],
    ipcs: Sequence[int],
    overrides: Overrides,
    seeds: Sequence[int],
) -> Sweep:
    """Return the sweep of `gvbsm compare`: initializers, NAME[:key=value,...], as coresets
    (no iterations) and as starts.

    Hard labels are trained on too, for coresets are published with them.
    """
    points = []
    for ipc in ipcs or (None,):
        size: dict[str, Any] = {} if ipc is None else {"ipc": ipc}
        sized = [("synthesis.ipc", value) for value in size.values()]
        for table in map(parse_component, coresets):
            chosen = [*sized, ("synthesis.initializer", table), ("synthesis.iterations", 0)]
            points.append(Point({**size, "images": f"{show(table)} (coreset)"}, chosen))
        for table in map(parse_component, distilled):
            chosen = [*sized, ("synthesis.initializer", table)]
            points.append(Point({**size, "images": f"distilled from {show(table)}"}, chosen))
    if not points:
        raise GvbsmError("nothing to compare; give --initializer NAME or --distilled NAME, more than once")
    common = [("evaluation.distilled_hard", True), *_without_random(overrides)]
    return Sweep(recipe, points, common, tuple(seeds) or (None,))


def _without_random(overrides: Overrides) -> Overrides:
    """Leave out the random baseline, which would be trained anew at each point, unless it is asked for."""
    return [("evaluation.random_baseline", False), *overrides]


def shipped(registry: Registry) -> dict[str, Path]:
    """Return the shipped sweep files by name: those in a folder `sweeps` beside a shipped recipe."""
    folders = {path.parent / "sweeps" for path in registry.recipes().values()}
    return {path.stem: path for folder in sorted(folders) for path in sorted(folder.glob("*.toml"))}


def load(
    source: str, registry: Registry, recipe: str | None, overrides: Overrides, seeds: Sequence[int]
) -> Sweep | None:
    """Return the sweep file called `source` (a shipped name, or a path), or None if it is not a sweep.

    A sweep file is TOML: recipe, reproduces, seeds, [set] with dotted keys, and [[vary]] with `key` (one or
    several), `values`, and optionally `labels` (what tables call the values) and `name`. recipe, overrides
    and seeds come from the command line and win. Raises GvbsmError if something in it is wrong.
    """
    path = shipped(registry).get(source) or Path(source).expanduser()
    if source in registry.recipes() or not path.is_file():
        return None
    tables = read_tables(path)
    if "vary" not in tables:
        return None
    for key in tables:
        if key not in SWEEP_KEYS:
            raise GvbsmError(f"sweep {path}: {unknown_name('key', key, SWEEP_KEYS)}")
    settings = list(tables.get("set", {}).items())
    chosen = seeds or tuple(tables.get("seeds", ()))
    axes = [_axis(path, position, axis) for position, axis in enumerate(tables["vary"])]
    return Sweep(
        recipe or str(tables.get("recipe", "digits")),
        product(axes),
        _without_random([*settings, *overrides]),
        tuple(chosen) or (None,),
        str(tables.get("reproduces", "")),
    )


def _axis(path: Path, position: int, axis: Any) -> tuple[str, list[str], list[Any], list[Any]]:
    where = f"sweep {path}: vary.{position}"
    if not isinstance(axis, dict) or not {"key", "values"} <= axis.keys():
        raise GvbsmError(f"{where}: needs key and values")
    for key in axis:
        if key not in AXIS_KEYS:
            raise GvbsmError(f"{where}: {unknown_name('key', key, AXIS_KEYS)}")
    keys = [axis["key"]] if isinstance(axis["key"], str) else list(axis["key"])
    values = axis["values"]
    labels = axis.get("labels", [show(value) for value in values])
    if len(labels) != len(values) or not values:
        raise GvbsmError(f"{where}: has {len(values)} values and {len(labels)} labels; give one for each")
    return str(axis.get("name", short_name(keys[0]))), keys, values, labels
