"""The command line. Everything heavy is imported when a command runs, so that `--help` is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from gvbsm.cli import completion
from gvbsm.cli import estimate as estimate_command
from gvbsm.cli import results as result_commands
from gvbsm.cli.plugins import plugins_command
from gvbsm.version import __version__

F = TypeVar("F", bound=Callable[..., Any])
PLUGINS = "GVBSM_PLUGINS"
COMPONENTS = {
    "matcher": ("synthesis.matchers", True),
    "backbone": ("backbones", True),
    "regularizer": ("synthesis.regularizers", True),
    "initializer": ("synthesis.initializer", False),
    "augmentation": ("synthesis.augmentation", False),
    "schedule": ("synthesis.schedule", False),
    "ensembler": ("relabel.ensembler", False),
    "objective": ("evaluation.objective", False),
}
"""By flag: the recipe's key that it sets, and whether that is a list."""
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
            # by name, for importing the class would cost `--help` its speed; plugins may derive from it
            if "GvbsmError" not in (base.__name__ for base in type(error).__mro__):
                raise
            click.echo(f"gvbsm: {error}", err=True)
            sys.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gvbsm")
@click.option("--no-plugins", is_flag=True, help="Load the built-in plugins only.")
@click.pass_context
def main(context: click.Context, no_plugins: bool) -> None:
    """Condense an image data set into a few synthetic images per class."""
    # Threads that wait by spinning make small networks many times slower where anything else runs, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if no_plugins:
        context.with_resource(_built_in_only())


@contextmanager
def _built_in_only() -> Iterator[None]:
    """As an environment variable, so that worker processes load no other plugins either."""
    before = os.environ.get(PLUGINS)
    os.environ[PLUGINS] = "gvbsm"
    try:
        yield
    finally:
        del os.environ[PLUGINS]
        if before is not None:
            os.environ[PLUGINS] = before


class _Place(click.Path):
    """A folder as a path, or a URL such as s3://bucket/folder as it is."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        scheme = value.partition(":")[0] if isinstance(value, str) and ":" in value else ""
        if len(scheme) > 1 and scheme.isalnum():  # a single letter is a drive
            return value
        return super().convert(value, parameter, context)


def _where(function: F) -> F:
    """Add the options that say where a run happens, which are not part of the recipe."""
    for option in (
        click.option(
            "--report/--no-report",
            default=True,
            envvar="GVBSM_REPORT",
            help="Whether to end with OUT/report.html and OUT/README.md. [default: --report]",
        ),
        click.option("--quiet", is_flag=True, help="No progress bars."),
        click.option(
            "--executor",
            default="local",
            shell_complete=completion.components("executor"),
            help="Where units of work run: NAME[:key=value,...].",
        ),
        click.option("--device", default="auto", help="auto, cpu or cuda."),
        click.option(
            "--store",
            type=_Place(path_type=Path),
            metavar="FOLDER|URL",
            help="Backbones and statistics shared between runs. [default: the user's cache folder]",
        ),
    ):
        function = option(function)
    return function


def _component_options(function: F) -> F:
    for kind, (key, repeatable) in reversed(COMPONENTS.items()):
        what = f"Use exactly these {kind}s (repeatable)" if repeatable else f"Use this {kind}"
        function = click.option(
            f"--{kind}",
            multiple=repeatable,
            metavar="NAME",
            shell_complete=completion.components(kind),
            help=f"{what}, {key} in the recipe. NAME[:key=value,...]",
        )(function)
    return function


def _recipe_options(function: F) -> F:
    """Add the argument RECIPE and the options that change the recipe; `_overrides` takes their values."""
    for option in (
        click.option("--seed", type=int, help="The recipe's seed."),
        click.option(
            "--precision",
            type=click.Choice(["fp32", "bf16"]),
            help="Of the backbones' forward pass in synthesis (synthesis.precision).",
        ),
        click.option(
            "--compile/--no-compile",
            default=None,
            help="Whether to compile the synthesis step (synthesis.compile). [default: if it pays]",
        ),
        click.option("--data", type=click.Path(path_type=Path), help="The data set's folder (data.root)."),
        click.option(
            "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any key of the recipe."
        ),
        _component_options,
        click.option("--ipc", type=int, help="Images per class."),
        click.argument("recipe", default="digits", shell_complete=completion.recipes),
    ):
        function = option(function)
    return function


def _overrides(options: dict[str, Any]) -> list[tuple[str, Any]]:
    """Take the values of `_recipe_options` out of a command's `options`; return pairs of key and value."""
    from gvbsm.recipe.text import parse_component

    data, ipc, seed = (options.pop(name) for name in ("data", "ipc", "seed"))
    # absolute, so that the resolved recipe finds the data from any working directory
    root = [str(data.expanduser().absolute())] if data else []
    overrides: list[tuple[str, Any]] = [("data.root", path) for path in root]
    if ipc is not None:
        overrides.append(("synthesis.ipc", ipc))
    if seed is not None:
        overrides.append(("seed", seed))
    for name in ("compile", "precision"):
        value = options.pop(name)
        if value is not None:
            overrides.append((f"synthesis.{name}", value))
    for kind, (key, repeatable) in COMPONENTS.items():
        given = options.pop(kind)
        if given:
            table = [parse_component(name) for name in given] if repeatable else parse_component(given)
            overrides.append((key, table))
    return overrides + _settings(options.pop("settings"))


@main.command("run")
@_recipe_options
@click.option("--out", type=click.Path(path_type=Path), help="The run folder. [default: runs/RECIPE-DIGEST]")
@_where
def run_command(recipe: str, out: Path | None, **rest: Any) -> None:
    """Run a recipe from data to accuracies; RECIPE is a name (see `gvbsm recipes`) or a file.

    Run again to go on after an interruption: finished work is reused.
    """
    overrides = _overrides(rest)
    _run(recipe, out, overrides, rest)


def _settings(settings: tuple[str, ...]) -> list[tuple[str, Any]]:
    from gvbsm.recipe.text import parse_value
    from gvbsm_registry import GvbsmError

    pairs = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise GvbsmError(
                f"--set {setting}: is not a KEY=VALUE; write for example synthesis.iterations=500"
            )
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
    from gvbsm.recipe.text import parse_component

    executor = parse_component(where.pop("executor"))
    folder = pipeline.run(recipe, out=out, overrides=overrides, until=until, executor=executor, **where)
    if until == "evaluate":
        from gvbsm.results.records import read_records
        from gvbsm.results.tables import accuracy_table

        click.echo(accuracy_table(read_records(folder)).text())
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
    from gvbsm.results.tables import recipe_table
    from gvbsm_registry import discover

    click.echo(recipe_table(discover()).text())


main.add_command(plugins_command)
result_commands.register(main, _where, _settings)
estimate_command.register(main, _recipe_options, _overrides)


if __name__ == "__main__":
    main()
