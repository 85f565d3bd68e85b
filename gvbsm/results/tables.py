"""Tables: made once, shown in the terminal, in Markdown, and by the report as HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rich.table

from gvbsm.recipe.composing import read_tables, what_it_is
from gvbsm.results.records import Record, grouped, labels_of, mean_text
from gvbsm.results.scores import scores
from gvbsm.terminal import WIDTH, size, text_of
from gvbsm_registry import GvbsmError, Registry


@dataclass(frozen=True)
class Table:
    """Rows of cells below a header; its title says what they are."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self, width: int = WIDTH) -> str:
        """Return the table as text for a terminal of `width` characters."""
        made = rich.table.Table(*self.header, title=self.title or None)
        for row in self.rows:
            made.add_row(*row)
        return text_of(made, width)

    def markdown(self) -> str:
        """Return the table as Markdown, without its title."""
        lines = [
            self.header,
            ["---"] * len(self.header),
            *([escape(cell) for cell in row] for row in self.rows),
        ]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escape(text: str) -> str:
    """Return `text` so that Markdown and HTML show it as it is, on one line."""
    one = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", one)


def unescape(text: str) -> str:
    """Return Markdown without what `escape` put in, for a terminal."""
    return html.unescape(re.sub(r"\\([\\`*_\[\]|#])", r"\1", text))


def accuracy_table(
    records: Sequence[Record], title: str | None = None, published: Sequence[Mapping[str, Any]] = ()
) -> Table:
    """Return Top-1 in percent, mean ± standard deviation over seeds, by set, labels and student.

    A sweep's points come before, each in a column of its own. published: rows of a recipe, shown below. The
    title, if none is given, names the protocol.
    """
    points = list(dict.fromkeys(name for record in records for name in record.get("point", {})))
    header = [*points, "set", "labels", "IPC", "student", "Top-1 %", "best %", "seeds"]
    rows = []
    for group in grouped(records):
        first = group[0]
        rows.append(
            [
                *(str(first["point"].get(name, "")) for name in points),
                first["set"],
                labels_of(first),
                "all" if first["ipc"] is None else str(first["ipc"]),
                first["student"],
                mean_text(record["top1"] for record in group),
                mean_text(record["best_top1"] for record in group),
                str(len(group)),
                size(first["image_bytes"]),
                size(first["label_bytes"]),
            ]
        )
    for row in published:
        told = ["published", row.get("source", ""), str(row["ipc"]), row["student"], f"{row['top1']:.1f}"]
        rows.append([*([""] * len(points)), *told, "", "", "", ""])
    return Table(title or _title(records), [*header, "image bytes", "label bytes"], rows)


def _title(records: Sequence[Record]) -> str:
    names = {record.get("protocol_name", "") for record in records if record["set"] != "full"} - {""}
    protocol = f", protocol: {', '.join(sorted(names))}" if names else ""
    return f"Top-1 on the real test split{protocol}"


def score_table(runs: Mapping[str, Sequence[Record]]) -> Table:
    """Return DD-Ranking's scores by run, student and images per class."""
    rows = [
        [
            run,
            score.student,
            str(score.ipc),
            mean_text(score.hlr),
            mean_text(score.ior),
            mean_text(score.lrs, 1, 3),
            mean_text(score.ars, 1, 3),
            ", ".join(score.missing),
        ]
        for run, records in runs.items()
        for score in scores(records)
    ]
    header = ["run", "student", "IPC", "HLR", "IOR", "LRS", "ARS", "enable to compute"]
    return Table("DD-Ranking's scores (LRS, ARS: 0 to 1; HLR, IOR: points)", header, rows)


GROUPS = {
    "": "recipes: gvbsm run NAME",
    "sets/": "sets: what recipes extend",
    "methods/": "methods: --method NAME",
    "protocols/": "protocols: --protocol NAME",
    "sweeps/": "sweeps: gvbsm sweep NAME",
}
"""What a listing of recipes calls those whose names begin so; all others can be run as they are."""


def recipe_listing(registry: Registry) -> str:
    """Return the shipped recipes and what each is or reproduces, in tables; below them what is wrong."""
    rows: dict[str, list[list[str]]] = {group: [] for group in GROUPS}
    problems = []
    for name in sorted(registry.recipes()):
        group = next((each for each in GROUPS if each and name.startswith(each)), "")
        short = name if group == "sets/" else name.removeprefix(group)
        try:
            rows[group].append([short, what_it_is(read_tables(registry.recipe(name)))])
        except GvbsmError as error:
            rows[group].append([short, "can't be used: see below"])
            problems.append(str(error))
    tables = [Table(title, ["name", "what it is"], rows[group]) for group, title in GROUPS.items()]
    return "\n".join([*(table.text() for table in tables if table.rows), *problems])
