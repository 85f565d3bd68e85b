"""The plan: what is in the units' keys, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from gvbsm_registry import GvbsmError

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
    ("synthesis.population", {"use": "pretrained", "order": "random"}),
    ("synthesis.optimizer.betas", [0.5, 0.99]),
    ("synthesis.terms", [{"use": "cross_entropy", "weight": 0.5}]),
    ("synthesis.ema_init", "first"),
    ("synthesis.matchers.0.weight", 0.5),
    ("synthesis.matchers.1.momentum", 0.5),
    ("synthesis.regularizers", []),
    ("synthesis.initializer", "real"),
    ("synthesis.schedule.warmup", 0.1),
    ("backbones.0.match_weight", 2.0),
]
RELABEL = [
    ("relabel.batch", 3),
    ("relabel.cutmix", 0.5),
    ("relabel.ensembler", "normalized"),
    ("relabel.batch_norm", "batch"),
    ("relabel.temperature", 2.0),
]
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
    ("synthesis.optimizer", {"use": "adam", "betas": [0.5, 0.9]}),
    ("evaluation.objective", "mse_gt"),
]


def keys(run: Any) -> dict[str, set[str]]:
    """All units' keys by stage; planning runs nothing."""
    plan = run.plan
    planned = {
        "pretrain": plan.backbones,
        "measure": plan.statistics,
        "synthesis": plan.image_batches,
        "relabel": [block for blocks in plan.labels.values() for block in blocks],
        "evaluation": plan.students,
    }
    return {stage: {unit.key for unit in units} for stage, units in planned.items()}


@pytest.mark.parametrize("change", EVERYTHING, ids=lambda change: change[0])
def test_every_option_is_in_the_keys_from_its_stage_on(make_run, change):
    before, after = keys(make_run(*BASE)), keys(make_run(*BASE, change))
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
    [
        ("pretrain.min_accuracy", 0.1),
        ("synthesis.log_every", 5),
        ("synthesis.batches_per_step", 3),
        ("name", "other"),
        ("description", "x"),
        ("reproduces", "x"),
    ],
    ids=lambda change: change[0],
)
def test_what_changes_no_result_is_in_no_key(make_run, change):
    assert keys(make_run(*BASE)) == keys(make_run(*BASE, change))


def test_another_size_of_label_files_repeats_no_work(make_run):
    done = make_run(("relabel.epochs", 5), ("relabel.epochs_per_file", 2)).until("evaluation")
    again = make_run(("relabel.epochs", 5), ("relabel.epochs_per_file", 3))
    assert [unit.options["epochs"] for unit in again.plan.labels["distilled"]] == [2, 2, 1]
    assert all(
        unit.done()
        for stage in ("relabel", "evaluation")
        for [*wave] in again.plan.waves(stage)
        for unit in wave
    )
    assert keys(done) == keys(again)


def test_keys_carry_the_version_of_a_components_distribution(make_run, monkeypatch):
    before = keys(make_run())
    run = make_run()
    owner = run.context.registry.owner(type(run.recipe.synthesis.matchers[1]))
    monkeypatch.setattr(owner, "version", "99")
    after = keys(run)
    assert before["pretrain"] == after["pretrain"]
    assert not before["measure"] & after["measure"]
    assert not before["synthesis"] & after["synthesis"]


def test_a_component_that_reads_a_file_is_keyed_by_its_contents(make_run, tmp_path, monkeypatch):
    path = tmp_path / "table"
    run = make_run()
    monkeypatch.setattr(type(run.recipe.relabel.codec), "files", lambda self: (path,))
    seen = []
    for text in ("one", "two", "one"):
        path.write_text(text)
        seen.append(keys(make_run()))
    assert seen[0] == seen[2]
    assert seen[0]["synthesis"] == seen[1]["synthesis"]
    assert not seen[0]["relabel"] & seen[1]["relabel"]
    path.unlink()
    with pytest.raises(GvbsmError, match=r"table: can't be read.*check the file"):
        keys(make_run())


def test_more_epochs_of_labels_keep_the_whole_blocks_of_fewer(make_run):
    few = keys(make_run(("relabel.epochs", 4)))["relabel"]
    assert few < keys(make_run(("relabel.epochs", 6)))["relabel"]
