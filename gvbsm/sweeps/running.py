"""Runs one recipe at many settings: comparisons of initializers, sweeps over keys."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gvbsm import pipeline
from gvbsm.recipe.composing import LAYERS
from gvbsm.recipe.loading import tables_of
from gvbsm.recipe.text import Setting, parse_component, parse_value, split_list
from gvbsm.results.records import read_records, write_records
from gvbsm.runtime.folders import check_folder, check_sweep_folder
from gvbsm_registry import GvbsmError, Registry
from gvbsm_registry.artifacts import digest

FILES = ("table.txt", "plot.svg", "plot.png", "results.json", "results.csv")
"""What lies beside the run folders of a sweep."""
Overrides = list[tuple[str, Any]]
Axis = tuple[str, Sequence[str], Sequence[Any], Sequence[Any]]
"""What tables call it, the keys that it sets, their values, what tables call each value."""


@dataclass(frozen=True)
class Point:
    """One setting: `labels` says which, column → value, for tables and plots; `overrides` makes it."""

    labels: dict[str, Any]
    overrides: Overrides

    def folder(self, seed: int | None, common: Overrides) -> str:
        """A folder name that a person can read and that no other point has."""
        parts = [f"{name}-{value}" for name, value in self.labels.items()]
        parts += [] if seed is None else [f"seed-{seed}"]
        text = re.sub(r"[^A-Za-z0-9.=-]+", "-", "_".join(parts).replace("_", "~")).replace("~", "_")
        return f"{text[:80].strip('-_.')}-{digest([self.labels, self.overrides, common, seed])[:6]}"


@dataclass(frozen=True)
class Sweep:
    """A recipe (name or path), what is set for all points, the points, and the recipe seeds of each.

    description: what it is, in one sentence; reproduces: the published table that it repeats, if any.
    implied: a key that some points set by themselves, and that may be set for the others.
    """

    recipe: str
    points: list[Point]
    overrides: Overrides = field(default_factory=list)
    seeds: tuple[int | None, ...] = (None,)
    description: str = ""
    reproduces: str = ""
    implied: str = ""

    @property
    def title(self) -> str:
        """What stands above its table and plot."""
        return self.description or self.reproduces


def run(sweep: Sweep, out: Path, registry: Registry, **where: Any) -> list[dict[str, Any]]:
    """Run what is missing of a sweep, each point and seed in a run folder of its own below `out`.

    Returns the records of all points, each with its point's labels under "point"; they are written to
    `out`/results.json and results.csv too. Points share the store, so that equal backbones and statistics
    are made once. where: arguments of `gvbsm.pipeline.run`. Raises GvbsmError like it.
    """
    check_folder(out, "--out")
    check_sweep_folder(out, FILES)
    _check_points(sweep)
    records = []
    for point, seed in itertools.product(sweep.points, sweep.seeds):
        chosen = [*sweep.overrides, *point.overrides, *([] if seed is None else [("seed", seed)])]
        chosen = expand_all(sweep.recipe, registry, chosen)
        folder = pipeline.run(
            sweep.recipe,
            out=out / point.folder(seed, sweep.overrides),
            overrides=chosen,
            registry=registry,
            **where,
        )
        for record in read_records(folder):
            recipe_seed = {} if seed is None else {"recipe_seed": seed}
            records.append({**record, **recipe_seed, "point": point.labels, "folder": folder.name})
    return write_records(out, records, description=sweep.description, reproduces=sweep.reproduces)


def _check_points(sweep: Sweep) -> None:
    """Raise GvbsmError if a point or a seed is there twice, or a key is both varied and set for all.

    What is there twice would be counted as two seeds, and of two values for one key one would be ignored.
    """
    made = [point.overrides for point in sweep.points]
    twice = next((point for at, point in enumerate(sweep.points) if made.index(point.overrides) < at), None)
    if twice is not None:
        told = ", ".join(f"{name} {value}" for name, value in twice.labels.items())
        raise GvbsmError(f"{told}: is given twice; give each setting once")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise GvbsmError(f"--seed: {', '.join(map(str, sweep.seeds))}: a seed is given twice; give each once")
    varied = {key for point in sweep.points for key, _ in point.overrides} - {sweep.implied}
    seeded = {"seed"} if sweep.seeds != (None,) else set()
    common = {key for key, _ in sweep.overrides}
    for key in sorted((common & (varied | seeded)) | (varied & seeded)):
        raise GvbsmError(f"{key}: is varied, and set for all settings, too; leave one of the two out")


def expand_all(recipe: str, registry: Registry, overrides: Overrides) -> Overrides:
    """Return `overrides` of a recipe with their keys expanded, after the method that they lay over it."""
    layers = [(key, value) for key, value in overrides if key in LAYERS]
    tables = tables_of(recipe, registry, layers)
    return [pair for each in overrides for pair in ([each] if "*" not in each[0] else expand(tables, *each))]


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
    parsed = [parse_value(value.strip()) for value in split_list(values)]
    if not equals or not key.strip() or not parsed:
        raise GvbsmError(f"--vary {text}: is not a KEY=VALUE,VALUE; write for example synthesis.ipc=1,10")
    return key.strip(), parsed


def product(axes: Iterable[Axis]) -> list[Point]:
    """Return the points of all combinations of axes; those of one name are called by their keys.

    Raises GvbsmError if two axes set one key, or have one name given to them.
    """
    given = list(axes)
    names = [name for name, *_ in given]
    called = [name if names.count(name) == 1 else keys[0] for name, keys, *_ in given]
    for what in (called, [key for _, keys, *_ in given for key in keys]):
        if len(set(what)) < len(what):
            twice = next(each for each in what if what.count(each) > 1)
            raise GvbsmError(f"{twice}: is varied twice; give it once, with all its values")
    chosen = [
        [(name, keys, value, label) for value, label in zip(values, labels, strict=True)]
        for name, (_, keys, values, labels) in zip(called, given, strict=True)
    ]
    return [
        Point(
            {name: label for name, _, _, label in combination},
            [Setting(key, value, f"{key}={value}") for _, keys, value, _ in combination for key in keys],
        )
        for combination in itertools.product(*chosen)
    ]


def short_name(key: str) -> str:
    """Return what tables call a key: its last part."""
    return key.rsplit(".", 1)[-1]


def vary(recipe: str, varied: Sequence[str], overrides: Overrides, seeds: Sequence[int]) -> Sweep:
    """Return the sweep of `gvbsm sweep RECIPE --vary KEY=V,V …`; raises GvbsmError for a wrong axis."""
    axes = [
        (short_name(key), [key], values, list(map(value_name, values)))
        for key, values in map(parse_vary, varied)
    ]
    return Sweep(recipe, product(axes), without_random(overrides), tuple(seeds) or (None,))


def value_name(value: Any) -> Any:
    """Return how tables and folder names call a value: numbers and texts as they are, components by name."""
    if isinstance(value, dict):
        rest = [f"{key}={value_name(inner)}" for key, inner in value.items() if key != "use"]
        return " ".join([str(value.get("use", "")), *rest]).strip()
    if isinstance(value, list):
        return "+".join(str(value_name(inner)) for inner in value) or "none"
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
        for name in coresets:
            chosen = [*sized, ("synthesis.initializer", parse_component(name)), ("synthesis.iterations", 0)]
            points.append(Point({**size, "images": f"{name} (coreset)"}, chosen))
        for name in distilled:
            chosen = [*sized, ("synthesis.initializer", parse_component(name))]
            points.append(Point({**size, "images": f"distilled from {name}"}, chosen))
    if not points:
        raise GvbsmError("nothing to compare; give --initializer NAME or --distilled NAME, more than once")
    common = [("evaluation.distilled_hard", True), *without_random(overrides)]
    return Sweep(recipe, points, common, tuple(seeds) or (None,), implied="synthesis.iterations")


def without_random(overrides: Overrides) -> Overrides:
    """Leave out the random baseline, which would be trained anew at each point, unless it is asked for."""
    return [("evaluation.random_baseline", False), *overrides]
