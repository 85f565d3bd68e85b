"""The command line. Everything heavy is imported when a command runs, so that `--help` is instant."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gvbsm.version import __version__

F = TypeVar("F", bound=Callable[..., Any])
STAGES = {
    "pretrain": "Train the backbones of a run [squeeze].",
    "measure": "Record the real data's statistics.",
    "synthesize": "Optimise the images [recover].",
    "relabel": "Store the ensemble's soft labels.",
    "evaluate": "Train and test students.",
}


class _Group(click.Group):
    """Turns a GvbsmError into one line and exit code 2, and Ctrl-C into a line that says how to go on."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            click.echo("stopped; the same command goes on from here", err=True)
            sys.exit(130)
        except Exception as error:
            if type(error).__name__ != "GvbsmError":
                raise
            click.echo(f"gvbsm: {error}", err=True)
            sys.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gvbsm")
def main() -> None:
    """Condense an image data set into a few synthetic images per class."""


def _where(function: F) -> F:
    """Add the options that say where a run happens, which are no part of the recipe."""
    for option in (
        click.option("--quiet", is_flag=True, help="No progress bars."),
        click.option("--executor", default="local", help="Where units of work run: NAME[:key=value,...]."),
        click.option("--device", default="auto", help="auto, cpu or cuda."),
        click.option(
            "--store",
            type=click.Path(path_type=Path),
            help="Backbones and statistics shared between runs. [default: the user's cache folder]",
        ),
    ):
        function = option(function)
    return function


def _component_options(function: F) -> F:
    for flag, what in (
        ("--regularizer", "Use exactly these regularizers (repeatable)."),
        ("--backbone", "Use exactly these backbones (repeatable)."),
        ("--matcher", "Use exactly these matchers (repeatable)."),
    ):
        text = f"{what} NAME[:key=value,...]"
        function = click.option(flag, multiple=True, metavar="NAME", help=text)(function)
    return function


@main.command("run")
@click.argument("recipe", default="digits")
@click.option("--ipc", type=int, help="Images per class.")
@_component_options
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any key of the recipe.")
@click.option("--data", type=click.Path(path_type=Path), help="The data set's folder (data.root).")
@click.option("--out", type=click.Path(path_type=Path), help="The run folder. [default: runs/RECIPE-DIGEST]")
@click.option("--seed", type=int, help="The recipe's seed.")
@_where
def run_command(
    recipe: str,
    ipc: int | None,
    matcher: tuple[str, ...],
    backbone: tuple[str, ...],
    regularizer: tuple[str, ...],
    settings: tuple[str, ...],
    data: Path | None,
    out: Path | None,
    seed: int | None,
    **where: Any,
) -> None:
    """Run a recipe from data to accuracies; RECIPE is a name (see `gvbsm recipes`) or a file.

    Run again to go on after an interruption: finished work is reused.
    """
    from gvbsm.recipe import parse_component

    overrides: list[tuple[str, Any]] = [("data.root", str(data))] if data else []
    if ipc is not None:
        overrides.append(("synthesis.ipc", ipc))
    if seed is not None:
        overrides.append(("seed", seed))
    for key, names in (
        ("synthesis.matchers", matcher),
        ("backbones", backbone),
        ("synthesis.regularizers", regularizer),
    ):
        if names:
            overrides.append((key, [parse_component(name) for name in names]))
    overrides += _settings(settings)
    _run(recipe, out, overrides, where)


def _settings(settings: tuple[str, ...]) -> list[tuple[str, Any]]:
    from gvbsm.recipe import parse_value
    from gvbsm_registry import GvbsmError

    pairs = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise GvbsmError(f"--set {setting}: is no KEY=VALUE; write for example synthesis.iterations=500")
        pairs.append((key.strip(), parse_value(value)))
    return pairs


def _run(
    recipe: str | Path,
    out: Path | None,
    overrides: list[tuple[str, Any]],
    where: dict[str, Any],
    until: str = "evaluate",
) -> None:
    from gvbsm import pipeline
    from gvbsm.recipe import parse_component

    executor = parse_component(where.pop("executor"))
    folder = pipeline.run(recipe, out=out, overrides=overrides, until=until, executor=executor, **where)
    if until == "evaluate":
        from gvbsm.tables import accuracy_table

        click.echo(accuracy_table(pipeline.results(folder)))
    click.echo(f"results are in {folder}")


def _add_stage(name: str, text: str) -> None:
    @main.command(name, help=f"{text} OUT is a run folder; earlier stages are run if they have not been.")
    @click.argument("out", type=click.Path(path_type=Path))
    @_where
    def stage_command(out: Path, **where: Any) -> None:
        from gvbsm.pipeline import reopen

        _run(reopen(out), out, [], where, until=name)


for _name, _text in STAGES.items():
    _add_stage(_name, _text)


@main.command("recipes")
def recipes_command() -> None:
    """List the recipes that can be run by name."""
    from gvbsm.tables import recipe_table
    from gvbsm_registry import discover

    click.echo(recipe_table(discover()))


@main.command("plugins")
def plugins_command() -> None:
    """List the plugins, what they add and what is wrong with them."""
    from gvbsm.tables import plugin_table
    from gvbsm_registry import discover

    click.echo(plugin_table(discover()))


if __name__ == "__main__":
    main()
