"""Every block of the documentation is executed, in order, and does what it says.

How a block is run is told by its first line:

- ```` ```console ````: lines after `$ ` are run by a shell; the lines that follow are what it prints, and
  `...` stands for anything.
- ```` ```python ````: run by Python; with `file=PATH` it is written to that file instead.
- ```` ```toml ````: parsed, and added to the recipe that it would be part of; or written, with `file=PATH`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from venvs import ROOT, Venv, wheel

from gvbsm.cli.options import COMPONENTS
from gvbsm.recipe import loading
from gvbsm.recipe import reference as recipe_reference
from gvbsm_registry import Registry, reference, testing

BLOCK = re.compile(r"^```(\w*)[ ]*(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TUTORIALS = [ROOT / "docs" / name for name in ("plugins.md", "own-method.md")]


def blocks(path: Path) -> list[tuple[str, str, str]]:
    """Return (language, the rest of the first line, content) of each block."""
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def console(venv: Venv, folder: Path, text: str) -> None:
    """Run a block's commands and compare what they print with what stands there."""
    for part in re.split(r"(?m)^\$ ", text)[1:]:
        command, _, expected = part.partition("\n")
        done = venv.run(command, folder)
        printed = " ".join((done.stdout + done.stderr).split())
        wanted = " ".join(expected.split())
        pattern = ".*?".join(re.escape(piece.strip()) for piece in wanted.split("..."))
        assert re.search(pattern, printed, re.DOTALL), f"$ {command}\n{printed}\ninstead of\n{wanted}"


def python(venv: Venv, folder: Path, text: str, rest: str) -> None:
    """Write a block to its file, or run it."""
    if rest:
        path = folder / rest.removeprefix("file=")
        assert path.exists(), f"the block replaces {path}, which does not exist"
        path.write_text(text, encoding="utf-8")
        return
    script = folder / "block.py"
    script.write_text(text, encoding="utf-8")
    venv.run("python block.py", folder)


def toml(venv: Venv, folder: Path, text: str, rest: str) -> None:
    """Write a block to its file, or check it as a recipe."""
    tomllib.loads(text)
    if rest:
        path = folder / rest.removeprefix("file=")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    (folder / "block.toml").write_text(text, encoding="utf-8")
    imports = "from gvbsm.recipe import loading; from gvbsm_registry import discover"
    check = f"{imports}; loading.load('block.toml', discover())"
    venv.run(f'python -c "{check}"', folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_works_from_its_first_block_to_its_last(page: Path, tmp_path: Path) -> None:
    venv = Venv(tmp_path / "env")
    venv.run(f"pip install {wheel(ROOT, tmp_path)}", tmp_path)
    folder = tmp_path / "here"
    folder.mkdir()
    run: dict[str, Callable[[str, str], None]] = {
        "console": lambda text, rest: console(venv, folder, text),
        "python": lambda text, rest: python(venv, folder, text, rest),
        "toml": lambda text, rest: toml(venv, folder, text, rest),
    }
    found = blocks(page)
    assert len(found) >= 5
    for language, rest, text in found:
        run[language](text, rest)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_every_fence_is_a_block_that_can_be_run(page: Path) -> None:
    assert page.read_text(encoding="utf-8").count("```") == 2 * len(blocks(page))
    assert {language for language, _, _ in blocks(page)} <= {"console", "python", "toml"}


def test_the_tutorial_names_every_kind_its_flag_and_its_check() -> None:
    rows = [line for line in TUTORIALS[0].read_text(encoding="utf-8").splitlines() if "| `check_" in line]
    assert [row.split("|")[1].strip(" `") for row in rows] == [kind.__name__ for kind in reference.KINDS]
    for kind, row in zip(reference.KINDS, rows, strict=True):
        assert f"| `check_{kind.kind}` |" in row
        assert hasattr(testing, f"check_{kind.kind}")
        if kind.kind in COMPONENTS:
            assert f"`--{kind.kind}`{', repeatable' if COMPONENTS[kind.kind][1] else ''} |" in row


def test_the_method_that_is_written_is_the_example() -> None:
    written = {rest.removeprefix("file="): text for _, rest, text in blocks(TUTORIALS[1]) if rest}
    for name in ("__init__.py", "recipes/methods/prism.toml"):
        path = f"gvbsm-prism/gvbsm_prism/{name}"
        assert written[path] == (ROOT / "examples" / path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "module", "text"),
    [
        ("reference.md", "gvbsm_registry.reference", reference.markdown),
        ("recipes.md", "gvbsm.recipe.reference", recipe_reference.reference),
    ],
)
def test_the_references_are_current(name: str, module: str, text: Callable[[], str]) -> None:
    path = ROOT / "docs" / name
    assert path.read_text(encoding="utf-8") == text(), (
        f"docs/{name} is not what the code says; make it anew:\n    {Path(sys.executable).name} "
        f"-m {module} > docs/{name}"
    )


def test_the_reference_names_every_kind_hook_and_method() -> None:
    text = reference.markdown()
    for kind in reference.KINDS:
        assert f"### {kind.__name__}\n" in text
        for method in kind.__abstractmethods__:
            assert f"#### `{method}(self" in text
        for option in kind.model_fields:
            assert f"- `{option}`: " in text
    assert "#### `joint -> bool`" in text
    assert "init_private_attributes" not in text  # pydantic's
    for signature, _ in reference.hooks():
        assert f"### `{signature}`" in text


def test_the_reference_describes_what_components_are_given() -> None:
    text = reference.markdown()
    for name in (
        "View",
        "Source",
        "CommitteeMember",
        "Split",
        "TensorSplit",
        "Activation",
        "FinishedRun",
        "Step",
    ):
        assert f"\n### {name}\n" in text
    for kind in reference.objects():
        assert all(doc for _, doc in reference.members(kind)), (
            f"{kind.__name__} has a member without a docstring"
        )


def test_the_recipe_in_the_readme_is_one(registry: Registry, tmp_path: Path) -> None:
    [text] = [text for language, _, text in blocks(ROOT / "README.md") if language == "toml"]
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    assert loading.load(tmp_path / "mine.toml", registry).synthesis.ipc == 10


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
