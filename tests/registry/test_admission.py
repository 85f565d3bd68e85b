"""Which plugins get in: by the user's choice and by the contract that they ask for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from gvbsm_registry import CONTRACT_VERSION, GvbsmError, Schedule, discover
from gvbsm_registry.discovery import GROUP

SOURCE = """
from gvbsm_registry import Component, Schedule, hookimpl

class Steady(Schedule):
    "No change."
    name = {name!r}
    def factor(self, step, steps):
        return 1.0

@hookimpl
def gvbsm_components():
    return [Steady]
"""
Install = Callable[..., metadata.EntryPoint]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with one schedule of the plugin's name, behind one entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))
    numbers = itertools.count()

    def install(name: str, dist: str, more: str = "") -> metadata.EntryPoint:
        module = f"admitted_{next(numbers)}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(more + SOURCE.format(name=name))
        info = tmp_path / f"{dist.replace('-', '_')}-2.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 2.0\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}\n")
        (point,) = metadata.Distribution.at(info).entry_points
        return point

    return install


@pytest.mark.parametrize("asked", [">=2,<3", "~=2.0", f"=={CONTRACT_VERSION}", ">=0.5", ""])
def test_a_plugin_for_this_contract_loads(install: Install, asked: str) -> None:
    registry = discover([install("calm", "gvbsm-calm", f"requires_contract = {asked!r}\n")])
    assert registry.problems() == []
    assert registry.names(Schedule) == ["calm"]


@pytest.mark.parametrize("asked", [">=1,<2", "<1", "==7.*"])
def test_a_plugin_for_another_contract_is_reported(install: Install, asked: str) -> None:
    good = install("calm", "gvbsm-calm")
    registry = discover([install("late", "gvbsm-late", f"requires_contract = {asked!r}\n"), good])
    (problem,) = registry.problems()
    assert problem.startswith("plugin 'late' of gvbsm-late 2.0: failed to load: needs a contract " + asked)
    assert f"this gvbsm has contract {CONTRACT_VERSION}; install another version of the plugin or" in problem
    assert registry.names(Schedule) == ["calm"]


@pytest.mark.parametrize("asked", ["'one'", "1", "[]"])
def test_a_contract_that_is_no_range_is_reported(install: Install, asked: str) -> None:
    (problem,) = discover([install("odd", "gvbsm-odd", f"requires_contract = {asked}\n")]).problems()
    assert 'which is not a version range such as ">=2,<3"' in problem


def test_what_can_not_be_imported_says_what_to_do(install: Install) -> None:
    old = install("old", "gvbsm-old", "from gvbsm_registry import Teleporter\n")
    needy = install("needy", "gvbsm-needy", "import no_such_package_anywhere\n")
    first, second = discover([old, needy]).problems()
    assert "install what gvbsm-needy needs; fix or uninstall it" in first
    assert f"made for another contract than {CONTRACT_VERSION}?" in second


def names(monkeypatch: pytest.MonkeyPatch, value: str | None) -> set[str]:
    monkeypatch.delenv("GVBSM_PLUGINS", raising=False)
    if value is not None:
        monkeypatch.setenv("GVBSM_PLUGINS", value)
    return {plugin.name for plugin in discover().plugins if plugin.loaded}


def test_the_environment_lets_in_plugins_and_distributions(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("calm", "gvbsm-calm")
    install("flat", "Gvbsm.Flat")
    everything = names(monkeypatch, None)
    builtin = {point.name for point in metadata.entry_points(group=GROUP) if point.dist.name == "gvbsm"}
    assert {"calm", "flat", "matchers"} <= everything
    assert names(monkeypatch, "  ") == everything
    assert names(monkeypatch, "calm") == {"calm"}
    assert names(monkeypatch, "matchers, gvbsm_flat") == {"matchers", "flat"}
    assert names(monkeypatch, "gvbsm") == builtin
    assert names(monkeypatch, "gvbsm,calm") == builtin | {"calm"}


def test_no_other_plugin_gets_in_by_the_name_of_the_built_in_ones(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("gvbsm", "gvbsm-impostor")
    assert "gvbsm" not in names(monkeypatch, "gvbsm")
    assert names(monkeypatch, "gvbsm-impostor") == {"gvbsm"}


def test_an_unknown_name_in_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GvbsmError, match=r"GVBSM_PLUGINS: unknown plugin 'matcher'; did you mean 'matchers'"):
        names(monkeypatch, "matcher")


def test_what_is_left_out_is_not_imported_and_is_named(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("calm", "gvbsm-calm", "1 / 0\n")
    monkeypatch.setenv("GVBSM_PLUGINS", "gvbsm")
    registry = discover()
    assert registry.problems() == []
    with pytest.raises(GvbsmError, match=r"left out by GVBSM_PLUGINS or --no-plugins: .*calm"):
        registry.find(Schedule, "calm")


def test_given_entry_points_are_all_loaded(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GVBSM_PLUGINS", "gvbsm")
    assert discover([install("calm", "gvbsm-calm")]).names(Schedule) == ["calm"]
