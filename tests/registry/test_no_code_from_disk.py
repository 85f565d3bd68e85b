"""Opening an artifact, a recipe or a weights file never runs code that lies in it."""

from __future__ import annotations

import ast
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gvbsm_registry import Backbone, GvbsmError, artifacts, discover

ROOT = Path(__file__).parents[2]
ROOMS = ("gvbsm", "registry", "plugins")
EVENTS: list[str] = []
WATCHED = ("pickle.find_class", "os.system", "subprocess.Popen", "exec", "marshal.loads")
recording = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if recording and event in WATCHED:
        EVENTS.append(event)


sys.addaudithook(_audit)


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def bomb(tmp_path: Path) -> tuple[bytes, Path]:
    marker = tmp_path / "it-ran"
    return pickle.dumps(Bomb(marker)), marker


def quiet(call: Callable[[], object]) -> list[str]:
    """Run `call`, which must raise GvbsmError; return the watched events."""
    global recording
    with pytest.raises(GvbsmError):
        call()  # once before, so that lazy imports are not events
    EVENTS.clear()
    recording = True
    try:
        with pytest.raises(GvbsmError):
            call()
    finally:
        recording = False
    return list(EVENTS)


def test_the_bomb_works(bomb: tuple[bytes, Path]) -> None:
    pickle.loads(bomb[0])
    assert bomb[1].exists()


def test_an_artifact_that_is_a_pickle(bomb: tuple[bytes, Path], tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    path.write_bytes(bomb[0])
    assert quiet(lambda: artifacts.read(path)) == []
    torch.save({"images": Bomb(bomb[1])}, path)
    assert quiet(lambda: artifacts.read(path)) == []
    assert not bomb[1].exists()


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').mkdir({marker!r})",
        "name = !!python/object/apply:os.mkdir [{marker!r}]",
        "seed = \"${{__import__('os').mkdir({marker!r})}}\"",
        "[data]\nuse = \"__import__('os').mkdir({marker!r})\"",
        '[data]\nuse = "os:mkdir"\npath = {marker!r}',
        '[[synthesis.matchers]]\nuse = "builtins.exec"',
    ],
)
def test_a_recipe_that_tries(text: str, tmp_path: Path) -> None:
    from gvbsm.recipe import loading

    marker, registry = tmp_path / "it-ran", discover()
    path = tmp_path / "evil.toml"
    path.write_text(text.format(marker=str(marker)))
    assert quiet(lambda: loading.load(path, registry)) == []
    assert not marker.exists()


def test_weights_that_are_a_pickle(bomb: tuple[bytes, Path], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": Bomb(bomb[1])}, path)
    backbone = discover().create(Backbone, {"use": "convnet", "weights": str(path)})
    assert "os.system" not in quiet(lambda: backbone.build(10, 8, 1))
    assert not bomb[1].exists()


FORBIDDEN = re.compile(
    r"(eval|exec|(pickle|dill|marshal|joblib|shelve|yaml)\.(loads?|open|Unpickler)|(np|numpy)\.load)"
)


def test_nothing_in_the_rooms_reads_what_can_run() -> None:
    """No eval, exec, unpickling, yaml or unrestricted torch.load of anything in the three rooms."""
    found = []
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if FORBIDDEN.fullmatch(called) or (called == "torch.load" and not safe):
                found.append(f"{path.name}: {ast.unparse(node)}")
    # the conformance check sends a component through pickle in memory, as an executor would
    assert found == ["components.py: pickle.loads(pickle.dumps(context.component))"]
