"""Describes kinds, hooks and components from their own code: for `gvbsm plugins show` and the docs."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic.fields import FieldInfo

import gvbsm_registry
from gvbsm_registry import hookspecs
from gvbsm_registry.discovery import Registry
from gvbsm_registry.guide import IN_A_RUN
from gvbsm_registry.kinds import CONTRACT_VERSION, KINDS, Component
from gvbsm_registry.plugin import Plugin

LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "at least", "max_length": "at most"}
HEAD = (
    "# Reference of kinds and hooks",
    "Contract {version}. Made from the code by `python -m gvbsm_registry.reference > docs/reference.md`;",
    "a test fails when it is not current. Everything is imported from `gvbsm_registry`. Equations without a",
    "paper are those of G-VBSM (arXiv 2311.17950).",
)


@dataclass(frozen=True)
class Option:
    """One option of a component, as text: its type with limits, its default ("" if required), its help."""

    name: str
    type: str
    default: str
    help: str


def options(component: type[Component]) -> list[Option]:
    """Return a component class's options, its own ones first, then those of its kind."""
    kind = next(known for known in KINDS if issubclass(component, known))
    shared = [name for name in component.model_fields if name in kind.model_fields]
    names = [name for name in component.model_fields if name not in shared] + shared
    return [_option(name, component.model_fields[name]) for name in names]


def _option(name: str, field: FieldInfo) -> Option:
    limits = [
        f"{sign} {getattr(limit, key)}"
        for limit in field.metadata
        for key, sign in LIMITS.items()
        if getattr(limit, key, None) is not None
    ]
    kind = ", ".join([type_text(field.annotation), *limits])
    return Option(name, kind, _default(field), field.description or "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    try:
        return default_text(field.get_default(call_default_factory=True))
    except ValueError:  # pydantic's, of a factory that takes the other options
        return "none"


def default_text(value: Any) -> str:
    """Return an option's default as a recipe would say it, in TOML; None, which TOML lacks, is `none`."""
    if value is None:
        return "none"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if isinstance(value, Mapping):
        pairs = [f"{_key(str(key))} = {default_text(each)}" for key, each in value.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, set | frozenset):  # in no order, so it is sorted
        return f"[{', '.join(sorted(map(default_text, value)))}]"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(default_text, value))}]"
    return json.dumps(str(value), ensure_ascii=False)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else default_text(key)


def type_text(annotation: Any) -> str:
    """Return a type as a user reads it: `int or none`, `"a" or "b"`, `list of float`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(map(default_text, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(argument) for argument in arguments)
    if origin in (tuple, list):
        if len(arguments) == 2 and arguments[1] is not Ellipsis:
            return f"[{type_text(arguments[0])}, {type_text(arguments[1])}]"
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return "table"
    names = {str: "text", type(None): "none", bool: "true or false"}
    return names.get(annotation) or getattr(annotation, "__name__", str(annotation)).lower()


def signature(function: Callable[..., Any]) -> str:
    """Return `name(arguments) -> type`, with the types as they are written."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=_Written(parameter.annotation))
        if parameter.annotation is not parameter.empty
        else parameter
        for parameter in signature.parameters.values()
    ]
    result = signature.return_annotation
    shown = signature.replace(
        parameters=parameters,
        return_annotation=result if result is signature.empty else _Written(result),
    )
    return f"{function.__name__}{shown}"


class _Written:
    """An annotation that prints as it is written."""

    def __init__(self, text: Any) -> None:
        self.text = text if isinstance(text, str) else inspect.formatannotation(text)

    def __repr__(self) -> str:
        return self.text


def contract(kind: type[Component]) -> list[tuple[str, str]]:
    """Return (signature, docstring) of what a kind asks for, in its order; what may be left out says so."""
    return [
        (text, doc if re.split(r"\W", text)[0] in kind.__abstractmethods__ else f"{doc}\n\nMay be left out.")
        for text, doc in members(kind)
    ]


def hooks() -> list[tuple[str, str]]:
    """Return (signature, docstring) of each hook."""
    functions = [f for name, f in vars(hookspecs).items() if name.startswith("gvbsm_")]
    return [(signature(hook), inspect.getdoc(hook) or "") for hook in functions]


def objects() -> list[type]:
    """Return the classes that components and hooks are given or return, and that are not components."""
    named = [getattr(gvbsm_registry, name) for name in gvbsm_registry.__all__]
    engines = (Registry, Plugin)  # what the engine alone handles
    return [
        value
        for value in named
        if inspect.isclass(value) and not issubclass(value, Component) and value not in engines
    ]


def members(kind: type) -> Iterator[tuple[str, str]]:
    """Yield (signature, docstring) of each public property and method of a class, in its order."""
    for name, value in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        # pydantic puts a function of its own into a class with private attributes
        if inspect.isfunction(value) and value.__module__ == kind.__module__:
            yield signature(value), inspect.getdoc(value) or ""
        elif isinstance(value, property | cached_property):
            getter: Any = value.fget if isinstance(value, property) else value.func
            result = _Written(inspect.signature(getter).return_annotation)
            yield f"{name} -> {result!r}", inspect.getdoc(getter) or ""


def _object(kind: type) -> Iterator[str]:
    yield f"### {kind.__name__}"
    yield inspect.getdoc(kind) or ""
    if dataclasses.is_dataclass(kind):
        yield from (f"- `{field.name}`: {field.type}" for field in dataclasses.fields(kind))
    for text, doc in members(kind):
        yield f"#### `{text}`"
        yield doc


def markdown() -> str:
    """Return the reference of all hooks, kinds and objects, and of what a run does with them, as Markdown."""
    title, *intro = HEAD
    parts = [title, "\n".join(intro).format(version=CONTRACT_VERSION), "## Hooks"]
    parts.append("A plugin module defines any of these as plain functions marked with `@hookimpl`.")
    for text, doc in hooks():
        parts += [f"### `{text}`", doc]
    parts += ["## Kinds", "A component derives from one of these classes and sets `name`."]
    parts += _object(Component)
    for kind in KINDS:
        parts += [f"### {kind.__name__}", inspect.getdoc(kind) or ""]
        parts += [f"- `{option.name}`: {_option_text(option)}" for option in options(kind)]
        for text, doc in contract(kind):
            parts += [f"#### `{text}`", doc]
    parts += ["## Objects", "What components and hooks are given, and what they return."]
    for each in objects():
        parts += _object(each)
    parts.append(IN_A_RUN)
    text = "\n\n".join(part for part in parts if part)
    return re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", text) + "\n"


def _option_text(option: Option) -> str:
    default = f"; default {option.default}" if option.default else "; required"
    return f"{option.type}{default}. {option.help}."


if __name__ == "__main__":
    print(markdown(), end="")
