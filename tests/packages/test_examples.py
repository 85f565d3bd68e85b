"""The packages under examples/ use nothing but the contract, and are as short as it promises."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from lines import lines_of_code
from venvs import ROOT

from gvbsm.authoring import scaffold
from gvbsm_registry import discover

EXAMPLES = sorted((ROOT / "examples").iterdir())
MOST = {"Matcher": 15, "Backbone": 10, "Regularizer": 8, "Term": 12, "Population": 25, "Callback": 10}
BUILT_IN = {"matchers": "ConvPatchMatcher", "terms": "CrossEntropy", "callbacks": "ImageAverage"}
"""By module of gvbsm_plugins: a class of those that gvbsm ships, to be counted, too."""


def modules(example: Path) -> list[Path]:
    return [path for path in example.rglob("*.py") if "build" not in path.parts]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_only_the_contract_is_imported(example: Path) -> None:
    for path in modules(example):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"gvbsm", "gvbsm_plugins"}, path


def components(path: Path) -> dict[str, tuple[str, int]]:
    """Return name → (kind, lines of code) of components, each with those of the private classes after it."""
    found: dict[str, tuple[str, int]] = {}
    for name, (base, count) in lines_of_code(path).items():
        whole = [*found][-1] if name.startswith("_") else name
        kind, before = found.get(whole, (base, 0))
        found[whole] = kind, before + count
    return found


def test_a_component_is_as_short_as_promised(tmp_path: Path) -> None:
    """A component has no more lines than MOST says of its kind: in the examples and in the template."""
    paths = [path for example in EXAMPLES for path in modules(example) if "tests" not in path.parts]
    for kind in MOST:
        package = f"gvbsm-short-{kind.lower()}"
        written = scaffold.create(package, kind.lower(), tmp_path, discover())
        paths.append(next(path for path in written if path.name == "__init__.py"))
    counted = [item for path in paths for item in components(path).values()]
    assert {base for base, _ in counted} == set(MOST)
    for base, count in counted:
        assert count <= MOST[base], (base, count)


def test_the_counter_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    body = ['"""Doc', 'more."""', "", "# a comment", "import os", "x = [", "    1,", "]"]
    path.write_text("\n    ".join(["class A(B):", *body]) + "\n")
    assert lines_of_code(path) == {"A": ("B", 4)}


def test_the_lines_stand_in_the_docs() -> None:
    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    for example in EXAMPLES:
        for path in (path for path in modules(example) if "tests" not in path.parts):
            for name, (base, count) in components(path).items():
                assert f"| `{example.name}` | `{name}` | {base.lower()} | {count} |" in text
    for module, name in BUILT_IN.items():
        base, count = components(ROOT / f"plugins/gvbsm_plugins/{module}.py")[name]
        assert count <= MOST[base]
        assert f"| gvbsm itself | `{name}` | {base.lower()} | {count} |" in text
