"""What every table of the recipe is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.config import JsonDict

from gvbsm_registry.values import settled

NO_RESULT: JsonDict = {"changes_results": False}
"""Marks a key that says how work is done or checked, not what comes out: it is in no unit's key."""


class Section(BaseModel):
    """A table of the recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _settled(cls, value: Any, info: ValidationInfo) -> Any:
        return settled(cls, info.field_name, value)

    def options(self, *without: str) -> dict[str, Any]:
        """Return the keys that results depend on, as JSON values; those in `without` are left out, too."""
        return self.model_dump(mode="json", exclude={*self.idle_keys(), *without})

    @classmethod
    def idle_keys(cls) -> set[str]:
        """Return the keys that no result depends on."""
        return {name for name, field in cls.model_fields.items() if field.json_schema_extra == NO_RESULT}
