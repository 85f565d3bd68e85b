"""Units of work: pure, independent, idempotent; each makes one artifact, named by all it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvbsm_registry import Artifact, GvbsmError
from gvbsm_registry.artifacts import digest, peek, read

if TYPE_CHECKING:
    from torch import Tensor

    from gvbsm.runtime.context import Context

Payload = tuple[dict[str, "Tensor"], dict[str, Any]]
"""Tensors and meta of an artifact; "summary" in meta is told to those who watch, and not stored."""

Inputs = Mapping[str, "Unit | tuple[Unit, ...]"]


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    stage, name: what the user is told; name is unique within the stage.
    kind: of its artifact; path: where that lies (see `stored_in`).
    work: a module-level function (context, unit) to a payload; all that it reads is in those two.
    options: JSON values, all that the work may read beside its inputs.
    inputs: the units whose artifacts it reads.
    how: what its result does not depend on, such as how often steps are logged; in no key.
    together: does several units of one stage in one go, with the results of `work`; for speed alone.
    data_parallel: done by all processes that torchrun started (see `gvbsm.runtime.distributed`).
    """

    stage: str
    name: str
    kind: str
    work: Callable[[Context, Unit], Payload]
    options: Mapping[str, Any]
    inputs: Inputs = field(default_factory=dict)
    path: Path = Path()
    how: Mapping[str, Any] = field(default_factory=dict)
    together: Callable[[Context, Sequence[Unit]], list[Payload]] | None = None
    data_parallel: bool = False

    @cached_property
    def key(self) -> str:
        """The digest of all that the result depends on: stage, kind, options and the inputs' keys."""
        inputs = {
            name: [unit.key for unit in units] if isinstance(units, tuple) else units.key
            for name, units in self.inputs.items()
        }
        return digest({"stage": self.stage, "kind": self.kind, "options": self.options, "inputs": inputs})

    def stored_in(self, folder: Path) -> Unit:
        """Return this unit with its artifact in `folder`, named by its key."""
        return replace(self, path=folder / f"{self.key}.safetensors")

    def input(self, name: str) -> Unit:
        """Return the one unit that an input is."""
        unit = self.inputs[name]
        assert isinstance(unit, Unit), f"{self.name}: {name} is several units"
        return unit

    def input_list(self, name: str) -> tuple[Unit, ...]:
        """Return the units that an input is; none if there is no such input."""
        units = self.inputs.get(name, ())
        return (units,) if isinstance(units, Unit) else units

    def each_input(self) -> Iterator[Unit]:
        """Yield all units whose artifacts are read."""
        for name in self.inputs:
            yield from self.input_list(name)

    def done(self) -> bool:
        """Whether the artifact exists and was made from the same inputs.

        Raises GvbsmError if there is a file that can't be read.
        """
        return self.there() and peek(self.path)["key"] == self.key

    def there(self) -> bool:
        """Whether there is a file in the artifact's place; raises GvbsmError if that can't be looked at."""
        try:
            return self.path.exists()
        except OSError as error:
            raise GvbsmError(
                f"{self.path}: can't be looked at ({error.strerror}); check the permissions of its folder"
            ) from error

    def read(self) -> Artifact:
        """Return the verified artifact; raises GvbsmError if it is missing, broken or of other inputs."""
        artifact = read(self.path, self.kind)
        if artifact.key != self.key:
            raise GvbsmError(
                f"{self.path}: was made with other options or inputs; run the {self.stage} stage again"
            )
        return artifact
