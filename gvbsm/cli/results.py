"""The commands about results: report, scores, compare, sweep, export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gvbsm.cli import completion, load_plugins
from gvbsm.cli.options import (
    FOLDER,
    combined,
    component_option,
    device_option,
    recipe_argument,
    run_options,
    settings_options,
    store_option,
)
from gvbsm.cli.run import run_and_print

runs_argument = click.argument("outs", nargs=-1, required=True, type=FOLDER, metavar="OUT...")
several_options = combined(
    click.option("--seed", "seeds", type=int, multiple=True, help="A seed of the whole recipe (repeatable)."),
    click.option("--out", type=FOLDER, help="Holds all the run folders. [default: runs/COMMAND-RECIPE]"),
    settings_options,
    run_options,
)


@click.command("compare")
@recipe_argument
@component_option(
    "initializer",
    "--initializer",
    "coresets",
    multiple=True,
    help="A coreset: these images, no iterations (repeatable).",
)
@component_option(
    "initializer",
    "--distilled",
    "starts",
    multiple=True,
    help="A start: the recipe, from these images (repeatable).",
)
@click.option("--ipc", "ipcs", type=int, multiple=True, help="Images per class (repeatable).")
@several_options
def compare_command(
    recipe: str,
    coresets: tuple[str, ...],
    starts: tuple[str, ...],
    ipcs: tuple[int, ...],
    seeds: tuple[int, ...],
    out: Path | None,
    overrides: list[tuple[str, Any]],
    where: dict[str, Any],
) -> None:
    """Compare coresets, and sets distilled from different starts, on one recipe in one table.

    RECIPE is by default `digits`. What exists below --out is reused, so the same command goes on after an
    interruption.
    """
    from gvbsm.sweeps.running import compare

    sweep = compare(recipe, coresets, starts, ipcs, overrides, seeds)
    _run_sweep(sweep, out or _below("compare", recipe), where, load_plugins())


@click.command("sweep")
@click.argument("recipe")
@click.option("--vary", "varied", multiple=True, metavar="KEY=V,V,...", help="Values of a key (repeatable).")
@click.option("--recipe", "other", help="Run a sweep file on this recipe instead of its own.")
@several_options
def sweep_command(
    recipe: str,
    varied: tuple[str, ...],
    other: str | None,
    seeds: tuple[int, ...],
    out: Path | None,
    overrides: list[tuple[str, Any]],
    where: dict[str, Any],
) -> None:
    """Run RECIPE at all combinations of the --vary values; or run a sweep file, by name or path.

    `*` in a key stands for every position of a list: synthesis.matchers.*.momentum. What exists below --out
    is reused, so the same command goes on after an interruption.
    """
    from gvbsm.sweeps import files
    from gvbsm.sweeps.running import vary
    from gvbsm_registry import GvbsmError

    registry = load_plugins()
    sweep = files.load(recipe, registry, other, overrides, seeds)
    if sweep is None and not varied:
        names = ", ".join(files.shipped(registry))
        raise GvbsmError(f"{recipe}: is not a sweep file; give --vary KEY=V,V or one of the sweeps: {names}")
    if sweep is not None and varied:
        raise GvbsmError("--vary: a sweep file says what is varied; give --vary with a recipe instead")
    if sweep is None and other is not None:
        raise GvbsmError("--recipe: is for sweep files; a recipe that is varied is given as RECIPE itself")
    sweep = sweep or vary(recipe, varied, overrides, seeds)
    _run_sweep(sweep, out or _below("sweep", recipe), where, registry)


def _below(command: str, recipe: str) -> Path:
    return Path("runs") / f"{command}-{Path(recipe).stem}"


def _run_sweep(sweep: Any, out: Path, where: dict[str, Any], registry: Any) -> None:
    from gvbsm.sweeps.running import run
    from gvbsm.sweeps.tables import plot, sweep_table
    from gvbsm_registry.artifacts import write_text

    records = run(sweep, out, registry, **where)
    text = sweep_table(records, sweep.title)
    write_text(out / "table.txt", text + "\n")
    for suffix in ("svg", "png"):
        plot(records, out / f"plot.{suffix}", sweep.title)
    click.echo(text)
    click.echo(f"table, plot and records are in {out}")


@click.command("import")
@click.argument("folder", type=FOLDER)
@click.option(
    "--recipe",
    default="digits",
    show_default=True,
    shell_complete=completion.recipes,
    help="Says how to pretrain, relabel and evaluate.",
)
@click.option("--out", type=FOLDER, required=True, help="The run folder to make.")
@settings_options
@run_options
def import_command(
    folder: Path, recipe: str, out: Path, overrides: list[tuple[str, Any]], where: dict[str, Any]
) -> None:
    """Make a run of published images: relabel, evaluate and report the set in FOLDER.

    FOLDER is what `gvbsm export --to imagefolder` writes, class folders of pictures, or what
    several published sets come in (newXXX/classXXX_idXXX.jpg).
    """
    from gvbsm.pipeline import import_settings

    run_and_print(recipe, out, [*import_settings(folder, load_plugins()), *overrides], where)


@click.command("report")
@runs_argument
@click.option("--to", type=FOLDER, help="The file. [default: OUT/report.html; for several ./report.html]")
@store_option
@device_option
def report_command(outs: tuple[Path, ...], to: Path | None, store: str | None, device: str) -> None:
    """Make the report of a run folder, or of several side by side: one HTML file."""
    from gvbsm import report
    from gvbsm.pipeline import open_run, report_inputs

    registry = load_plugins()
    path = to or (outs[0] / "report.html" if len(outs) == 1 else Path("report.html"))
    report.write([report_inputs(open_run(out, registry, store, device)) for out in outs], path)
    click.echo(f"the report is {path}")


@click.command("scores")
@runs_argument
def scores_command(outs: tuple[Path, ...]) -> None:
    """Print DD-Ranking's label-robust and augmentation-robust scores of run folders."""
    from gvbsm.results.finished import current_records
    from gvbsm.results.tables import score_table

    names = [out.resolve().name for out in outs]
    told = [name if names.count(name) == 1 else str(out) for name, out in zip(names, outs, strict=True)]
    tables = {name: current_records(out) for name, out in zip(told, outs, strict=True)}
    click.echo(score_table(tables).text())


@click.command("export")
@click.argument("out", type=FOLDER)
@click.argument("destination", type=FOLDER)
@component_option(
    "exporter", "--to", "name", required=True, help="The format: an exporter of `gvbsm plugins`."
)
def export_command(out: Path, destination: Path, name: str) -> None:
    """Write the set of run folder OUT in another format to DESTINATION, a new folder."""
    from gvbsm.recipe.text import parse_component
    from gvbsm.results.finished import FinishedRun
    from gvbsm.runtime.blame import calling, refuse
    from gvbsm_registry import Exporter, GvbsmError

    exporter = load_plugins().create(Exporter, parse_component(name))
    destination = destination.absolute()  # the working directory has no name of its own
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise GvbsmError(f"{destination}: exists already; give a folder that does not")
    asks = "files written to the destination"
    with calling(exporter, "export", asks):
        exporter.export(FinishedRun(out), destination)
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        raise refuse(exporter, "export", "without having written anything", asks)
    click.echo(f"the {exporter.full_name} form is in {destination}")


COMMANDS = [
    compare_command,
    sweep_command,
    import_command,
    report_command,
    scores_command,
    export_command,
]
