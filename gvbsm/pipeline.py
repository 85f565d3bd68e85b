"""Runs the stages of a recipe in a run folder; opens run folders again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gvbsm.distilled.dataset import label_files
from gvbsm.recipe import loading
from gvbsm.recipe.schema import Recipe
from gvbsm.report import after_run
from gvbsm.report.gather import ReportInputs, StoredBackbone
from gvbsm.results.finished import FinishedRun
from gvbsm.results.records import SET_KEY, with_protocol, write_records
from gvbsm.runtime import distributed
from gvbsm.runtime.asking import check_logits, check_single
from gvbsm.runtime.context import Context
from gvbsm.runtime.data import LARGEST_SAMPLE, Data, open_data
from gvbsm.runtime.environment import choose_device, open_store
from gvbsm.runtime.execution import Storing, execute
from gvbsm.runtime.folders import LOG, RECIPE, check_folder, check_path, check_writable, claim, is_claimed
from gvbsm.runtime.reporting import Reporter
from gvbsm.runtime.units import Unit
from gvbsm.stages import STAGES
from gvbsm.stages.image_sets import too_few_images
from gvbsm.stages.plan import Plan
from gvbsm.stages.pretrain import check_accuracies, load_backbone, networks_of
from gvbsm.stages.synthesize import batches_per_step
from gvbsm.stages.training import TEST_BATCH, split_batches
from gvbsm.version import __version__
from gvbsm_registry import Executor, GvbsmError, Initializer, Registry, discover
from gvbsm_registry.artifacts import digest, remove_leftovers, write_text


@dataclass(frozen=True)
class Run:
    """A run folder, opened: what is to be done there, and with what."""

    plan: Plan
    context: Context
    storing: Storing
    executor: Executor

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.plan.out


def run(
    recipe: str | Path | Recipe = "digits",
    *,
    out: str | Path | None = None,
    store: str | Path | None = None,
    device: str | torch.device | None = "auto",
    method: str | None = None,
    protocol: str | None = None,
    overrides: Mapping[str, Any] | Sequence[tuple[str, Any]] = (),
    executor: str | Mapping[str, Any] = "local",
    until: str = "evaluation",
    quiet: bool = True,
    report: bool | None = None,
    registry: Registry | None = None,
) -> Path:
    """Do what `gvbsm run` does and return the run folder.

    recipe: a name, a path or a Recipe. method, protocol: laid over it, by name (methods/NAME) or path.
    overrides: values by dotted key, or pairs. store: a folder, or a URL that fsspec opens. until: the last
    stage to run. Finished work in `out` and `store` is reused. report: whether to end with report.html and
    README.md; by default after the last stage alone. registry: the components; by default the installed ones.
    Raises GvbsmError for whatever the user can put right.
    """
    distributed.start()
    if until not in STAGES:
        raise GvbsmError(f"unknown stage {until!r}; there are: {', '.join(STAGES)}")
    registry = discover() if registry is None else registry
    layers = [(key, name) for key, name in (("method", method), ("protocol", protocol)) if name]
    changes = [*layers, *pairs_of(overrides)]
    if isinstance(recipe, Recipe):
        loaded = loading.change(recipe, registry, changes)
    else:
        loaded = loading.load(recipe, registry, changes)
    default = Path("runs") / f"{loaded.name}-{digest(loaded.result_tables())[:8]}"
    folder = check_folder(out or default, "--out")
    is_claimed(folder, loaded, registry)
    with Reporter(folder / LOG, registry, quiet) as reporter:
        opened = open_recipe(loaded, registry, folder, store, device, reporter, executor)
        # before anything is written, so that a wrong path leaves no folder claimed by a wrong recipe
        check(loaded, opened.context)
        check_pictures(opened.context, opened.plan.store / "data")
        if not all(unit.there() for unit in opened.plan.shared):
            check_writable(opened.plan.store, "--store")
        claim(folder, loaded, registry)
        run_stages(opened, until)
        if report or (report is None and until == list(STAGES)[-1]):
            after_run(report_inputs(opened), reporter.print)
    return folder


def pairs_of(overrides: Any) -> list[tuple[str, Any]]:
    """Return pairs of dotted key and value as a list; raises GvbsmError if it is given anything else."""
    pairs = list(overrides.items()) if isinstance(overrides, Mapping) else overrides
    if isinstance(pairs, str) or not all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        raise GvbsmError(
            f'overrides: give {{"synthesis.ipc": 1}} or [("synthesis.ipc", 1)], not {overrides!r}'
        )
    return list(pairs)


def open_recipe(
    recipe: Recipe,
    registry: Registry,
    folder: Path,
    store: str | Path | None = None,
    device: str | torch.device | None = "auto",
    reporter: Reporter | None = None,
    executor: str | Mapping[str, Any] = "local",
) -> Run:
    """Open the data of a recipe and plan its run into `folder`; nothing is written but decoded pixels.

    Raises GvbsmError if store, device, executor or data can't be opened.
    """
    local, remote = open_store(store)
    where = choose_device(str(device or "auto"))
    runner = registry.create(Executor, executor)
    provenance = {
        "gvbsm": __version__,
        "torch": torch.__version__,
        "recipe": recipe.name,
        "seed": recipe.seed,
    }
    data = open_data(recipe.data, local / "data")
    reporter = reporter or Reporter(None, registry, quiet=True)
    context = Context(data, registry, where, reporter)
    plan = Plan(recipe, data, registry, folder, local)
    return Run(plan, context, Storing(provenance, remote), runner)


def open_run(folder: Path, registry: Registry, store: str | Path | None = None, device: str = "auto") -> Run:
    """Open a run folder that exists, to look at; raises GvbsmError if it is none, or can't be opened."""
    return open_recipe(loading.load(recipe_of(folder), registry), registry, folder, store, device)


def recipe_of(folder: Path) -> Path:
    """Return the path of a run folder's recipe; raises GvbsmError if it has none."""
    path = check_path(folder, "OUT") / RECIPE
    if not path.is_file():
        raise GvbsmError(f"{folder}: is not a run folder (it has no recipe.toml); make one with 'gvbsm run'")
    return path


def check(recipe: Recipe, context: Context) -> None:
    """Raise GvbsmError early if the data can't serve the recipe, or a network can't be built."""
    data = context.data
    counts = torch.bincount(data.train.labels, minlength=len(data.classes))
    smallest = int(counts.argmin())
    if int(counts[smallest]) < recipe.synthesis.ipc:
        raise too_few_images(data.classes[smallest], int(counts[smallest]), recipe.synthesis.ipc)
    with torch.random.fork_rng(devices=[]):
        for backbone in (*networks_of(recipe), *recipe.evaluation.students):
            module, train = context.build(backbone), data.train
            images = torch.zeros(2, train.channels, train.image_size, train.image_size, device=context.device)
            check_logits(backbone, module, images, len(data.classes))
            student = any(backbone is each for each in recipe.evaluation.students)
            smallest = _smallest_batch(recipe, data, student)
            if smallest == 1:
                check_single(backbone, module, images[:1], "evaluation" if student else "pretrain")


def check_pictures(context: Context, cache: Path) -> None:
    """Read what is not read when a data set is opened: all test images, and a sample of the training ones.

    Raises GvbsmError, naming it, for one that can't be decoded: hours before it is met. A split is read once;
    a file in `cache` remembers it.
    """
    for split, most in ((context.data.test, None), (context.data.train, LARGEST_SAMPLE)):
        done = cache / f"checked-{digest(split.digest)[:24]}.txt"
        if split.in_memory or done.exists():
            continue
        count = len(split)
        chosen = torch.linspace(0, count - 1, min(count, most or count), dtype=torch.float64).long()
        parts = chosen.split(TEST_BATCH)
        for number, _ in enumerate(context.batches(split, parts), 1):
            context.reporter.progress("check pictures", number, len(parts))
        with suppress(GvbsmError):  # then it is read again
            write_text(done, f"{len(chosen)} of {count} pictures can be decoded\n")


def _smallest_batch(recipe: Recipe, data: Data, student: bool) -> int:
    """Return how many images the smallest batch has that a student, or a backbone, is trained on."""
    count = len(data.classes) * recipe.synthesis.ipc if student else len(data.train)
    batch = recipe.evaluation.batch if student else recipe.pretrain.batch
    if not student and not recipe.pretrain.epochs:
        return count
    return min(len(part) for part in split_batches(torch.arange(count), batch))


def run_stages(opened: Run, until: str = "evaluation") -> None:
    """Run all stages up to `until`; finished units are reused."""
    plan, data = opened.plan, opened.context.data
    tidy(plan.out, plan.store)
    at_once = batches_per_step(plan.recipe.synthesis, data, opened.context.device)
    for stage in list(STAGES)[: list(STAGES).index(until) + 1]:
        waves = plan.waves(stage)
        if not waves and stage == until and (why := plan.reason_for_nothing(stage)):
            opened.context.reporter.print(f"{stage}: nothing to do ({why})")
        for wave in waves:
            execute(opened.context, stage, wave, opened.executor, opened.storing, at_once)
            if stage == "relabel":
                _drop_stale_labels(plan)
        if stage == "pretrain":
            check_accuracies(plan.networks, data, plan.recipe.pretrain.min_accuracy)
    if until == "evaluation":
        write_records(plan.out, [_record(unit, plan.recipe.protocol) for unit in plan.students])


def _record(student: Unit, protocol: str) -> dict[str, Any]:
    record = with_protocol(student.read().meta["record"], protocol)
    for images in student.input_list("images"):
        record[SET_KEY] = images.key
    return record


def tidy(out: Path, store: Path) -> None:
    """Remove the temporary files that killed runs left in the run folder and the store."""
    for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
        remove_leftovers(folder)
    for folder in (store, *(path for path in store.glob("*") if path.is_dir())):
        remove_leftovers(folder)


def _drop_stale_labels(plan: Plan) -> None:
    """Remove label blocks of earlier options: together with the planned ones they would make no set."""
    for name, blocks in plan.labels.items():
        for path in label_files(plan.sets[name].path.parent):
            if path not in [block.path for block in blocks]:
                path.unlink()


def report_inputs(opened: Run) -> ReportInputs:
    """Return what the report of a run is made from, whatever of it has been made so far."""
    plan, context = opened.plan, opened.context
    data = context.data

    def load(unit: Unit) -> tuple[torch.nn.Module, float]:
        return load_backbone(context, unit), float(unit.read().meta["top1"])

    needed = {unit.key for unit in plan.networks}
    shown = [unit for unit in plan.backbones if unit.key in needed]
    return ReportInputs(
        FinishedRun(plan.out),
        data.name,
        data.train,
        len(data.test),
        context.normalize,
        [StoredBackbone(unit.name, unit.path, partial(load, unit)) for unit in shown],
        {stage: [unit.path for wave in plan.waves(stage) for unit in wave] for stage in STAGES},
    )


def import_settings(folder: Path, registry: Registry) -> list[tuple[str, object]]:
    """Return the settings by which a run takes the images of `folder` as its distilled set.

    Raises GvbsmError if there are no images of equal number for each class.
    """
    if not folder.is_dir():
        raise GvbsmError(f"{folder}: no such folder; give the one that holds the class folders")
    # named by its pictures, so that the run can do without them later
    table = {"use": "folder", "root": str(folder.expanduser().absolute()), "contents": "now"}
    initializer = registry.create(Initializer, table)
    ipc = initializer.per_class()
    if ipc is None:
        raise GvbsmError("the initializer 'folder' does not say how many images a class has; use another")
    return [
        ("synthesis.initializer", initializer.to_recipe()),
        ("synthesis.iterations", 0),
        ("synthesis.ipc", ipc),
    ]
