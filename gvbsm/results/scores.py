"""DD-Ranking's scores (arXiv 2505.13300), computed from the records of results.json."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gvbsm.results.records import Record, labels_of

WEIGHT = GAMMA = 0.5
_NEEDS = {
    "distilled hard": "evaluation.distilled_hard",
    "distilled hard, without augmentation": "evaluation.without_augmentation",
    "random hard, without augmentation": "evaluation.without_augmentation",
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


def augmentation_robust(augmented: float, not_augmented: float, gamma: float = GAMMA) -> float:
    """Return ARS: `robust` of β = γ·augmented + (1 - γ)·not_augmented.

    augmented, not_augmented: the distilled set's accuracy less that of as many random images, students having
    been trained with and without augmentation.
    """
    return robust(gamma * augmented + (1 - gamma) * not_augmented)


def scores(records: Iterable[Record]) -> list[Scores]:
    """Return the scores by student and images per class.

    A seed counts for a score where all trainings that the score compares were made with it. LRS compares the
    set's own labels (soft, unless it has hard ones alone) and hard ones; all four trainings of ARS have hard
    labels, so that nothing but the augmentation differs.
    """
    trainings: dict[tuple[str, int], dict[str, dict[Any, float]]] = {}
    full: dict[str, dict[Any, float]] = {}
    for record in records:
        if record["set"] == "full":
            full.setdefault(record["student"], {})[record["seed"]] = record["top1"]
            continue
        by_training = trainings.setdefault((record["student"], record["ipc"]), {})
        by_seed = by_training.setdefault(f"{record['set']} {labels_of(record)}", {})
        by_seed[record["seed"]] = record["top1"]
    return [
        _scores(student, ipc, {**by_training, "full hard": full.get(student, {})})
        for (student, ipc), by_training in sorted(trainings.items())
    ]


def _scores(student: str, ipc: int, trainings: dict[str, dict[Any, float]]) -> Scores:
    def of_equal_seeds(*names: str) -> list[tuple[float, ...]]:
        columns = [trainings.get(name, {}) for name in names]
        seeds = sorted(set(columns[0]).intersection(*columns[1:]))
        return [tuple(column[seed] for column in columns) for seed in seeds]

    # a set's own labels: soft ones, unless its students see hard labels alone
    own = "hard" if trainings.get("distilled hard") and not trainings.get("distilled soft") else "soft"
    hlr = tuple(real - hard for real, hard in of_equal_seeds("full hard", "distilled hard"))
    ior = tuple(soft - chance for soft, chance in of_equal_seeds(f"distilled {own}", f"random {own}"))
    lrs = tuple(
        label_robust(real - hard, soft - chance)
        for real, hard, soft, chance in of_equal_seeds(
            "full hard", "distilled hard", f"distilled {own}", f"random {own}"
        )
    )
    without = ("distilled hard, without augmentation", "random hard, without augmentation")
    ars = tuple(
        augmentation_robust(distilled - chance, distilled_without - chance_without)
        for distilled, chance, distilled_without, chance_without in of_equal_seeds(
            "distilled hard", "random hard", *without
        )
    )
    needs = {name.replace("soft", own): key for name, key in _NEEDS.items()}
    missing = tuple(dict.fromkeys(key for name, key in needs.items() if not trainings.get(name)))
    return Scores(student, ipc, hlr, ior, lrs, ars, missing)
