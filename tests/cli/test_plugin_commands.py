"""`gvbsm plugins`: the list, a component's page, a new package; and what shells complete."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import cli_helpers
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from gvbsm.authoring import pages as plugin_pages
from gvbsm.authoring import scaffold
from gvbsm.cli.main import main
from gvbsm.cli.options import COMPONENTS
from gvbsm.recipe.loading import make
from gvbsm_registry import KINDS, Component, GvbsmError, Matcher, Registry, Schedule, discover
from gvbsm_registry.testing import check

REGISTRY = discover()
BROKEN = "from gvbsm_registry import Nothing\n"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a distribution whose plugin can't be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "module_that_breaks.py").write_text(BROKEN)
    info = tmp_path / "gvbsm_breaks-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gvbsm-breaks\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text("[gvbsm]\nbreaks = module_that_breaks\n")


def install(folder: Path, name: str, text: str) -> None:
    """Make the module `name` in `folder`, which is on the path, the plugin of a distribution of its own."""
    (folder / f"{name}.py").write_text(text)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gvbsm]\n{name} = {name}\n")


def test_the_table_names_everything() -> None:
    shown = invoke("plugins").output
    flat = re.sub(r"[│\s]+", " ", shown)
    for plugin in REGISTRY.plugins:
        assert plugin.name in flat
        assert plugin.distribution in flat
        for component in plugin.components:
            assert component.name in flat, component


@pytest.mark.usefixtures("broken")
def test_a_broken_plugin_is_shown_with_cause_and_remedy() -> None:
    records = json.loads(invoke("plugins", "--json").output)
    (broken,) = (record for record in records if record["plugin"] == "breaks")
    assert (broken["distribution"], broken["version"], broken["loaded"]) == ("gvbsm-breaks", "3.1", True)
    assert "cannot import name 'Nothing'" in broken["problems"][0]
    assert broken["problems"][0].endswith("fix or uninstall it")
    last = invoke("plugins").output.splitlines()[-1]
    assert last == f"plugin 'breaks' of gvbsm-breaks 3.1: {broken['problems'][0]}"


@pytest.mark.usefixtures("broken")
def test_a_problem_is_exit_code_1_and_the_list_is_printed_all_the_same() -> None:
    assert invoke("plugins").exit_code == invoke("plugins", "--json").exit_code == 1
    assert "conv_patch" in invoke("plugins").output
    assert invoke("--no-plugins", "plugins").exit_code == 0


def test_a_plugin_that_prints_leaves_json_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    install(
        tmp_path,
        "talker",
        "from gvbsm_registry import hookimpl\nprint('hello from the module')\n"
        "@hookimpl\ndef gvbsm_components():\n    print('hello from the hook')\n    return []\n",
    )
    result = cli_helpers.done("plugins", "--json")
    assert "talker" in {record["plugin"] for record in json.loads(result.stdout)}
    assert result.stderr == "hello from the module\nhello from the hook\n"
    sys.modules.pop("talker")


SETS = """
from pathlib import Path
from gvbsm_registry import Component, Regularizer, hookimpl
from pydantic import Field

class Keeps(Regularizer):
    \"\"\"Has defaults of many types.\"\"\"

    name = "keeps"
    classes: set[str] = Field({"ape"}, description="a set")
    later: set[str] = Field(default_factory=set, description="made when it is asked for")
    table: dict[str, set[int]] = Field({"a": {1}}, description="a table of sets")
    text: str = Field("a", description="a text")

    def penalty(self, images, labels):
        return images.mean()

@hookimpl
def gvbsm_components():
    return [Keeps]
"""


def test_a_page_of_defaults_that_toml_has_no_word_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, "keeper", SETS)
    page = cli_helpers.done("plugins", "show", "keeps").stdout
    assert "made when it is asked for" in page
    sys.modules.pop("keeper")
    (snippet,) = re.findall(r"(?ms)^    \[\[synthesis\.regularizers\]\]$.*", page)
    (table,) = tomllib.loads(snippet)["synthesis"]["regularizers"]
    assert table == {"use": "keeps", "text": "a", "weight": 1.0} | {
        name: table[name] for name in ("classes", "table", "later") if name in table
    }
    assert "classes" in snippet


@pytest.mark.usefixtures("broken")
def test_no_plugins_loads_the_built_in_ones_only() -> None:
    before = dict(os.environ)
    records = json.loads(invoke("--no-plugins", "plugins", "--json").output)
    loaded = {record["distribution"] for record in records if record["loaded"]}
    assert loaded == {"gvbsm"}
    assert next(r for r in records if r["plugin"] == "breaks")["problems"] == []
    assert "left out" in invoke("--no-plugins", "plugins").output
    assert dict(os.environ) == before


def test_json_names_everything() -> None:
    records = json.loads(invoke("plugins", "--json").output)
    pairs = {(c["kind"], c["name"]) for record in records for c in record["components"]}
    assert pairs == {(c.kind, c.name) for c in REGISTRY.components()}
    assert "digits" in {recipe for record in records for recipe in record["recipes"]}


@pytest.mark.parametrize("component", REGISTRY.components(), ids=lambda c: f"{c.kind}:{c.name}")
def test_every_component_has_a_page(component: type[Component]) -> None:
    result = invoke("plugins", "show", f"{component.kind}:{component.name}")
    assert result.exit_code == 0
    assert result.output.startswith(f"{component.kind} {component.name}, from plugin ")
    for option, field in component.model_fields.items():
        assert option in result.output
        assert (field.description or "")[:12] in result.output
    kind = next(kind for kind in KINDS if issubclass(component, kind))
    for method in kind.__abstractmethods__:
        assert f"    {method}(self" in result.output


@pytest.mark.parametrize("component", REGISTRY.components(), ids=lambda c: f"{c.kind}:{c.name}")
def test_every_snippet_is_a_recipe(component: type[Component], tmp_path: Path) -> None:
    text = plugin_pages.snippet(component)
    if text.startswith("gvbsm "):
        assert component.name in text
        return
    if "…" in text:
        # A text, and also a folder of class folders, for components that look at once.
        (tmp_path / "ape").mkdir()
        Image.new("L", (8, 8)).save(tmp_path / "ape" / "0.png")
        text = text.replace("…", f'"{tmp_path}"')
    if component.name.endswith("/*"):
        text = text.replace("NAME", "resnet18")
    tables = tomllib.loads(text)
    recipe = make(tables, REGISTRY, "snippet")
    assert component.__name__ in repr(recipe)


def test_a_page_shows_types_defaults_limits_and_help() -> None:
    shown = invoke("plugins", "show", "conv_patch").output
    row = next(line for line in shown.splitlines() if " patch_size " in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "patch_size",
        "int, ≥ 1",
        "4",
        "N_p: patch side in pixels of the site's map",
    ]
    assert '[[synthesis.matchers]]\n    use = "conv_patch"\n    patch_size = 4' in shown


def test_a_family_has_a_page_by_star_or_by_member() -> None:
    for name in ("timm/*", "timm/vit_tiny_patch16_224"):
        assert "backbone timm/*, from" in invoke("plugins", "show", name).output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("conv_pach", "unknown component 'conv_pach'; did you mean 'conv_patch'"),
        ("macher:bn", "unknown kind 'macher'; did you mean 'matcher'"),
        ("schedule:bn", "unknown schedule 'bn'"),
        ("zoo/resnet", "unknown component 'zoo/resnet'"),
    ],
)
def test_an_unknown_page_is_one_line(name: str, said: str) -> None:
    result = invoke("plugins", "show", name)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_name_of_several_kinds_asks_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cosine(Matcher):
        """Takes a schedule's name."""

        name = "cosine"

        def sites(self, model: object) -> list[str]:
            return []

        def statistics(self, activation: object) -> dict[str, object]:  # type: ignore[override]
            return {}

    registry = discover()
    plugin = registry.plugins[0]
    plugin.components.append(Cosine)
    both = Registry(registry.manager, registry.plugins)
    with pytest.raises(GvbsmError, match="write matcher:cosine or schedule:cosine"):
        plugin_pages.find("cosine", both)
    assert plugin_pages.find("matcher:cosine", both) is Cosine
    assert plugin_pages.find("schedule:cosine", both).kind == Schedule.kind


@pytest.mark.parametrize("kind", [kind.kind for kind in KINDS])
def test_a_new_package_of_every_kind_conforms(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"gvbsm-made-up-{kind}"
    result = invoke("plugins", "new", package, "--kind", kind, "--dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    folder = tmp_path / package
    module = package.replace("-", "_")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        f"{module}/__init__.py",
        "pyproject.toml",
        f"tests/test_{module}.py",
    ] or set(files) == {"README.md", f"{module}/__init__.py", "pyproject.toml", f"tests/test_{module}.py"}
    settings = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    (name, target), *rest = settings["entry-points"]["gvbsm"].items()
    assert (settings["name"], name, rest) == (package, package.removeprefix("gvbsm-"), [])
    monkeypatch.syspath_prepend(str(folder))
    registry = discover([metadata.EntryPoint(name, target, "gvbsm")])
    assert registry.problems() == []
    (component,) = registry.components()
    assert (component.kind, component.name) == (kind, f"made_up_{kind}")
    check(component())
    assert component.name in (folder / "README.md").read_text()
    sys.modules.pop(module)


def test_a_new_packages_own_tests_pass(tmp_path: Path) -> None:
    assert (
        invoke("plugins", "new", "gvbsm-power", "--kind", "schedule", "--dir", str(tmp_path)).exit_code == 0
    )
    folder = tmp_path / "gvbsm-power"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(folder),
            str(folder),
        ],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)


def test_what_is_said_of_an_exporter_is_a_command(tmp_path: Path) -> None:
    shown = invoke("plugins", "new", "gvbsm-mine", "--kind", "exporter", "--dir", str(tmp_path)).output
    commands = [shown, (tmp_path / "gvbsm-mine" / "README.md").read_text()]
    commands.append(invoke("plugins", "show", "exporter:imagefolder").output.replace("imagefolder", "mine"))
    known = [flag for parameter in main.commands["export"].params for flag in parameter.opts]
    for text in commands:
        (flag,) = re.findall(r"gvbsm export OUT DESTINATION (\S+) mine", text)
        assert flag in known


@pytest.mark.parametrize(
    ("package", "kind"),
    [
        ("gvbsm-2x", "matcher"),
        ("gvbsm-class", "schedule"),
        ("gvbsm-none", "regularizer"),
        ("gvbsm-view", "augmentation"),
        ("gvbsm-tensor-split", "dataset"),
        ("gvbsm-field", "codec"),
        ("lambda-thing", "objective"),
    ],
)
def test_a_new_package_can_be_imported_whatever_it_is_called(
    package: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaffold.create(package, kind, tmp_path, REGISTRY)
    monkeypatch.syspath_prepend(str(tmp_path / package))
    module = package.replace("-", "_")
    registry = discover([metadata.EntryPoint("it", module, "gvbsm")])
    assert registry.problems() == []
    (component,) = registry.components()
    assert component.name == scaffold.component_name(package)
    check(component())
    sys.modules.pop(module)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["class", "--kind", "matcher"], "'class' is a word of Python"),
        (["gvbsm-x", "--kind", "macher"], "unknown kind 'macher'; did you mean 'matcher'"),
        (["Gvbsm X", "--kind", "matcher"], "is not a package name"),
        (["gvbsm", "--kind", "matcher"], "is not a package name"),
        (["../x", "--kind", "matcher"], "is not a package name"),
        (["torch", "--kind", "matcher"], "a module 'torch' is installed already"),
        (["gvbsm-bn", "--kind", "matcher"], "there is a matcher 'bn', from plugin 'matchers' of gvbsm"),
        (["taken", "--kind", "matcher"], "exists already; give another name or --dir"),
    ],
)
def test_a_package_that_can_not_be_is_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    result = invoke("plugins", "new", *arguments, "--dir", str(tmp_path))
    assert result.exit_code == 2
    assert said in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_a_class_does_not_take_the_name_of_its_kind(tmp_path: Path) -> None:
    scaffold.create("gvbsm-matcher", "matcher", tmp_path, REGISTRY)
    assert "class MyMatcher(Matcher):" in (tmp_path / "gvbsm-matcher/gvbsm_matcher/__init__.py").read_text()


def complete(line: str, shell: str = "zsh") -> list[str]:
    """What a shell would offer for the last word of a line."""
    words = line.split(" ")
    environment = {
        "_GVBSM_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    if shell == "fish":
        environment["COMP_CWORD"] = words[-1]
    code = (
        "import sys\nsys.argv = ['gvbsm']\nfrom gvbsm.cli.main import main\n"
        "try:\n    main(prog_name='gvbsm')\n"
        "finally:\n    assert not {'torch', 'torchvision', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Error" not in done.stderr, done.stderr
    lines = done.stdout.splitlines()
    if shell == "zsh":
        return [line.replace("\\:", ":") for line in lines[1::3]]
    return [line.split(",", 1)[1].split("\t")[0] for line in lines]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_installed_names(shell: str) -> None:
    assert complete("gvbsm run --matcher conv", shell) == ["conv_channel", "conv_patch"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gvbsm run dig", ["digits"]),
        ("gvbsm run --executor loc", ["local"]),
        ("gvbsm run --matcher conv_patch:p", ["conv_patch:patch_size="]),
        ("gvbsm run --matcher conv_patch:patch_size=4,mom", ["conv_patch:patch_size=4,momentum="]),
        ("gvbsm run --backbone timm", ["timm/"]),
        ("gvbsm plugins show conv_p", ["conv_patch"]),
        ("gvbsm plugins show matcher:conv_p", ["matcher:conv_patch"]),
        ("gvbsm plugins new x --kind mat", ["matcher"]),
        ("gvbsm run digits --method gvb", ["gvbsm"]),
        ("gvbsm run digits --protocol rd3", ["rd3"]),
        ("gvbsm methods gvb", ["gvbsm"]),
    ],
)
def test_what_is_completed(line: str, expected: list[str]) -> None:
    assert complete(line) == expected


def test_every_component_flag_completes() -> None:
    run = main.commands["run"]
    parameters = {parameter.name: parameter for parameter in run.params}
    for kind in [*COMPONENTS, "executor"]:
        items = parameters[kind].shell_complete(run.make_context("run", ["digits"]), "")
        names = next(REGISTRY.names(k) for k in KINDS if k.kind == kind)
        assert [item.value for item in items] == [name.removesuffix("*") for name in names]


def test_scaffold_knows_how_to_use_every_kind() -> None:
    assert set(scaffold.RUN) == {kind.kind for kind in KINDS}
    assert importlib.import_module("gvbsm.cli.completion")
