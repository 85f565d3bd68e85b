"""How kinds and components describe themselves."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from gvbsm_registry import Schedule, reference


class Peculiar(Schedule):
    """Options of unusual types."""

    name = "peculiar"

    chosen: frozenset[str] = Field(frozenset({"b", "a", "c"}), description="a set")
    made: set[int] = Field(default_factory=lambda: {3, 1, 2}, description="a set that is made")
    counted: int = Field(default_factory=lambda others: len(others), description="made of the others")
    table: dict[str, Any] = Field({"x": [True, "y"]}, description="a table")
    folder: Path = Field(Path("a/b"), description="a path")
    needed: int = Field(description="required")

    def factor(self, step: int, steps: int) -> float:
        return 1.0


def test_every_default_is_text() -> None:
    shown = {option.name: option.default for option in reference.options(Peculiar)}
    assert shown == {
        "chosen": '["a", "b", "c"]',
        "made": "[1, 2, 3]",
        "counted": "none",
        "table": '{ x = [true, "y"] }',
        "folder": '"a/b"',
        "needed": "",
    }


@pytest.mark.parametrize(
    "value",
    [
        True,
        0,
        -3,
        1e-05,
        float("inf"),
        "",
        'say "a\\b"\n',
        "é",
        [],
        [1, [2.5, "x"]],
        {},
        {"a-b": 1, "c d": {"e.f": []}},
    ],
)
def test_a_default_is_what_a_recipe_would_say(value: Any) -> None:
    assert tomllib.loads(f"x = {reference.default_text(value)}") == {"x": value}
    assert reference.default_text(None) == "none"
    assert reference.default_text((1, "a")) == '[1, "a"]'
