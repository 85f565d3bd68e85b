"""Recipe fields that hold a component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
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
    Regularizer,
    Schedule,
)


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
UseEnsembler = Annotated[Ensembler, Used(Ensembler)]
UseCodec = Annotated[Codec, Used(Codec)]
UseObjective = Annotated[Objective, Used(Objective)]


def named(default: Any) -> Any:
    """A component field's default, given by name and made by the registry like any other value."""
    return Field(default, validate_default=True)
