"""Shell completion of installed names. Imports nothing heavy until a shell asks, and never torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from gvbsm.cli import load_plugins

if TYPE_CHECKING:
    from gvbsm_registry import Component, Registry

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def components(kind: str = "") -> Complete:
    """Return a completer of the names of a kind's components (KIND:NAME of all kinds, if none is given)."""

    def complete(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        registry = _registry()
        classes = [each for each in registry.components() if kind in ("", each.kind)] if registry else []
        if kind and ":" in typed:
            return _options(classes, typed)
        with_kind = not kind and ":" in typed
        names = [(f"{each.kind}:{each.name}" if with_kind else each.name, each) for each in classes]
        return [
            CompletionItem(name.removesuffix("*"), help=_summary(each))
            for name, each in names
            if name.startswith(typed)
        ]

    return complete


def _options(classes: list[type[Component]], typed: str) -> list[CompletionItem]:
    """Complete the option that is being typed in NAME:key=value,ke."""
    name, _, given = typed.partition(":")
    before, comma, last = given.rpartition(",")
    if "=" in last:
        return []
    return [
        CompletionItem(f"{name}:{before}{comma}{option}=", help=field.description or "")
        for each in classes
        if each.name == name
        for option, field in each.model_fields.items()
        if option.startswith(last)
    ]


def kinds(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete the name of a kind."""
    from gvbsm_registry import KINDS

    return [CompletionItem(k.kind, help=_summary(k)) for k in KINDS if k.kind.startswith(typed)]


def recipes(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete the name of a shipped recipe, or a path."""
    return _recipes([name for name in _shipped() if not name.startswith("sweeps/")], typed)


def recipes_in(folder: str) -> Complete:
    """Return a completer of the recipes shipped in a folder, such as methods, by what follows its name."""

    def complete(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        inside = [name for name in _shipped() if name.startswith(f"{folder}/")]
        return _recipes([name.removeprefix(f"{folder}/") for name in inside], typed)

    return complete


def _recipes(names: list[str], typed: str) -> list[CompletionItem]:
    found = [CompletionItem(name) for name in names if name.startswith(typed)]
    return found or [CompletionItem(typed, type="file")]


def _shipped() -> list[str]:
    registry = _registry()
    return sorted(registry.recipes()) if registry else []


def _registry() -> Registry | None:
    from gvbsm_registry import GvbsmError

    try:
        return load_plugins()
    except GvbsmError:  # a shell that is completing can't show an error; the command itself will
        return None


def _summary(component: type[Component]) -> str:
    return (component.__doc__ or "").strip().split("\n")[0]
