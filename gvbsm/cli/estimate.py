"""The command that says beforehand what a run will take. Heavy imports come when it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def register(
    main: click.Group, recipe_options: Decorator, overrides: Callable[[dict[str, Any]], Any]
) -> None:
    """Add `estimate` to `main`.

    recipe_options: adds the argument RECIPE and the options that change it, as `run` has them. overrides:
    makes of their values, which it takes out of the dictionary, pairs of key and value.
    """

    def command(recipe: str, **options: Any) -> None:
        _estimate(recipe, overrides(options), **options)

    for option in reversed(OPTIONS):
        command = option(command)
    main.command("estimate", help=_estimate.__doc__)(recipe_options(command))


OPTIONS: list[Decorator] = [
    click.option(
        "--steps", type=click.IntRange(1), default=3, show_default=True, help="Steps of each to time."
    ),
    click.option("--images", type=click.IntRange(1), help="Without the data set: how many training images."),
    click.option("--classes", type=click.IntRange(1), help="Without the data set: how many classes."),
    click.option(
        "--image-size", type=click.IntRange(1), help="Without the data set: the images' size in pixels."
    ),
    click.option("--channels", type=click.IntRange(1), default=3, show_default=True, help="With --images."),
    click.option(
        "--tests",
        type=click.IntRange(1),
        help="With --images: test images. [default: a fifth, at most 50 000]",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
    click.option("--store", type=click.Path(path_type=Path), help="Where decoded pixels are kept."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object, no table."),
]


def _estimate(
    recipe: str,
    overrides: list[tuple[str, Any]],
    *,
    steps: int,
    images: int | None,
    classes: int | None,
    image_size: int | None,
    channels: int,
    tests: int | None,
    device: str,
    store: Path | None,
    as_json: bool,
) -> None:
    """Say what a run of RECIPE will take: time, memory and bytes of every stage.

    A few steps of each stage are timed on untrained backbones. For a data set that is not at hand give
    --images, --classes and --image-size: noise stands in for it, and reading and decoding files is left out.
    """
    import json

    from platformdirs import user_cache_path

    from gvbsm.estimate.cost import estimate
    from gvbsm.pipeline import choose_device
    from gvbsm.recipe import loading
    from gvbsm_registry import GvbsmError, discover

    registry = discover()
    loaded = loading.load(recipe, registry, overrides)
    given = [value for value in (images, classes, image_size) if value is not None]
    if images is not None and classes is not None and image_size is not None:
        from gvbsm.estimate.fake_data import FakeData

        tests = tests or max(1, min(images // 5, 50_000))
        data = FakeData.like(
            images=images, tests=tests, classes=classes, image_size=image_size, channels=channels
        )
        loaded = loaded.model_copy(update={"data": data})
    elif given:
        raise GvbsmError("--images, --classes and --image-size: noise in place of a data set needs all three")
    cache = (store or user_cache_path("gvbsm", False)).expanduser()
    found = estimate(loaded, registry, choose_device(device), steps, cache)
    click.echo(json.dumps(found, indent=1) if as_json else table(found))


def table(found: dict[str, Any]) -> str:
    """Return an estimate as text."""
    from rich.table import Table

    from gvbsm.results.tables import text_of

    made = Table(title="one unit of work at a time, from nothing")
    for column in ("stage", "steps", "seconds per step", "time", "peak memory", "bytes"):
        made.add_column(column, justify="left" if column == "stage" else "right")
    for cost in found["stages"]:
        made.add_row(
            cost["stage"],
            f"{cost['steps']:,}",
            f"{cost['seconds_per_step']:.4g}",
            duration(cost["seconds"]),
            size(cost["peak_bytes"]),
            size(cost["bytes"]),
        )
    made.add_section()
    total = sum(cost["bytes"] for cost in found["stages"])
    made.add_row("all", "", "", duration(found["seconds"]), size(found["peak_bytes"]), size(total))
    parts = ", ".join(f"{name} {size(count)}" for name, count in found["bytes"].items())
    return f"{text_of(made)}\nin files: {parts}"


def duration(seconds: float) -> str:
    """Return seconds as the two largest of days, hours, minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def size(count: int | None) -> str:
    """Return bytes in a unit that leaves at most four digits."""
    if count is None:
        return "unknown"
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
