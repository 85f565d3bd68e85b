"""The recipes beside this file, and the parts that they are made of: sets, methods, protocols; sweeps."""

from __future__ import annotations

from pathlib import Path

from gvbsm_registry import hookimpl


@hookimpl
def gvbsm_recipes() -> list[Path]:
    return [Path(__file__).parent]
