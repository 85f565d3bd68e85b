"""Records: written and read by one way each, students of one name kept apart, means once."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from gvbsm.results.card import card
from gvbsm.results.finished import FinishedRun
from gvbsm.results.records import (
    grouped,
    labels_of,
    mean_and_deviation,
    mean_text,
    read_records,
    student_names,
    with_protocol,
    write_records,
)
from gvbsm.results.scores import scores
from gvbsm.results.tables import Table, accuracy_table
from gvbsm_registry import GvbsmError


def record(top1: float = 0.5, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "set": "distilled",
        "labels": "soft",
        "augmented": True,
        "ipc": 10,
        "student": "convnet",
        "student_options": {"use": "convnet", "width": 4, "depth": 3},
        "seed": seed,
        "top1": top1,
        "best_top1": top1,
        "epochs": 5,
        "image_bytes": 2048,
        "label_bytes": 80,
        **more,
    }


WIDE = {"use": "convnet", "width": 64, "depth": 3}


def test_students_are_named_by_what_tells_them_apart() -> None:
    narrow, other = {"use": "convnet", "width": 4, "depth": 3}, {"use": "wrn_16_2"}
    assert student_names([narrow, other]) == ["convnet", "wrn_16_2"]
    assert student_names([narrow, WIDE, other]) == ["convnet width=4", "convnet width=64", "wrn_16_2"]
    assert student_names([narrow, {**WIDE, "depth": 2}]) == [
        "convnet width=4 depth=3",
        "convnet width=64 depth=2",
    ]
    assert student_names([other, {**other, "norm": "batch"}]) == ["wrn_16_2", "wrn_16_2 norm=batch"]
    assert student_names([narrow, narrow]) == ["convnet", "convnet"]


def test_students_of_one_name_are_written_and_grouped_apart(tmp_path: Path) -> None:
    given = [record(0.1 + 0.1 * s, s) for s in (0, 1)]
    given += [record(0.7 + 0.1 * s, s, student_options=WIDE) for s in (0, 1)]
    written = write_records(tmp_path, given)
    assert read_records(tmp_path) == written
    assert [r["student"] for r in written] == ["convnet width=4"] * 2 + ["convnet width=64"] * 2
    assert [r["student_options"] for r in written] == [r["student_options"] for r in given]
    assert [(rows[0]["student"], len(rows)) for rows in grouped(written)] == [
        ("convnet width=64", 2),
        ("convnet width=4", 2),
    ]
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["student"] for row in rows] == [r["student"] for r in written]
    assert {score.student for score in scores(written)} == {"convnet width=4", "convnet width=64"}
    # by options alone, too
    assert len(grouped(given)) == 2


def test_two_widths_of_a_student_in_a_run(make_run: Any) -> None:
    students = [{"use": "toy_net", "width": 4}, {"use": "toy_net", "width": 8}]
    changes = [("evaluation.students", students), ("evaluation.seeds", [0, 1])]
    run = make_run(*changes, ("evaluation.random_baseline", False)).until("evaluation")
    records = read_records(run.out)
    assert [(r["student"], r["student_options"]["width"], r["seed"]) for r in records] == [
        (f"toy_net width={width}", width, seed) for width in (4, 8) for seed in (0, 1)
    ]
    rows = accuracy_table(records).rows
    assert sorted((row[3], row[6]) for row in rows) == [("toy_net width=4", "2"), ("toy_net width=8", "2")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "\x00",
        "[" * 100_000,
        '{"schema": 2}',
        '{"schema": 2, "records": 3}',
        '{"schema": 2, "records": [3]}',
        '{"schema": 2, "records": [{"set": "distilled"}]}',
        json.dumps({"schema": 2, "records": [record(top1="much")]}),
        json.dumps({"schema": 1, "records": [record()]}),
        json.dumps({"records": [record()]}),
    ],
)
def test_results_that_are_none_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(GvbsmError) as caught:
        read_records(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'results.json'}: ")
    assert message.endswith(f"run 'gvbsm evaluation {tmp_path}'")


def test_no_results_and_a_folder_in_their_place(tmp_path: Path) -> None:
    with pytest.raises(GvbsmError, match="no results yet"):
        read_records(tmp_path)
    (tmp_path / "results.json").mkdir()
    with pytest.raises(GvbsmError, match=r"results\.json: can't be read"):
        read_records(tmp_path)


def test_mean_and_deviation() -> None:
    values = [0.12, 0.5, 0.31]
    assert mean_and_deviation(values) == pytest.approx((statistics.mean(values), statistics.stdev(values)))
    assert mean_and_deviation(iter([0.5])) == (0.5, 0.0)
    assert mean_text(values) == "31.0 ± 19.0"
    assert mean_text([0.5]) == "50.0"
    assert mean_text([0.25, 0.75], 1, 3) == "0.500 ± 0.354"
    assert mean_text([]) == "–"


def test_a_student_without_augmentation_says_so() -> None:
    assert labels_of({"labels": "hard", "augmented": False}) == "hard, without augmentation"
    assert labels_of({"labels": "hard", "augmented": True}) == "hard"


def test_one_table_is_text_markdown_and_a_sweeps() -> None:
    records = [record(0.2), record(0.4, 1), record(0.9, labels="hard", augmented=False)]
    table = accuracy_table(records)
    assert table.rows[0][:6] == ["distilled", "hard, without augmentation", "10", "convnet", "90.0", "90.0"]
    assert table.rows[1][4:] == ["30.0 ± 14.1", "30.0 ± 14.1", "2", "2.0 KiB", "80 B"]
    lines = table.markdown().splitlines()
    assert len(lines) == 2 + 2
    assert lines[2].startswith("| distilled | hard, without augmentation | 10 | convnet | 90.0 |")
    assert "30.0 ± 14.1" in table.text()
    swept = accuracy_table(
        [{**one, "point": {"β": beta}} for beta, one in zip((2, 2, 1), records, strict=True)]
    )
    assert swept.header[:2] == ["β", "set"]
    assert [row[0] for row in swept.rows] == ["2", "1"]  # in the order of points, not of accuracy


def test_markup_stays_text_in_markdown() -> None:
    text = Table("", ["a"], [["<b>|`x`\n[y](z)"]]).markdown()
    assert text.splitlines()[2] == r"| &lt;b&gt;\|\`x\` \[y\](z) |"


def test_published_figures_stand_below_ours_and_the_title_names_the_protocol() -> None:
    row = {"data": "toy", "ipc": 10, "student": "ConvNet", "top1": 46.54, "source": "Table 7"}
    table = accuracy_table([with_protocol(record(0.2), "rd3, changed")], published=[row])
    assert table.title == "Top-1 on the real test split, protocol: rd3, changed"
    assert table.rows[-1] == ["published", "Table 7", "10", "ConvNet", "46.5", "", "", "", ""]
    assert len({len(row) for row in (table.header, *table.rows)}) == 1
    assert with_protocol(record(), "")["protocol_name"] == "own"
    assert with_protocol(record(set="full"), "rd3")["protocol_name"] == "pretrain"
    assert accuracy_table([record()]).title == "Top-1 on the real test split"


def test_a_run_says_by_which_protocol_and_what_others_published(make_run: Any) -> None:
    row = {"data": "toy_data", "ipc": 2, "student": "toy", "top1": 12.5, "source": "a paper"}
    other = {**row, "ipc": 3, "top1": 99.0}
    run = make_run(("protocol", "rd3"), ("published", [row, other])).until("evaluation")
    assert {r["protocol_name"] for r in read_records(run.out)} == {"rd3"}
    assert "protocol_name" in (run.out / "results.csv").read_text().splitlines()[0]
    (run.out / "recipe.toml").write_text(run.recipe.toml())
    text = card(FinishedRun(run.out), "pass")
    assert "| published | a paper | 2 | toy | 12.5 |" in text
    assert "99.0" not in text
    assert "| protocol | rd3 |" in text
