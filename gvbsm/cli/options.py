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


class _Folder(click.Path):
    """A path that can be looked at; `~` is expanded."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from gvbsm.runtime.folders import check_path

        given = Path(str(super().convert(value, param, ctx)))
        names = [] if param is None else [each for each in param.opts if each.startswith("-")]
        return check_path(given, names[0] if names else str(param and param.human_readable_name))


FOLDER = _Folder(path_type=Path)
COMPONENTS = {
    "matcher": ("synthesis.matchers", True),
    "backbone": ("backbones", True),
    "regularizer": ("synthesis.regularizers", True),
    "term": ("synthesis.terms", True),
    "population": ("synthesis.population", False),
    "parameterization": ("synthesis.parameterization", False),
    "callback": ("synthesis.callbacks", True),
    "initializer": ("synthesis.initializer", False),
    "augmentation": ("synthesis.augmentation", False),
    "schedule": ("synthesis.schedule", False),
    "ensembler": ("relabel.ensembler", False),
    "objective": ("evaluation.objective", False),
}
"""By flag: the recipe's key that it sets, and whether that is a list."""
SINGLE = {
    "method": "method",
    "protocol": "protocol",
    "data": "data.root",
    "seed": "seed",
    "ipc": "synthesis.ipc",
    "compile": "synthesis.compile",
    "precision": "synthesis.precision",
}
"""By flag: the recipe's key that it sets to a value."""


def combined(*decorators: Decorator) -> Decorator:
    """Return one decorator that adds parameters as if `decorators` stood above a command, in this order."""
    return lambda command: functools.reduce(lambda made, add: add(made), reversed(decorators), command)


def _gathered(name: str, take: Callable[[dict[str, Any]], Any], *options: Decorator) -> Decorator:
    """Return a decorator that adds `options`.

    The command gets one argument, `name`: what `take` makes of the values that it takes out of all values.
    """

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def gathering(**values: Any) -> Any:
            return command(**{name: take(values)}, **values)

        return combined(*options)(gathering)

    return add


def _take_overrides(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """Take the options that change a recipe; return pairs of dotted key and value.

    Raises GvbsmError if one is not what it has to be, such as KEY=VALUE.
    """
    from gvbsm.recipe.text import Setting, parse_component, parse_setting

    taken: list[tuple[str, Any]] = []
    for flag, key in SINGLE.items():
        value = values.pop(flag, None)
        if value is None:
            continue
        text = f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {value}"
        if flag == "data":  # absolute, so that the resolved recipe finds the data from any working directory
            value = str(value.expanduser().absolute())
        taken.append(Setting(key, value, text))
    for kind, (key, repeatable) in COMPONENTS.items():
        if given := values.pop(kind, None):
            texts = given if repeatable else [given]
            tables = [parse_component(text) for text in texts]
            value = tables if repeatable else tables[0]
            taken.append(Setting(key, value, *(f"--{kind} {text}" for text in texts)))
    return taken + [parse_setting(text) for text in values.pop("settings")]


def _take_where(values: dict[str, Any]) -> dict[str, Any]:
    """Take the options that say where and how a run happens; return arguments of `gvbsm.pipeline.run`."""
    from gvbsm.recipe.text import parse_component

    where = {name: values.pop(name) for name in ("store", "device", "quiet", "report")}
    return {**where, "executor": parse_component(values.pop("executor"))}


def component_option(kind: str, *names: str, **more: Any) -> Decorator:
    """Return the option (--KIND, if no other names are given) for components of a kind."""
    complete = completion.components(kind)
    return click.option(
        *(names or [f"--{kind}"]), metavar="NAME[:KEY=VALUE,...]", shell_complete=complete, **more
    )


recipe_argument = click.argument("recipe", default="digits", shell_complete=completion.recipes)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
store_option = click.option(
    "--store",
    metavar="FOLDER|URL",
    shell_complete=FOLDER.shell_complete,
    help="What runs share: backbones, statistics, decoded pixels. [default: the user's cache folder]",
)
_settings: list[Decorator] = [
    click.option(
        "--method",
        metavar="NAME",
        shell_complete=completion.recipes_in("methods"),
        help="Lay a method (methods/NAME, or a file) over the recipe.",
    ),
    click.option(
        "--protocol",
        metavar="NAME",
        shell_complete=completion.recipes_in("protocols"),
        help="Lay a protocol (protocols/NAME, or a file) over that: how students are trained.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set any key of the recipe, such as synthesis.iterations=500 (repeatable).",
    ),
    click.option("--data", type=FOLDER, help="The data set's folder: data.root in the recipe."),
]
_where: list[Decorator] = [
    store_option,
    device_option,
    component_option("executor", help="Where units of work run.", default="local", show_default=True),
    click.option("--quiet", is_flag=True, help="Show no progress bars."),
]

settings_options = _gathered("overrides", _take_overrides, *_settings)
"""The command gets `overrides`, pairs of a dotted key of the recipe and its value."""
recipe_options = _gathered(
    "overrides",
    _take_overrides,
    recipe_argument,
    click.option("--ipc", type=int, help="Images per class."),
    *(
        component_option(
            kind,
            help=f"Use {'exactly these (repeatable)' if many else 'this one'}: {key} in the recipe.",
            multiple=many,
        )
        for kind, (key, many) in COMPONENTS.items()
    ),
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
    *_settings,
)
"""The command gets `recipe`, a name or path, and `overrides`."""
run_options = _gathered(
    "where",
    _take_where,
    *_where,
    click.option(
        "--report/--no-report",
        default=True,
        envvar="GVBSM_REPORT",
        help="Whether to end with OUT/report.html and OUT/README.md. [default: --report]",
    ),
)
"""The command gets `where`, arguments of `gvbsm.pipeline.run`."""
stage_options = _gathered(
    "where",
    _take_where,
    *_where,
    click.option("--report", is_flag=True, help="End with OUT/report.html and OUT/README.md."),
)
