"""The kinds of component: what every plugin may rely on."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field, ValidationError

import gvbsm_registry
from gvbsm_registry import KINDS, Activation, Backbone, Component, GvbsmError, Matcher, Schedule


class Constant(Schedule):
    """A schedule that changes nothing."""

    name = "constant"

    value: float = Field(1.0, gt=0, description="the factor")
    note: str | None = Field(None, description="anything")
    folder: Path | None = Field(None, description="a path")

    def factor(self, step: int, steps: int) -> float:
        return self.value


class Family(Backbone):
    name = "family/*"

    variant: str = Field(description="which of the family")
    depth: int = Field(3, description="how deep")

    def build(self, classes: int, image_size: int, channels: int) -> None:  # type: ignore[override]
        raise NotImplementedError


class Edges(Matcher):
    name = "edges"

    sharp: int = Field(2, description="how sharp")

    def sites(self, model: object) -> list[str]:
        return []

    def statistics(self, activation: Activation) -> dict[str, object]:  # type: ignore[override]
        return {}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_is_abstract_small_and_documented(kind: type[Component]) -> None:
    assert inspect.isabstract(kind)
    assert kind.kind == kind.__name__.lower()
    assert not kind.name
    assert 1 <= len(kind.__abstractmethods__) <= 2
    assert inspect.getdoc(kind)
    for method in kind.__abstractmethods__:
        assert inspect.getdoc(getattr(kind, method)), f"{kind.__name__}.{method} is not documented"
    for option, field in kind.model_fields.items():
        assert field.description, f"{kind.__name__}.{option} has no description"
    assert getattr(gvbsm_registry, kind.__name__) is kind


def test_kinds_have_names_of_their_own() -> None:
    assert len({kind.kind for kind in KINDS}) == len(KINDS) == len(set(KINDS))
    classes = [value for value in vars(gvbsm_registry).values() if inspect.isclass(value)]
    assert {c for c in classes if issubclass(c, Component)} == {Component, *KINDS}


def test_what_is_exported_exists_and_nothing_else() -> None:
    assert sorted(gvbsm_registry.__all__, key=str.lower) == sorted(set(gvbsm_registry.__all__), key=str.lower)
    assert all(hasattr(gvbsm_registry, name) for name in gvbsm_registry.__all__)


def test_a_component_is_frozen_and_strict_about_keys() -> None:
    constant = Constant(value=0.5)
    with pytest.raises(ValidationError):
        setattr(constant, "value", 2.0)  # noqa: B010
    with pytest.raises(ValidationError):
        Constant(valeu=2.0)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        Constant(value=-1)
    assert constant == Constant(value=0.5)
    assert hash(constant) == hash(Constant(value=0.5)) != hash(Constant())
    assert pickle.loads(pickle.dumps(constant)) == constant


def test_a_table_makes_the_component_again() -> None:
    for component in (
        Constant(),
        Constant(value=0.25, note="x", folder=Path("a/b")),
        Edges(weight=1, sharp=9),
    ):
        table = component.to_recipe()
        assert table.pop("use") == component.name
        assert None not in table.values()
        assert type(component).model_validate(table) == component
    assert Constant(folder=Path("a/b")).to_recipe()["folder"] == str(Path("a/b").absolute())


def test_a_family_member_goes_by_its_own_name() -> None:
    member = Family(variant="tiny/v2", depth=1)
    assert member.full_name == "family/tiny/v2"
    assert member.to_recipe() == {"use": "family/tiny/v2", "match_weight": 1.0, "depth": 1}
    assert Constant().full_name == "constant"


def test_a_component_names_the_files_that_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights.safetensors"
    assert Constant(folder=tmp_path).files() == ()
    assert Family(variant="a").files() == ()
    assert Family(variant="a", weights=str(weights)).files() == ()
    weights.write_bytes(b"1")
    assert Family(variant="a", weights=str(weights)).files() == (weights,)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Family(variant="a", weights="~/weights.safetensors").files() == (weights,)
    (tmp_path / "DEFAULT").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert Family(variant="a", weights="DEFAULT").files() == ()


def test_measured_targets_depend_on_a_matchers_own_options_alone() -> None:
    assert Edges(weight=0.5, momentum=0.1, drop_rate=0.4, first_site_weight=1).measured_by() == {
        "use": "edges",
        "sharp": 2,
    }
    assert Edges(sharp=3).measured_by() != Edges().measured_by()


def test_matcher_options_have_limits() -> None:
    for wrong in (
        {"weight": -1},
        {"momentum": 1},
        {"momentum": -0.1},
        {"drop_rate": 1},
        {"first_site_weight": -1},
    ):
        with pytest.raises(ValidationError):
            Edges(**wrong)
    assert Edges().targets(object()) is None  # type: ignore[arg-type]


def test_an_error_is_one_line_and_travels_between_processes() -> None:
    error = GvbsmError("what is wrong,\n   where, \t what to do\n")
    assert str(error) == "what is wrong, where, what to do"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_contract_is_cheap_to_import() -> None:
    heavy = ("torch", "numpy", "safetensors")
    code = f"import sys, gvbsm_registry; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
