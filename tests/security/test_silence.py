"""Wrong results without a word: each is one line now, or is told apart."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import done, invoke, refused
from conftest import MakeRun, Run
from PIL import Image

from gvbsm.distilled.dataset import DistilledDataset
from gvbsm.results.finished import FinishedRun
from gvbsm.results.records import read_records
from gvbsm.results.scores import scores
from gvbsm.results.tables import Table
from gvbsm.stages import training
from gvbsm.sweeps import files
from gvbsm.sweeps.running import Sweep, compare, run, vary
from gvbsm_plugins.pictures.decoding import BrokenPictureError, decode
from gvbsm_plugins.pictures.listing import class_folders
from gvbsm_registry import GvbsmError, Registry


def test_students_of_one_name_and_other_options_are_no_seeds_of_each_other(make_run: MakeRun) -> None:
    students = [{"use": "toy_net", "width": 4}, {"use": "toy_net", "width": 8}]
    made = make_run(("evaluation.students", students), ("evaluation.distilled_hard", True)).until(
        "evaluation"
    )
    records = read_records(made.out)
    assert {record["student"] for record in records} == {"toy_net width=4", "toy_net width=8"}
    assert len(scores(records)) == 2


AXES = """recipe = "digits"
[[vary]]
key = "pretrain.epochs"
values = [3, 4]
[[vary]]
key = "evaluation.epochs"
values = [3, 4]
"""


def loaded(tmp_path: Path, registry: Registry, text: str) -> Sweep:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    sweep = files.load(str(path), registry, None, [], [])
    assert sweep is not None
    return sweep


def test_axes_whose_keys_end_alike_are_told_apart(tmp_path: Path, registry: Registry) -> None:
    points = loaded(tmp_path, registry, AXES).points
    assert {tuple(point.labels) for point in points} == {("pretrain.epochs", "evaluation.epochs")}
    assert len({json.dumps(point.labels) for point in points}) == 4


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: vary("digits", ["synthesis.ipc=1,1"], [], []), "ipc 1: is given twice"),
        (lambda: vary("digits", ["synthesis.ipc=1,1.0,true"], [], []), "is given twice"),
        (lambda: compare("digits", ["real", "real"], [], [], [], []), "is given twice"),
        (lambda: compare("digits", ["real"], [], [1, 1], [], []), "is given twice"),
        (lambda: compare("digits", ["real"], [], [1], [], [0, 0]), "a seed is given twice"),
        (
            lambda: compare("digits", ["real"], [], [1], [("synthesis.ipc", 3)], []),
            "synthesis.ipc: is varied",
        ),
        (lambda: vary("digits", ["seed=1,2"], [], [3]), "seed: is varied"),
        (lambda: vary("digits", ["synthesis.ipc=1,2"], [("seed", 1)], [3]), "seed: is varied"),
        (lambda: vary("digits", ["synthesis.ipc=1", "synthesis.ipc=2"], [], []), "ipc: is varied twice"),
    ],
)
def test_what_contradicts_itself_is_no_sweep(
    make: Callable[[], Sweep], told: str, tmp_path: Path, registry: Registry
) -> None:
    with pytest.raises(GvbsmError, match=told):
        run(make(), tmp_path / "out", registry)
    assert not (tmp_path / "out").exists()


def test_a_coreset_may_be_compared_with_what_takes_steps() -> None:
    sweep = compare("digits", ["real"], ["noise"], [], [("synthesis.iterations", 5)], [])
    assert len(sweep.points) == 2


def test_a_recipe_for_a_sweep_file_is_not_ignored(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(
        invoke("sweep", "digits", "--recipe", "nosuch", "--vary", "synthesis.ipc=1", "--out", out), "--recipe"
    )


@pytest.mark.parametrize(
    "line",
    [
        'seeds = 3\n[[vary]]\nkey = "seed"\nvalues = [1]',
        'set = 3\n[[vary]]\nkey = "seed"\nvalues = [1]',
        'set = [1]\n[[vary]]\nkey = "seed"\nvalues = [1]',
        "vary = 3",
        'vary = ["a"]',
        '[[vary]]\nkey = "seed"\nvalues = 1',
        "[[vary]]\nkey = 1\nvalues = [1]",
        "[[vary]]\nkey = []\nvalues = [1]",
        "[[vary]]\nkey = [1]\nvalues = [1]",
        '[[vary]]\nkey = "seed"\nvalues = [1]\nlabels = 1',
        '[[vary]]\nkey = "seed"\nvalues = [1]\nlabels = [[1]]',
        '[[vary]]\nkey = "seed"\nvalues = [1]\nlabels = [2020-01-01]',
    ],
)
def test_sweep_files_of_another_shape(line: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(line)
    refused(invoke("sweep", path, "--out", tmp_path / "out"), path)


def test_scores_of_two_runs_whose_folders_have_one_name(copied: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "run").mkdir(parents=True)
        shutil.copy(copied.out / "results.json", tmp_path / name / "run")
    shown = done("scores", tmp_path / "a" / "run", tmp_path / "b" / "run").stdout
    assert shown.count("convnet") == 2


def test_results_of_other_images_are_not_told_of_these(make_run: MakeRun) -> None:
    changes = [("synthesis.iterations", 0), ("evaluation.epochs", 1), ("evaluation.soft", False)]
    made = make_run(*changes).until("evaluation")
    (made.out / "recipe.toml").write_text(made.recipe.toml())
    assert len(FinishedRun(made.out).records) == len(made.plan.students)
    other = make_run(*changes, ("seed", 7)).until("synthesis")
    (made.out / "recipe.toml").write_text(other.recipe.toml())
    assert FinishedRun(made.out).records == []
    refused(invoke("scores", made.out), "other images", "gvbsm evaluation")
    other.until("evaluation")
    assert len(FinishedRun(made.out).records) == len(made.plan.students)


@pytest.mark.parametrize("change", [("synthesis.ipc", 1), ("seed", 7)])
def test_a_baseline_of_earlier_options_is_none(change: tuple[str, Any], make_run: MakeRun) -> None:
    changes = [("synthesis.iterations", 0), ("evaluation.soft", False)]
    made = make_run(*changes).until("synthesis")
    (made.out / "recipe.toml").write_text(made.recipe.toml())
    assert FinishedRun(made.out).baseline is not None
    make_run(*changes, change, ("evaluation.random_baseline", False)).until("synthesis")
    assert FinishedRun(made.out).baseline is None
    (made.out / "recipe.toml").write_text(
        make_run(*changes, ("evaluation.random_baseline", False)).recipe.toml()
    )
    assert FinishedRun(made.out).baseline is None


@pytest.mark.parametrize("table", ["pretrain", "evaluation"])
@pytest.mark.parametrize("key", ["learning_rate", "optimizer.weight_decay"])
def test_a_network_that_diverges_is_told(table: str, key: str, make_run: MakeRun) -> None:
    changes = [("synthesis.iterations", 0), (f"{table}.optimizer", {"use": "sgd"}), ("pretrain.epochs", 20)]
    run = make_run(*changes, ("evaluation.epochs", 20), (f"{table}.{key}", 1e12))
    with pytest.raises(GvbsmError, match=rf"has diverged.*lower {table}\.learning_rate"):
        run.until("evaluation")


def test_images_that_are_not_finite_after_the_last_step(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gvbsm_plugins.schedules import Cosine

    run = make_run(("synthesis.iterations", 2))
    monkeypatch.setattr(Cosine, "factor", lambda self, step, steps: math.inf if step == steps - 1 else 1.0)
    run.statistics()
    with pytest.raises(GvbsmError, match=r"inf at step 1|not finite"):
        run.execute(run.plan.image_batches)
    monkeypatch.undo()
    from gvbsm.synthesis.images import LearntImages

    monkeypatch.setattr(LearntImages, "final", lambda self: torch.full((4, 1, 8, 8), math.nan))
    with pytest.raises(GvbsmError, match="the images are not finite"):
        run.execute(run.plan.image_batches)


def test_logits_that_are_not_finite_have_no_accuracy(make_run: MakeRun) -> None:
    run = make_run()
    module = run.context.build(run.recipe.evaluation.students[0])
    for parameter in module.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(training.DivergedError):
        training.test(run.context, module)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pictures_of_32_bits_are_refused_by_name(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    values = np.linspace(0, 1, 64).reshape(8, 8) * (1 if mode == "F" else 2**31 - 1)
    Image.fromarray(values.astype(np.float32 if mode == "F" else np.int32)).save(path)
    for channels in (1, 3):
        with pytest.raises(BrokenPictureError, match=r"a\.tiff.*32 bits a pixel"):
            decode(path.read_bytes(), str(path), 8, channels)


def test_pictures_of_16_bits_are_scaled() -> None:
    import io

    file = io.BytesIO()
    Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)).save(file, "PNG")
    pixels = decode(file.getvalue(), "a.png", 8, 1)
    assert (pixels[0] == (np.arange(64).reshape(8, 8) * 1000) >> 8).all()


def test_class_folders_of_one_name_as_text_are_two_classes_or_none(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    assert list(class_folders(tmp_path)) == ["\\xff"]
    (tmp_path / "\\xff").mkdir()
    with pytest.raises(GvbsmError, match="two class folders"):
        class_folders(tmp_path)


def test_a_link_that_leads_in_a_circle_is_no_class(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    assert list(class_folders(tmp_path)) == ["a"]


def test_loaders_that_live_on_are_told_of_a_new_epoch(make_run: MakeRun) -> None:
    made = make_run(("synthesis.iterations", 0)).until("relabel")
    opened = DistilledDataset(made.out / "distilled", made.context.registry)
    opened.set_epoch(0)
    loader = torch.utils.data.DataLoader(opened, batch_size=4, num_workers=1, persistent_workers=True)
    first = [views for views, *_ in loader]
    opened.set_epoch(1)
    second = [views for views, *_ in loader]
    assert not all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("text", ["[/bold]", "[red]x", ":cat:", "[link=file:///etc/passwd]x[/link]"])
def test_texts_of_recipes_are_no_markup_on_the_terminal(text: str) -> None:
    shown = Table(text, [text], [[text]]).text()
    assert shown.count(text) == 3
