"""Units: keys, resuming, and independence of order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gvbsm.runtime.units import Unit, execute, perform, seed_of
from gvbsm.stages import evaluate, relabel, synthesize
from gvbsm_registry import Executor, GvbsmError, Task
from gvbsm_registry.artifacts import peek, read

CALLS: list[str] = []


def work(workspace: Any, unit: Unit) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Draws from the global generator, as building a backbone does."""
    CALLS.append(unit.name)
    if unit.arguments.get("fail"):
        raise GvbsmError("out of luck")
    return {"drawn": torch.randn(3)}, {"classes": [], "summary": {"luck": 1}}


def unit(place: Path, name: str = "a", **depends: Any) -> Unit:
    return Unit("stage", name, "kind", place, {"name": name, **depends}, work)


class Backwards(Executor):
    name = "backwards"

    def run(self, tasks: Sequence[Task], on_message: Callable[[Any], None]) -> Iterator[tuple[int, Any]]:
        for index in reversed(range(len(tasks))):
            torch.randn(index + 1)  # other work meanwhile
            yield index, tasks[index](on_message)


def contents(folder: Path) -> dict[str, str]:
    """The digest of every artifact's tensors and metadata, by file name."""
    return {path.name: peek(path)["digest"] for path in sorted(folder.rglob("*.safetensors"))}


def test_a_key_is_all_that_a_unit_depends_on(tmp_path):
    one = unit(tmp_path, x=1, y=[2])
    assert one.key == unit(tmp_path, y=[2], x=1).key
    assert one.seed == int(one.key[:15], 16)
    others = [
        unit(tmp_path, x=1, y=[3]),
        unit(tmp_path, x=1),
        dataclasses.replace(one, stage="other"),
        dataclasses.replace(one, kind="other"),
    ]
    assert len({one.key, *(other.key for other in others)}) == 5
    moved = dataclasses.replace(one, place=tmp_path / "elsewhere" / "file.safetensors")
    assert moved.key == one.key
    assert moved.path == tmp_path / "elsewhere" / "file.safetensors"
    assert one.path == tmp_path / f"{one.key}.safetensors"


def test_seeds_tell_their_parts_apart():
    seeds = {seed_of(), seed_of(1), seed_of("1"), seed_of(1, 2), seed_of(12), seed_of("a", 1), seed_of("a1")}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_work_is_done_once_and_seeded_by_its_key(make_workspace, tmp_path):
    workspace, one = make_workspace(), unit(tmp_path / "store")
    assert not one.done()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    CALLS.clear()
    execute(workspace, "stage", [one])
    execute(workspace, "stage", [one])
    assert CALLS == ["a"]
    assert one.done()
    assert torch.equal(torch.random.get_rng_state(), before)
    artifact = one.read()
    assert torch.equal(
        artifact.tensors["drawn"], torch.randn(3, generator=torch.Generator().manual_seed(one.seed))
    )
    assert artifact.meta["provenance"]["unit"] == "a"
    assert "summary" not in artifact.meta


def test_results_do_not_depend_on_the_executor_or_its_order(make_workspace, tmp_path):
    results = []
    for folder, executor in (("first", None), ("second", Backwards())):
        workspace = make_workspace(out=folder)
        if executor:
            workspace.executor = executor
        torch.manual_seed(len(results))
        execute(workspace, "stage", [unit(tmp_path / folder / "store", name) for name in "abc"])
        results.append(contents(tmp_path / folder / "store"))
    assert len(results[0]) == 3
    assert results[0] == results[1]


def test_finished_units_are_kept_when_another_fails(make_workspace, tmp_path):
    units = [unit(tmp_path / "store", name) for name in "abc"]
    units[1] = dataclasses.replace(units[1], arguments={"fail": True})
    with pytest.raises(GvbsmError, match="out of luck"):
        execute(make_workspace(), "stage", units)
    assert [one.done() for one in units] == [True, False, False]
    units[1] = dataclasses.replace(units[1], arguments={})
    CALLS.clear()
    execute(make_workspace(), "stage", units)
    assert CALLS == ["b", "c"]


def test_a_broken_file_is_told_not_taken(make_workspace, tmp_path):
    one = unit(tmp_path / "store")
    perform(make_workspace(), one)
    raw = one.path.read_bytes()
    one.path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(GvbsmError, match="truncated or altered"):
        one.done()
    one.path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(GvbsmError, match="truncated or altered"):
        one.read()
    one.path.write_bytes(b"")
    with pytest.raises(GvbsmError, match="truncated or altered"):
        one.done()


def test_a_file_of_other_inputs_is_made_anew(make_workspace, tmp_path):
    path = tmp_path / "file.safetensors"
    old, new = unit(path, x=1), unit(path, x=2)
    perform(make_workspace(), old)
    assert not new.done()
    with pytest.raises(GvbsmError, match="other options or inputs; run the stage stage again"):
        new.read()
    execute(make_workspace(), "stage", [new])
    assert read(path).key == new.key


PRETRAIN = [
    ("pretrain.epochs", 7),
    ("pretrain.learning_rate", 0.06),
    ("pretrain.augmentation", "resized_crop"),
    ("pretrain.schedule", "linear"),
    ("data.noise", 41.0),
    ("data.mean", [0.4]),
    ("backbones.1.width", 9),
]
MEASURE = [
    ("measure.batch", 11),
    ("measure.augmentation", "resized_crop"),
    ("synthesis.matchers.2.patch_size", 2),
]
SYNTHESIS = [
    ("synthesis.ipc", 3),
    ("synthesis.iterations", 7),
    ("synthesis.batching", "across_classes"),
    ("synthesis.backbone_order", "random"),
    ("synthesis.betas", [0.5, 0.99]),
    ("synthesis.cross_entropy", 0.5),
    ("synthesis.ema_init", "first"),
    ("synthesis.matchers.0.weight", 0.5),
    ("synthesis.matchers.1.momentum", 0.5),
    ("synthesis.regularizers", []),
    ("synthesis.initializer", "real"),
    ("synthesis.schedule.warmup", 0.1),
    ("backbones.0.match_weight", 2.0),
]
RELABEL = [("relabel.batch", 3), ("relabel.cutmix", 0.5), ("relabel.ensembler", "normalized")]
EVALUATE = [
    ("evaluation.epochs", 3),
    ("evaluation.optimizer", "sgd"),
    ("evaluation.objective.gamma", 0.1),
    ("evaluation.students.0.width", 7),
    ("evaluation.seeds", [3]),
    ("evaluation.test_every", 2),
]
EVERYTHING = [*PRETRAIN, *MEASURE, *SYNTHESIS, *RELABEL, *EVALUATE, ("seed", 1)]
BASE = [
    ("synthesis.matchers", ["bn", "conv_channel", "conv_patch"]),
    ("synthesis.schedule", "cosine"),
    ("evaluation.objective", "mse_gt"),
]


def keys(workspace: Any) -> dict[str, set[str]]:
    """All units' keys by stage; planning runs nothing."""
    from gvbsm.stages import measure, pretrain

    backbones = pretrain.units(workspace)
    statistics = measure.units(workspace, backbones)
    parts = synthesize.units(workspace, backbones, statistics)
    images = {"distilled": synthesize.assembly(workspace, parts), "random": synthesize.random_set(workspace)}
    labels = {name: relabel.units(workspace, image, backbones) for name, image in images.items()}
    students = evaluate.units(workspace, images, labels)
    planned = [backbones, statistics, parts, [u for each in labels.values() for u in each], students]
    names = ("pretrain", "measure", "synthesize", "relabel", "evaluate")
    return {name: {one.key for one in some} for name, some in zip(names, planned, strict=True)}


@pytest.mark.parametrize("change", EVERYTHING, ids=lambda change: change[0])
def test_every_option_is_in_the_keys_from_its_stage_on(make_workspace, change):
    before, after = keys(make_workspace(*BASE)), keys(make_workspace(*BASE, change))
    first = next(
        number
        for number, group in enumerate([[*PRETRAIN, ("seed", 1)], MEASURE, SYNTHESIS, RELABEL, EVALUATE])
        if change in group
    )
    for number, stage in enumerate(before):
        if number < first:
            assert before[stage] == after[stage], f"{change[0]} changes {stage}"
        else:
            assert before[stage] != after[stage], f"{change[0]} does not change {stage}"


@pytest.mark.parametrize(
    "change",
    [("pretrain.min_accuracy", 0.1), ("synthesis.log_every", 5), ("name", "other"), ("reproduces", "x")],
    ids=lambda change: change[0],
)
def test_what_changes_no_result_is_in_no_key_of_the_images(make_workspace, change):
    before, after = keys(make_workspace(*BASE)), keys(make_workspace(*BASE, change))
    for stage in ("pretrain", "measure", "synthesize", "relabel"):
        assert before[stage] == after[stage]


def test_more_epochs_of_labels_keep_the_whole_blocks_of_fewer(make_workspace):
    few = keys(make_workspace(("relabel.epochs", 4)))["relabel"]
    assert few < keys(make_workspace(("relabel.epochs", 6)))["relabel"]
