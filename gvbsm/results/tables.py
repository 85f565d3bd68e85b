"""Text tables for the terminal."""

from __future__ import annotations

import statistics
from typing import Any

from rich.table import Table

from gvbsm.recipe.loading import read_tables
from gvbsm.results.scores import scores, spread
from gvbsm.terminal import text_of
from gvbsm_registry import Registry


def accuracy_table(records: list[dict[str, Any]]) -> str:
    """Return Top-1 by set, labels and student: mean ± standard deviation over seeds, in percent."""
    table = Table(title="Top-1 on the real test split")
    for column in ("set", "labels", "IPC", "student", "Top-1 %", "best %", "seeds", "images", "label bytes"):
        table.add_column(column)
    for rows in grouped(records):
        first = rows[0]
        table.add_row(
            first["set"],
            labels_of(first),
            "all" if first["ipc"] is None else str(first["ipc"]),
            first["student"],
            percent([row["top1"] for row in rows]),
            percent([row["best_top1"] for row in rows]),
            str(len(rows)),
            f"{first['image_bytes']:,} B",
            f"{first['label_bytes']:,}",
        )
    return text_of(table)


def grouped(records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group records that differ in the seed alone, best mean first."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        key = (*(record[name] for name in ("set", "labels", "ipc", "student")), record.get("augmented", True))
        groups.setdefault(key, []).append(record)
    return sorted(groups.values(), key=lambda rows: -statistics.fmean(row["top1"] for row in rows))


def labels_of(record: dict[str, Any]) -> str:
    """Return "soft", "hard", or "hard, plain" for a student trained without augmentation."""
    return record["labels"] if record.get("augmented", True) else f"{record['labels']}, plain"


def percent(values: list[float]) -> str:
    """Return "mean ± deviation" of fractions, in percent."""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def recipe_table(registry: Registry) -> str:
    """Return the shipped recipes and what each reproduces."""
    table = Table()
    table.add_column("recipe")
    table.add_column("what it is")
    for name, path in sorted(registry.recipes().items()):
        tables = read_tables(path)
        table.add_row(name, str(tables.get("description") or tables.get("reproduces") or ""))
    return text_of(table)


def score_table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return DD-Ranking's scores by run, student and images per class."""
    table = Table(title="DD-Ranking's scores (LRS, ARS: 0 to 1; HLR, IOR: points)")
    for column in ("run", "student", "IPC", "HLR", "IOR", "LRS", "ARS", "set for what lacks"):
        table.add_column(column)
    for run, records in runs.items():
        for score in scores(records):
            points = (spread(score.hlr, 100, 1), spread(score.ior, 100, 1))
            robust = (spread(score.lrs), spread(score.ars))
            table.add_row(run, score.student, str(score.ipc), *points, *robust, ", ".join(score.missing))
    return text_of(table)
