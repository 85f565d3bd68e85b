"""What holds of every value of every recipe, whatever field or component it is for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

LARGEST = 10**12
"""Numbers are at most this large, unless their field says how large: their squares are finite in float32."""
DEEPEST = 50
"""Levels of tables and lists in each other; Python, TOML and JSON stop at some hundreds."""


def settled(model: type[BaseModel], name: str | None, value: Any) -> Any:
    """Return a field's valid value with its paths absolute, so that it means the same in every folder.

    Raises PydanticCustomError if it holds a number that nothing can be computed with, or a path that is
    not UTF-8 or names a user who does not exist.
    """
    field = model.model_fields.get(name or "")
    bounded = field is not None and any(hasattr(mark, "le") or hasattr(mark, "lt") for mark in field.metadata)
    return _settled(value, math.inf if bounded else LARGEST)


def _settled(value: Any, largest: float) -> Any:
    if isinstance(value, Path):
        return absolute(value)
    if isinstance(value, tuple):
        return tuple(_settled(item, largest) for item in value)
    if isinstance(value, list):
        return [_settled(item, largest) for item in value]
    if isinstance(value, Mapping):
        return {key: _settled(item, largest) for key, item in value.items()}
    if isinstance(value, (int, float)) and not abs(value) <= largest:
        raise PydanticCustomError("gvbsm", "must be a number from -10¹² to 10¹²")
    return value


def absolute(path: Path) -> Path:
    """Return a path with `~` expanded, absolute. Raises PydanticCustomError if recipes can't hold it."""
    try:
        expanded = path.expanduser()
        str(expanded).encode()
        return expanded.absolute()
    except UnicodeError as error:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise PydanticCustomError(
            "gvbsm", "{path} is not UTF-8, as recipes are; rename it, or link to it", {"path": shown}
        ) from error
    except (OSError, RuntimeError) as error:
        why = {"path": str(path), "why": str(error)}
        raise PydanticCustomError("gvbsm", "{path}: {why}; write the path in full", why) from error


def too_deep(value: Any) -> bool:
    """Tell whether tables and lists lie in each other deeper than anything can walk through them."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True
