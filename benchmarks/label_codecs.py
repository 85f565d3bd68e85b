"""Accuracy against the bytes of soft labels: codecs and pruning on one distilled set.

    python -m benchmarks.label_codecs [RECIPE] [--set KEY=VALUE …] [--seeds 2] [--setting int8@0.2 …]

The images are made once. For each setting the labels are made anew (never the full set first) and students
trained on them: the distilled set, and as many random real images. Prints a Markdown table; "smaller" is
against float16 logits with uncompressed views, 33 + 2K bytes for each image of each epoch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from gvbsm.recipe import loading
from gvbsm.recipe.schema import Recipe
from gvbsm.recipe.text import parse_component, parse_value
from gvbsm.runtime.reporting import Reporter
from gvbsm.runtime.units import Unit, execute
from gvbsm.runtime.workspace import Workspace
from gvbsm.stages import evaluate, measure, pretrain, relabel, synthesize
from gvbsm_registry import Codec, Executor, Registry, discover
from gvbsm_registry.artifacts import read

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


def workspace_of(
    base: Recipe, registry: Registry, work: Path, store: Path | None, codec: Any, keep: float
) -> Workspace:
    """Return a workspace of the recipe with one setting of the labels."""
    changes = {"codec": registry.create(Codec, codec), "keep_fraction": keep}
    made = base.model_copy(update={"relabel": base.relabel.model_copy(update=changes)})
    runner = registry.create(Executor, "local")
    folder = work / "out"
    reporter = Reporter(folder / "log.jsonl", registry, quiet=True)
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Workspace(made, registry, folder, store or work / "store", where, reporter, runner)


def images_of(workspace: Workspace) -> tuple[list[Unit], dict[str, Unit]]:
    """Run the stages up to the images."""
    backbones = pretrain.units(workspace)
    execute(workspace, "pretrain", backbones)
    statistics_units = measure.units(workspace, backbones)
    execute(workspace, "measure", statistics_units)
    parts = synthesize.units(workspace, backbones, statistics_units)
    execute(workspace, "synthesize", parts)
    images = {
        "distilled": synthesize.assembly(workspace, parts),
        "random": synthesize.random_set(workspace),
    }
    execute(workspace, "assemble", list(images.values()))
    return backbones, images


def measured(workspace: Workspace, backbones: list[Unit], images: dict[str, Unit]) -> dict[str, list[Any]]:
    """Label both sets, train the students; return the records of results.json by set."""
    labels = {name: relabel.units(workspace, unit, backbones) for name, unit in images.items()}
    for name, unit in images.items():
        for path in set(unit.path.parent.glob("labels-*")) - {planned.path for planned in labels[name]}:
            path.unlink()
        execute(workspace, "relabel", labels[name])
    planned = [unit for unit in evaluate.units(workspace, images, labels) if unit.depends["labels"] == "soft"]
    execute(workspace, "evaluate", planned)
    found: dict[str, list[Any]] = {name: [] for name in images}
    for unit in planned:
        record = read(unit.path).meta["record"]
        found[record["set"]].append(record)
    return found


def row(workspace: Workspace, codec: Any, keep: float, found: dict[str, list[Any]]) -> str:
    """Return one line of the table."""
    classes = len(workspace.classes)
    size = found["distilled"][0]["label_bytes"]
    count = workspace.recipe.synthesis.ipc * classes * workspace.recipe.relabel.epochs
    plain = count * (PLAIN_VIEW + 2 * classes)
    name = (
        codec
        if isinstance(codec, str)
        else ", ".join(f"{k}={v}" if k != "use" else v for k, v in codec.items())
    )
    cells = [name, f"{keep:g}", f"{size:,}", f"{plain / size:.1f}×"]
    for which in ("distilled", "random"):
        values = [100 * record["top1"] for record in found[which]]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells.append(f"{statistics.mean(values):.2f} ± {spread:.2f}")
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
            workspace = workspace_of(base, registry, work, options.store, codec, keep)
            backbones, images = images_of(workspace)
            print(row(workspace, codec, keep, measured(workspace, backbones, images)), flush=True)


if __name__ == "__main__":
    main()
