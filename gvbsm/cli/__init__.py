"""The command line. Everything heavy is imported when a command runs, so that `--help` is instant."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gvbsm_registry import Registry


def load_plugins() -> Registry:
    """Load the installed plugins; what they print goes to standard error, for our output may be JSON."""
    import contextlib
    import sys

    from gvbsm_registry import discover

    with contextlib.redirect_stdout(sys.stderr):
        return discover()
