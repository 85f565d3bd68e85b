"""Which stage needs what, in what order; what a run folder holds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from gvbsm import recipe as recipes
from gvbsm.recipe import Recipe
from gvbsm.reporting import Reporter
from gvbsm.stages import evaluate, measure, pretrain, relabel, synthesize
from gvbsm.units import Unit, execute
from gvbsm.workspace import Workspace
from gvbsm_registry import Executor, GvbsmError, Registry, discover
from gvbsm_registry.artifacts import digest, read, write_text

STAGES = ("pretrain", "measure", "synthesize", "relabel", "evaluate")


def run(
    recipe: str | Path | Recipe = "digits",
    *,
    out: str | Path | None = None,
    store: str | Path | None = None,
    device: str = "auto",
    overrides: Sequence[tuple[str, Any]] = (),
    executor: str | dict[str, Any] = "local",
    until: str = "evaluate",
    quiet: bool = True,
    registry: Registry | None = None,
) -> Path:
    """Do what `gvbsm run` does and return the run folder.

    recipe: a name, a path or a Recipe. overrides: pairs of dotted key and value, for a name or path.
    until: the last stage to run. Finished work in `out` and `store` is reused.
    Raises GvbsmError for whatever the user can put right.
    """
    if until not in STAGES:
        raise GvbsmError(f"unknown stage {until!r}; there are: {', '.join(STAGES)}")
    registry = discover() if registry is None else registry
    loaded = recipe if isinstance(recipe, Recipe) else recipes.load(recipe, registry, overrides)
    folder = Path(out).expanduser() if out else Path("runs") / f"{loaded.name}-{_short(loaded)}"
    store_folder = Path(store).expanduser() if store else user_cache_path("gvbsm", False)
    where = choose_device(device)
    runner = registry.create(Executor, executor)
    claim(folder, loaded)
    with Reporter(folder / "log.jsonl", registry, quiet) as reporter:
        workspace = Workspace(loaded, registry, folder, store_folder, where, reporter, runner)
        run_stages(workspace, until)
    return folder


def _short(recipe: Recipe) -> str:
    return digest(recipe.tables())[:8]


def choose_device(name: str) -> torch.device:
    """Return the device called "auto", "cpu" or "cuda"; raises GvbsmError if there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise GvbsmError("--device cuda: this machine has no usable CUDA device; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise GvbsmError(f"--device {name}: unknown device; use auto, cpu or cuda") from error


def claim(folder: Path, recipe: Recipe) -> None:
    """Make `folder` the run folder of `recipe` by writing the resolved recipe into it.

    Raises GvbsmError, changing nothing, if it is the folder of another recipe.
    """
    path = folder / "recipe.toml"
    text = recipe.toml()
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise GvbsmError(
            f"{folder}: holds a run of another recipe (see its recipe.toml); give another --out, or change "
            "its recipe.toml and run single stages on it"
        )
    if not path.exists():
        write_text(path, text)


def reopen(folder: Path) -> Path:
    """Return the recipe of an existing run folder; raises GvbsmError if it is none."""
    path = folder / "recipe.toml"
    if not path.is_file():
        raise GvbsmError(f"{folder}: is no run folder (it has no recipe.toml); make one with 'gvbsm run'")
    return path


def run_stages(workspace: Workspace, until: str = "evaluate") -> None:
    """Run all stages up to `until`; finished units are reused."""
    wanted = STAGES[: STAGES.index(until) + 1]
    tidy(workspace.out)
    backbones = pretrain.units(workspace)
    _labels_exist(workspace)
    execute(workspace, "pretrain", backbones)
    pretrain.check(workspace, backbones)
    statistics = measure.units(workspace, backbones)
    if "measure" in wanted:
        execute(workspace, "measure", statistics)
    images: dict[str, Unit] = {}
    labels: dict[str, list[Unit]] = {}
    if "synthesize" in wanted:
        parts = synthesize.units(workspace, backbones, statistics)
        execute(workspace, "synthesize", parts)
        images = {
            "distilled": synthesize.assembly(workspace, parts),
            "random": synthesize.random_set(workspace),
        }
        execute(workspace, "assemble", list(images.values()))
    if "relabel" in wanted:
        labels = {name: relabel.units(workspace, unit, backbones) for name, unit in images.items()}
        for name, unit in images.items():
            _drop_stale_labels(unit.path.parent, labels[name])
        execute(workspace, "relabel", [unit for planned in labels.values() for unit in planned])
    if "evaluate" in wanted:
        planned = evaluate.units(workspace, images, labels)
        execute(workspace, "evaluate", planned)
        write_results(workspace.out / "results.json", planned)


def _labels_exist(workspace: Workspace) -> None:
    """Raise GvbsmError before hours are spent if a class has fewer images than the set is to have."""
    counts = torch.bincount(workspace.train.labels, minlength=len(workspace.classes))
    smallest = int(counts.argmin())
    if int(counts[smallest]) < workspace.recipe.synthesis.ipc:
        raise GvbsmError(
            f"class {workspace.classes[smallest]!r} has {int(counts[smallest])} training images, too few for "
            f"{workspace.recipe.synthesis.ipc} per class; lower synthesis.ipc (--ipc)"
        )


def tidy(folder: Path) -> None:
    """Remove the temporary files that a killed run left in its folder."""
    for path in folder.rglob(".*.tmp"):
        process = path.name.rsplit(".", 2)[-2].split("-")[0]
        if not (process.isdecimal() and _alive(int(process))):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


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


def results(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run folder; raises GvbsmError if it has none or they can't be read."""
    path = folder / "results.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return list(found["records"])
    except FileNotFoundError as error:
        raise GvbsmError(f"{path}: no results yet; run 'gvbsm evaluate {folder}'") from error
    except (ValueError, KeyError, TypeError) as error:
        raise GvbsmError(f"{path}: is not a results file ({error}); run 'gvbsm evaluate {folder}'") from error


def artifact_of(folder: Path) -> dict[str, Any]:
    """Return the metadata of a run folder's distilled set."""
    return read(folder / "distilled" / "images.safetensors", "distilled").meta


Stage = Callable[[Workspace], None]
