"""The rooms, their sizes and the arrows between them, read from the source."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "gvbsm": ROOT / "gvbsm",
    "gvbsm_registry": ROOT / "registry" / "gvbsm_registry",
    "gvbsm_plugins": ROOT / "plugins" / "gvbsm_plugins",
}
ARROWS = {"gvbsm": {"gvbsm_registry"}, "gvbsm_plugins": {"gvbsm_registry"}, "gvbsm_registry": set()}
OWN = {*ROOMS, "tests", "benchmarks"}
LONGEST_MODULE, LONGEST_FUNCTION, DEEPEST = 300, 60, 2


@cache
def modules() -> dict[str, Path]:
    """Every module of the three rooms, by its dotted name."""
    found = {}
    for room, folder in ROOMS.items():
        for path in folder.rglob("*.py"):
            parts = (room, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(name: str, hints: bool = True) -> Iterator[str]:
    """What a module imports, wherever it stands; with `hints` False, not what only type hints need."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if not hints and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            skipped.update(id(inner) for part in node.body for inner in ast.walk(part))
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _from(name, node)


def _from(name: str, node: ast.ImportFrom) -> Iterator[str]:
    source = node.module or ""
    if node.level:
        package = name if modules()[name].name == "__init__.py" else name.rpartition(".")[0]
        base = package.split(".")[: len(package.split(".")) - node.level + 1]
        source = ".".join([*base, source]).rstrip(".")
    for alias in node.names:
        inner = f"{source}.{alias.name}"
        yield inner if inner in modules() else source


def strings(path: Path) -> Iterator[str]:
    """String constants other than docstrings: a module may be imported by its name, too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield node.value


def test_the_rooms_are_there() -> None:
    assert {name.split(".")[0] for name in modules()} == set(ROOMS)
    assert "gvbsm_registry.discovery" in modules()


def test_imports_follow_the_arrows() -> None:
    wrong = []
    for name in modules():
        room = name.split(".")[0]
        targets = {target.split(".")[0] for target in imports(name)} & OWN
        wrong += [f"{name} imports {target}" for target in targets - ARROWS[room] - {room}]
    assert not wrong


def test_no_room_names_another_in_a_string() -> None:
    wrong = []
    for name, path in modules().items():
        room = name.split(".")[0]
        others = set(ROOMS) - ARROWS[room] - {room}
        for text in strings(path):
            first = text.split(":")[0].split(".")
            if len(first) > 1 and first[0] in others and all(part.isidentifier() for part in first):
                wrong.append(f"{name} names {text!r}")
            if text == "gvbsm_plugins":
                wrong.append(f"{name} names {text!r}")
    assert not wrong


def test_one_module_knows_pluggy() -> None:
    knowing = [name for name in modules() if any(t.split(".")[0] == "pluggy" for t in imports(name))]
    assert knowing == ["gvbsm_registry.discovery"]


def test_no_import_goes_in_a_circle() -> None:
    below = {
        name: {target for target in imports(name, hints=False) if target in modules()} for name in modules()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in done:
            for target in sorted(below[name] - {name}):
                visit(target, (*path, name))
            done.add(name)

    for name in below:
        visit(name, ())


def test_modules_and_functions_are_short() -> None:
    long = []
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) >= LONGEST_MODULE:
            long.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines >= LONGEST_FUNCTION:
                    long.append(f"{name}.{node.name}: {lines} lines")
    assert not long


def test_folders_are_two_deep_at_most() -> None:
    deep = []
    for name, path in modules().items():
        home = ROOMS[name.split(".")[0]].parent
        if len(path.parent.relative_to(home).parts) > DEEPEST:
            deep.append(name)
    assert not deep


def test_modules_and_public_classes_are_documented() -> None:
    bare = []
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
        if tree.body and not ast.get_docstring(tree):
            bare.append(name)
        bare += [f"{name}.{node.name}" for node in classes if not ast.get_docstring(node)]
    assert not bare


@pytest.mark.skipif(importlib.util.find_spec("gvbsm.cli.main") is None, reason="there is no command line yet")
def test_help_imports_neither_torch_nor_a_plugin() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['gvbsm', '--help']\n"
        "from gvbsm.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = ('torch', 'torchvision', 'timm', 'sklearn', 'numpy', 'gvbsm_plugins')\n"
        "print('imported:', [m for m in heavy if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported: []"
