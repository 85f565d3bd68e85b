"""Recipe fields that hold a component."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel
from pydantic_core import PydanticCustomError

from gvbsm_registry import (
    KINDS,
    Augmentation,
    Backbone,
    Callback,
    Codec,
    Component,
    Dataset,
    Ensembler,
    GvbsmError,
    Initializer,
    Matcher,
    Objective,
    Optimizer,
    Parameterization,
    Population,
    Registry,
    Regularizer,
    Schedule,
    Term,
    Used,
)
from gvbsm_registry.artifacts import digest

UseDataset = Annotated[Dataset, Used(Dataset)]
UseBackbone = Annotated[Backbone, Used(Backbone)]
UseMatcher = Annotated[Matcher, Used(Matcher)]
UseTerm = Annotated[Term, Used(Term)]
UsePopulation = Annotated[Population, Used(Population)]
UseParameterization = Annotated[Parameterization, Used(Parameterization)]
UseCallback = Annotated[Callback, Used(Callback)]
UseRegularizer = Annotated[Regularizer, Used(Regularizer)]
UseInitializer = Annotated[Initializer, Used(Initializer)]
UseAugmentation = Annotated[Augmentation, Used(Augmentation)]
UseSchedule = Annotated[Schedule, Used(Schedule)]
UseOptimizer = Annotated[Optimizer, Used(Optimizer)]
UseEnsembler = Annotated[Ensembler, Used(Ensembler)]
UseCodec = Annotated[Codec, Used(Codec)]
UseObjective = Annotated[Objective, Used(Objective)]


LONGEST_NAME = 100


def _safe_name(name: str) -> str:
    """Names of recipes become names of folders, whoever wrote the recipe."""
    bad = [character for character in name if not character.isprintable() or character in "/\\"]
    if bad or not 0 < len(name) <= LONGEST_NAME or name[0] in ".~- ":
        raise PydanticCustomError(
            "gvbsm",
            '{name} can\'t be the name of a folder, which it becomes; give name = "NAME" of at most {most} '
            "letters, digits, spaces, dots, _ and -, the first a letter or digit",
            {"name": repr(name[:LONGEST_NAME]), "most": LONGEST_NAME},
        )
    return name


SafeName = Annotated[str, AfterValidator(_safe_name)]
"""A text that can stand in a path as one part of it, and on a terminal."""


def components_of(part: Any) -> Iterator[Component]:
    """Yield the components in a component, a section or a sequence of them, at any depth."""
    if isinstance(part, Component):
        yield part
    if isinstance(part, BaseModel):
        part = [getattr(part, name) for name in type(part).model_fields]
    if isinstance(part, (list, tuple)):
        for inner in part:
            yield from components_of(inner)


def origins(registry: Registry, part: Any) -> dict[str, str]:
    """Return whose the components of a recipe are: by `KIND:NAME` the distribution and its version."""
    found = {f"{each.kind}:{each.full_name}": registry.origin(type(each)) for each in components_of(part)}
    return dict(sorted(found.items()))


def missing_plugins(registry: Registry, components: Any) -> str:
    """Return what is to be said of components that a recipe once had, see `origins`, and that are gone."""
    if not isinstance(components, Mapping):
        return ""
    kinds = {kind.kind: kind for kind in KINDS}
    gone = []
    for whole, origin in components.items():
        kind, _, name = str(whole).partition(":")
        try:
            if kind in kinds:
                registry.find(kinds[kind], name)
        except GvbsmError:
            gone.append(f"{kind} {name!r} of {origin}")
    if not gone:
        return ""
    return f"; the recipe was made with {', '.join(gone)}: install that again"


def identities(registry: Registry, *parts: Any) -> dict[str, str]:
    """Return what the results of components depend on beside their options: for the keys of units.

    By `KIND:NAME` the distribution and its version, and a digest of the files that the component reads: their
    contents, their order and where they lie relative to one another. Raises GvbsmError if one can't be read.
    """
    identified: dict[str, str] = {}
    for component in components_of(list(parts)):
        name = f"{component.kind}:{component.full_name}"
        files = component.files()
        told = [registry.origin(type(component)), *([_files_digest(files)] if files else [])]
        identified[name] = " ".join([*([identified[name]] if name in identified else []), *told])
    return identified


def _files_digest(files: Sequence[Path]) -> str:
    common = os.path.commonpath(files)
    contents = []
    for path in files:
        try:
            with path.open("rb") as file:
                made = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise GvbsmError(f"{path}: can't be read ({error.strerror}); check the file") from error
        contents.append([os.path.relpath(path, common), made])
    return digest(contents)
