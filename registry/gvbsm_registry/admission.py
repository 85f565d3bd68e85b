"""Which plugins may be loaded: those that the user lets in, and those made for this contract."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib import metadata
from types import ModuleType

from gvbsm_registry.errors import GvbsmError
from gvbsm_registry.kinds import CONTRACT_VERSION

VARIABLE = "GVBSM_PLUGINS"
BUILT_IN = "gvbsm"
"""The distribution whose plugins are the built-in ones."""


def origin(point: metadata.EntryPoint) -> tuple[str, str]:
    """Return the name and version of the distribution an entry point comes from."""
    try:
        if point.dist is not None:
            return point.dist.name or "a distribution without a name", point.dist.version or "?"
    except Exception:  # metadata that is damaged on the disk: who it was is lost, the rest goes on
        return "a distribution with damaged metadata", "?"
    return "no distribution", "?"


def wanted() -> set[str] | None:
    """Return the names in the environment variable GVBSM_PLUGINS, or None if all plugins are wanted.

    A name is a plugin's or a distribution's; "gvbsm" stands for all built-in plugins.
    """
    text = os.environ.get(VARIABLE)
    if text is None or not text.strip():
        return None
    return {_normal(name) for name in text.split(",") if name.strip()}


def is_wanted(point: metadata.EntryPoint, names: set[str] | None) -> bool:
    """Whether an entry point is among the names that the user lets in (None: all are)."""
    if names is None:
        return True
    distribution = _normal(origin(point)[0])
    # "gvbsm" means the distribution alone, so that no other plugin gets in by taking that name.
    return distribution in names or _normal(point.name) in names - {BUILT_IN}


def check_wanted(points: Iterable[metadata.EntryPoint], names: set[str] | None) -> list[str]:
    """Return the wanted names that no entry point or distribution has."""
    known = {_normal(point.name) for point in points} | {_normal(origin(point)[0]) for point in points}
    return sorted((names or set()) - known)


def same_name(one: str, other: str) -> bool:
    """Whether two names of distributions are one, as package indexes compare them."""
    return _normal(one) == _normal(other)


def _normal(name: str) -> str:
    """Return a name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def check_contract(module: ModuleType) -> None:
    """Raise GvbsmError if a plugin module says that it needs another version of the contract.

    It says so by `requires_contract = ">=2,<3"`, in the form of Python's version specifiers.
    """
    required = getattr(module, "requires_contract", None)
    if required is None:
        return
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        allowed = SpecifierSet(required) if isinstance(required, str) else None
    except InvalidSpecifier:
        allowed = None
    if allowed is None:
        raise GvbsmError(f'requires_contract is {required!r}, which is not a version range such as ">=2,<3"')
    if CONTRACT_VERSION not in allowed:
        raise GvbsmError(
            f"needs a contract {required}, and this gvbsm has contract {CONTRACT_VERSION}; install another "
            "version of the plugin or of gvbsm"
        )
