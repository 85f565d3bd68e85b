"""The command that says beforehand what a run will take."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import click

from gvbsm.cli import load_plugins
from gvbsm.cli.options import device_option, recipe_options, store_option

COUNT, MANY = click.IntRange(1, 10**6), click.IntRange(1, 10**9)


@click.command("estimate")
@recipe_options
@click.option(
    "--steps",
    type=COUNT,
    default=3,
    show_default=True,
    help="How many steps of each are timed.",
)
@click.option("--images", type=MANY, help="Without the data set: how many training images.")
@click.option("--classes", type=COUNT, help="Without the data set: how many classes.")
@click.option("--image-size", type=COUNT, help="Without the data set: pixels of an image's side.")
@click.option(
    "--channels",
    type=COUNT,
    default=3,
    show_default=True,
    help="Without the data set: channels of an image.",
)
@click.option(
    "--tests",
    type=MANY,
    help="Without the data set: how many test images. [default: a fifth of --images, at most 50 000]",
)
@device_option
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
def estimate_command(
    recipe: str,
    overrides: list[tuple[str, Any]],
    steps: int,
    device: str,
    store: str | None,
    as_json: bool,
    **data: Any,
) -> None:
    """Say what a run of RECIPE (by default `digits`) will take: time, memory and bytes of every stage.

    A few steps of each stage are timed on untrained backbones. For a data set that is not at hand give
    --images, --classes and --image-size: noise stands in for it, and reading and decoding files is left out.
    """
    from gvbsm.estimate.cost import estimate
    from gvbsm.recipe import loading
    from gvbsm.runtime.environment import choose_device, open_store

    registry = load_plugins()
    loaded = loading.load(recipe, registry, overrides)
    if fake := _fake_data(**data):
        loaded = loaded.model_copy(update={"data": fake})
    cache, _ = open_store(store)
    with contextlib.redirect_stdout(sys.stderr):  # plugins may print, and our output may be JSON
        costs = estimate(loaded, registry, choose_device(device), steps, cache)
    click.echo(json.dumps(costs, indent=1) if as_json else table(costs))


def _fake_data(
    images: int | None, classes: int | None, image_size: int | None, channels: int, tests: int | None
) -> Any:
    """Return the data set that stands in for one that is not at hand, None if none is asked for.

    Raises GvbsmError if it is not described whole.
    """
    from gvbsm_registry import GvbsmError

    given = [value for value in (images, classes, image_size) if value is not None]
    if images is None or classes is None or image_size is None:
        if given:
            raise GvbsmError("noise in place of a data set needs --images, --classes and --image-size")
        return None
    from gvbsm.estimate.fake_data import FakeData

    tests = tests or max(1, min(images // 5, 50_000))
    return FakeData.like(images, tests, classes, image_size, channels)


def table(costs: dict[str, Any]) -> str:
    """Return an estimate as text."""
    from rich.table import Table

    from gvbsm.terminal import duration, size, text_of

    made = Table(title="one unit of work at a time, from nothing")
    for column in ("stage", "steps", "seconds per step", "time", "peak memory", "size of files"):
        made.add_column(column, justify="left" if column == "stage" else "right")
    for cost in costs["stages"]:
        made.add_row(
            cost["stage"],
            f"{cost['steps']:,}",
            f"{cost['seconds_per_step']:.4g}",
            duration(cost["seconds"]),
            size(cost["peak_bytes"]),
            size(cost["bytes"]),
        )
    made.add_section()
    total = sum(cost["bytes"] for cost in costs["stages"])
    made.add_row("all", "", "", duration(costs["seconds"]), size(costs["peak_bytes"]), size(total))
    parts = ", ".join(f"{name} {size(count)}" for name, count in costs["bytes"].items())
    return f"{text_of(made)}\nin files: {parts}"
