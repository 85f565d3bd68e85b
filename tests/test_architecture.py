"""The rooms, their sizes and the arrows between them, read from the source."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
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
FLOORS = (
    {"cli"},
    {"sweeps"},
    {"pipeline"},
    {"report", "estimate"},
    {"stages"},
    {"synthesis", "matching", "runtime", "results", "authoring"},
    {"recipe", "distilled", "terminal"},
)
"""The engine's folders, from the top: each imports those below, and those beside it without a circle."""
FREE = {"", "__main__", "version"}
"""The engine's modules that stand on no floor: the front doors, and the version."""
MUTATIONS = {"append", "add", "update", "pop", "clear", "setdefault", "extend", "insert", "remove", "discard"}
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


def imports(name: str) -> Iterator[str]:
    """What a module imports, wherever it stands; what only type hints need, too."""
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
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


def circle(below: Mapping[str, set[str]]) -> str:
    """The first circle in a graph, as an arrow of names; "" if there is none."""
    sorter = TopologicalSorter({name: targets - {name} for name, targets in below.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        return " -> ".join(reversed(error.args[1]))
    return ""


def test_no_import_goes_in_a_circle() -> None:
    assert not circle({name: set(imports(name)) & set(modules()) for name in modules()})


def folder_of(name: str) -> str:
    """The folder (or the module beside the folders) of the engine that a module belongs to."""
    return [*name.split("."), ""][1]


def arrows() -> Iterator[tuple[str, str]]:
    """(module, module that it imports), of the engine's modules that stand on a floor."""
    for name in modules():
        for target in imports(name):
            ours = {name.split(".")[0], target.split(".")[0]} == {"gvbsm"}
            if ours and not {folder_of(name), folder_of(target)} & FREE:
                yield name, target


def test_the_engines_folders_import_downwards() -> None:
    floor = {folder: number for number, folders in enumerate(FLOORS) for folder in folders}
    engine = {folder_of(name) for name in modules() if name.split(".")[0] == "gvbsm"}
    assert engine - FREE == set(floor)
    pairs = list(arrows())
    assert ("gvbsm.pipeline", "gvbsm.stages.plan") in pairs
    up = [f"{a} imports {b}" for a, b in pairs if floor[folder_of(b)] < floor[folder_of(a)]]
    assert not up


def test_the_engines_folders_make_no_circle() -> None:
    below: dict[str, set[str]] = {}
    for name, target in arrows():
        below.setdefault(folder_of(name), set()).add(folder_of(target))
    assert not circle(below)


def test_only_data_sets_import_data_sets() -> None:
    folder = "gvbsm_plugins.datasets"
    others = [name for name in modules() if f"{name}.".startswith("gvbsm_plugins.")]
    wrong = [
        f"{name} imports {target}"
        for name in others
        for target in imports(name)
        if f"{target}.".startswith(f"{folder}.") and not f"{name}.".startswith(f"{folder}.")
    ]
    assert f"{folder}.digits" in others
    assert not wrong


def mutated(tree: ast.Module) -> Iterator[str]:
    """What a module's functions change of the module's own: "NAME, line N"."""
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp, ast.Call)
    kept = set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, mutable):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            kept |= {target.id for target in targets if isinstance(target, ast.Name)}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in {inner for function in functions for inner in ast.walk(function)}:
        changed: ast.expr | None = None
        if isinstance(node, ast.Global):
            yield f"global {', '.join(node.names)}, line {node.lineno}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            changed = node.func.value if node.func.attr in MUTATIONS else None
        elif isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            changed = node.value
        if isinstance(changed, ast.Name) and changed.id in kept:
            yield f"{changed.id}, line {changed.lineno}"


CHANGES = ("KEPT.append(1)", "KEPT[1] = 2", "KEPT[1] += 2", "del KEPT[1]", "KEPT.x = 1", "global KEPT")


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_a_modules_state_are_seen(change: str) -> None:
    assert list(mutated(ast.parse(f"KEPT = []\ndef change():\n    {change}\n")))
    harmless = f"KEPT, own = [], ()\nKEPT += [1]\ndef change(own):\n    {change.replace('KEPT', 'own')}\n"
    assert "global" in change or not list(mutated(ast.parse(harmless)))


def test_modules_keep_no_state() -> None:
    """What a function changes outlives it in an object that someone made, not in a module."""
    wrong = []
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        wrong += [f"{name}: {change}" for change in mutated(tree)]
    assert not wrong


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
