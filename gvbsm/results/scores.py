"""DD-Ranking's scores, computed from the records of results.json; and those records as CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

COLUMNS = ["set", "labels", "augmented", "ipc", "student", "seed", "top1", "best_top1", "epochs"]
COLUMNS += ["image_bytes", "label_bytes"]
WEIGHT = GAMMA = 0.5

Record = Mapping[str, Any]
_NEEDS = {
    "distilled hard": "evaluation.distilled_hard",
    "distilled hard plain": "evaluation.without_augmentation",
    "random hard plain": "evaluation.without_augmentation",
    "random hard": "evaluation.random_baseline",
    "random soft": "evaluation.random_baseline",
    "full hard": "evaluation.full_baseline",
}


@dataclass(frozen=True)
class Scores:
    """The scores of one student at one number of images per class, one value for each seed.

    hlr: hard label recovery, Acc(real, hard) - Acc(distilled, hard).
    ior: improvement over random, Acc(distilled, soft) - Acc(random, soft): the set's own labels in both.
    lrs: label-robust score; ars: augmentation-robust score; both from 0 to 1, accuracies being fractions.
    missing: keys of the recipe to set to true, for trainings that these scores lack.
    """

    student: str
    ipc: int
    hlr: tuple[float, ...]
    ior: tuple[float, ...]
    lrs: tuple[float, ...]
    ars: tuple[float, ...]
    missing: tuple[str, ...]


def robust(margin: float) -> float:
    """Return (e^margin - e⁻¹) / (e - e⁻¹): -1 becomes 0, and 1 becomes 1."""
    return (math.exp(margin) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust(hlr: float, ior: float, weight: float = WEIGHT) -> float:
    """Return LRS: `robust` of α = w·IOR - (1 - w)·HLR. All accuracies are fractions."""
    return robust(weight * ior - (1 - weight) * hlr)


def augmentation_robust(augmented: float, plain: float, gamma: float = GAMMA) -> float:
    """Return ARS: `robust` of β = γ·augmented + (1 - γ)·plain.

    augmented, plain: the distilled set's accuracy less that of as many random images, students having been
    trained with and without augmentation.
    """
    return robust(gamma * augmented + (1 - gamma) * plain)


def scores(records: Iterable[Record]) -> list[Scores]:
    """Return the scores by student and images per class.

    A seed counts for a score where all trainings that the score compares were made with it. LRS compares the
    set's own (soft) labels and hard ones; all four trainings of ARS have hard labels, so that nothing but the
    augmentation differs.
    """
    found: dict[tuple[str, int], dict[str, dict[Any, float]]] = {}
    full: dict[str, dict[Any, float]] = {}
    for record in records:
        if record["set"] == "full":
            full.setdefault(record["student"], {})[record["seed"]] = record["top1"]
            continue
        name = f"{record['set']} {record['labels']}{'' if record.get('augmented', True) else ' plain'}"
        cells = found.setdefault((record["student"], record["ipc"]), {})
        cells.setdefault(name, {})[record["seed"]] = record["top1"]
    return [
        _scores(student, ipc, {**cells, "full hard": full.get(student, {})})
        for (student, ipc), cells in sorted(found.items())
    ]


def _scores(student: str, ipc: int, cells: dict[str, dict[Any, float]]) -> Scores:
    def together(*names: str) -> list[tuple[float, ...]]:
        columns = [cells.get(name, {}) for name in names]
        seeds = sorted(set(columns[0]).intersection(*columns[1:]))
        return [tuple(column[seed] for column in columns) for seed in seeds]

    hlr = [real - hard for real, hard in together("full hard", "distilled hard")]
    ior = [soft - chance for soft, chance in together("distilled soft", "random soft")]
    lrs = [
        label_robust(real - hard, soft - chance)
        for real, hard, soft, chance in together(
            "full hard", "distilled hard", "distilled soft", "random soft"
        )
    ]
    ars = [
        augmentation_robust(one - other, plain_one - plain_other)
        for one, other, plain_one, plain_other in together(
            "distilled hard", "random hard", "distilled hard plain", "random hard plain"
        )
    ]
    missing = tuple(dict.fromkeys(key for name, key in _NEEDS.items() if not cells.get(name)))
    return Scores(student, ipc, tuple(hlr), tuple(ior), tuple(lrs), tuple(ars), missing)


def spread(values: Iterable[float], factor: float = 1, digits: int = 3) -> str:
    """Return "mean ± deviation" of values times `factor`; "–" if there is none."""
    scaled = [factor * value for value in values]
    if not scaled:
        return "–"
    mean = f"{statistics.fmean(scaled):.{digits}f}"
    return f"{mean} ± {statistics.stdev(scaled):.{digits}f}" if len(scaled) > 1 else mean


def csv_text(records: Iterable[Record]) -> str:
    """Return records as CSV, one a row, numbers in full; empty where a record has no value."""
    rows = [dict(record) for record in records]
    extra = sorted(
        {key for row in rows for key, value in row.items() if isinstance(value, str | int | float)}
    )
    names = [*COLUMNS, *(key for key in extra if key not in COLUMNS)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
