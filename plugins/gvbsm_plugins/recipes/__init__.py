"""The recipes that lie beside this file, as TOML."""

from __future__ import annotations

from pathlib import Path

from gvbsm_registry import hookimpl


@hookimpl
def gvbsm_recipes() -> list[Path]:
    return sorted(Path(__file__).parent.glob("*.toml"))
