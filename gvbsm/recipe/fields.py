"""Recipe fields that hold a component."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field
from pydantic_core import PydanticCustomError, core_schema

from gvbsm_registry import (
    Augmentation,
    Backbone,
    Codec,
    Component,
    Dataset,
    Ensembler,
    GvbsmError,
    Initializer,
    Matcher,
    Objective,
    Optimizer,
    Registry,
    Regularizer,
    Schedule,
)
from gvbsm_registry.artifacts import digest


class Used:
    """Marks a field that holds a component: the registry makes it from a table with `use`, or a name."""

    def __init__(self, kind: type[Component]) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda component: component.to_recipe()
            ),
        )

    def _validate(self, value: Any, info: core_schema.ValidationInfo) -> Component:
        if isinstance(value, self.kind):
            return value
        if not isinstance(value, (str, Mapping)):
            raise PydanticCustomError("gvbsm", 'needs a table with use = "NAME", or a name')
        try:
            assert info.context is not None, "validate recipes with the registry as context"
            return info.context["registry"].create(self.kind, value)
        except GvbsmError as error:
            raise PydanticCustomError("gvbsm", "{why}", {"why": str(error)}) from error


UseDataset = Annotated[Dataset, Used(Dataset)]
UseBackbone = Annotated[Backbone, Used(Backbone)]
UseMatcher = Annotated[Matcher, Used(Matcher)]
UseRegularizer = Annotated[Regularizer, Used(Regularizer)]
UseInitializer = Annotated[Initializer, Used(Initializer)]
UseAugmentation = Annotated[Augmentation, Used(Augmentation)]
UseSchedule = Annotated[Schedule, Used(Schedule)]
UseOptimizer = Annotated[Optimizer, Used(Optimizer)]
UseEnsembler = Annotated[Ensembler, Used(Ensembler)]
UseCodec = Annotated[Codec, Used(Codec)]
UseObjective = Annotated[Objective, Used(Objective)]


def named(default: Any) -> Any:
    """A component field's default, given by name and made by the registry like any other value."""
    return Field(default, validate_default=True)


def components_of(part: Any) -> Iterator[Component]:
    """Yield the components in a component, a section or a sequence of them, at any depth."""
    if isinstance(part, Component):
        yield part
    if isinstance(part, BaseModel):
        part = [getattr(part, name) for name in type(part).model_fields]
    if isinstance(part, (list, tuple)):
        for inner in part:
            yield from components_of(inner)


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
