"""Values and components as they are written on the command line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Any

from gvbsm_registry import GvbsmError
from gvbsm_registry.values import DEEPEST, too_deep

TOKEN = re.compile(r"""(?<!\w)"(?:\\.|[^"\\])*"|(?<!\w)'[^']*'|.""", re.DOTALL)
"""A string as TOML writes it, or one character; an apostrophe within a word begins no string."""


class Setting(tuple[str, Any]):
    """A pair of dotted key and value that remembers how it was written: for messages.

    texts: one, such as "--ipc 3"; for a list of components one for each of them.
    """

    texts: tuple[str, ...]

    def __new__(cls, key: str, value: Any, *texts: str) -> Setting:
        """Return the pair."""
        made = super().__new__(cls, (key, value))
        made.texts = texts
        return made

    def blamed(self, key: Sequence[str]) -> str:
        """Return what was written that a wrong value at `key` comes from; "" if it comes from elsewhere."""
        own = self[0].split(".")
        common = min(len(own), len(key))
        if list(key[:common]) != own[:common]:
            return ""
        below = key[common] if len(key) > common and len(self.texts) > 1 else ""
        return self.texts[int(below)] if below.isdecimal() else " ".join(self.texts)


def parse_value(text: str) -> Any:
    """Return the TOML value that `text` spells, or `text` itself if it spells none."""
    try:
        value = tomllib.loads(f"value = {text}\n")["value"]
        return text if too_deep(value) else value
    except (ValueError, KeyError, RecursionError):  # ValueError: integers of thousands of digits, too
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


def parse_setting(text: str) -> Setting:
    """Return the dotted key and the value of `KEY=VALUE`; raises GvbsmError if `text` is not that."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise GvbsmError(f"--set {text}: is not KEY=VALUE; write for example synthesis.iterations=500")
    if key.count(".") > DEEPEST:
        raise GvbsmError(f"--set {text[:40]}…: no key of a recipe has so many parts; 'gvbsm run --help'")
    return Setting(key.strip(), parse_value(value), f"--set {text}")


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
