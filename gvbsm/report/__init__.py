"""The report of runs: one self-contained HTML file of tables and pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from gvbsm.version import __version__
from gvbsm_registry.artifacts import digest, write_text

if TYPE_CHECKING:
    from gvbsm.report.gather import ReportInputs

TEMPLATE = "template.html.j2"


def after_run(inputs: ReportInputs, emit: Callable[[str], None]) -> None:
    """Write OUT/report.html and the card OUT/README.md, unless they tell of these very results already.

    emit: takes one line for the user. A failure is told by it and harms nothing.
    """
    from gvbsm.results.card import OPENING

    out = inputs.run.folder
    path = out / "report.html"
    try:
        if (out / "README.md").exists() and path.exists():
            with path.open(encoding="utf-8") as file:
                if stamp([out]) in file.read(1000):
                    return
        write([inputs], path)
        if inputs.run.has_images:
            inputs.run.write_card(out, OPENING)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        emit(f"the report was not made ({why}); the results are whole, 'gvbsm report {out}' tries again")


def write(reports: Sequence[ReportInputs], path: Path) -> None:
    """Write the report of one run, or of several side by side, to `path`.

    What a run lacks (no results yet, backbones no longer in the store) is said where it would stand. Raises
    GvbsmError if `path` can't be written or a run's files are broken.
    """
    from jinja2 import Environment, StrictUndefined

    from gvbsm.report.gather import gather
    from gvbsm.report.sections import render, term_colours

    made_of = stamp([inputs.run.folder for inputs in reports])
    runs = [gather(inputs) for inputs in reports]
    colours = term_colours(runs)
    pages = [render(run, colours, len(runs)) for run in runs]
    text = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    # escapes everything: names of classes, plugins and recipes are whatever their authors made of them
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    write_text(path, page.from_string(text).render(runs=pages, several=len(pages) > 1, stamp=made_of))


def stamp(folders: Sequence[Path]) -> str:
    """Return a digest of what the reports of run folders are made of: recipes, sets and results."""
    parts: list[str] = [__version__]
    for folder in folders:
        for name in ("recipe.toml", "results.json", "distilled/images.safetensors"):
            path = folder / name
            parts.append(hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "")
    return digest(parts)
