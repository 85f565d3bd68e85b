"""Fields of recipes and components that hold a component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pydantic_core import PydanticCustomError, core_schema

from gvbsm_registry.errors import GvbsmError
from gvbsm_registry.kinds import Component

if TYPE_CHECKING:
    from gvbsm_registry.discovery import Registry


class Used:
    """Marks a field that holds a component: `Annotated[Schedule, Used(Schedule)]`.

    The registry makes it from a table with `use`, or a name. So a component may hold a component.
    """

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
            component: Component = _registry(info).create(self.kind, value)
        except GvbsmError as error:
            raise PydanticCustomError("gvbsm", "{why}", {"why": str(error)}) from error
        return component


def _registry(info: core_schema.ValidationInfo) -> Registry:
    """Return the registry that is validated with, or that of the installed plugins."""
    if info.context is not None:
        registry: Registry = info.context["registry"]
        return registry
    from gvbsm_registry.discovery import discover

    return discover()


def named(default: Any, description: str | None = None) -> Any:
    """A component field's default, given by name and made by the registry like any other value.

    description: of the field; options of components have to have one.
    """
    return Field(default, validate_default=True, description=description)
