"""Writes a plugin package from the templates: one that installs, passes its tests and runs as it is."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

from gvbsm_registry import CONTRACT_VERSION, KINDS, Component, GvbsmError, Registry
from gvbsm_registry.artifacts import write_text
from gvbsm_registry.messages import unknown_name

PACKAGE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
PREFIX = "gvbsm-"
PLUGIN, TEST = "plugin.py.jinja", "test_plugin.py.jinja"
RUN = {
    "dataset": "gvbsm run digits --set data={name}",
    "backbone": "gvbsm run digits --backbone {name}",
    "matcher": "gvbsm run digits --matcher bn --matcher {name}",
    "regularizer": "gvbsm run digits --regularizer {name}",
    "term": "gvbsm run digits --term cross_entropy --term {name}",
    "population": "gvbsm run digits --population {name}",
    "parameterization": "gvbsm run digits --parameterization {name}",
    "callback": "gvbsm run digits --callback {name}",
    "initializer": "gvbsm run digits --initializer {name}",
    "augmentation": "gvbsm run digits --augmentation {name}",
    "schedule": "gvbsm run digits --schedule {name}",
    "optimizer": "gvbsm run digits --set evaluation.optimizer={name}",
    "ensembler": "gvbsm run digits --ensembler {name}",
    "objective": "gvbsm run digits --objective {name}",
    "codec": "gvbsm run digits --set relabel.codec={name}",
    "executor": "gvbsm run digits --executor {name}",
    "exporter": "gvbsm export OUT DESTINATION --to {name}",
}
"""A command that uses a component of each kind."""


def create(package: str, kind: str, folder: Path, registry: Registry) -> list[Path]:
    """Write the package `package` with one component of `kind` below `folder`; return the files' paths.

    Raises GvbsmError, writing nothing, if the name can't be one, is taken, or its folder exists already.
    """
    kinds = {known.kind: known for known in KINDS}
    if kind not in kinds:
        raise GvbsmError(unknown_name("kind", kind, kinds))
    names = _names(package, kinds[kind], registry)
    target = folder / package
    if target.exists():
        raise GvbsmError(f"{target}: exists already; give another name or --dir")
    files = {
        "pyproject.toml": "pyproject.toml.jinja",
        "README.md": "README.md.jinja",
        f"{names['module']}/__init__.py": PLUGIN,
        f"tests/test_{names['module']}.py": TEST,
    }
    texts = {target / path: render(template, names) for path, template in files.items()}
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


LONGEST = 60


def _names(package: str, kind: type[Component], registry: Registry) -> dict[str, str]:
    """Return what the templates need."""
    if not PACKAGE.fullmatch(package) or len(package) > LONGEST or package == PREFIX.rstrip("-"):
        raise GvbsmError(
            f"{package!r} is not a package name; write small letters and dashes, such as gvbsm-gram"
        )
    module = package.replace("-", "_")
    if keyword.iskeyword(module):
        raise GvbsmError(
            f"{package!r} is a word of Python, which no module can have as its name; write {PREFIX}{package}"
        )
    if importlib.util.find_spec(module) is not None:
        raise GvbsmError(f"{package}: a module {module!r} is installed already; give another name")
    name = component_name(package)
    if name in registry.names(kind):
        owner = registry.owner(registry.find(kind, name)).owner
        raise GvbsmError(f"{package}: there is a {kind.kind} {name!r}, from {owner}; give another name")
    major = int(CONTRACT_VERSION.split(".")[0])
    names = {
        "package": package,
        "module": module,
        "plugin": package.removeprefix(PREFIX),
        "name": name,
        "cls": "",
        "kind": kind.kind,
        "base": kind.__name__,
        "contract": f">={CONTRACT_VERSION},<{major + 1}",
        "run": RUN[kind.kind].format(name=name),
    }
    cls = "".join(part.capitalize() for part in name.split("_"))
    others = re.findall(r"\w+", render(PLUGIN, names) + render(TEST, names))
    fits = cls.isidentifier() and not keyword.iskeyword(cls) and cls not in others
    return {**names, "cls": cls if fits else f"My{cls}"}


def component_name(package: str) -> str:
    """Return the name of the component in a new package."""
    return package.removeprefix(PREFIX).replace("-", "_")


def render(template: str, names: dict[str, str]) -> str:
    """Return a template filled in."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gvbsm.authoring"),
        undefined=StrictUndefined,
        keep_trailing_newline=False,
        autoescape=False,
    )
    return environment.get_template(template).render(names).rstrip() + "\n"
