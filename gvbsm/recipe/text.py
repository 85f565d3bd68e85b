"""Values and components as they are written on the command line."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from gvbsm_registry import GvbsmError

TOKEN = re.compile(r"""(?<!\w)"(?:\\.|[^"\\])*"|(?<!\w)'[^']*'|.""", re.DOTALL)
"""A string as TOML writes it, or one character; an apostrophe within a word begins no string."""


def parse_value(text: str) -> Any:
    """Return the TOML value that `text` spells, or `text` itself if it spells none."""
    try:
        return tomllib.loads(f"value = {text}\n")["value"]
    except (tomllib.TOMLDecodeError, KeyError, RecursionError):
        return text


def parse_component(text: str) -> dict[str, Any]:
    """Return the table that `NAME` or `NAME:key=value,key=value` describes; NAME may be DISTRIBUTION:NAME.

    Commas inside brackets or quotes belong to the value. Raises GvbsmError if an option has no `=`.
    """
    name, colon, rest = text.partition(":")
    second, _, options = rest.partition(":")
    if colon and re.fullmatch(r"[^=,\s]+", second):
        name, rest = f"{name}:{second}", options
    table: dict[str, Any] = {"use": name}
    for item in split_list(rest):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise GvbsmError(f"{text!r}: {item!r} is not an option; write NAME:key=value,key=value")
        table[key.strip()] = parse_value(value)
    return table


def parse_setting(text: str) -> tuple[str, Any]:
    """Return the dotted key and the value of `KEY=VALUE`; raises GvbsmError if `text` is not that."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise GvbsmError(f"--set {text}: is not KEY=VALUE; write for example synthesis.iterations=500")
    return key.strip(), parse_value(value)


def split_list(text: str) -> list[str]:
    """Split at commas that stand outside brackets and TOML's strings; empty parts are left out."""
    items, depth = [""], 0
    for token in TOKEN.findall(text):
        depth += (token in "[{") - (token in "]}")
        if token == "," and not depth:
            items.append("")
        else:
            items[-1] += token
    return [item for item in items if item]
