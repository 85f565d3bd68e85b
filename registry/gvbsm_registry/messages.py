"""Lines that tell a user of a wrong name or value."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError


def unknown_name(what: str, name: str, available: Iterable[str]) -> str:
    """Return the line for an unknown name: the nearest names first, then all that exist."""
    names = sorted(available)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return f"unknown {what} {name!r}; {hint}available: {', '.join(names) or 'none'}"


def format_validation_error(error: ValidationError, model: type[Any]) -> str:
    """Return a validation error as one line that names each key, what is wrong and what is allowed."""
    return "; ".join(keyed(key, line) for key, line in validation_errors(error, model))


def keyed(key: tuple[str, ...], line: str) -> str:
    """Return what is wrong with a key after the key, unless the line names it alone."""
    name = ".".join(key)
    return line if not key or line.startswith(f"unknown option {name!r}") else f"{name}: {line}"


def validation_errors(error: ValidationError, model: type[Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (key's parts, what is wrong) of each error, without those that follow from another.

    A list whose items are wrong is no shorter for that, though pydantic leaves them out and says so.
    """
    items = error.errors()
    for item in items:
        place = item["loc"]
        below = any(len(i["loc"]) > len(place) and i["loc"][: len(place)] == place for i in items)
        if item["type"] == "too_short" and below:
            continue
        key = tuple(str(part) for part in place)
        known = _fields_at(model, key[:-1]) if item["type"] == "extra_forbidden" else None
        if known is not None:
            yield key, unknown_name("option", key[-1], known)
        elif item["type"] == "tuple_type":
            yield key, f"give a list, in brackets, got {item['input']!r}"
        elif item["type"] in ("gvbsm", "missing"):
            yield key, item["msg"]
        else:
            yield key, f"{item['msg']}, got {item['input']!r}" if key else item["msg"]


def _fields_at(model: Any, key: tuple[str, ...]) -> Iterable[str] | None:
    """Return the fields' names of the model that `key` leads to in `model`, None if it leads elsewhere."""
    for part in key:
        if part.isdecimal():
            continue
        field = getattr(model, "model_fields", {}).get(part)
        model = None if field is None else _model_in(field.annotation)
    return None if model is None else model.model_fields


def _model_in(annotation: Any) -> Any:
    """Return the model that an annotation is or holds, such as those of a tuple's items; None if none."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next(filter(None, map(_model_in, typing.get_args(annotation))), None)
