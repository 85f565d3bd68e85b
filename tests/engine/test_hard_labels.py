"""Methods without soft labels: nothing is labelled, and no network is trained that nobody looks at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import MakeRun
from test_plan import keys

from gvbsm import pipeline
from gvbsm_plugins.initializers import FolderImages, Herding, Noise, RealImages
from gvbsm_registry import GvbsmError

HARD = ("evaluation.soft", False)
CHOSEN = [("synthesis.iterations", 0), ("synthesis.initializer", "real")]


def trained(make_run: MakeRun, *changes: tuple[str, object]) -> dict[str, list[str]]:
    """What there is to do, by stage."""
    plan = make_run(*changes).plan
    return {
        stage: [unit.name for wave in plan.waves(stage) for unit in wave]
        for stage in ("pretrain", "measure", "synthesis", "relabel", "evaluation")
    }


def test_hard_labels_alone_are_not_labelled(make_run: MakeRun) -> None:
    planned = trained(make_run, HARD)
    assert planned["pretrain"] == ["toy_net", "toy_net-2"]
    assert planned["relabel"] == []
    assert planned["evaluation"] == ["random/hard toy_net seed 0", "distilled/hard toy_net seed 0"]
    assert trained(make_run, HARD, ("relabel.teachers", ["convnet"])) == planned


@pytest.mark.parametrize(
    ("changes", "networks"),
    [
        ([HARD, *CHOSEN], []),
        ([HARD, ("synthesis.iterations", 0), ("synthesis.initializer", "noise")], []),
        ([HARD, ("synthesis.iterations", 0), ("synthesis.initializer", "herding")], ["toy_net", "toy_net-2"]),
        ([HARD, ("synthesis.initializer", "real")], ["toy_net", "toy_net-2"]),
        (CHOSEN, ["toy_net", "toy_net-2"]),
        ([*CHOSEN, ("relabel.teachers", ["convnet"])], ["convnet"]),
        ([*CHOSEN, ("relabel.teachers", [{"use": "toy_net", "width": 8}])], ["toy_net-2"]),
    ],
)
def test_only_networks_that_are_needed_are_trained(
    make_run: MakeRun, changes: list[tuple[str, object]], networks: list[str]
) -> None:
    assert trained(make_run, *changes)["pretrain"] == networks


def test_a_run_that_needs_no_network_at_all(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [HARD, *CHOSEN, ("evaluation.without_augmentation", True)]
    run = make_run(*changes, store=tmp_path / "store").until("relabel")
    told = capsys.readouterr().err
    assert told.strip() == (
        "relabel: nothing to do (evaluation.soft is false: students see hard labels alone)"
    )
    run.until("evaluation")
    records = json.loads((run.out / "results.json").read_text())["records"]
    assert [(record["set"], record["labels"], record["augmented"]) for record in records] == [
        ("random", "hard", True),
        ("distilled", "hard", True),
        ("distilled", "hard", False),
        ("random", "hard", False),
    ]
    assert all(record["label_bytes"] == 8 * 6 for record in records)
    assert not list(run.out.rglob("labels-*"))
    assert all(not unit.path.exists() for unit in run.plan.backbones)
    (run.out / "recipe.toml").write_text(run.recipe.toml())
    pipeline.after_run(pipeline.report_inputs(run.opened), print)
    assert "distilled" in (run.out / "report.html").read_text(), capsys.readouterr()


def test_the_hard_labels_augmentation_is_the_recipes(make_run: MakeRun) -> None:
    before, after = (keys(make_run(*changes)) for changes in ((), (("evaluation.augmentation", "none"),)))
    assert {stage for stage in before if before[stage] != after[stage]} == {"evaluation"}
    assert len(before["evaluation"] & after["evaluation"]) == 2  # the soft ones
    relabelled = keys(make_run(("relabel.augmentation", "none")))
    assert len(before["evaluation"] & relabelled["evaluation"]) == 1  # the hard one


def test_an_initializer_that_hides_its_networks_is_told_so(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [kind.uses_networks for kind in (Noise, RealImages, FolderImages, Herding)] == [False] * 3 + [True]
    monkeypatch.setattr(Herding, "uses_networks", False)
    run = make_run(HARD, ("synthesis.iterations", 0), ("synthesis.initializer", "herding"))
    with pytest.raises(GvbsmError, match="uses_networks = False"):
        run.until("synthesis")
