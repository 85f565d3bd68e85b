"""The contract's public names and signatures: changed on purpose only, with a version and a CHANGELOG."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path

import gvbsm_registry
from gvbsm_registry import CONTRACT_VERSION, KINDS, Component, hookspecs, reference, testing

SNAPSHOT = Path(__file__).with_name("contract.txt")
ROOT = Path(__file__).parents[2]


def lines() -> Iterator[str]:
    """Every public name of the contract with its signature, and every option of every kind."""
    yield f"contract {CONTRACT_VERSION}"
    for name, hook in sorted(vars(hookspecs).items()):
        if name.startswith("gvbsm_"):
            yield f"hook {reference.signature(hook)}"
    for name in sorted(gvbsm_registry.__all__):
        value = getattr(gvbsm_registry, name)
        if inspect.isfunction(value):
            yield f"function {reference.signature(value)}"
        elif inspect.isclass(value):
            yield from _class(name, value)
        else:
            yield f"value {name}"
    for name in sorted(testing.__all__):
        value = getattr(testing, name)
        if inspect.isfunction(value):
            yield f"testing {reference.signature(value)}"
        else:
            yield f"testing {name}"


def _class(name: str, value: type) -> Iterator[str]:
    is_component = issubclass(value, Component)
    yield f"class {name}({', '.join(base.__name__ for base in value.__bases__)})"
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield f"  {name}.{field.name}: {field.type}"
    if is_component and value in KINDS:
        for option in reference.options(value):
            yield f"  {name}.{option.name}: {option.type} = {option.default}"
    for member, attribute in sorted(vars(value).items()):
        if member.startswith("_") or member == "model_config":
            continue
        if isinstance(attribute, classmethod | staticmethod):
            attribute = attribute.__func__
        if inspect.isfunction(attribute):
            abstract = "abstract " if getattr(attribute, "__isabstractmethod__", False) else ""
            yield f"  {abstract}{name}.{reference.signature(attribute)}"
        elif isinstance(attribute, property):
            yield f"  {name}.{member} (property)"


def test_the_contract_is_the_recorded_one() -> None:
    found = "\n".join(lines()) + "\n"
    assert SNAPSHOT.read_text(encoding="utf-8") == found, (
        "The contract with plugins has changed. If that is meant: raise CONTRACT_VERSION in "
        "registry/gvbsm_registry/kinds/__init__.py (the first number where a plugin may break, else the "
        "second), say so in CHANGELOG.md, and record it anew:\n    python tests/registry/test_contract.py"
    )


def test_the_changelog_names_the_contracts_version() -> None:
    changelog = ROOT / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8") if changelog.exists() else ""
    assert f"contract {CONTRACT_VERSION}" in text.lower(), (
        f'CHANGELOG.md has no entry that says "contract {CONTRACT_VERSION}": say there what changed'
    )


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(lines()) + "\n", encoding="utf-8")
