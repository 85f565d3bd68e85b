"""Methods: their listing, cards and README's table are made from their recipes, and current."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from gvbsm.results import methods
from gvbsm.results.tables import unescape
from gvbsm_registry import GvbsmError, Registry, discover, hookimpl

ROOT = Path(__file__).parents[2]
MINE = """
published = [{ data = "digits", ipc = 1, student = "ConvNet", top1 = 90.04, source = "a paper" }]

[method]
title = "M_1"
what = "does *little*"
arxiv = "2001.00001"
year = 2020
status = "reproduced"
why = "it was easy"
needs = "--ipc 2"
notes = ["A paragraph."]

[[method.ours]]
data = "digits"
ipc = 1
student = "ConvNet"
top1 = 90.1
spread = 0.4
random = 83.0
protocol = "rd3"
machine = "a machine"
date = "2026-01-01"

[synthesis]
iterations = 7
matchers = [{ use = "bn", weight = 0.5 }, "conv_channel"]
callbacks = []
optimizer = { use = "sgd", momentum = 0.5 }
"""
shipped: list[Path] = []


@hookimpl
def gvbsm_recipes() -> list[Path]:
    return shipped


@pytest.fixture
def with_mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry of the installed plugins and of one that ships the methods `mine` and `wrong`."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.toml").write_text(MINE)
    (tmp_path / "methods" / "wrong.toml").write_text("[method]\ntitle = 'W'\nyear = 'soon'\n")
    monkeypatch.setitem(globals(), "shipped", [tmp_path])
    return discover([*metadata.entry_points(group="gvbsm"), metadata.EntryPoint("mine", __name__, "gvbsm")])


def test_cards_and_table_are_current(registry: Registry) -> None:
    made = methods.documents(methods.built_in(registry), (ROOT / "README.md").read_text(encoding="utf-8"))
    cards = {path.relative_to(ROOT).as_posix() for path in (ROOT / methods.CARDS).glob("*.md")}
    again = "they are not what the recipes say; run python -m gvbsm.results.methods"
    assert cards == set(made) - {"README.md"}, again
    for name, text in made.items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name}: {again}"


def test_every_method_says_what_it_is(registry: Registry) -> None:
    found = methods.built_in(registry)
    assert "gvbsm" in {method.name for method in found}
    for method in found:
        facts = method.facts
        assert facts.title
        assert facts.what
        assert facts.arxiv == "" or len(facts.arxiv) == 10
        assert facts.status == "not" or facts.ours, f"{method.name}: nothing was measured"


def test_a_method_is_one_file(with_mine: Registry) -> None:
    method = methods.read_method("mine", with_mine)
    listing = " ".join(methods.method_listing(with_mine).replace("│", " ").split())
    for text in ("M_1: does", "2001.00001", "90.0 (digits,", "90.1 ± 0.4", "yes"):
        assert text in listing
    assert "methods/wrong.toml: [method] or [[published]]:" in listing
    text = methods.card(method)
    for line in (
        "# M\\_1",
        "A paragraph.",
        "Reproduced: **yes**: it was easy.",
        "    gvbsm run digits --method mine --ipc 2",
        "| optimizer | synthesis.optimizer | sgd (momentum 0.5) |",
        "| matcher | synthesis.matchers | bn (weight 0.5), conv\\_channel |",
        "| callback | synthesis.callbacks | none |",
        "| synthesis.iterations | 7 |",
        "| digits | 1 | ConvNet | 90.0 | a paper |",
        "| digits | 1 | ConvNet | soft | 90.1 ± 0.4 | 83.0 | rd3 |  | a machine, 2026-01-01 |",
    ):
        assert line in text, line
    assert "does \\*little\\*" in methods.readme_table([method])
    assert "# M_1\n" in unescape(text)
    assert "mine" not in {method.name for method in methods.built_in(with_mine)}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("year = 2020", "", "year: Field required"),
        ("status = ", "state = ", "unknown option 'state'; did you mean 'status'"),
        ("ipc = 1\nstudent", "ipc = 0\nstudent", "ours.0.ipc"),
        ('data = "digits", ', "", "data: Field required"),
    ],
)
def test_what_a_method_says_is_checked(
    with_mine: Registry, tmp_path: Path, before: str, after: str, told: str
) -> None:
    path = tmp_path / "methods" / "mine.toml"
    assert before in MINE
    path.write_text(MINE.replace(before, after))
    with pytest.raises(GvbsmError, match=f"{path}.*{told}"):
        methods.read_method("mine", with_mine)


def test_no_method_and_no_marks(registry: Registry) -> None:
    with pytest.raises(GvbsmError, match="unknown method 'gvbsn'; did you mean 'gvbsm'"):
        methods.read_method("gvbsn", registry)
    with pytest.raises(GvbsmError, match="has no table of methods"):
        methods.documents([], "text")
