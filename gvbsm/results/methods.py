"""What the methods are, by their recipes: the listing, their cards, and the table in README.md.

`python -m gvbsm.results.methods` writes docs/methods/NAME.md and README.md's table anew, in this folder.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from gvbsm.recipe.composing import compose, read_tables
from gvbsm.recipe.schema import Published, Recipe, Section
from gvbsm.results.tables import Table, escape
from gvbsm_registry import GvbsmError, Registry, Used
from gvbsm_registry.artifacts import write_text
from gvbsm_registry.messages import format_validation_error, unknown_name
from gvbsm_registry.reference import default_text

FOLDER = "methods/"
CARDS = "docs/methods"
REPRODUCED = {"reproduced": "yes", "partly": "partly", "not": "not yet"}
"""How listings and cards tell a status."""
BEGIN, END = "<!-- methods: made by python -m gvbsm.results.methods -->", "<!-- end of methods -->"


class Ours(Section):
    """One figure that we measured of a method."""

    data: str = Field(description="the data set, as published figures call it")
    ipc: int = Field(ge=1, description="images per class")
    student: str = Field(description="the network that was trained")
    top1: float = Field(ge=0, le=100, description="in percent, after the last epoch")
    spread: float = Field(0.0, ge=0, description="standard deviation; 0: one seed")
    labels: Literal["soft", "hard"] = Field("soft", description="that students were trained with")
    random: float | None = Field(None, description="the same of as many random real images, same labels")
    protocol: str = Field(description="by which students were trained")
    command: str = Field("", description="what gave it")
    machine: str = Field(description="where it was measured")
    date: str = Field(description="when: YYYY-MM-DD")


class Facts(Section):
    """[method] What a method's recipe says of the method."""

    title: str = Field(description="what its authors call it")
    what: str = Field(description="what it does, in a few words")
    arxiv: str = Field("", description="number of the paper")
    year: int = Field(description="of the paper")
    status: Literal["reproduced", "partly", "not"] = Field(
        "not", description="whether its published figures were reached"
    )
    why: str = Field("", description="what the status rests on")
    needs: str = Field("", description="what its command on `digits` needs beside `--method`")
    notes: tuple[str, ...] = Field((), description="paragraphs of its card")
    ours: tuple[Ours, ...] = Field((), description="figures that we measured; the first is its headline")


@dataclass(frozen=True)
class Method:
    """A method: its recipe's name below methods/ and file, what it says of itself, its tables."""

    name: str
    path: Path
    facts: Facts
    tables: Mapping[str, Any]
    published: Sequence[Published]


def read_method(name: str, registry: Registry) -> Method:
    """Return the method whose recipe is methods/NAME.

    Raises GvbsmError, naming the file, if there is none or it does not say what a method has to.
    """
    if FOLDER + name not in registry.recipes():
        raise GvbsmError(unknown_name("method", name, names(registry)))
    path = registry.recipe(FOLDER + name)
    tables = compose(path, registry)
    try:
        facts = Facts.model_validate(read_tables(path).get("method", {}))
        published = [Published.model_validate(row) for row in tables.get("published", [])]
    except ValidationError as error:
        why = format_validation_error(error, Facts)
        raise GvbsmError(f"recipe {path}: [method] or [[published]]: {why}") from error
    return Method(name, path, facts, tables, published)


def names(registry: Registry) -> list[str]:
    """Return the methods' names."""
    found = [name for name in registry.recipes() if name.startswith(FOLDER)]
    return sorted(name.removeprefix(FOLDER) for name in found)


def in_order(methods: Iterable[Method]) -> list[Method]:
    """Return methods by year, then paper."""
    return sorted(methods, key=lambda method: (method.facts.year, method.facts.arxiv, method.name))


def method_listing(registry: Registry) -> str:
    """Return the table of `gvbsm methods`; below it what is wrong with some."""
    methods, problems = [], []
    for name in names(registry):
        try:
            methods.append(read_method(name, registry))
        except GvbsmError as error:
            problems.append(str(error))
    header = ["--method", "what it does", "paper", "year", "published", "ours", "reproduced"]
    rows = [
        [method.name, f"{facts.title}: {facts.what}", facts.arxiv, str(facts.year), *_figures(method)]
        for method in in_order(methods)
        for facts in [method.facts]
    ]
    return "\n".join([Table("", header, rows).text(), *problems])


def _figures(method: Method) -> list[str]:
    """Return the headlines of what is published and of ours, and whether the former were reached."""
    facts = method.facts
    published = [f"{row.top1:.1f} ({_place(row)})" for row in method.published[:1]]
    ours = [f"{_top1(row)} ({_place(row)})" for row in facts.ours[:1]]
    return [*(published or ["–"]), *(ours or ["–"]), REPRODUCED[facts.status]]


def _place(row: Published | Ours) -> str:
    return f"{row.data}, IPC {row.ipc}, {row.student}"


def _top1(row: Ours) -> str:
    return f"{row.top1:.1f}" + (f" ± {row.spread:.1f}" if row.spread else "")


def readme_table(methods: Iterable[Method]) -> str:
    """Return the methods as a Markdown table, with links to their cards and papers."""
    lines = ["| method | what it does | paper | published | ours | reproduced |", "| --- " * 6 + "|"]
    for method in in_order(methods):
        facts = method.facts
        cells = [
            f"[{escape(facts.title)}]({CARDS}/{method.name}.md)",
            escape(facts.what),
            f"{_paper(facts)}{facts.year}",
            *map(escape, _figures(method)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _paper(facts: Facts) -> str:
    return f"[{facts.arxiv}](https://arxiv.org/abs/{facts.arxiv}), " if facts.arxiv else ""


def _origin(facts: Facts) -> str:
    return f"Paper: {_paper(facts)}{facts.year}" if facts.arxiv else f"Year: {facts.year}"


def card(method: Method) -> str:
    """Return a method's card as Markdown."""
    facts = method.facts
    components, settings = _said(method.tables)
    parts = [
        f"# {escape(facts.title)}",
        f"{escape(facts.what[:1].upper() + facts.what[1:])}. {_origin(facts)}.",
        f"Reproduced: **{REPRODUCED[facts.status]}**" + (f": {escape(facts.why)}." if facts.why else "."),
        f"    gvbsm run digits --method {method.name} {facts.needs}".rstrip(),
        *facts.notes,
        "## What it uses",
        Table("", ["kind", "key", "components"], components).markdown(),
        "## Settings",
        Table("", ["key", "value"], settings).markdown() if settings else "All by default.",
        "## Published",
        _published_table(method.published),
        "## Ours",
        _ours_table(facts.ours),
        f"This card is made from the recipe `{FOLDER}{method.name}` by `python -m gvbsm.results.methods`.",
    ]
    return "\n\n".join(parts) + "\n"


def _published_table(rows: Sequence[Published]) -> str:
    header = ["data", "IPC", "student", "Top-1 %", "source"]
    cells = [[row.data, str(row.ipc), row.student, f"{row.top1:.1f}", row.source] for row in rows]
    return Table("", header, cells).markdown() if rows else "No figures."


def _ours_table(rows: Sequence[Ours]) -> str:
    header = ["data", "IPC", "student", "labels", "Top-1 %", "random real images", "protocol"]
    cells = [
        [
            *(row.data, str(row.ipc), row.student, row.labels, _top1(row)),
            "–" if row.random is None else f"{row.random:.1f}",
            *(row.protocol, row.command, f"{row.machine}, {row.date}"),
        ]
        for row in rows
    ]
    return Table("", [*header, "command", "measured"], cells).markdown() if rows else "Not measured yet."


def _said(tables: Mapping[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """Return what a method's tables say: (kind, key, components) and (key, value)."""
    components, settings = [], []
    for key, value, kind in _leaves(tables, Recipe):
        if kind:
            several = value if isinstance(value, list) else [value]
            components.append([kind, key, ", ".join(map(_component, several)) or "none"])
        else:
            settings.append([key, value if isinstance(value, str) else default_text(value)])
    return components, settings


Leaf = tuple[str, Any, str]


def _leaves(tables: Mapping[str, Any], model: type[Section], above: str = "") -> Iterator[Leaf]:
    """Yield (dotted key, value, kind of component or "") of what tables say in a recipe's sections."""
    idle = Recipe.idle_keys() | {"name"} if model is Recipe else set()
    for key, value in tables.items():
        field = model.model_fields.get(key)
        if field is None or key in idle:
            continue
        annotation: Any = field.annotation
        inner = typing.get_args(annotation)[0] if typing.get_origin(annotation) is tuple else None
        marks = [*field.metadata, *getattr(inner, "__metadata__", ())]
        kinds = [mark.kind.kind for mark in marks if isinstance(mark, Used)]
        if not kinds and isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _leaves(value, annotation, f"{above}{key}.")
        else:
            yield above + key, value, kinds[0] if kinds else ""


def _component(value: Any) -> str:
    """Return a component of a recipe as it is told: "bn (weight 0.01, momentum 0.8)"."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_component, value)) + "]"
    if not isinstance(value, dict):
        return str(value)
    options = [f"{key} {_component(inner)}" for key, inner in value.items() if key != "use"]
    return str(value.get("use", "")) + (f" ({', '.join(options)})" if options else "")


def documents(methods: Sequence[Method], readme: str) -> dict[str, str]:
    """Return the text of each card by path, and README.md with its table; `readme` is its present text.

    Raises GvbsmError if the table's marks are not in it.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise GvbsmError(f"README.md: has no table of methods; write {BEGIN} and {END} where it belongs")
    made = {f"{CARDS}/{method.name}.md": card(method) for method in methods}
    return {**made, "README.md": f"{before}{begin}\n\n{readme_table(methods)}\n\n{end}{after}"}


def built_in(registry: Registry) -> list[Method]:
    """Return the methods that gvbsm itself ships."""
    ours = [name for plugin in registry.plugins if plugin.distribution == "gvbsm" for name in plugin.recipes]
    return [read_method(name.removeprefix(FOLDER), registry) for name in ours if name.startswith(FOLDER)]


def main() -> None:
    """Write the cards and the table; cards of methods that are gone are removed."""
    from gvbsm_registry import discover

    made = documents(built_in(discover()), Path("README.md").read_text(encoding="utf-8"))
    for path in Path(CARDS).glob("*.md"):
        if path.as_posix() not in made:
            path.unlink()
    for name, text in made.items():
        write_text(Path(name), text)


if __name__ == "__main__":
    main()
