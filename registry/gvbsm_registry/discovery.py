"""Finds plugins and hands out their components. The only module that knows pluggy."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy
from pydantic import ValidationError

from gvbsm_registry import admission, hookspecs, shipped
from gvbsm_registry.errors import GvbsmError
from gvbsm_registry.kinds import CONTRACT_VERSION, KINDS, Component
from gvbsm_registry.messages import format_validation_error, unknown_name
from gvbsm_registry.plugin import Plugin, split_name, told_twice

GROUP = "gvbsm"
hookimpl = pluggy.HookimplMarker(GROUP)

C = TypeVar("C", bound=Component)


class Registry:
    """The components and recipes of all plugins that loaded.

    It can be pickled: where it arrives, it is made again of the same entry points.
    """

    def __init__(
        self,
        manager: pluggy.PluginManager,
        plugins: list[Plugin],
        entry_points: tuple[metadata.EntryPoint, ...] | None = None,
    ) -> None:
        self.manager = manager
        self.plugins = plugins
        self._entry_points = entry_points
        # By (kind, name), or ("recipe", name): what is called so, and the plugin that adds it.
        self._owners: dict[tuple[str, str], list[tuple[Any, Plugin]]] = {}
        for plugin in plugins:
            for component in plugin.components:
                self._owners.setdefault((component.kind, component.name), []).append((component, plugin))
            for name, path in plugin.recipes.items():
                self._owners.setdefault(("recipe", name), []).append((path, plugin))
                plugin.problems += shipped.problems(path)
        for (kind, name), owners in self._owners.items():
            owners.sort(key=lambda owner: not owner[1].built_in)
            for _, plugin in owners[1:]:
                plugin.problems.append(told_twice(kind, name, [each for _, each in owners]))

    def __reduce__(self) -> tuple[Any, ...]:
        return discover, (self._entry_points,)

    def names(self, kind: type[Component]) -> list[str]:
        """Return the names of all components of a kind, sorted."""
        return sorted(name for owned_kind, name in self._owners if owned_kind == kind.kind)

    def find(self, kind: type[C], name: str) -> type[C]:
        """Return the component class called `name`, or `DISTRIBUTION:NAME`.

        A bare name that several plugins have means the built-in component. Raises GvbsmError if there is none
        (naming the nearest and all), or several and none of them is built in (naming the owners).
        """
        component: type[C] = self._owner(kind.kind, name, self.names(kind))[0]
        assert issubclass(component, kind)
        return component

    def _owner(self, kind: str, name: str, names: Iterable[str]) -> tuple[Any, Plugin]:
        distribution, bare = split_name(name)
        if (kind, bare) not in self._owners and "/" in bare and not bare.endswith("/"):
            family = bare.split("/", 1)[0] + "/*"
            bare = family if (kind, family) in self._owners else bare
        owners = self._owners.get((kind, bare), [])
        if distribution:
            owners = [owner for owner in owners if admission.same_name(owner[1].distribution, distribution)]
            if not owners:
                raise GvbsmError(self._not_of(kind, distribution, bare))
        elif not owners:
            raise GvbsmError(unknown_name(kind, name, names) + self._broken_plugins())
        several = len(owners) > 1 and owners[0][1].built_in == owners[1][1].built_in
        if several:
            raise GvbsmError(told_twice(kind, bare, [each for _, each in owners]))
        return owners[0]

    def _not_of(self, kind: str, distribution: str, name: str) -> str:
        """Return the line for a distribution that has no component of a name."""
        mine = [p for p in self.plugins if admission.same_name(p.distribution, distribution)]
        if not mine and (kind, distribution) in self._owners:
            if "=" in name:  # as for a flag, where a table is asked for
                return f'{kind} {distribution + ":" + name!r}: write it as {{ use = "NAME", key = value }}'
            return f"{kind} {distribution!r}: {name!r} is not an option; write NAME:key=value"
        if not mine:
            known = {plugin.distribution for plugin in self.plugins}
            return f"{kind} '{distribution}:{name}': {unknown_name('distribution', distribution, known)}"
        names = {c.name for plugin in mine for c in plugin.components if c.kind == kind}
        names |= {each for plugin in mine for each in plugin.recipes if kind == "recipe"}
        return f"{distribution}: {unknown_name(kind, name, names)}{self._broken_plugins()}"

    def create(self, kind: type[C], table: Mapping[str, Any] | str) -> C:
        """Make the component that a recipe table (`use` and options) or a bare name describes.

        Raises GvbsmError for an unknown name, an unknown option or a wrong value.
        """
        options = {"use": table} if isinstance(table, str) else dict(table)
        name = options.pop("use", None)
        if not isinstance(name, str):
            raise GvbsmError(f'a {kind.kind} needs use = "NAME"; there are: {", ".join(self.names(kind))}')
        component = self.find(kind, name)
        distribution, bare = split_name(name)
        if component.name.endswith("/*"):
            options["variant"] = bare.split("/", 1)[1]
        try:
            made = component.model_validate(options, context={"registry": self})
        except ValidationError as error:
            raise GvbsmError(f"{kind.kind} {name!r}: {format_validation_error(error, component)}") from error

        if distribution and not self._is_meant(component):  # what is written needs the whole name, too
            made._distribution = distribution
        return made

    def _is_meant(self, component: type[Component]) -> bool:
        """Whether a component's bare name means it."""
        owners = self._owners[component.kind, component.name]
        return owners[0][0] is component and (len(owners) == 1 or not owners[1][1].built_in)

    def owner(self, component: type[Component]) -> Plugin:
        """Return the plugin that added a component class."""
        return next(p for c, p in self._owners[component.kind, component.name] if c is component)

    def origin(self, component: type[Component]) -> str:
        """Return whose a component class is: "distribution version", or its module if no plugin adds it."""
        owners = self._owners.get((component.kind, component.name), [])
        origins = [f"{p.distribution} {p.version}" for c, p in owners if c is component]
        return origins[0] if origins else component.__module__

    def components(self) -> list[type[Component]]:
        """Return all component classes, by kind then name."""
        return [owners[0][0] for (kind, _), owners in sorted(self._owners.items()) if kind != "recipe"]

    def recipes(self) -> dict[str, Path]:
        """Return the shipped recipes, by name; `recipe` says whether one of them can be used."""
        return {name: owners[0][0] for (kind, name), owners in self._owners.items() if kind == "recipe"}

    def recipe(self, name: str) -> Path:
        """Return the path of the shipped recipe called `name`.

        Raises GvbsmError if there is none or more than one, or its file can't be read or is not TOML, naming
        the plugins that ship it.
        """
        path: Path
        path, plugin = self._owner("recipe", name, self.recipes())
        for problem in shipped.problems(path):
            raise GvbsmError(f"{plugin.owner}: {problem}")
        return path

    def problems(self) -> list[str]:
        """Return one line for each thing that is wrong with a plugin."""
        return [f"{plugin.owner}: {problem}" for plugin in self.plugins for problem in plugin.problems]

    def _broken_plugins(self) -> str:
        broken = [plugin.name for plugin in self.plugins if plugin.problems]
        text = f" (plugins with problems: {', '.join(broken)}; see 'gvbsm plugins')" if broken else ""
        absent = [plugin for plugin in self.plugins if not plugin.loaded]
        if any(plugin.built_in for plugin in absent):
            name = admission.BUILT_IN
            text += f" (the built-in plugins are left out by {admission.VARIABLE}; add {name} to its names)"
        others = [plugin.name for plugin in absent if not plugin.built_in]
        why = f"{admission.VARIABLE} or --no-plugins"
        return text + (f" (plugins left out by {why}: {', '.join(others)})" if others else "")


def discover(entry_points: Iterable[metadata.EntryPoint] | None = None) -> Registry:
    """Load every plugin behind the entry-point group `gvbsm`, or behind those given, into a new Registry.

    A plugin that can't be loaded is kept with its problem; the rest goes on. Without `entry_points`, the
    environment variable GVBSM_PLUGINS (names of plugins or distributions, separated by commas) says which
    are loaded; "gvbsm" stands for the built-in ones.
    Raises GvbsmError if it names a plugin that is not installed.
    """
    manager = pluggy.PluginManager(GROUP)
    marker = pluggy.HookspecMarker(GROUP)
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction):
        if name.startswith("gvbsm_"):
            marker(function)
    manager.add_hookspecs(hookspecs)
    given = None if entry_points is None else tuple(entry_points)
    points = tuple(metadata.entry_points(group=GROUP)) if given is None else given
    names = admission.wanted() if given is None else None
    for missing in admission.check_wanted(points, names):
        installed = {point.name for point in points} | {admission.BUILT_IN}
        raise GvbsmError(f"{admission.VARIABLE}: {unknown_name('plugin', missing, installed)}")
    plugins = []
    for point in sorted(points, key=lambda point: (point.name, *admission.origin(point))):
        if admission.is_wanted(point, names):
            plugins.append(_load(manager, point))
        else:
            plugins.append(Plugin(point.name, *admission.origin(point), loaded=False))
    return Registry(manager, plugins, given)


def _load(manager: pluggy.PluginManager, point: metadata.EntryPoint) -> Plugin:
    plugin = Plugin(point.name, *admission.origin(point))
    name = f"{plugin.distribution}:{point.name}"
    mine = not manager.has_plugin(name)
    try:
        module = point.load()
        admission.check_contract(module)
        _check_hooks(module)
        mine = mine and not manager.is_registered(module)
        if not mine:
            raise GvbsmError(f"{point.value} is behind another entry point already")
        manager.register(module, name=name)
        hooks = manager.subset_hook_caller
        others = [other for other in manager.get_plugins() if other is not module]
        for returned in hooks("gvbsm_components", others)():
            for component in returned:
                _add(plugin, component)
        for recipes in hooks("gvbsm_recipes", others)():
            for name, path in shipped.named(recipes):
                if name in plugin.recipes:
                    plugin.problems.append(f"ships two recipes called {name!r}; rename one of them")
                plugin.recipes.setdefault(name, path)
    except (Exception, SystemExit) as error:  # a plugin may fail in any way, and takes no other along
        why = str(error) if isinstance(error, GvbsmError) else f"{type(error).__name__}: {error}"
        if isinstance(error, ImportError):
            ours = (error.name or "").startswith("gvbsm_registry")
            contract = f"made for another contract than {CONTRACT_VERSION}?"
            why += f"; {contract if ours else f'install what {plugin.distribution} needs'}"
        plugin.problems.append(" ".join(f"failed to load: {why}; fix or uninstall it".split()))
        if mine and manager.has_plugin(name):
            manager.unregister(name=name)
    return plugin


def _check_hooks(module: ModuleType) -> None:
    known = [name for name in vars(hookspecs) if name.startswith("gvbsm_")]
    for name, value in vars(module).items():
        marked = hasattr(value, f"{GROUP}_impl")
        if not inspect.isfunction(value) or not (marked or name.startswith("gvbsm_")):
            continue
        if name not in known:
            raise GvbsmError(unknown_name("hook", name, known))
        if not marked:
            raise GvbsmError(f"the hook {name} is not marked with @hookimpl")


def _add(plugin: Plugin, component: object) -> None:
    if not (inspect.isclass(component) and issubclass(component, Component)):
        plugin.problems.append(
            f"registers {component!r}, which is not a Component class; it is left out until "
            "gvbsm_components returns only classes derived from a kind"
        )
    elif not _has_kind(component) or not component.name or not isinstance(component.name, str):
        plugin.problems.append(
            f"{component.__name__} has no kind or no name; derive it from a kind and set `name` to a string, "
            "without an annotation; it is left out"
        )
    elif inspect.isabstract(component):
        missing = ", ".join(sorted(component.__abstractmethods__))
        plugin.problems.append(
            f"{component.__name__} lacks {missing}; it is left out until its author defines that"
        )
    else:
        plugin.components.append(component)


def _has_kind(component: type[Component]) -> bool:
    return any(issubclass(component, kind) and component.kind == kind.kind for kind in KINDS)
