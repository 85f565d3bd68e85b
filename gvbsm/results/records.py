"""The records of results.json and results.csv: written, read, named, grouped, averaged."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from gvbsm_registry import GvbsmError
from gvbsm_registry.artifacts import write_text
from gvbsm_registry.messages import format_validation_error

Record = dict[str, Any]
SCHEMA: Literal[2] = 2
FILE = "results.json"
COLUMNS = ["set", "labels", "augmented", "ipc", "student", "seed", "top1", "best_top1", "epochs"]
COLUMNS += ["image_bytes", "label_bytes", "protocol_name"]
SET_KEY = "set_key"
"""What records call the key of the image set that a student was trained on."""
OWN_PROTOCOL = "own"
"""What records call a protocol that has no name."""


class _Record(BaseModel):
    """What every record has; `point` is what a sweep's record has beside."""

    set: str
    labels: str
    augmented: bool
    ipc: int | None
    student: str
    student_options: dict[str, Any]
    seed: int
    top1: float
    best_top1: float
    epochs: int
    image_bytes: int
    label_bytes: int
    protocol_name: str = ""
    set_key: str = ""
    per_class: list[float | None] = []
    point: dict[str, Any] = {}


class _Results(BaseModel):
    version: Literal[2] = Field(alias="schema")
    records: list[_Record]


def write_records(folder: Path, records: Iterable[Record], **more: Any) -> list[Record]:
    """Write results.json and results.csv into `folder`; return the records as they were written.

    Students of one name are given names that tell them apart. more: goes beside the records.
    """
    given = list(records)
    names = student_names([record["student_options"] for record in given])
    written = [{**record, "student": name} for record, name in zip(given, names, strict=True)]
    text = json.dumps({"schema": SCHEMA, **more, "records": written}, indent=1)
    write_text(folder / FILE, text + "\n")
    write_text(folder / "results.csv", csv_text(written))
    return written


def with_protocol(record: Record, protocol: str) -> Record:
    """Return a record with the name of the protocol that its student was trained by."""
    name = "pretrain" if record["set"] == "full" else protocol or OWN_PROTOCOL
    return {**record, "protocol_name": name}


def published_rows(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the published figures in a resolved recipe's tables that its data set and IPC fit."""
    data = recipe.get("data_name") or recipe.get("data", {}).get("use")
    wanted = (data, recipe.get("synthesis", {}).get("ipc"))
    return [row for row in recipe.get("published", []) if (row["data"], row["ipc"]) == wanted]


def read_records(folder: Path) -> list[Record]:
    """Return the records of a run's or a sweep's folder.

    Raises GvbsmError, naming the file, if there are none or they are not what this version writes.
    """
    path = folder / FILE
    again = f"run 'gvbsm evaluation {folder}'"
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
        _Results.model_validate(tables, strict=True)
    except FileNotFoundError as error:
        raise GvbsmError(f"{path}: no results yet; {again}") from error
    except ValidationError as error:
        why = format_validation_error(error, _Results)
        raise GvbsmError(f"{path}: does not hold results of schema {SCHEMA} ({why}); {again}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise GvbsmError(f"{path}: can't be read ({error}); {again}") from error
    return list(tables["records"])


def student_names(students: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each student's name, with the options in which those of one name differ: "convnet width=64".

    students: recipe tables, see `Component.to_recipe`.
    """
    names = []
    for student in students:
        alike = [other for other in students if other["use"] == student["use"]]
        telling = [key for key in student if any(other.get(key) != student[key] for other in alike)]
        names.append(" ".join([student["use"], *(f"{key}={student[key]}" for key in telling)]))
    return names


def grouped(records: Iterable[Record]) -> list[list[Record]]:
    """Group records that differ in seeds alone: the best mean first, but a sweep's in the order of points."""
    groups: dict[str, list[Record]] = {}
    names = ("point", "set", "labels", "augmented", "ipc", "student", "student_options")
    for record in records:
        # as JSON, for options and points may hold lists and tables
        groups.setdefault(json.dumps([record.get(name) for name in names]), []).append(record)
    collected = list(groups.values())
    if any("point" in rows[0] for rows in collected):
        return collected
    return sorted(collected, key=lambda rows: -statistics.fmean(row["top1"] for row in rows))


def labels_of(record: Mapping[str, Any]) -> str:
    """Return "soft", "hard", or "hard, without augmentation"."""
    return f"{record['labels']}{'' if record['augmented'] else ', without augmentation'}"


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean and the sample's standard deviation, which is 0 for a single value."""
    given = list(values)
    return statistics.fmean(given), statistics.stdev(given) if len(given) > 1 else 0.0


def mean_text(values: Iterable[float], factor: float = 100, digits: int = 1) -> str:
    """Return "mean ± standard deviation" of values times `factor`; "–" if there is none."""
    scaled = [factor * value for value in values]
    if not scaled:
        return "–"
    mean, deviation = mean_and_deviation(scaled)
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(scaled) > 1 else "")


def csv_text(records: Iterable[Record]) -> str:
    """Return records as CSV, one a row, numbers in full; empty where a record has no value.

    A sweep's point becomes columns of its own.
    """
    rows = [
        {**record, **{f"point {name}": value for name, value in record.get("point", {}).items()}}
        for record in records
    ]
    extra = {key for row in rows for key, value in row.items() if isinstance(value, str | int | float)}
    text = io.StringIO()
    names = [*COLUMNS, *sorted(extra - set(COLUMNS))]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
