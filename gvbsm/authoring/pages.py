"""What `gvbsm plugins` prints."""

from __future__ import annotations

import inspect
import textwrap
import tomllib
import typing
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from gvbsm.authoring.scaffold import RUN
from gvbsm.recipe.fields import Used
from gvbsm.recipe.schema import Recipe, Section
from gvbsm.terminal import text_of
from gvbsm_registry import CONTRACT_VERSION, KINDS, Component, GvbsmError, Plugin, Registry, reference
from gvbsm_registry.admission import same_name
from gvbsm_registry.messages import unknown_name


def status(plugin: Plugin) -> str:
    """Return a plugin's status in a word or two; what is wrong with it stands below the table."""
    if not plugin.loaded:
        return "left out (GVBSM_PLUGINS or --no-plugins)"
    return "see below" if plugin.problems else "ok"


def plugin_table(registry: Registry) -> str:
    """Return the plugins, where they come from, what they add, and what is wrong with them."""
    table = Table()
    for column in ("plugin", "distribution", "version", "adds", "status"):
        table.add_column(column, overflow="fold")
    for plugin in registry.plugins:
        by_kind: dict[str, list[str]] = {}
        for component in plugin.components:
            by_kind.setdefault(component.kind, []).append(component.name)
        if plugin.recipes:
            by_kind["recipe"] = list(plugin.recipes)
        adds = "\n".join(f"{kind}: {', '.join(names)}" for kind, names in by_kind.items())
        table.add_row(plugin.name, plugin.distribution, plugin.version, adds, status(plugin))
    return "\n".join([text_of(table), *registry.problems()])


def plugin_records(registry: Registry) -> list[dict[str, Any]]:
    """Return what the table shows, for programs."""
    return [
        {
            "plugin": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "components": [{"kind": c.kind, "name": c.name} for c in plugin.components],
            "recipes": list(plugin.recipes),
            "loaded": plugin.loaded,
            "problems": plugin.problems,
        }
        for plugin in registry.plugins
    ]


def find(name: str, registry: Registry) -> type[Component]:
    """Return the component called NAME, KIND:NAME, DISTRIBUTION:NAME or KIND:DISTRIBUTION:NAME.

    Raises GvbsmError if there is none, or several.
    """
    kinds = {kind.kind: kind for kind in KINDS}
    wanted, colon, rest = name.partition(":")
    if colon:
        if wanted in kinds:
            return registry.find(kinds[wanted], rest)
        owners = [plugin for plugin in registry.plugins if same_name(plugin.distribution, wanted)]
        owned = [each for plugin in owners for each in plugin.components if each.name == rest]
        if len(owned) != 1:
            raise GvbsmError(unknown_name("kind", wanted, kinds))
        return owned[0]
    named = [each for each in registry.components() if each.name == name]
    if not named:
        families = [each for each in registry.components() if each.name == name.split("/", 1)[0] + "/*"]
        if "/" not in name or not families:
            raise GvbsmError(unknown_name("component", name, {each.name for each in registry.components()}))
        named = families
    if len(named) > 1:
        choice = " or ".join(f"{each.kind}:{name}" for each in named)
        raise GvbsmError(f"several kinds have a component {name!r}; write {choice}")
    return registry.find(kinds[named[0].kind], name)


def component_page(name: str, registry: Registry) -> str:
    """Return a component's description, options, its kind's contract and a recipe snippet."""
    component = find(name, registry)
    kind = next(known for known in KINDS if known.kind == component.kind)
    options = Table()
    for column in ("option", "type", "default", "help"):
        options.add_column(column, overflow="fold")
    for option in reference.options(component):
        options.add_row(option.name, option.type, option.default or "(required)", option.help)
    contract = "\n".join(f"{text}\n{textwrap.indent(doc, '    ')}" for text, doc in reference.contract(kind))
    return "\n\n".join(
        [
            f"{component.kind} {component.name}, from {registry.owner(component).owner}",
            inspect.getdoc(component) or "",
            text_of(options) if component.model_fields else "It has no options.",
            f"{_article(kind.kind)} {kind.kind} (contract {CONTRACT_VERSION}): {inspect.getdoc(kind)}",
            textwrap.indent(contract, "    "),
            "In a recipe:" if _places(component.kind) else "On the command line:",
            textwrap.indent(snippet(component), "    "),
        ]
    )


def _article(word: str) -> str:
    return "An" if word[0] in "aeiou" else "A"


def snippet(component: type[Component]) -> str:
    """Return the recipe lines, or the command, that use a component with its defaults."""
    title = component.name.replace("*", "NAME")
    places = list(_places(component.kind))
    if not places:
        return RUN[component.kind].format(name=title)
    place, is_list = places[0]
    brackets = f"[[{place}]]" if is_list else f"[{place}]"
    lines = [brackets, f'use = "{title}"']
    if getattr(component, "keeps", "") == "none":  # nothing is measured of untrained networks
        lines = ["[synthesis]", "matchers = []", "", *lines]
    for option in reference.options(component):
        if component.model_fields[option.name].is_required() and option.name != "variant":
            lines.append(f"{option.name} = …")
        elif option.default not in ("", "none"):
            lines.append(_default_line(option))
    if others := [f"[{other}]" for other, _ in places[1:]]:
        lines.append(f"# likewise in {', '.join(others)}")
    return "\n".join(lines)


def _default_line(option: reference.Option) -> str:
    """Return a line that sets an option to its default, as a comment if that is not a TOML value."""
    line = f"{option.name} = {option.default}"
    try:
        tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return f"# {line}"
    return line


def _places(kind: str, section: type[Section] = Recipe, above: str = "") -> Iterator[tuple[str, bool]]:
    """Yield (dotted key, whether it is a list) of every place in a recipe for a component of a kind."""
    for name, field in section.model_fields.items():
        annotation: Any = field.annotation
        is_list = typing.get_origin(annotation) is tuple
        inner = typing.get_args(annotation)[0] if is_list else annotation
        marks = [*field.metadata, *getattr(inner, "__metadata__", ())]
        if any(isinstance(mark, Used) and mark.kind.kind == kind for mark in marks):
            yield above + name, is_list
        elif inspect.isclass(annotation) and issubclass(annotation, Section):
            yield from _places(kind, annotation, f"{above}{name}.")
