"""Scores, per-class accuracies and confusion, against computations of their own."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from sklearn.metrics import recall_score

from gvbsm.results.records import csv_text, mean_text
from gvbsm.results.scores import augmentation_robust, label_robust, robust, scores
from gvbsm.results.tables import score_table
from gvbsm.stages.evaluate import confusion

fractions = some.floats(0, 1)


def record(which: str, labels: str, seed: int, top1: float, augmented: bool = True) -> dict[str, Any]:
    return {
        "set": which,
        "labels": labels,
        "augmented": augmented,
        "ipc": None if which == "full" else 10,
        "student": "convnet",
        "student_options": {"use": "convnet"},
        "seed": seed,
        "top1": top1,
        "best_top1": top1,
        "epochs": 5,
        "image_bytes": 100,
        "label_bytes": 80,
        "protocol": {"not": "in the CSV"},
        "per_class": [1.0, None],
    }


def all_records(seeds: int = 2) -> list[dict[str, Any]]:
    values = torch.rand(seeds, 7, generator=torch.Generator().manual_seed(1)).tolist()
    found = []
    for seed, (real, hard, soft, chance, chance_hard, plain, chance_plain) in enumerate(values):
        found += [
            record("full", "hard", seed, real),
            record("distilled", "hard", seed, hard),
            record("distilled", "soft", seed, soft),
            record("random", "soft", seed, chance),
            record("random", "hard", seed, chance_hard),
            record("distilled", "hard", seed, plain, augmented=False),
            record("random", "hard", seed, chance_plain, augmented=False),
        ]
    return found


def by_hand(table: str) -> tuple[list[float], list[float]]:
    """LRS and ARS by seed, written out from the definitions, from the CSV alone."""
    rows = list(csv.DictReader(io.StringIO(table)))

    def acc(which: str, labels: str, seed: str, augmented: str = "True") -> float:
        (row,) = [
            r
            for r in rows
            if (r["set"], r["labels"], r["seed"], r["augmented"]) == (which, labels, seed, augmented)
        ]
        return float(row["top1"])

    lrs, ars = [], []
    for seed in sorted({row["seed"] for row in rows}):
        hlr = acc("full", "hard", seed) - acc("distilled", "hard", seed)
        ior = acc("distilled", "soft", seed) - acc("random", "soft", seed)
        alpha = 0.5 * ior - 0.5 * hlr
        lrs.append((math.e**alpha - 1 / math.e) / (math.e - 1 / math.e))
        beta = 0.5 * (acc("distilled", "hard", seed) - acc("random", "hard", seed))
        beta += 0.5 * (acc("distilled", "hard", seed, "False") - acc("random", "hard", seed, "False"))
        ars.append((math.e**beta - 1 / math.e) / (math.e - 1 / math.e))
    return lrs, ars


def test_scores_equal_a_computation_by_hand_from_the_csv() -> None:
    records = all_records(3)
    (found,) = scores(records)
    lrs, ars = by_hand(csv_text(records))
    assert found.lrs == pytest.approx(lrs, abs=1e-12)
    assert found.ars == pytest.approx(ars, abs=1e-12)
    assert not found.missing
    assert mean_text(found.lrs, 1, 3) in score_table({"a run": records}).text()


@settings(deadline=None)
@given(fractions, fractions, fractions, fractions)
def test_scores_lie_between_0_and_1(a: float, b: float, c: float, d: float) -> None:
    for value in (label_robust(a - b, c - d), augmentation_robust(a - b, c - d)):
        assert -1e-12 <= value <= 1 + 1e-12


def test_scores_at_their_ends() -> None:
    assert robust(-1) == pytest.approx(0)
    assert robust(1) == pytest.approx(1)
    assert label_robust(hlr=0, ior=0) == pytest.approx((1 - 1 / math.e) / (math.e - 1 / math.e))


def test_what_a_score_lacks_is_named_by_its_key() -> None:
    records = [r for r in all_records() if r["set"] != "full" and r["augmented"]]
    (found,) = scores(records)
    assert found.lrs == found.ars == found.hlr == ()
    assert len(found.ior) == 2
    assert found.missing == ("evaluation.without_augmentation", "evaluation.full_baseline")
    assert mean_text(found.lrs) == "–"


def test_a_set_with_hard_labels_alone_is_scored_by_these() -> None:
    records = [
        record("distilled", "hard", 0, 0.5),
        record("random", "hard", 0, 0.4),
        record("full", "hard", 0, 0.9),
    ]
    (found,) = scores(records)
    assert found.ior == (pytest.approx(0.1),)
    assert found.lrs == (pytest.approx(label_robust(0.4, 0.1)),)
    assert found.missing == ("evaluation.without_augmentation",)


def test_only_seeds_that_have_everything_count() -> None:
    records = [r for r in all_records(3) if not (r["set"] == "full" and r["seed"] == 1)]
    (found,) = scores(records)
    lrs, _ = by_hand(csv_text(all_records(3)))
    assert found.lrs == pytest.approx([lrs[0], lrs[2]])
    assert len(found.ars) == 3


def test_csv_holds_every_plain_field_in_full() -> None:
    records = [{**record("random", "hard", 0, 1 / 3), "codec": "fp16", "odd": 'a,"b"\nc'}]
    (row,) = csv.DictReader(io.StringIO(csv_text(records)))
    assert float(row["top1"]) == 1 / 3
    assert row["codec"] == "fp16"
    assert row["odd"] == 'a,"b"\nc'
    assert not {"protocol", "per_class"} & row.keys()


@settings(deadline=None)
@given(some.lists(some.tuples(some.integers(0, 4), some.integers(0, 4)), min_size=1))
def test_confusion_and_accuracy_by_class_count_the_pairs(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = torch.tensor(pairs).unbind(1)
    cells, per_class = confusion(predicted, labels, 5)
    assert {(true, guess): count for true, guess, count in cells.tolist()} == Counter(pairs)
    wanted = recall_score(labels, predicted, labels=range(5), average=None, zero_division=0)
    for label, value in enumerate(per_class):
        if label in labels:
            assert value == pytest.approx(wanted[label])
        else:
            assert value is None


def test_a_run_stores_them(make_run: Any) -> None:
    options = [
        ("evaluation.distilled_hard", True),
        ("evaluation.without_augmentation", True),
        ("evaluation.full_baseline", True),
    ]
    run = make_run(*options).until("evaluation")
    text = (run.out / "results.json").read_text()
    records = json.loads(text)["records"]
    assert len(records) == 7
    assert [r["augmented"] for r in records].count(False) == 2
    for one in records:
        assert fmean(one["per_class"]) == pytest.approx(one["top1"])  # as many tests of each class
    assert (run.out / "results.csv").read_text() == csv_text(records)
    (found,) = scores(records)
    lrs, ars = by_hand(csv_text(records))
    assert found.lrs == pytest.approx(lrs)
    assert found.ars == pytest.approx(ars)


def test_without_the_random_baseline(make_run: Any) -> None:
    run = make_run(("evaluation.random_baseline", False)).until("evaluation")
    records = json.loads((run.out / "results.json").read_text())["records"]
    assert [(r["set"], r["labels"]) for r in records] == [("distilled", "soft")]
    assert not (run.out / "baselines").exists()
