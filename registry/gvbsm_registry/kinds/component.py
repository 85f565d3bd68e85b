"""The base of all kinds."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationInfo, field_validator

from gvbsm_registry.values import settled


class Component(BaseModel, ABC):
    """Base of all kinds. `kind` is set by the kind, `name` by the component.

    Options that are paths are absolute; numbers are finite, and at most 10¹² unless a field says otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""

    # whose it is, if it was named so ("DISTRIBUTION:NAME") and its bare name means another component
    _distribution: str = PrivateAttr("")

    @field_validator("*")
    @classmethod
    def _settled(cls, value: Any, info: ValidationInfo) -> Any:
        return settled(cls, info.field_name, value)

    @property
    def full_name(self) -> str:
        """The name as a user types it: the family's star replaced by the variant."""
        return self.name.replace("*", getattr(self, "variant", "*"))

    def to_recipe(self) -> dict[str, Any]:
        """Return the recipe table that makes this component: `use` beside every option that is not None."""
        options = self.model_dump(mode="json", exclude_none=True)
        options.pop("variant", None)
        whole = f"{self._distribution}:{self.full_name}" if self._distribution else self.full_name
        return {"use": whole, **options}

    def files(self) -> tuple[Path, ...]:
        """Return the files whose contents the component reads; work that uses it is keyed by their contents.

        A data set need not name its files: its splits have digests.
        """
        return ()
