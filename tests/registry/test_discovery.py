"""Plugins that are good, broken, misspelt, doubled: found by real entry points of made-up distributions."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from gvbsm.recipe import loading
from gvbsm.results import tables
from gvbsm_registry import KINDS, Backbone, GvbsmError, Matcher, Registry, Schedule, Step, discover
from gvbsm_registry import hookspecs as specs
from gvbsm_registry.discovery import GROUP

HEAD = """
import warnings
from pydantic import Field
from gvbsm_registry import Activation, Backbone, Component, Schedule, hookimpl

class Steady(Schedule):
    "No change."
    name = "steady"
    value: float = Field(1.0, gt=0, description="the factor")
    times: int = Field(2, description="how often")
    def factor(self, step, steps):
        return self.value
"""
GOOD = (
    HEAD
    + """
@hookimpl
def gvbsm_components():
    return [Steady]
"""
)

Install = Callable[..., metadata.EntryPoint]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a made-up distribution with one plugin module; return its entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))
    count = iter(range(100))

    def install(
        source: str, name: str = "extra", dist: str = "gvbsm-extra", version: str = "1.2"
    ) -> metadata.EntryPoint:
        module = f"made_up_plugin_{next(count)}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        points = info / "entry_points.txt"
        text = points.read_text() if points.exists() else f"[{GROUP}]\n"
        points.write_text(f"{text}{name} = {module}\n")
        found = metadata.Distribution.at(info).entry_points
        return next(point for point in found if point.value == module)

    return install


def shipping(*recipes: Path) -> str:
    """The source of a plugin that ships these recipes."""
    return HEAD + f"@hookimpl\ndef gvbsm_recipes():\n    return {[str(path) for path in recipes]!r}\n"


def only(registry: Registry) -> str:
    """The one problem there is."""
    (problem,) = registry.problems()
    assert "\n" not in problem
    return problem


def test_a_good_plugin_is_found_with_its_owner(install: Install) -> None:
    registry = discover([install(GOOD)])
    steady = registry.find(Schedule, "steady")
    plugin = registry.owner(steady)
    assert (plugin.name, plugin.distribution, plugin.version) == ("extra", "gvbsm-extra", "1.2")
    assert plugin.owner == "plugin 'extra' of gvbsm-extra 1.2"
    assert registry.problems() == []
    assert registry.components() == plugin.components == [steady]
    assert registry.names(Schedule) == ["steady"]
    assert registry.names(Backbone) == []


def test_installed_plugins_are_found_without_being_named(install: Install) -> None:
    install(GOOD)
    assert "steady" in discover().names(Schedule)


def test_a_fresh_registry_each_time(install: Install) -> None:
    point = install(GOOD)
    one, other = discover([point]), discover([point])
    assert one.find(Schedule, "steady") is other.find(Schedule, "steady")
    assert one.problems() == other.problems() == []
    assert one.manager is not other.manager


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_package_at_all", "ModuleNotFoundError: No module named 'no_such_package_at_all'"),
        ("from gvbsm_registry import no_such_name", "ImportError: cannot import name 'no_such_name'"),
        ("def broken(:\n    pass", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('no GPU')", "SystemExit: no GPU"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        (HEAD + "@hookimpl\ndef gvbsm_components():\n    raise KeyError('oops')", "KeyError: 'oops'"),
        (HEAD + "@hookimpl\ndef gvbsm_components():\n    return Steady", "TypeError"),
        (HEAD + "@hookimpl\ndef gvbsm_recipes():\n    return [3]", "TypeError"),
        (HEAD + "@hookimpl\ndef gvbsm_step(what):\n    pass", "PluginValidationError"),
    ],
)
def test_a_broken_plugin_is_reported_and_the_rest_goes_on(install: Install, source: str, said: str) -> None:
    good, broken = install(GOOD), install(source, "bad", "gvbsm-bad", "0.3")
    for points in ([good, broken], [broken, good]):
        registry = discover(points)
        problem = only(registry)
        assert problem.startswith("plugin 'bad' of gvbsm-bad 0.3: failed to load: ")
        assert said in problem
        assert problem.endswith("; fix or uninstall it")
        assert registry.create(Schedule, "steady").factor(0, 1) == 1.0
        registry.manager.hook.gvbsm_step(event=Step("s", "u", 0, 1))
        with pytest.raises(GvbsmError, match=r"plugins with problems: bad; see 'gvbsm plugins'"):
            registry.find(Schedule, "stead")


def test_a_module_that_is_gone_or_no_entry_point_value(install: Install) -> None:
    good = install(GOOD)
    gone = metadata.EntryPoint("gone", "made_up_module_that_is_gone", GROUP)
    attribute = metadata.EntryPoint("attribute", f"{good.value}:nothing", GROUP)
    nonsense = metadata.EntryPoint("nonsense", "::: no ???", GROUP)
    registry = discover([gone, attribute, nonsense, good])
    assert len(registry.problems()) == 3
    assert all(" of no distribution ?: failed to load: " in problem for problem in registry.problems())
    assert registry.names(Schedule) == ["steady"]


def test_damaged_metadata_does_not_stop_the_rest(install: Install) -> None:
    class Damaged(metadata.Distribution):
        def read_text(self, filename: str) -> str | None:
            raise ValueError("damaged")

        def locate_file(self, path: object) -> Path:
            return Path(str(path))

    good = install(GOOD)
    point = metadata.EntryPoint("other", "made_up_module_that_is_gone", GROUP)
    vars(point)["dist"] = Damaged()
    registry = discover([point, good])
    assert "a distribution with damaged metadata" in only(registry)
    assert registry.names(Schedule) == ["steady"]


def test_one_module_behind_two_entry_points(install: Install) -> None:
    point = install(GOOD)
    twice = metadata.EntryPoint("zwei", point.value, GROUP)
    registry = discover([point, twice])
    assert "is behind another entry point already" in only(registry)
    assert registry.create(Schedule, "steady").factor(0, 1) == 1.0
    assert len(registry.manager.get_plugins()) == 1


def test_a_name_taken_twice_is_an_error_where_it_is_used_only(install: Install) -> None:
    other = GOOD + "    \nclass Rising(Steady):\n    name = 'rising'\n"
    other = other.replace("return [Steady]", "return [Steady, Rising]")
    registry = discover([install(GOOD), install(other, "more", "gvbsm-more", "2.0")])
    problem = only(registry)
    with pytest.raises(GvbsmError) as caught:
        registry.create(Schedule, "steady")
    for text in (problem, str(caught.value)):
        assert "the schedule name 'steady' is taken twice" in text
        assert "by plugin 'extra' of gvbsm-extra 1.2 and plugin 'more' of gvbsm-more 2.0" in text
        assert "uninstall one of them" in text
    assert registry.create(Schedule, "rising").factor(0, 1) == 1.0
    assert registry.names(Schedule) == ["rising", "steady"]
    assert len(registry.components()) == 2


def test_one_name_in_two_kinds_is_no_clash(install: Install) -> None:
    both = (
        HEAD
        + """
class Build(Backbone):
    name = "steady"
    def build(self, classes, image_size, channels):
        return None

@hookimpl
def gvbsm_components():
    return [Steady, Build]
"""
    )
    registry = discover([install(both)])
    assert registry.problems() == []
    assert registry.find(Backbone, "steady") is not registry.find(Schedule, "steady")


@pytest.mark.parametrize("marked", ["@hookimpl", ""])
def test_a_misspelt_hook_is_reported_with_the_nearest(install: Install, marked: str) -> None:
    registry = discover([install(HEAD + f"{marked}\ndef gvbsm_component():\n    return [Steady]\n")])
    problem = only(registry)
    assert "unknown hook 'gvbsm_component'; did you mean 'gvbsm_components'" in problem
    assert "gvbsm_stage_finished" in problem


def test_a_hook_without_prefix_or_without_mark_is_reported(install: Install) -> None:
    assert "unknown hook 'components'" in only(
        discover([install(HEAD + "@hookimpl\ndef components(): pass\n")])
    )
    unmarked = install(HEAD + "def gvbsm_components():\n    return [Steady]\n")
    assert "the hook gvbsm_components is not marked with @hookimpl" in only(discover([unmarked]))


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("3", "registers 3, which is not a Component class"),
        ("Steady()", "which is not a Component class"),
        ("int", "registers <class 'int'>, which is not a Component class"),
        ("Schedule", "Schedule has no kind or no name"),
        ("Nameless", "Nameless has no kind or no name"),
        ("Kindless", "Kindless has no kind or no name"),
        ("OtherKind", "OtherKind has no kind or no name"),
        ("Annotated", "Annotated has no kind or no name; derive it from a kind and set `name`"),
        ("Numbered", "Numbered has no kind or no name"),
        ("Unfinished", "Unfinished lacks factor; it is left out"),
    ],
)
def test_what_is_no_whole_component_is_left_out_alone(install: Install, item: str, said: str) -> None:
    source = (
        HEAD
        + f"""
class Nameless(Steady):
    name = ""

class Kindless(Component):
    name = "kindless"

class OtherKind(Steady):
    kind = "backbone"
    name = "other"

warnings.simplefilter("ignore")

class Annotated(Schedule):
    name: str = "annotated"
    def factor(self, step, steps):
        return 1.0

class Numbered(Steady):
    name = 5

class Unfinished(Schedule):
    name = "unfinished"

@hookimpl
def gvbsm_components():
    return [{item}, Steady]
"""
    )
    registry = discover([install(source)])
    assert said in only(registry)
    assert registry.names(Schedule) == ["steady"]
    assert len(registry.components()) == 1


def test_an_unknown_name_lists_the_nearest_and_all(install: Install) -> None:
    source = GOOD.replace("return [Steady]", "return [Steady, type('Warm', (Steady,), {'name': 'warmup'})]")
    registry = discover([install(source)])
    with pytest.raises(GvbsmError) as caught:
        registry.find(Schedule, "stedy")
    assert str(caught.value) == ("unknown schedule 'stedy'; did you mean 'steady'? available: steady, warmup")
    with pytest.raises(GvbsmError, match="unknown matcher 'steady'; available: none"):
        registry.find(Matcher, "steady")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"use": "steady", "valeu": 1}, "schedule 'steady': unknown option 'valeu'; did you mean 'value'?"),
        ({"use": "steady", "times": "often"}, "schedule 'steady': times: Input should be a valid integer"),
        ({"use": "steady", "times": "often"}, "got 'often'"),
        ({"use": "steady", "value": 0}, "schedule 'steady': value: Input should be greater than 0, got 0"),
        ({"use": "steady", "value": None, "times": 1.5}, "; times: "),
        ({"value": 1}, 'a schedule needs use = "NAME"; there are: steady'),
        ({"use": 3}, 'a schedule needs use = "NAME"; there are: steady'),
        ({"use": "steady/x"}, "unknown schedule 'steady/x'; did you mean 'steady'?"),
    ],
)
def test_a_wrong_table_is_one_line(install: Install, table: dict[str, object], said: str) -> None:
    registry = discover([install(GOOD)])
    with pytest.raises(GvbsmError) as caught:
        registry.create(Schedule, table)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "use" in table or "value" in table  # the caller's table is left as it was


def test_a_family_takes_any_variant(install: Install) -> None:
    source = (
        HEAD
        + """
class Any(Backbone):
    name = "zoo/*"
    variant: str = Field(description="which")
    depth: int = Field(description="how deep")
    def build(self, classes, image_size, channels):
        return None

class One(Any):
    name = "zoo/special"
    variant: str = Field("special", description="which")

@hookimpl
def gvbsm_components():
    return [Any, One]
"""
    )
    registry = discover([install(source)])
    component = registry.create(Backbone, {"use": "zoo/vit/tiny.v2", "depth": 4})
    assert (component.full_name, component.to_recipe()["depth"]) == ("zoo/vit/tiny.v2", 4)
    assert registry.create(Backbone, component.to_recipe()) == component
    assert registry.find(Backbone, "zoo/special").__name__ == "One"
    for name in ("zoo/", "zoo", "zo/vit"):
        with pytest.raises(GvbsmError, match=r"unknown backbone .*zoo/\*"):
            registry.find(Backbone, name)
    with pytest.raises(GvbsmError, match=r"backbone 'zoo/vit': depth: Field required$"):
        registry.create(Backbone, "zoo/vit")


def test_recipes_are_found_by_file_name(install: Install, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('data = "digits"\n')
    registry = discover([install(shipping(tmp_path / "my.toml"))])
    assert registry.problems() == []
    assert registry.recipes() == {"my": tmp_path / "my.toml"}
    assert registry.recipe("my") == tmp_path / "my.toml"
    with pytest.raises(GvbsmError, match="unknown recipe 'mi'; did you mean 'my'"):
        registry.recipe("mi")


def test_a_recipe_name_taken_twice_is_an_error_where_it_is_used_only(
    install: Install, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "digits.toml").write_text(f'description = "{folder}"\n')
    (tmp_path / "b" / "other.toml").write_text("")
    one = install(shipping(tmp_path / "a" / "digits.toml"))
    two = install(
        shipping(tmp_path / "b" / "digits.toml", tmp_path / "b" / "other.toml"), "more", "gvbsm-more", "2.0"
    )
    registry = discover([one, two])
    problem = only(registry)
    with pytest.raises(GvbsmError) as caught:
        registry.recipe("digits")
    with pytest.raises(GvbsmError, match="taken twice"):
        loading.find("digits", registry)
    for text in (problem, str(caught.value)):
        assert "the recipe name 'digits' is taken twice" in text
        assert "by plugin 'extra' of gvbsm-extra 1.2 and plugin 'more' of gvbsm-more 2.0" in text
    assert loading.find("other", registry) == tmp_path / "b" / "other.toml"
    listing = tables.recipe_listing(registry)
    assert "other" in listing
    assert "taken twice" in listing


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read (No such file or directory)"),
        (b"[[", "is not TOML ("),
        (b"\xff", "is not TOML ("),
    ],
)
def test_a_recipe_that_is_broken_or_missing_takes_no_other_along(
    install: Install, tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "broken.toml").write_bytes(content)
    (tmp_path / "whole.toml").write_text('description = "as it should be"\n')
    registry = discover([install(shipping(tmp_path / "broken.toml", tmp_path / "whole.toml"))])
    problem = only(registry)
    assert problem.startswith(f"plugin 'extra' of gvbsm-extra 1.2: recipe {tmp_path}/broken.toml: {said}")
    with pytest.raises(GvbsmError) as caught:
        loading.load("broken", registry)
    assert str(caught.value) == problem
    listing = tables.recipe_listing(registry)
    assert "as it should be" in listing
    assert problem in listing.splitlines()


def test_an_origin_is_distribution_and_version(install: Install) -> None:
    registry = discover([install(GOOD), install(GOOD, "more", "gvbsm-more", "2.0")])
    first, second = (plugin.components[0] for plugin in registry.plugins)
    assert first.name == second.name
    assert registry.origin(first) == "gvbsm-extra 1.2"
    assert registry.origin(second) == "gvbsm-more 2.0"
    unknown = type("Unknown", (first,), {"__module__": "somewhere"})
    assert registry.origin(unknown) == "somewhere"


def test_a_registry_travels_with_its_own_entry_points(install: Install) -> None:
    points = [install(GOOD), install("1 / 0", "bad", "gvbsm-bad", "0.3")]
    registry = discover(iter(points))
    again = pickle.loads(pickle.dumps(registry))
    assert again.components() == registry.components()
    assert [component.name for component in again.components()] == ["steady"]
    assert again.problems() == registry.problems()
    assert again.origin(again.find(Schedule, "steady")) == "gvbsm-extra 1.2"
    installed = discover()
    assert pickle.loads(pickle.dumps(installed)).components() == installed.components()


def test_watching_hooks_are_called(install: Install) -> None:
    source = HEAD + "seen = []\n@hookimpl\ndef gvbsm_step(event):\n    seen.append(event.values['loss'])\n"
    point = install(source)
    registry = discover([point, install(GOOD, "second")])
    registry.manager.hook.gvbsm_step(event=Step("synthesize", "u", 0, 2, {"loss": 1.5}))
    assert sys.modules[point.value].seen == [1.5]


def test_every_hook_is_documented_and_known() -> None:
    hooks = {name: value for name, value in vars(specs).items() if name.startswith("gvbsm_")}
    assert set(hooks) == {
        "gvbsm_components",
        "gvbsm_recipes",
        "gvbsm_stage_started",
        "gvbsm_step",
        "gvbsm_stage_finished",
    }
    assert all(inspect.getdoc(hook) for hook in hooks.values())
    assert discover([]).components() == []


def first_party() -> list[metadata.EntryPoint]:
    """Those of our own entry points whose module is there."""
    plugins = Path(__file__).parents[2] / "plugins"
    points = metadata.entry_points(group=GROUP)
    ours = [point for point in points if point.value.startswith("gvbsm_plugins.")]
    return [p for p in ours if list(plugins.glob(f"{p.value.replace('.', '/')}*"))]


def test_first_party_plugins_come_in_by_entry_points() -> None:
    points = first_party()
    registry = discover(points)
    assert registry.problems() == []
    assert {plugin.distribution for plugin in registry.plugins} <= {"gvbsm"}
    for component in registry.components():
        assert component.__module__.startswith("gvbsm_plugins.")
        assert inspect.getdoc(component), f"{component.__name__} has no docstring"
        for option, field in component.model_fields.items():
            assert field.description, f"option {option} of {component.kind} {component.name} is not described"
        assert component.kind in {kind.kind for kind in KINDS}


def test_listing_plugins_imports_no_torch() -> None:
    names = [point.name for point in first_party()]
    code = textwrap.dedent(f"""
        import sys
        from importlib import metadata
        from gvbsm_registry import discover
        discover([p for p in metadata.entry_points(group="gvbsm") if p.name in {names!r}])
        print([m for m in ("torch", "torchvision", "timm", "sklearn", "numpy") if m in sys.modules])
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_of_recipes_is_named_by_paths(install: Install, tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    (folder / "methods").mkdir(parents=True)
    for name in ("mine", "methods/mine"):
        (folder / f"{name}.toml").write_text("[synthesis]\nipc = 3\n")
    registry = discover([install(shipping(folder))])
    assert registry.problems() == []
    assert registry.recipes() == {
        "mine": folder / "mine.toml",
        "methods/mine": folder / "methods" / "mine.toml",
    }
    assert loading.find("methods/mine", registry) == folder / "methods" / "mine.toml"
    twice = discover([install(shipping(folder, folder / "mine.toml"), "twice")])
    assert "ships two recipes called 'mine'" in only(twice)


def built_in(install: Install) -> metadata.EntryPoint:
    return install(GOOD, "ours", "gvbsm", "9.9")


def test_a_bare_name_means_the_built_in_one_and_a_whole_name_any(install: Install) -> None:
    points = [built_in(install), install(GOOD.replace("1.0", "7.0"), "ahead", "gvbsm-Ahead", "2.0")]
    registry = discover(points)
    assert (
        only(registry) == "plugin 'ahead' of gvbsm-Ahead 2.0: the schedule name 'steady' is taken twice, by "
        "plugin 'ours' of gvbsm 9.9 and plugin 'ahead' of gvbsm-Ahead 2.0; alone it means the built-in one, "
        "write 'gvbsm-Ahead:steady' for the other"
    )
    factors = {name: registry.create(Schedule, name).factor(0, 1) for name in ("steady", "gvbsm:steady")}
    assert factors == {"steady": 1.0, "gvbsm:steady": 1.0}
    other = registry.create(Schedule, {"use": "gvbsm_ahead:steady", "times": 3})
    assert other.factor(0, 1) == 7.0
    assert other.to_recipe() == {"use": "gvbsm_ahead:steady", "value": 7.0, "times": 3}
    assert registry.create(Schedule, other.to_recipe()) == other
    assert registry.create(Schedule, "gvbsm:steady").to_recipe()["use"] == "steady"  # nothing else is meant
    assert [registry.origin(each) for each in registry.components()] == ["gvbsm 9.9"]


def test_a_whole_name_where_none_is_built_in(install: Install) -> None:
    registry = discover([install(GOOD), install(GOOD, "more", "gvbsm-more", "2.0")])
    with pytest.raises(GvbsmError, match="write 'gvbsm-extra:steady' or 'gvbsm-more:steady', or uninstall"):
        registry.create(Schedule, "steady")
    made = registry.create(Schedule, "gvbsm-more:steady")
    assert registry.origin(type(made)) == "gvbsm-more 2.0"
    assert made.to_recipe()["use"] == "gvbsm-more:steady"
    alone = discover([install(GOOD, "third", "gvbsm-third")])
    assert alone.create(Schedule, "gvbsm-third:steady").to_recipe()["use"] == "steady"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gvbsm-mor:steady", "unknown distribution 'gvbsm-mor'; did you mean 'gvbsm-more'"),
        ("steady:times", "schedule 'steady': 'times' is not an option; write NAME:key=value"),
        ("steady:times=2", "schedule 'steady:times=2': write it as { use = \"NAME\", key = value }"),
        ("gvbsm-more:stedy", "gvbsm-more: unknown schedule 'stedy'; did you mean 'steady'"),
    ],
)
def test_a_whole_name_that_is_none(install: Install, name: str, told: str) -> None:
    registry = discover([install(GOOD, "more", "gvbsm-more", "2.0")])
    with pytest.raises(GvbsmError, match=told):
        registry.find(Schedule, name)


def test_whole_names_of_families_and_recipes(install: Install, tmp_path: Path) -> None:
    family = GOOD.replace('name = "steady"', 'name = "zoo/*"\n    variant: str = Field(description="which")')
    registry = discover([install(family), install(family, "more", "gvbsm-more", "2.0")])
    made = registry.create(Schedule, "gvbsm-more:zoo/hf-hub:timm/x")
    assert (made.full_name, registry.origin(type(made))) == ("zoo/hf-hub:timm/x", "gvbsm-more 2.0")
    assert registry.create(Schedule, made.to_recipe()) == made
    for folder in ("a", "b"):
        (tmp_path / folder / "methods").mkdir(parents=True)
        (tmp_path / folder / "methods" / "mine.toml").write_text(f'description = "{folder}"\n')
    ours = install(shipping(tmp_path / "a"), "ours", "gvbsm", "9.9")
    theirs = install(shipping(tmp_path / "b"), "theirs", "gvbsm-theirs", "1.0")
    twice = discover([theirs, ours])
    assert loading.find("methods/mine", twice) == tmp_path / "a" / "methods" / "mine.toml"
    assert loading.find("gvbsm-theirs:methods/mine", twice) == tmp_path / "b" / "methods" / "mine.toml"
    (tmp_path / "mine.toml").write_text('extends = ["gvbsm-theirs:methods/mine"]\n')
    layered = loading.tables_of(tmp_path / "mine.toml", twice, [("method", "gvbsm-theirs:mine")])
    assert layered["method"] == "mine"


def test_that_the_built_in_plugins_are_left_out_is_told(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(GOOD)
    monkeypatch.setenv("GVBSM_PLUGINS", "extra")
    registry = discover()
    with pytest.raises(GvbsmError, match="the built-in plugins are left out by GVBSM_PLUGINS; add gvbsm"):
        loading.load("digits", registry)
    with pytest.raises(GvbsmError, match="built-in plugins are left out"):
        registry.find(Matcher, "bn")
