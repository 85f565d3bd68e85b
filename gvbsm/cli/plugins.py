"""`gvbsm plugins`: list plugins, show a component, begin a new plugin."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gvbsm.cli import completion, load_plugins


@click.group("plugins", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def plugins_command(context: click.Context, as_json: bool) -> None:
    """List the plugins, what they add and what is wrong with them.

    The exit code is 1 if something is wrong with one.
    """
    if context.invoked_subcommand is not None:
        return
    from gvbsm.authoring.pages import plugin_records, plugin_table

    registry = load_plugins()
    click.echo(json.dumps(plugin_records(registry), indent=1) if as_json else plugin_table(registry))
    if registry.problems():
        context.exit(1)


@plugins_command.command("show")
@click.argument("name", shell_complete=completion.components())
def show_command(name: str) -> None:
    """Show a component's options, its kind's contract and how a recipe uses it.

    NAME is a component's name, or KIND:NAME where several kinds have it.
    """
    from gvbsm.authoring.pages import component_page

    click.echo(component_page(name, load_plugins()))


@plugins_command.command("new")
@click.argument("package")
@click.option("--kind", required=True, shell_complete=completion.kinds, help="What it adds, such as matcher.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    help="Where the package's folder is made. [default: here]",
)
def new_command(package: str, kind: str, folder: Path) -> None:
    """Write a plugin package, such as gvbsm-gram, that installs, passes its tests and runs as it is."""
    from gvbsm.authoring.scaffold import RUN, component_name, create

    for path in create(package, kind, folder, load_plugins()):
        click.echo(f"wrote {path}")
    click.echo("now:")
    click.echo(f"  pip install -e {folder / package}")
    click.echo(f"  pytest {folder / package}")
    click.echo(f"  {RUN[kind].format(name=component_name(package))}")
