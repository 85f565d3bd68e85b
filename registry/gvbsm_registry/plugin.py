"""A plugin, and whose a name is that several of them have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gvbsm_registry import admission
from gvbsm_registry.kinds import Component


@dataclass
class Plugin:
    """One entry point: where it comes from, what it adds, and what is wrong with it.

    recipes: the files of those that it ships, by name. `loaded` is False if the user did not let it in
    (GVBSM_PLUGINS, --no-plugins).
    """

    name: str
    distribution: str
    version: str
    components: list[type[Component]] = field(default_factory=list)
    recipes: dict[str, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    loaded: bool = True

    @property
    def owner(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} {self.version}"

    @property
    def built_in(self) -> bool:
        """Whether it is one of gvbsm's own."""
        return admission.same_name(self.distribution, admission.BUILT_IN)


def split_name(name: str) -> tuple[str, str]:
    """Return (distribution, name) of "DISTRIBUTION:NAME"; ("", name) of a bare one."""
    distribution, colon, bare = name.partition(":")
    return (distribution, bare) if colon and "/" not in distribution else ("", name)


def told_twice(kind: str, name: str, plugins: Sequence[Plugin]) -> str:
    """Return the line for a name that several plugins have, built-in ones first."""
    who = f"the {kind} name {name!r} is taken twice, by {' and '.join(plugin.owner for plugin in plugins)}"
    whole = list(dict.fromkeys(f"{plugin.distribution}:{name}" for plugin in plugins))
    if len(whole) == 1:
        return f"{who}; uninstall one of them, or ask its author for another name"
    if plugins[0].built_in and not plugins[1].built_in:
        others = " or ".join(map(repr, whole[1:]))
        return f"{who}; alone it means the built-in one, write {others} for the other"
    return f"{who}; write {' or '.join(map(repr, whole))}, or uninstall one of them"
