"""Puts a recipe's tables together: those that it extends, its own, a method and a protocol laid over them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gvbsm_registry import GvbsmError, Registry
from gvbsm_registry.messages import unknown_name
from gvbsm_registry.plugin import split_name
from gvbsm_registry.values import DEEPEST, too_deep

OWN = ("name", "description", "reproduces")
"""Keys that say what a recipe itself is: they are not taken from the recipes that it extends."""
LAYERS = {"method": "methods", "protocol": "protocols"}
"""What can be laid over a recipe, and the folder of shipped recipes that it is looked up in."""
CHANGED = ", changed"
"""What follows the name of a protocol that something laid over it has changed."""
TRAININGS = {
    *("students", "seeds", "soft", "test_every"),
    *("distilled_hard", "random_baseline", "full_baseline", "without_augmentation"),
}
"""Keys of [evaluation] that say which students are trained, not how: a protocol stays what it is."""

Tables = dict[str, Any]


def find(source: str | Path, registry: Registry) -> Path:
    """Return the path of a recipe given by name or path; raises GvbsmError if there is none, or several."""
    name = str(source)
    if name in registry.recipes():
        return registry.recipe(name)
    path, there = look_up(source)
    if there:
        return path
    if path.suffix == ".toml" or path.is_absolute():
        raise GvbsmError(f"recipe {path}: no such file; 'gvbsm recipes' lists the shipped ones")
    for layer, folder in LAYERS.items():
        if f"{folder}/{name}" in registry.recipes():
            raise GvbsmError(f"{name!r} is a {layer}; lay it over a recipe: digits --{layer} {name}")
    return registry.recipe(name)


def look_up(source: str | Path) -> tuple[Path, bool]:
    """Return a path with `~` expanded, and whether a file is there; raises GvbsmError if there can't be."""
    try:
        path = Path(source).expanduser()
        return path, path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise GvbsmError(f"recipe {str(source)[:100]!r}: {why}; give another name or path") from error


def read_tables(path: Path) -> Tables:
    """Parse a TOML file; raises GvbsmError naming the path if it can't be read or is not TOML."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin with a mark
        if too_deep(tables):
            raise ValueError(f"its tables lie in each other more than {DEEPEST} deep")
        return tables
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of integers of thousands of digits
        raise GvbsmError(f"recipe {path}: is not TOML ({error}); correct it there") from error
    except OSError as error:
        raise GvbsmError(f"recipe {path}: can't be read ({error.strerror}); give another path") from error


def compose(path: Path, registry: Registry, chain: tuple[Path, ...] = ()) -> Tables:
    """Return the tables of the recipe at `path`, laid over those of the recipes that it extends.

    chain: the files that led here. Raises GvbsmError, naming the chain, if one is missing, is not TOML or
    extends itself.
    """
    told = " > ".join(str(each) for each in (*chain, path))
    if path.resolve() in [each.resolve() for each in chain]:
        raise GvbsmError(f"recipe {told}: extends itself; take one of them out of 'extends'")
    own = read_tables(path)
    extends = own.pop("extends", [])
    names = [extends] if isinstance(extends, str) else extends
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise GvbsmError(f"recipe {told}: extends: give a list of names or paths, got {extends!r}")
    made: Tables = {}
    for name in names:
        try:
            base = _base(name, path, registry)
        except GvbsmError as error:
            raise GvbsmError(f"recipe {told}: extends: {error}") from error
        made = lay_over(made, without_own(compose(base, registry, (*chain, path))))
    if isinstance(own.get("method"), dict):  # facts about a method that this file is: its name is remembered
        own |= {"description": what_it_is(own), "method": path.stem}
    return lay_over(made, own)


def what_it_is(tables: Tables) -> str:
    """Return what a recipe's own tables say that it is: its description, or its method's facts."""
    method = tables.get("method")
    facts = [str(method.get(key, "")) for key in ("title", "what")] if isinstance(method, dict) else []
    return str(tables.get("description") or ": ".join(filter(None, facts)) or tables.get("reproduces") or "")


def _base(name: str, path: Path, registry: Registry) -> Path:
    """Return the file that `extends` in the recipe at `path` calls `name`: a path, or a shipped recipe."""
    if not name.endswith(".toml"):
        return registry.recipe(name)
    base, there = look_up(path.parent / look_up(name)[0])
    if not there:
        raise GvbsmError(f"{name}: no such file beside {path}; 'gvbsm recipes' lists the shipped ones")
    return base


def lay(tables: Tables, layer: str, name: str, registry: Registry) -> Tables:
    """Return a recipe's tables with a method or a protocol (`layer`) laid over them; their name says so, too.

    name: of a shipped one, without its folder (methods/NAME, protocols/NAME), or a path. Raises GvbsmError if
    there is none.
    """
    path = _layer(layer, name, registry)
    name_too = f"{tables.get('name', 'unnamed')}-{path.stem}"
    untold = {"reproduces"} if layer == "protocol" else {"reproduces", "description"}
    below = {key: value for key, value in tables.items() if key not in untold}
    return lay_over(below, {layer: path.stem, **without_own(compose(path, registry)), "name": name_too})


def _layer(layer: str, name: str, registry: Registry) -> Path:
    if name.endswith(".toml"):
        return find(name, registry)
    distribution, bare = split_name(name)
    prefix = f"{LAYERS[layer]}/"
    shipped = [each for each in registry.recipes() if each.startswith(prefix)]
    if not distribution and prefix + bare not in shipped:
        raise GvbsmError(unknown_name(layer, name, [each.removeprefix(prefix) for each in shipped]))
    return registry.recipe(f"{distribution}:{prefix}{bare}" if distribution else prefix + bare)


def without_own(tables: Tables) -> Tables:
    """Return the tables without what they say of their own recipe alone."""
    return {key: value for key, value in tables.items() if key not in OWN}


def lay_over(below: Tables, above: Tables) -> Tables:
    """Return `above` merged over `below`, without what then holds no longer."""
    return settle(below, merge(below, above), set(above))


def settle(before: Tables, after: Tables, said: set[str]) -> Tables:
    """Return `after` without what was said before and no longer holds.

    said: the keys at top level that were given anew. A protocol is marked as changed if students are trained
    in another way; published figures belong to a method, and a data set's name to its data.
    """
    made = dict(after)
    protocol = before.get("protocol")
    if "protocol" not in said and protocol and isinstance(protocol, str):
        same = _training(before) == _training(after)
        made["protocol"] = protocol if same else protocol.removesuffix(CHANGED) + CHANGED
    if "method" in said and "published" not in said:
        made.pop("published", None)
    if "data_name" not in said and _use(before.get("data")) != _use(after.get("data")):
        made.pop("data_name", None)
    return made


def _use(component: Any) -> Any:
    return component.get("use") if isinstance(component, dict) else component


def _training(tables: Tables) -> list[Any]:
    evaluation = tables.get("evaluation", {})
    if isinstance(evaluation, dict):
        evaluation = {key: value for key, value in evaluation.items() if key not in TRAININGS}
    return [tables.get("relabel", {}), evaluation]


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Tables:
    """Return tables in which `above` wins: tables are merged, key by key, anything else is replaced.

    A component's table is merged into one of the same `use`, or a bare name of it; a table that uses another
    component replaces it, so that no component is given another one's options.
    """
    made = dict(below)
    for key, value in above.items():
        there = made.get(key)
        if isinstance(value, dict):
            there = {"use": there} if isinstance(there, str) else there  # a component given by name alone
            if isinstance(there, dict) and value.get("use", there.get("use")) == there.get("use"):
                value = merge(there, value)
        made[key] = value
    return made
