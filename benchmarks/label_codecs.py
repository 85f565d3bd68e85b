"""Accuracy against the bytes of soft labels: codecs and pruning on one distilled set.

    python -m benchmarks.label_codecs [RECIPE] [--set KEY=VALUE …] [--seeds 2] [--setting int8@0.2 …]

The images are made once. For each setting the labels are made anew (never the full set first) and students
trained on them: the distilled set, and as many random real images. Prints a Markdown table; "smaller" is
against float16 logits with uncompressed views, 33 + 2K bytes for each image of each epoch.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from gvbsm import pipeline
from gvbsm.recipe import loading
from gvbsm.recipe.schema import Recipe
from gvbsm.recipe.text import parse_component, parse_value
from gvbsm.results.records import mean_and_deviation
from gvbsm.runtime.execution import execute
from gvbsm_registry import Codec, Registry, discover

PLAIN_VIEW = 33
TOPK = {"use": "topk", "k": 3}
SETTINGS: tuple[tuple[Any, float], ...] = (
    ("fp16", 1.0),
    ("int8", 1.0),
    (TOPK, 1.0),
    ({**TOPK, "rest": "mean"}, 1.0),
    ("int8", 0.5),
    ("int8", 0.2),
    ("int8", 0.1),
    ("int8", 0.05),
    ("fp16", 0.1),
)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe", nargs="?", default="digits")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keeps finished work here")
    parser.add_argument("--store", type=Path, help="backbones and statistics to share")
    parser.add_argument(
        "--setting",
        dest="chosen",
        action="append",
        metavar="CODEC[:key=value,…]@KEEP",
        help="instead of the usual",
    )
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[tuple[Any, float]]:
    """Return the (codec, kept share) pairs to try."""
    if not options.chosen:
        return list(SETTINGS)
    pairs = [text.rpartition("@") for text in options.chosen]
    return [(parse_component(codec), float(keep)) for codec, _, keep in pairs]


def load(options: argparse.Namespace, registry: Registry) -> Recipe:
    """Load the recipe, once: a file that changes in between would change the images."""
    overrides = [(key, parse_value(value)) for key, _, value in (s.partition("=") for s in options.settings)]
    overrides += [("evaluation.seeds", list(range(options.seeds)))]
    return loading.load(options.recipe, registry, overrides)


def open_setting(
    base: Recipe, registry: Registry, work: Path, store: Path | None, codec: Any, keep: float
) -> pipeline.Run:
    """Open the run of the recipe with one setting of the labels."""
    changes = {"codec": registry.create(Codec, codec), "keep_fraction": keep}
    made = base.model_copy(update={"relabel": base.relabel.model_copy(update=changes)})
    return pipeline.open_recipe(made, registry, work / "out", store or work / "store")


def measured(run: pipeline.Run) -> dict[str, list[Any]]:
    """Make the images, label both sets, train the students; return the records of results.json by set."""
    pipeline.run_stages(run, "relabel")
    students = [unit for unit in run.plan.students if unit.options["labels"] == "soft"]
    execute(run.context, "evaluation", students, run.executor, run.storing)
    records: dict[str, list[Any]] = {name: [] for name in run.plan.sets}
    for unit in students:
        records[unit.options["set"]].append(unit.read().meta["record"])
    return records


def row(run: pipeline.Run, codec: Any, keep: float, records: dict[str, list[Any]]) -> str:
    """Return one line of the table."""
    classes, recipe = len(run.plan.data.classes), run.plan.recipe
    size = records["distilled"][0]["label_bytes"]
    count = recipe.synthesis.ipc * classes * recipe.relabel.epochs
    plain = count * (PLAIN_VIEW + 2 * classes)
    name = (
        codec
        if isinstance(codec, str)
        else ", ".join(f"{k}={v}" if k != "use" else v for k, v in codec.items())
    )
    cells = [name, f"{keep:g}", f"{size:,}", f"{plain / size:.1f}×"]
    for which in ("distilled", "random"):
        mean, deviation = mean_and_deviation([100 * record["top1"] for record in records[which]])
        cells.append(f"{mean:.2f} ± {deviation:.2f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table, a line as soon as it is known."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        print("| codec | kept | label bytes | smaller | distilled, soft | random, soft |")
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        registry = discover()
        base = load(options, registry)
        for codec, keep in chosen(options):
            run = open_setting(base, registry, work, options.store, codec, keep)
            print(row(run, codec, keep, measured(run)), flush=True)


if __name__ == "__main__":
    main()
