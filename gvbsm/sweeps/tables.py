"""One table and one plot of a sweep: mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gvbsm.report.figures import literal
from gvbsm.results.records import Record, grouped, labels_of, mean_and_deviation
from gvbsm.results.tables import accuracy_table
from gvbsm.terminal import WIDTH
from gvbsm_registry.artifacts import replacing

POINT_WIDTH = 30
ACCURACY = "Top-1 on real test images, %"


def sweep_table(records: Sequence[Record], title: str = "") -> str:
    """Return a sweep's accuracies as a text table: one row for each point, set, labels and student."""
    axes = {name for record in records for name in record["point"]}
    return accuracy_table(records, title).text(WIDTH + POINT_WIDTH * len(axes))


def plot(records: Sequence[Record], path: Path, title: str = "") -> None:
    """Write the distilled sets' Top-1 as a plot to `path` (its suffix says which format).

    The axis with the most different numbers goes to the right; every other combination is a line. Without
    numbers to go by, points are bars.
    """
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7, 4.4), layout="constrained")
    axes = canvas.add_subplot()
    groups = [group for group in grouped(records) if group[0]["set"] == "distilled"]
    across = _numeric_axis([group[0]["point"] for group in groups])
    if across is None:
        _bars(axes, groups)
    else:
        _lines(axes, groups, across)
    axes.set_title(literal(title), fontsize=10)
    with replacing(path) as temporary:
        canvas.savefig(temporary, format=path.suffix.lstrip("."), dpi=150, metadata={})


def _numeric_axis(points: list[dict[str, Any]]) -> str | None:
    values: dict[str, set[Any]] = {}
    for point in points:
        for name, value in point.items():
            values.setdefault(name, set()).add(value)
    numeric = {
        name: len(taken)
        for name, taken in values.items()
        if len(taken) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in taken)
    }
    return max(numeric, key=lambda name: numeric[name]) if numeric else None


def _top1(group: list[Record]) -> tuple[float, float]:
    return mean_and_deviation(100 * record["top1"] for record in group)


def _names(groups: list[list[Record]], without: str | None = None) -> list[str]:
    """Return what the plot calls each group: its point's labels but one, its labels, and its student."""
    several = len({group[0]["student"] for group in groups}) > 1
    names = []
    for first in (group[0] for group in groups):
        parts = [str(value) for name, value in first["point"].items() if name != without]
        names.append(literal(", ".join([*parts, labels_of(first), *([first["student"]] if several else [])])))
    return names


def _lines(axes: Any, groups: list[list[Record]], across: str) -> None:
    series: dict[str, list[tuple[float, float, float]]] = {}
    for name, group in zip(_names(groups, across), groups, strict=True):
        series.setdefault(name, []).append((group[0]["point"][across], *_top1(group)))
    for name, points in series.items():
        x, mean, deviation = zip(*sorted(points), strict=True)
        axes.errorbar(x, mean, yerr=deviation, marker="o", capsize=3, label=name)
    axes.set_xlabel(literal(across))
    axes.set_ylabel(ACCURACY)
    axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    axes.set_xticks(sorted({point[0] for points in series.values() for point in points}))
    axes.legend(fontsize=8)


def _bars(axes: Any, groups: list[list[Record]]) -> None:
    means, deviations = zip(*map(_top1, groups), strict=True) if groups else ((), ())
    axes.barh(range(len(groups)), means, xerr=deviations, capsize=2)
    axes.set_yticks(range(len(groups)), _names(groups), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(ACCURACY)
