"""One table and one plot of a sweep: mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.table import Table

from gvbsm.results.tables import labels_of, percent
from gvbsm.terminal import text_of
from gvbsm_registry.artifacts import replacing

Record = dict[str, Any]


def rows_of(records: list[Record]) -> list[list[Record]]:
    """Group a sweep's records that differ in seeds alone, in the order of their points."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        key = (*(record[name] for name in ("set", "student", "ipc")), labels_of(record))
        groups.setdefault((tuple(record["point"].items()), *key), []).append(record)
    return list(groups.values())


def table(records: list[Record], title: str = "") -> str:
    """Return a sweep's accuracies as a text table: one row for each point, set, labels and student."""
    names = list(dict.fromkeys(name for record in records for name in record["point"]))
    made = Table(title=title or None)
    for column in (*names, "set", "labels", "student", "Top-1 %", "best %", "seeds", "images", "label bytes"):
        made.add_column(str(column), no_wrap=True)
    for rows in rows_of(records):
        first = rows[0]
        made.add_row(
            *(str(first["point"].get(name, "")) for name in names),
            first["set"],
            labels_of(first),
            first["student"],
            percent([row["top1"] for row in rows]),
            percent([row["best_top1"] for row in rows]),
            str(len(rows)),
            f"{first['image_bytes']:,} B",
            f"{first['label_bytes']:,}",
        )
    return text_of(made, 110 + 30 * len(names))


def plot(records: list[Record], path: Path, title: str = "") -> None:
    """Write the distilled sets' Top-1 as a plot to `path` (its suffix says which format).

    The axis with the most different numbers goes to the right; every other combination is a line. Without
    numbers to go by, points are bars.
    """
    from matplotlib.figure import Figure

    from gvbsm.report.figures import plain

    canvas = Figure(figsize=(7, 4.4), layout="constrained")
    axes = canvas.add_subplot()
    shown = [rows for rows in rows_of(records) if rows[0]["set"] == "distilled"]
    across = _numeric_axis([rows[0]["point"] for rows in shown])
    if across is None:
        _bars(axes, shown)
    else:
        _lines(axes, shown, across)
    axes.set_title(plain(title), fontsize=10)
    with replacing(path) as temporary:
        canvas.savefig(temporary, format=path.suffix.lstrip("."), dpi=150, metadata={})


def _numeric_axis(points: list[dict[str, Any]]) -> str | None:
    values: dict[str, set[Any]] = {}
    for point in points:
        for name, value in point.items():
            values.setdefault(name, set()).add(value)
    numeric = {
        name: len(found)
        for name, found in values.items()
        if len(found) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in found)
    }
    return max(numeric, key=lambda name: numeric[name]) if numeric else None


def _moments(rows: list[Record]) -> tuple[float, float]:
    values = [100 * row["top1"] for row in rows]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _name(first: Record, without: str | None = None, students: bool = True) -> str:
    told = [str(value) for name, value in first["point"].items() if name != without]
    return ", ".join([*told, labels_of(first), *([first["student"]] if students else [])])


def _lines(axes: Any, shown: list[list[Record]], across: str) -> None:
    from gvbsm.report.figures import plain

    series: dict[str, list[tuple[float, float, float]]] = {}
    several = len({rows[0]["student"] for rows in shown}) > 1
    for rows in shown:
        name = _name(rows[0], across, several)
        series.setdefault(name, []).append((rows[0]["point"][across], *_moments(rows)))
    for name, points in series.items():
        x, mean, deviation = zip(*sorted(points), strict=True)
        axes.errorbar(x, mean, yerr=deviation, marker="o", capsize=3, label=plain(name))
    axes.set_xlabel(plain(across))
    axes.set_ylabel("Top-1 on real test images, %")
    axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    axes.set_ylabel("Top-1 on real test images, %")
    axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    axes.set_xticks(sorted({point[0] for points in series.values() for point in points}))
    axes.legend(fontsize=8)


def _bars(axes: Any, shown: list[list[Record]]) -> None:
    from gvbsm.report.figures import plain

    several = len({rows[0]["student"] for rows in shown}) > 1
    names = [plain(_name(rows[0], students=several)) for rows in shown]
    means, deviations = zip(*(_moments(rows) for rows in shown), strict=True) if shown else ((), ())
    axes.barh(range(len(names)), means, xerr=deviations, capsize=2)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("Top-1 on real test images, %")
