"""Text tables for the terminal."""

from __future__ import annotations

import io
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from gvbsm.recipe import read_tables
from gvbsm_registry import Registry

WIDTH = 110


def _text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, force_terminal=False)
    console.print(table, markup=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def accuracy_table(records: list[dict[str, Any]]) -> str:
    """Return Top-1 by set, labels and student: mean ± standard deviation over seeds, in percent."""
    table = Table(title="Top-1 on the real test split")
    for column in ("set", "labels", "IPC", "student", "Top-1 %", "best %", "seeds", "images", "label bytes"):
        table.add_column(column)
    for rows in grouped(records):
        first = rows[0]
        table.add_row(
            first["set"],
            first["labels"],
            "all" if first["ipc"] is None else str(first["ipc"]),
            first["student"],
            percent([row["top1"] for row in rows]),
            percent([row["best_top1"] for row in rows]),
            str(len(rows)),
            f"{first['image_bytes']:,} B",
            f"{first['label_bytes']:,}",
        )
    return _text(table)


def grouped(records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group records that differ in the seed alone, best mean first."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        key = tuple(record[name] for name in ("set", "labels", "ipc", "student"))
        groups.setdefault(key, []).append(record)
    return sorted(groups.values(), key=lambda rows: -statistics.fmean(row["top1"] for row in rows))


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
        table.add_row(name, str(read_tables(path).get("reproduces", "")))
    return _text(table)


def plugin_table(registry: Registry) -> str:
    """Return the plugins, what they add, and what is wrong with them."""
    table = Table()
    for column in ("plugin", "distribution", "adds", "status"):
        table.add_column(column)
    for plugin in registry.plugins:
        adds = [f"{component.kind} {component.name}" for component in plugin.components]
        adds += [f"recipe {path.stem}" for path in plugin.recipes]
        status = "; ".join(plugin.problems) or "ok"
        table.add_row(plugin.name, f"{plugin.distribution} {plugin.version}", ", ".join(adds), status)
    return _text(table)
