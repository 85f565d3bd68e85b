"""The commands that run a recipe: `run`, one for each stage; `recipes` and `methods` list them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gvbsm.cli import completion, load_plugins
from gvbsm.cli.options import FOLDER, recipe_options, run_options, stage_options
from gvbsm.stages import STAGES


@click.command("run")
@recipe_options
@click.option("--out", type=FOLDER, help="The run folder. [default: runs/RECIPE-DIGEST]")
@run_options
def run_command(
    recipe: str, out: Path | None, overrides: list[tuple[str, Any]], where: dict[str, Any]
) -> None:
    """Run a recipe from data to accuracies; RECIPE is a name (see `gvbsm recipes`) or a
    file; without one it is `digits`.

    Run again to go on after an interruption: finished work is reused.
    """
    run_and_print(recipe, out, overrides, where)


def run_and_print(
    recipe: str | Path, out: Path | None, overrides: list[tuple[str, Any]], where: dict[str, Any]
) -> None:
    """Run a recipe as far as `where` says; print its accuracies, if it came so far, and where they are."""
    from gvbsm import pipeline

    folder = pipeline.run(recipe, out=out, overrides=overrides, registry=load_plugins(), **where)
    if where.get("until") in (None, list(STAGES)[-1]):
        from gvbsm.results.finished import FinishedRun
        from gvbsm.results.records import published_rows
        from gvbsm.results.tables import accuracy_table

        finished = FinishedRun(folder)
        rows = published_rows(finished.recipe)
        click.echo(accuracy_table(finished.records, published=rows).text())
    click.echo(f"results are in {folder}")
    if (folder / "report.html").is_file():
        click.echo(f"to look at: {folder / 'report.html'}")


def stage_command(name: str, text: str) -> click.Command:
    """Return the command that runs an existing run folder up to the stage called `name`."""

    @click.command(name, help=f"{text} OUT is a run folder; earlier stages are run if they have not been.")
    @click.argument("out", type=FOLDER)
    @stage_options
    def command(out: Path, where: dict[str, Any]) -> None:
        from gvbsm.pipeline import recipe_of

        run_and_print(recipe_of(out), out, [], {**where, "until": name})

    return command


@click.command("recipes")
def recipes_command() -> None:
    """List the recipes, and the sets, methods, protocols and sweeps, with what each is."""
    from gvbsm.results.tables import recipe_listing

    click.echo(recipe_listing(load_plugins()))


@click.command("methods")
@click.argument("name", required=False, shell_complete=completion.recipes_in("methods"))
def methods_command(name: str | None) -> None:
    """List the methods, with published figures and ours; or show the card of the method NAME."""
    from gvbsm.results.methods import card, method_listing, read_method
    from gvbsm.results.tables import unescape

    registry = load_plugins()
    click.echo(unescape(card(read_method(name, registry))) if name else method_listing(registry))


COMMANDS = [
    run_command,
    *(stage_command(name, text) for name, text in STAGES.items()),
    recipes_command,
    methods_command,
]
