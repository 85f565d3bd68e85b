"""Options that several commands share, and what is made of their values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gvbsm.cli import completion

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]
FOLDER = click.Path(path_type=Path)
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
KEYS = {
    "ipc": "synthesis.ipc",
    "seed": "seed",
    "compile": "synthesis.compile",
    "precision": "synthesis.precision",
}
"""By flag: the recipe's key that its value is put into as it is."""


class _FolderOrUrl(click.Path):
    """A folder as a path, or a URL such as s3://bucket/folder as it is."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        scheme = value.partition(":")[0] if isinstance(value, str) and ":" in value else ""
        if len(scheme) > 1 and scheme.isalnum():  # a single letter is a drive
            return value
        return super().convert(value, parameter, context)


def combined(*decorators: Decorator) -> Decorator:
    """Return one decorator that adds parameters as if `decorators` stood above a command, in this order."""

    def add(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return add


recipe_argument = click.argument("recipe", default="digits", shell_complete=completion.recipes)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
store_option = click.option(
    "--store",
    type=_FolderOrUrl(path_type=Path),
    metavar="FOLDER|URL",
    help="What runs share: backbones, statistics, decoded pixels. [default: the user's cache folder]",
)


def _component_option(kind: str, key: str, repeatable: bool) -> Decorator:
    use = f"Use exactly these {kind}s (repeatable)" if repeatable else f"Use this {kind}"
    return click.option(
        f"--{kind}",
        multiple=repeatable,
        metavar="NAME[:KEY=VALUE,...]",
        shell_complete=completion.components(kind),
        help=f"{use}: {key} in the recipe.",
    )


def settings_options(command: Command) -> Command:
    """Add --set and --data; the command gets `overrides`, pairs of a dotted key and its value."""

    @functools.wraps(command)
    def with_overrides(**values: Any) -> Any:
        overrides = _take_overrides(values)
        return command(overrides=overrides, **values)

    return combined(
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Set any key of the recipe (repeatable).",
        ),
        click.option("--data", type=FOLDER, help="The data set's folder: data.root in the recipe."),
    )(with_overrides)


recipe_options = combined(
    recipe_argument,
    click.option("--ipc", type=int, help="Images per class."),
    *(_component_option(kind, key, repeatable) for kind, (key, repeatable) in COMPONENTS.items()),
    click.option(
        "--compile/--no-compile",
        default=None,
        help="Whether to compile the synthesis step. [default: if it pays]",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16"]),
        help="Number format of the backbones' forward pass in synthesis.",
    ),
    click.option("--seed", type=int, help="The seed of all randomness."),
    settings_options,
)
"""Adds the argument RECIPE and the options that change the recipe; the command gets `recipe`, `overrides`."""


def _take_overrides(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """Take the recipe's options out of a command's values; return pairs of dotted key and value.

    Raises GvbsmError if one is not what it has to be, such as KEY=VALUE.
    """
    from gvbsm.recipe.text import parse_component, parse_setting

    overrides: list[tuple[str, Any]] = []
    if data := values.pop("data"):
        # absolute, so that the resolved recipe finds the data from any working directory
        overrides.append(("data.root", str(data.expanduser().absolute())))
    for name, key in KEYS.items():
        if (value := values.pop(name, None)) is not None:
            overrides.append((key, value))
    for kind, (key, repeatable) in COMPONENTS.items():
        if given := values.pop(kind, None):
            table = [parse_component(text) for text in given] if repeatable else parse_component(given)
            overrides.append((key, table))
    return overrides + list(map(parse_setting, values.pop("settings")))


def _where_options(report_option: Decorator) -> Decorator:
    """Return a decorator that adds the options that say where and how a run happens, not what it makes.

    The command gets `where`: arguments of `gvbsm.pipeline.run`.
    """

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def with_where(**values: Any) -> Any:
            from gvbsm.recipe.text import parse_component

            where = {name: values.pop(name) for name in ("store", "device", "quiet", "report")}
            where["executor"] = parse_component(values.pop("executor"))
            return command(where=where, **values)

        return combined(
            store_option,
            device_option,
            click.option(
                "--executor",
                default="local",
                show_default=True,
                metavar="NAME[:KEY=VALUE,...]",
                shell_complete=completion.components("executor"),
                help="Where units of work run.",
            ),
            click.option("--quiet", is_flag=True, help="Show no progress bars."),
            report_option,
        )(with_where)

    return add


run_options = _where_options(
    click.option(
        "--report/--no-report",
        default=True,
        envvar="GVBSM_REPORT",
        help="Whether to end with OUT/report.html and OUT/README.md. [default: --report]",
    )
)
stage_options = _where_options(
    click.option("--report", is_flag=True, help="End with OUT/report.html and OUT/README.md.")
)
