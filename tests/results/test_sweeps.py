"""Sweeps and comparisons: what they run, that they go on, and the table and plot they make."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from gvbsm.recipe import loading
from gvbsm.sweeps import files
from gvbsm.sweeps import running as sweeps
from gvbsm.sweeps.tables import plot, sweep_table
from gvbsm_registry import GvbsmError, Registry


@pytest.fixture
def toy(toy_tables: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "toy.toml"
    path.write_text(tomli_w.dumps(toy_tables))
    return str(path)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("synthesis.ipc=1,10", ("synthesis.ipc", [1, 10])),
        ("a.b=0,0.4", ("a.b", [0, 0.4])),
        ("synthesis.initializer=real,herding", ("synthesis.initializer", ["real", "herding"])),
        ("a=[1,2],[3]", ("a", [[1, 2], [3]])),
        ("a='x,y',z", ("a", ["x,y", "z"])),
    ],
)
def test_vary(text: str, parsed: tuple[str, list[Any]]) -> None:
    assert sweeps.parse_vary(text) == parsed


@pytest.mark.parametrize("text", ["", "a", "a=", "=1,2"])
def test_vary_that_is_none(text: str) -> None:
    with pytest.raises(GvbsmError, match="KEY=VALUE"):
        sweeps.parse_vary(text)


def test_product_and_names() -> None:
    made = sweeps.vary("digits", ["synthesis.ipc=1,10", "synthesis.matchers.*.momentum=0,0.8"], [], [3])
    assert [p.labels for p in made.points] == [
        {"ipc": ipc, "momentum": momentum} for ipc in (1, 10) for momentum in (0, 0.8)
    ]
    folders = {p.folder(3, made.overrides) for p in made.points}
    assert len(folders) == 4
    assert all("/" not in name and "*" not in name for name in folders)
    same = sweeps.vary("digits", ["a.x=1", "b.x=2"], [], [])
    assert same.points[0].labels == {"a.x": 1, "b.x": 2}


def test_a_star_means_every_position() -> None:
    tables = {"synthesis": {"matchers": ["bn", "conv_patch"]}}
    assert sweeps.expand(tables, "synthesis.matchers.*.drop_rate", 0.4) == [
        ("synthesis.matchers.0.drop_rate", 0.4),
        ("synthesis.matchers.1.drop_rate", 0.4),
    ]
    with pytest.raises(GvbsmError, match="no list"):
        sweeps.expand(tables, "backbones.*.width", 1)


def test_every_shipped_sweep_makes_recipes(registry: Registry) -> None:
    found = files.shipped(registry)
    expected = {"momentum", "backbones", "objective", "matching", "pretraining", "dropping", "batch"}
    assert expected <= set(found)
    for name in found:
        sweep = files.load(name, registry, None, [], [])
        assert sweep is not None
        assert sweep.reproduces
        assert len(sweep.seeds) > 1
        made = []
        for point in sweep.points:
            pairs = [*sweep.overrides, *point.overrides]
            chosen = sweeps.expand_all(sweep.recipe, registry, pairs)
            made.append(loading.load(sweep.recipe, registry, chosen))
        assert len({one.toml() for one in made}) == len(made) > 1


def test_the_sweep_of_momentum_reaches_every_matcher(registry: Registry) -> None:
    sweep = files.load("momentum", registry, None, [], [])
    assert sweep is not None
    chosen = sweeps.expand_all("digits", registry, [*sweep.overrides, *sweep.points[1].overrides])
    assert [m.momentum for m in loading.load("digits", registry, chosen).synthesis.matchers] == [0.4] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vary = [{key = 'a'}]", "vary.0: values: Field required"),
        ("vary = [{key = 'a', values = [1, 2], labels = ['x']}]", "2 values and 1 labels"),
        ("vary = [{key = 'a', values = [1], lables = ['x']}]", "labels"),
        ("recipes = 'digits'\nvary = []", "did you mean 'recipe'"),
    ],
)
def test_a_wrong_sweep_file(registry: Registry, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(GvbsmError, match=message):
        files.load(str(path), registry, None, [], [])


def where(store: Path) -> dict[str, Any]:
    return {"store": store, "device": "cpu", "report": False}


def test_a_comparison_runs_what_is_missing(
    toy: str, tmp_path: Path, registry: Registry, shared_store: Path
) -> None:
    made = sweeps.compare(toy, ["real", "herding"], ["noise"], [1, 2], [], [0, 1])
    out = tmp_path / "sweep"
    records = sweeps.run(made, out, registry, **where(shared_store))
    assert len([p for p in out.iterdir() if p.is_dir()]) == 3 * 2 * 2
    assert {r["set"] for r in records} == {"distilled"}  # the random baseline is not trained at each point
    assert {r["labels"] for r in records} == {"soft", "hard"}
    for folder in out.iterdir():
        if folder.is_dir() and "coreset" in folder.name:
            assert "iterations = 0" in (folder / "recipe.toml").read_text()
    kept = {p: p.stat().st_mtime_ns for p in out.glob("*/distilled/*")}
    assert kept
    again = sweeps.run(made, out, registry, **where(shared_store))
    assert again == records
    assert kept == {p: p.stat().st_mtime_ns for p in out.glob("*/distilled/*")}
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert len(rows) == len(records) == 24
    assert {row["point images"] for row in rows} == {
        "real (coreset)",
        "herding (coreset)",
        "distilled from noise",
    }
    text = sweep_table(records)
    assert text.count("herding (coreset)") == 4  # two sizes, soft and hard
    assert "±" in text
    for suffix in ("svg", "png"):
        plot(records, out / f"plot.{suffix}")
        assert (out / f"plot.{suffix}").stat().st_size > 1000
    assert json.loads((out / "results.json").read_text())["records"] == records


def test_a_sweep_of_numbers_and_of_names(
    toy: str, tmp_path: Path, registry: Registry, shared_store: Path
) -> None:
    made = sweeps.vary(toy, ["synthesis.initializer=noise,real"], [("synthesis.iterations", 2)], [])
    records = sweeps.run(made, tmp_path / "names", registry, **where(shared_store))
    assert [r["point"] for r in records] == [{"initializer": "noise"}, {"initializer": "real"}]
    plot(records, tmp_path / "names.svg", "50 $ of <names>")
    assert b"real" in (tmp_path / "names.svg").read_bytes()


def test_a_sweep_file_says_what_it_is_or_reproduces(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    axis = "vary = [{key = ['a.x', 'b.x'], values = [1, 2]}]\n"
    path.write_text("description = 'what x does'\n" + axis)
    made = files.load(str(path), registry, None, [], [])
    assert made is not None
    assert (made.title, made.reproduces) == ("what x does", "")
    assert [(point.labels, point.overrides) for point in made.points] == [
        ({"x": x}, [("a.x", x), ("b.x", x)]) for x in (1, 2)
    ]
    for wrong, words in (("seeds = 'x'", "seeds"), ("set = 3", "set"), ("recipe = ['digits']", "recipe")):
        path.write_text(f"{wrong}\n{axis}")
        with pytest.raises(GvbsmError, match=rf"sweep\.toml: {words}: "):
            files.load(str(path), registry, None, [], [])


def test_initializers_with_options_are_compared(registry: Registry) -> None:
    made = sweeps.compare("digits", ["folder:root=x"], ["noise"], [], [], [])
    assert [dict(point.overrides)["synthesis.initializer"] for point in made.points] == [
        {"use": "folder", "root": "x"},
        {"use": "noise"},
    ]


def test_nothing_to_compare() -> None:
    with pytest.raises(GvbsmError, match="--initializer"):
        sweeps.compare("digits", [], [], [10], [], [])
