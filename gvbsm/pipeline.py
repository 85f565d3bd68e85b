"""Which stage needs what, in what order; what a run folder holds."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gvbsm.recipe import loading
from gvbsm.recipe.schema import Recipe
from gvbsm.report import after_run
from gvbsm.results.scores import csv_text
from gvbsm.runtime import distributed as parallel
from gvbsm.runtime.reporting import Reporter
from gvbsm.runtime.units import Unit, execute
from gvbsm.runtime.workspace import Workspace, open_store
from gvbsm.stages import STAGES as NAMES
from gvbsm.stages import evaluate, measure, pretrain, relabel, synthesize
from gvbsm_registry import Executor, GvbsmError, Registry, discover
from gvbsm_registry.artifacts import digest, remove_leftovers, write_text

STAGES = tuple(NAMES)


def run(
    recipe: str | Path | Recipe = "digits",
    *,
    out: str | Path | None = None,
    store: str | Path | None = None,
    device: str = "auto",
    overrides: Sequence[tuple[str, Any]] = (),
    executor: str | dict[str, Any] = "local",
    until: str = STAGES[-1],
    quiet: bool = True,
    report: bool | None = None,
    registry: Registry | None = None,
) -> Path:
    """Do what `gvbsm run` does and return the run folder.

    recipe: a name, a path or a Recipe. overrides: pairs of dotted key and value, for a name or path.
    store: a folder, or a URL that fsspec opens. until: the last stage to run. Finished work in `out` and
    `store` is reused. report: whether to end with report.html and README.md; by default only
    the last stage does.
    Raises GvbsmError for whatever the user can put right.
    """
    parallel.start()
    if until not in STAGES:
        raise GvbsmError(f"unknown stage {until!r}; there are: {', '.join(STAGES)}")
    registry = discover() if registry is None else registry
    loaded = recipe if isinstance(recipe, Recipe) else loading.load(recipe, registry, overrides)
    folder = Path(out).expanduser() if out else Path("runs") / f"{loaded.name}-{_short(loaded)}"
    store_folder, remote = open_store(store)
    where = choose_device(device)
    runner = registry.create(Executor, executor)
    _check_folder(folder, "--out")
    _check_folder(store_folder, "--store")
    claimed = is_claimed(folder, loaded, registry)
    with Reporter(folder / "log.jsonl", registry, quiet) as reporter:
        workspace = Workspace(loaded, registry, folder, store_folder, where, reporter, runner, remote)
        # before anything is written, so that a wrong path leaves no folder claimed by a wrong recipe
        check_data(workspace)
        check_backbones(workspace)
        if not claimed:
            write_text(folder / "recipe.toml", loaded.toml())
        run_stages(workspace, until)
        if until == STAGES[-1] if report is None else report:
            after_run(workspace)
    return folder


def _short(recipe: Recipe) -> str:
    return digest(recipe.tables())[:8]


def choose_device(name: str) -> torch.device:
    """Return the device called "auto", "cpu" or "cuda"; raises GvbsmError if there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise GvbsmError(f"--device {name}: unknown device; use auto, cpu or cuda")
    found = torch.device(name)
    if found.type == "cuda" and not (found.index or 0) < torch.cuda.device_count():
        raise GvbsmError(f"--device {name}: this machine has no such CUDA device; use --device cpu")
    return found


def _check_folder(folder: Path, flag: str) -> None:
    """Raise GvbsmError if `folder`, or what is to hold it, is not a folder: hours before it is written to."""
    for place in (folder, *folder.parents):
        if place.exists():
            if not place.is_dir():
                raise GvbsmError(f"{flag} {folder}: {place} is not a folder; give another {flag}")
            return


def is_claimed(folder: Path, recipe: Recipe, registry: Registry) -> bool:
    """Tell whether `folder` is the run folder of `recipe` already.

    Raises GvbsmError, naming the keys that differ, if it is the folder of another recipe.
    """
    path = folder / "recipe.toml"
    if not path.exists():
        return False
    found = loading.load(path, registry)
    if found != recipe:
        differ = ", ".join(_differences(found.tables(), recipe.tables()))
        raise GvbsmError(
            f"{folder}: holds a run of another recipe (its recipe.toml differs in {differ}); give another "
            "--out, or change its recipe.toml and run single stages on it"
        )
    return True


def _differences(ours: dict[str, Any], theirs: dict[str, Any], above: str = "") -> list[str]:
    """Return the dotted keys in which two recipes' tables differ."""
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(key), theirs.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differences(one, other, f"{above}{key}.")
        elif one != other:
            found.append(above + key)
    return found


def check_data(workspace: Workspace) -> None:
    """Open both splits; raises GvbsmError, before hours are spent, if they can't serve this recipe."""
    classes = workspace.test.classes  # opening the test split compares them with the training split's
    counts = torch.bincount(workspace.train.labels, minlength=len(classes))
    smallest = int(counts.argmin())
    if int(counts[smallest]) < workspace.recipe.synthesis.ipc:
        raise GvbsmError(
            f"class {classes[smallest]!r} has {int(counts[smallest])} training images, too few for "
            f"{workspace.recipe.synthesis.ipc} per class; lower synthesis.ipc (--ipc)"
        )


def check_backbones(workspace: Workspace) -> None:
    """Build every backbone and student once; raises GvbsmError, before hours are spent, if one can't be."""
    recipe = workspace.recipe
    with torch.random.fork_rng(devices=[]):
        for backbone in (*recipe.backbones, *recipe.evaluation.students):
            backbone.build(len(workspace.classes), workspace.train.image_size, workspace.train.channels)


def reopen(folder: Path) -> Path:
    """Return the recipe of an existing run folder; raises GvbsmError if it is none."""
    path = folder / "recipe.toml"
    if not path.is_file():
        raise GvbsmError(f"{folder}: is not a run folder (it has no recipe.toml); make one with 'gvbsm run'")
    return path


def run_stages(workspace: Workspace, until: str = STAGES[-1]) -> None:
    """Run all stages up to `until`; finished units are reused."""
    wanted = STAGES[: STAGES.index(until) + 1]
    tidy(workspace.out, workspace.store)
    backbones = pretrain.units(workspace)
    execute(workspace, "pretrain", backbones)
    pretrain.check(workspace, backbones)
    statistics = measure.units(workspace, backbones)
    if "measure" in wanted:
        if shards := measure.shards(statistics):
            execute(workspace, "measure shards", shards)
        execute(workspace, "measure", statistics)
    images: dict[str, Unit] = {}
    labels: dict[str, list[Unit]] = {}
    if "synthesis" in wanted:
        parts = synthesize.units(workspace, backbones, statistics)
        execute(workspace, "synthesize", parts)
        images = {"distilled": synthesize.assembly(workspace, parts)}
        if workspace.recipe.evaluation.random_baseline:
            images["random"] = synthesize.random_set(workspace)
        execute(workspace, "assemble", list(images.values()))
    if "relabel" in wanted:
        labels = {name: relabel.units(workspace, unit, backbones) for name, unit in images.items()}
        for name, unit in images.items():
            _drop_stale_labels(unit.path.parent, labels[name])
        execute(workspace, "relabel", [unit for planned in labels.values() for unit in planned])
    if "evaluation" in wanted:
        planned = evaluate.units(workspace, images, labels)
        execute(workspace, "evaluate", planned)
        write_results(workspace.out / "results.json", planned)


def tidy(out: Path, store: Path) -> None:
    """Remove the temporary files that killed runs left in the run folder and the store."""
    for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
        remove_leftovers(folder)
    for folder in (store, *(path for path in store.glob("*") if path.is_dir())):
        remove_leftovers(folder)


def _drop_stale_labels(folder: Path, planned: list[Unit]) -> None:
    """Remove label blocks of earlier options: together with the planned ones they would make no set."""
    keep = {unit.path for unit in planned if unit.done()}
    for path in folder.glob("labels-*.safetensors"):
        if path not in keep:
            path.unlink()


def write_results(path: Path, planned: list[Unit]) -> None:
    """Write results.json from the finished evaluation units."""
    records = [unit.read().meta["record"] for unit in planned]
    write_text(path, json.dumps({"schema": 1, "records": records}, indent=1) + "\n")
    write_text(path.with_suffix(".csv"), csv_text(records))


def results(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run folder; raises GvbsmError if it has none or they can't be read."""
    path = folder / "results.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return list(found["records"])
    except FileNotFoundError as error:
        raise GvbsmError(f"{path}: no results yet; run 'gvbsm evaluation {folder}'") from error
    except (ValueError, KeyError, TypeError) as error:
        raise GvbsmError(
            f"{path}: is not a results file ({error}); run 'gvbsm evaluation {folder}'"
        ) from error
