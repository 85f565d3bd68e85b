"""Run folders of strangers, and folders that are none: nothing is written outside, no file is lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import contents, done, invoke, product, refused
from conftest import MakeRun, Run

from gvbsm import pipeline
from gvbsm.recipe import loading
from gvbsm.report.gather import gather
from gvbsm.runtime import log
from gvbsm.runtime.folders import check_folder, check_sweep_folder, claim, is_claimed
from gvbsm_registry import GvbsmError, Registry
from gvbsm_registry.artifacts import peek, read, write_new_text


@pytest.mark.parametrize(
    "name",
    ["../../evil", "/tmp/evil", "a/b", "..", "", "\0", "a" * 200, "\x1b[31mred", "~root", "a\\b"],
)
def test_a_recipe_can_not_choose_where_its_run_goes(name: str, registry: Registry) -> None:
    with pytest.raises(GvbsmError, match="can't be the name of a folder") as error:
        loading.make({"name": name}, registry, where="theirs.toml")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["digits", "cifar10-rd3", "мой рецепт 2", "v1.0_final", "méthode+x"])
def test_names_that_are_no_paths_are_taken(name: str, registry: Registry) -> None:
    assert loading.make({"name": name}, registry, where="x").name == name


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_log_that_is_no_file_is_not_written_or_waited_for(kind: str, tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "out" / "log.jsonl"
    victim.write_text("mine")
    path.parent.mkdir()
    match kind:
        case "link":
            path.symlink_to(victim)
        case "pipe":
            os.mkfifo(path)
        case _:
            path.mkdir()
    with pytest.raises(GvbsmError, match=r"log\.jsonl: can't be written"):
        log.append(path, {"event": "step"})
    with pytest.raises(GvbsmError, match=r"log\.jsonl: can't be read"):
        list(log.events(path))
    assert victim.read_text() == "mine"


def test_lines_of_a_log_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    good = {"event": "stage_finished", "stage": "measure", "seconds": 1.0, "summaries": {"a": {}}}
    lines = ["{", "3", '{"event": 3}', '{"event":"stage_finished"}', '{"event":"step","stage":"synthesis"}']
    lines += ["[" * 100_000, '{"event":"step","stage":"synthesis","unit":"x","step":0,"values":3}']
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join([*lines, json.dumps(good), '{"event":"component_failed"}']))
    assert [event["event"] for event in log.events(path)] == ["stage_finished", "component_failed"]


def test_a_pipe_in_place_of_an_artifact_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    os.mkfifo(path)
    for call in (peek, read):
        with pytest.raises(GvbsmError, match="no regular file"):
            call(path)


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_folder_with_files_of_the_users_is_no_run_folder(command: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my project")
    (tmp_path / "table.txt").write_text("my table")
    before = contents(tmp_path)
    more = ["--initializer", "real"] if command == "compare" else []
    refused(invoke(command, "digits", *more, "--out", tmp_path), "--out", "README.md", "overwritten")
    assert contents(tmp_path) == before


def test_no_name_of_a_folder_is_not_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("my project")
    refused(invoke("run", "digits", "--out", ""), "--out", "README.md")


def test_a_folder_of_a_run_that_had_just_begun_is_taken(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "log.jsonl").write_text("")
    (tmp_path / ".recipe.toml.123-0123abcd-0123abcd.tmp").write_text("")
    recipe = loading.load("digits", registry)
    claim(tmp_path, recipe, registry)
    claim(tmp_path, recipe, registry)
    assert loading.load(tmp_path / "recipe.toml", registry) == recipe


def test_a_sweep_goes_on_in_its_own_folder_alone(tmp_path: Path) -> None:
    files = ("table.txt",)
    check_sweep_folder(tmp_path / "none", files)
    check_sweep_folder(tmp_path, files)
    (tmp_path / "ipc-1").mkdir()
    check_sweep_folder(tmp_path, files)
    (tmp_path / "ipc-1" / "recipe.toml").write_text("")
    (tmp_path / "table.txt").write_text("")
    check_sweep_folder(tmp_path, files)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.c").write_text("")
    with pytest.raises(GvbsmError, match="src"):
        check_sweep_folder(tmp_path, files)


def test_of_two_runs_at_once_one_claims_the_folder(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked, and seen a free folder, before either wrote."""
    first = loading.load("digits", registry)
    second = loading.load("digits", registry, [("seed", 7)])
    claim(tmp_path, first, registry)
    looks = iter([lambda *args: False, is_claimed])
    monkeypatch.setattr("gvbsm.runtime.folders.is_claimed", lambda *args: next(looks)(*args))
    with pytest.raises(GvbsmError, match=r"another recipe.*seed"):
        claim(tmp_path, second, registry)
    assert loading.load(tmp_path / "recipe.toml", registry) == first


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_made_once(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: object) -> None:
        raise OSError("not here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "below" / "recipe.toml"
    assert write_new_text(path, "first")
    assert not write_new_text(path, "second")
    assert path.read_text() == "first"
    assert [each.name for each in path.parent.iterdir()] == ["recipe.toml"]


def test_a_store_that_can_not_be_written_is_told_before_anything_is_trained(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gvbsm.runtime.folders.tempfile.TemporaryFile", locked)
    out, store = tmp_path / "out", tmp_path / "store"
    refused(invoke("run", tiny, "--out", out, "--store", store), "--store", store, "Permission denied")
    assert not (store / "backbones").exists()
    assert not (out / "recipe.toml").exists()


def test_a_finished_store_need_not_be_written(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    monkeypatch.setattr(pipeline, "check_writable", lambda folder, flag: checked.append(flag))
    done("evaluation", copied.out, "--store", copied.store)
    assert checked == []


def test_other_files_beside_the_labels_stay(tiny: Path, copied: Run, finished: Run) -> None:
    """And what was labelled before is kept until there is something in its place."""
    backup = copied.out / "distilled" / "labels-backup.safetensors"
    shutil.copy(copied.out / "distilled" / "labels-00000.safetensors", backup)
    done("run", tiny, "--out", copied.out, "--store", copied.store)
    assert backup.exists()
    backup.unlink()
    assert product(copied.out) == product(finished.out)


def test_stale_labels_go_when_new_ones_are_made(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run().until("relabel")
    labels = [block.path for block in run.plan.labels["distilled"]]
    assert all(path.exists() for path in labels)
    other = make_run(("relabel.epochs", 2), ("relabel.cutmix", 0.5))

    def fails(*args: Any) -> None:
        raise GvbsmError("no")

    with monkeypatch.context() as patched:
        patched.setattr("gvbsm.stages.relabel.label", fails)
        with pytest.raises(GvbsmError, match="no"):
            other.until("relabel")
    assert all(path.exists() for path in labels)
    other.until("relabel")
    assert [path.exists() for path in labels] == [True, False]


def test_another_runs_images_are_not_evaluated_as_ones_own(make_run: MakeRun) -> None:
    changes = [("evaluation.soft", False), ("synthesis.iterations", 0)]
    mine = make_run(*changes).until("synthesis")
    theirs = make_run(*changes, ("seed", 7), out="theirs").until("synthesis")
    for name in ("distilled", "random"):
        shutil.copy(theirs.plan.sets[name].path, mine.plan.sets[name].path)
    with pytest.raises(GvbsmError, match="other images or labels than this run made"):
        mine.execute(mine.plan.students)
    shutil.copy(theirs.plan.sets["distilled"].path, mine.plan.sets["distilled"].path)
    soft = make_run(("synthesis.iterations", 0)).until("synthesis")
    shutil.copy(theirs.plan.sets["distilled"].path, soft.plan.sets["distilled"].path)
    with pytest.raises(GvbsmError, match="made with other options or inputs"):
        soft.execute(soft.plan.labels["distilled"])


def test_folders_that_can_not_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for given in ("~nosuchuser/x", "a" * 300, "a\0b", os.fsdecode(b"\xff")):
        with pytest.raises(GvbsmError, match=r"--out .*give another --out") as error:
            check_folder(given, "--out")
        assert str(error.value).isprintable()


def test_a_log_with_other_lines_makes_a_report(make_run: MakeRun) -> None:
    run = make_run(("synthesis.iterations", 1)).until("synthesis")
    (run.out / "recipe.toml").write_text(run.recipe.toml())
    with (run.out / "log.jsonl").open("a") as file:
        file.write('{"event":"stage_finished"}\n{"event":"step","stage":"synthesis"}\n')
    gather(pipeline.report_inputs(run.opened))


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_path": "x"},
        {"pretrained_cfg_overlay": {"file": "x"}},
        {"cache_dir": "x"},
        {"pretrained": True},
    ],
)
@pytest.mark.parametrize("use", ["timm/test_resnet", "torchvision/resnet18"])
def test_options_of_a_network_read_no_files(use: str, options: dict[str, Any], registry: Registry) -> None:
    with pytest.raises(GvbsmError, match="where weights come from"):
        loading.make({"backbones": [{"use": use, "options": options}]}, registry, where="x")


@pytest.mark.parametrize("name", ["distilled", "units/evaluation", "baselines/random"])
def test_folders_of_a_run_that_lead_elsewhere_are_not_written_to(
    name: str, tiny: Path, copied: Run, tmp_path: Path
) -> None:
    place, elsewhere = copied.out / name, tmp_path / "elsewhere"
    shutil.rmtree(place)
    elsewhere.mkdir()
    place.symlink_to(elsewhere)
    for command in (["run", tiny, "--out", copied.out], ["evaluation", copied.out]):
        refused(invoke(*command, "--store", copied.store), place, "is a link")
    assert not list(elsewhere.iterdir())
