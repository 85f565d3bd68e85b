"""The report of runs: one self-contained HTML file of tables and pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from gvbsm.version import __version__
from gvbsm_registry.artifacts import digest, write_text
from gvbsm_registry.card import write_card

if TYPE_CHECKING:
    from gvbsm.runtime.workspace import Workspace

TEMPLATE = "template.html.j2"


def after_run(workspace: Workspace) -> None:
    """Write OUT/report.html and the card OUT/README.md, unless they tell of these very results already.

    The card is of the distilled set: a run that has none yet gets none. A failure is told in one line and
    harms nothing.
    """
    path = workspace.out / "report.html"
    try:
        if (workspace.out / "README.md").exists() and path.exists():
            with path.open(encoding="utf-8") as file:
                if stamp([workspace]) in file.read(1000):
                    return
        write([workspace], path)
        if (workspace.out / "distilled" / "images.safetensors").exists():
            write_card(workspace.out, workspace.out)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        workspace.reporter.say(
            f"the report was not made ({why}); the results are whole, "
            f"'gvbsm report {workspace.out}' tries again"
        )


def write(workspaces: Sequence[Workspace], path: Path) -> None:
    """Write the report of one run, or of several side by side, to `path`.

    What a run lacks (no results yet, backbones no longer in the store) is said where it would stand. Raises
    GvbsmError if `path` can't be written or a run's files are broken.
    """
    from jinja2 import Environment, StrictUndefined

    from gvbsm.report.gather import gather
    from gvbsm.report.sections import render

    made_of = stamp(workspaces)
    runs = [render(gather(workspace), len(workspaces)) for workspace in workspaces]
    text = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    # escapes everything: names of classes, plugins and recipes are whatever their authors made of them
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    write_text(path, page.from_string(text).render(runs=runs, several=len(runs) > 1, stamp=made_of))


def stamp(workspaces: Sequence[Workspace]) -> str:
    """Return a digest of what reports are made of: recipes, sets and results."""
    parts: list[str] = [__version__]
    for workspace in workspaces:
        for name in ("recipe.toml", "results.json", "distilled/images.safetensors"):
            path = workspace.out / name
            parts.append(hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "")
    return digest(parts)
