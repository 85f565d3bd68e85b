"""The commands about results, on runs of the command line's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cli_helpers
import pytest
import torch

from gvbsm import DistilledDataset

pytestmark = pytest.mark.usefixtures("one_thread")


def options(run: Any) -> list[Any]:
    return ["--store", run.store]


def test_report_and_scores(copied: Any) -> None:
    (copied.out / "results.csv").unlink()
    cli_helpers.done("report", copied.out, *options(copied))
    assert (copied.out / "report.html").read_text().startswith("<!doctype html>")
    before = cli_helpers.contents(copied.out)
    shown = cli_helpers.done("scores", copied.out).stdout
    assert "evaluation.full_baseline" in shown
    assert cli_helpers.contents(copied.out) == before
    cli_helpers.done("evaluation", copied.out, *options(copied))
    assert (copied.out / "results.csv").read_text().startswith("set,labels,augmented,ipc,student,seed,top1")


def test_malformed_results_are_one_line(copied: Any) -> None:
    path = copied.out / "results.json"
    for text in ("{", '{"schema": 2, "records": [{"set": "distilled"}]}'):
        path.write_text(text)
        for command in (["report", copied.out, *options(copied)], ["scores", copied.out]):
            result = cli_helpers.invoke(*command)
            assert result.exit_code == 2, result.output
            (line,) = result.stderr.splitlines()
            assert str(path) in line


def test_several_reports_side_by_side(finished: Any, tmp_path: Path) -> None:
    path = tmp_path / "both.html"
    cli_helpers.done("report", finished.out, finished.out, "--to", path, *options(finished))
    assert "2 condensed sets side by side" in path.read_text()


def test_export_then_import_relabels_and_evaluates_the_same_images(
    finished: Any, tiny: Path, tmp_path: Path, store: Path
) -> None:
    cli_helpers.done("export", finished.out, tmp_path / "set", "--to", "imagefolder")
    made = tmp_path / "imported"
    shown = cli_helpers.done(
        "import", tmp_path / "set", "--recipe", tiny, "--out", made, "--store", store, "--device", "cpu"
    ).stdout
    assert "distilled" in shown
    ours, theirs = DistilledDataset(finished.out / "distilled"), DistilledDataset(made / "distilled")
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.labels, theirs.labels)
    assert ours.classes == theirs.classes
    assert theirs.epochs == ours.epochs
    # it stays a run folder when the pictures are gone
    shutil.rmtree(tmp_path / "set")
    cli_helpers.done("evaluation", made, "--store", store, "--device", "cpu")


def test_a_format_with_options(finished: Any, tmp_path: Path) -> None:
    cli_helpers.done("export", finished.out, tmp_path / "dd", "--to", "dd_ranking:method=Mine")
    assert (tmp_path / "dd" / "Mine" / "digits" / "IPC2.yaml").is_file()


def test_wrong_uses_say_what_to_do(finished: Any, tmp_path: Path) -> None:
    for arguments, words in (
        (["export", finished.out, tmp_path / "x", "--to", "imagefolders"], "did you mean 'imagefolder'"),
        (["export", finished.out, finished.store, "--to", "imagefolder"], "exists"),
        (["export", tmp_path, tmp_path / "x", "--to", "imagefolder"], "holds no distilled set"),
        (["import", tmp_path / "none", "--out", tmp_path / "o"], "no such folder"),
        (["report", tmp_path], "is not a run folder"),
        (["scores", tmp_path], "no results yet"),
        (["sweep", "digits"], "--vary"),
        (["sweep", "momentum", "--vary", "synthesis.ipc=1"], "--vary"),
        (["sweep", "digits", "--vary", "synthesis.ipc"], "KEY=VALUE"),
        (["sweep", "digits", "--vary", "synthesis.ipcs=1"], "gvbsm: synthesis.ipcs=1: unknown option 'ipcs'"),
        (["compare", "digits"], "--initializer"),
        (["compare", "digits", "--initializer", "herding:count"], "NAME:key=value"),
        (["compare", "digits", "--distilled", "noise", "--set", "seed"], "--set seed: is not KEY=VALUE"),
        (["sweep", "digits", "--vary", "seed=1", "--set", "seed"], "--set seed: is not KEY=VALUE"),
    ):
        result = cli_helpers.invoke(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert words in result.stderr, (arguments, result.stderr)


def test_sweep_and_compare(tiny: Path, tmp_path: Path, store: Path) -> None:
    where = ["--store", store, "--device", "cpu", "--set", "relabel.epochs=2", "--set", "evaluation.epochs=2"]
    out = tmp_path / "sweep"
    vary = ["--vary", "synthesis.iterations=0,2"]
    shown = cli_helpers.done("sweep", tiny, *vary, "--out", out, *where).stdout
    assert "iterations" in shown
    assert {"results.json", "results.csv", "table.txt", "plot.svg", "plot.png"} <= {
        path.name for path in out.iterdir()
    }
    coresets = ["--initializer", "real", "--initializer", "herding"]
    out = tmp_path / "compare"
    shown = cli_helpers.done("compare", tiny, *coresets, "--ipc", "1", "--out", out, *where).stdout
    assert "herding (coreset)" in shown


def test_compare_takes_initializers_with_options(
    finished: Any, tiny: Path, tmp_path: Path, store: Path
) -> None:
    cli_helpers.done("export", finished.out, tmp_path / "set", "--to", "imagefolder")
    short = ["--set", "synthesis.iterations=0", "--set", "relabel.epochs=2", "--set", "evaluation.epochs=1"]
    out, name = tmp_path / "compare", f"folder:root={tmp_path / 'set'}"
    where = ["--store", store, "--device", "cpu", *short, "--out", out]
    cli_helpers.done("compare", tiny, "--initializer", name, "--distilled", name, *where)
    for run in (path for path in out.iterdir() if path.is_dir()):
        ours, theirs = DistilledDataset(finished.out / "distilled"), DistilledDataset(run / "distilled")
        assert torch.equal(ours.images, theirs.images)
    records = json.loads((out / "results.json").read_text())["records"]
    assert {record["point"]["images"] for record in records} == {
        f"{name} (coreset)",
        f"distilled from {name}",
    }


def test_estimate_takes_the_store_that_a_run_takes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = []

    def estimate(recipe: Any, registry: Any, device: Any, steps: int, cache: Path) -> Any:
        caches.append(cache)
        return {}

    monkeypatch.setattr("gvbsm.estimate.cost.estimate", estimate)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for store in ("s3://bucket/store", tmp_path / "store"):
        cli_helpers.done("estimate", tiny, "--store", store, "--json")
    assert caches[0].is_relative_to(tmp_path / "cache")
    assert caches[1] == tmp_path / "store"
