"""The commands about results: report, scores, compare, sweep, export, import. Heavy imports come later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
FOLDER = click.Path(path_type=Path)


def register(main: click.Group, where: Decorator, settings: Callable[[tuple[str, ...]], Any]) -> None:
    """Add the commands to `main`.

    where: adds the options that say where a run happens. settings: parses `--set`.
    """
    main.add_command(report_command)
    main.add_command(scores_command)
    main.add_command(export_command)
    commands: list[tuple[str, Callable[..., Any], list[Any]]] = [
        ("compare", _compare, COMPARE),
        ("sweep", _sweep, SWEEP),
        ("import", _import, IMPORT),
    ]
    for name, function, parameters in commands:
        made = where(_with_settings(function, settings))
        for parameter in reversed(parameters):
            made = parameter(made)
        main.command(name, help=function.__doc__)(made)


def _with_settings(function: Callable[..., Any], parse: Callable[..., Any]) -> Callable[..., Any]:
    def command(settings: tuple[str, ...], executor: str, data: Path | None, **rest: Any) -> None:
        from gvbsm.recipe.text import parse_component

        root = [("data.root", str(data.expanduser().absolute()))] if data else []
        function(overrides=[*root, *parse(settings)], executor=parse_component(executor), **rest)

    return command


def _option(*names: str, **options: Any) -> Decorator:
    return click.option(*names, **options)


COMMON = [
    _option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any key of the recipe."),
    _option("--data", type=FOLDER, help="The data set's folder (data.root)."),
]
SEVERAL = [
    _option("--seed", "seeds", type=int, multiple=True, help="A seed of the whole recipe (repeatable)."),
    _option("--out", type=FOLDER, help="Holds all the run folders. [default: runs/COMMAND-RECIPE]"),
    *COMMON,
]
COMPARE = [
    click.argument("recipe", default="digits"),
    _option("--initializer", multiple=True, help="A coreset: these images, no iterations (repeatable)."),
    _option("--distilled", multiple=True, help="A start: the recipe, from these images (repeatable)."),
    _option("--ipc", "ipcs", type=int, multiple=True, help="Images per class (repeatable)."),
    *SEVERAL,
]
SWEEP = [
    click.argument("recipe"),
    _option("--vary", "varied", multiple=True, metavar="KEY=V,V,...", help="Values of a key (repeatable)."),
    _option("--recipe", "other", help="Run a sweep file on this recipe instead of its own."),
    *SEVERAL,
]
IMPORT = [
    click.argument("folder", type=FOLDER),
    _option("--recipe", default="digits", help="How to pretrain, relabel and evaluate."),
    _option("--out", type=FOLDER, required=True, help="The run folder to make."),
    *COMMON,
]


def _compare(
    recipe: str,
    initializer: tuple[str, ...],
    distilled: tuple[str, ...],
    ipcs: tuple[int, ...],
    seeds: tuple[int, ...],
    out: Path | None,
    overrides: list[tuple[str, Any]],
    **where: Any,
) -> None:
    """Compare coresets, and sets distilled from different starts, on one recipe in one table.

    What exists below --out is reused, so the same command goes on after an interruption.
    """
    from gvbsm.sweeps import running as sweeps

    _run(
        sweeps.compare(recipe, initializer, distilled, ipcs, overrides, seeds),
        out or _below("compare", recipe),
        where,
    )


def _sweep(
    recipe: str,
    varied: tuple[str, ...],
    other: str | None,
    seeds: tuple[int, ...],
    out: Path | None,
    overrides: list[tuple[str, Any]],
    **where: Any,
) -> None:
    """Run RECIPE at all combinations of the --vary values; or run a sweep file, by name or path.

    `*` in a key stands for every position of a list: synthesis.matchers.*.momentum. What exists below --out
    is reused, so the same command goes on after an interruption.
    """
    from gvbsm.sweeps import files
    from gvbsm.sweeps.running import vary
    from gvbsm_registry import GvbsmError, discover

    sweep = files.load(recipe, discover(), other, overrides, seeds)
    if sweep is None and not varied:
        names = ", ".join(files.shipped(discover()))
        raise GvbsmError(f"{recipe}: is not a sweep file; give --vary KEY=V,V or one of the sweeps: {names}")
    if sweep is not None and varied:
        raise GvbsmError("--vary: a sweep file says what is varied; give --vary with a recipe instead")
    _run(sweep or vary(recipe, varied, overrides, seeds), out or _below("sweep", recipe), where)


def _below(command: str, recipe: str) -> Path:
    return Path("runs") / f"{command}-{Path(recipe).stem}"


def _run(sweep: Any, out: Path, where: dict[str, Any]) -> None:
    from gvbsm.sweeps.running import run
    from gvbsm.sweeps.tables import plot, sweep_table
    from gvbsm_registry import discover
    from gvbsm_registry.artifacts import write_text

    records = run(sweep, out, discover(), **where)
    text = sweep_table(records, sweep.title)
    write_text(out / "table.txt", text + "\n")
    for suffix in ("svg", "png"):
        plot(records, out / f"plot.{suffix}", sweep.title)
    click.echo(text)
    click.echo(f"table, plot and records are in {out}")


def _import(folder: Path, recipe: str, out: Path, overrides: list[tuple[str, Any]], **where: Any) -> None:
    """Make a run of published images: relabel, evaluate and report the set in FOLDER.

    FOLDER is what `gvbsm export --to imagefolder` writes, class folders of pictures, or SRe2L's layout
    (newXXX/classXXX_idXXX.jpg).
    """
    from gvbsm import pipeline
    from gvbsm.results.records import read_records
    from gvbsm.results.tables import accuracy_table
    from gvbsm.runtime.runs import importing
    from gvbsm_registry import discover

    registry = discover()
    chosen = [*importing(folder, registry), *overrides]
    made = pipeline.run(recipe, out=out, overrides=chosen, registry=registry, **where)
    click.echo(accuracy_table(read_records(made)).text())
    click.echo(f"results are in {made}")


@click.command("report")
@click.argument("outs", nargs=-1, required=True, type=FOLDER, metavar="OUT...")
@click.option("--to", type=FOLDER, help="The file. [default: OUT/report.html; for several ./report.html]")
@click.option("--store", help="Where the backbones are: folder or URL. [default: the user's cache folder]")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
def report_command(outs: tuple[Path, ...], to: Path | None, store: str | None, device: str) -> None:
    """Make the report of a run folder, or of several side by side: one HTML file."""
    from gvbsm import pipeline, report
    from gvbsm.runtime.runs import open_run
    from gvbsm_registry import discover

    registry = discover()
    path = to or (outs[0] / "report.html" if len(outs) == 1 else Path("report.html"))
    opened = [open_run(out, registry, store, device) for out in outs]
    report.write([pipeline.report_inputs(workspace) for workspace in opened], path)
    click.echo(f"the report is {path}")


@click.command("scores")
@click.argument("outs", nargs=-1, required=True, type=FOLDER, metavar="OUT...")
def scores_command(outs: tuple[Path, ...]) -> None:
    """Print DD-Ranking's label-robust and augmentation-robust scores of run folders."""
    from gvbsm.results.records import read_records
    from gvbsm.results.tables import score_table

    click.echo(score_table({out.resolve().name: read_records(out) for out in outs}).text())


@click.command("export")
@click.argument("out", type=FOLDER)
@click.argument("destination", type=FOLDER)
@click.option("--to", "name", required=True, metavar="NAME", help="The format: NAME[:key=value,...].")
def export_command(out: Path, destination: Path, name: str) -> None:
    """Write the set of run folder OUT in another format to DESTINATION, a new folder."""
    from gvbsm.recipe.text import parse_component
    from gvbsm.results.finished import FinishedRun
    from gvbsm_registry import Exporter, GvbsmError, discover

    exporter = discover().create(Exporter, parse_component(name))
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise GvbsmError(f"{destination}: exists; give a folder that does not")
    exporter.export(FinishedRun(out), destination)
    click.echo(f"the {exporter.full_name} form is in {destination}")
