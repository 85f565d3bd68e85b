"""Values and components as they are written on the command line."""

from __future__ import annotations

import tomllib
from typing import Any

from gvbsm_registry import GvbsmError


def parse_value(text: str) -> Any:
    """Return the TOML value that `text` spells, or `text` itself if it spells none."""
    try:
        return tomllib.loads(f"value = {text}\n")["value"]
    except (tomllib.TOMLDecodeError, KeyError, RecursionError):
        return text


def parse_component(text: str) -> dict[str, Any]:
    """Return the table that `NAME` or `NAME:key=value,key=value` describes.

    Commas inside brackets or quotes belong to the value. Raises GvbsmError if an option has no `=`.
    """
    name, _, rest = text.partition(":")
    table: dict[str, Any] = {"use": name}
    for item in split_list(rest):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise GvbsmError(f"{text!r}: {item!r} is not an option; write NAME:key=value,key=value")
        table[key.strip()] = parse_value(value)
    return table


def split_list(text: str) -> list[str]:
    """Split at commas that stand outside brackets and quotes; empty parts are left out."""
    items, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character == "," and not depth and not quote:
            items.append("")
        else:
            items[-1] += character
    return [item for item in items if item]
