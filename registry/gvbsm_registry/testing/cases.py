"""Cases: every requirement of a component's kind, ready to be called on the component."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from gvbsm_registry.kinds import KINDS, Component
from gvbsm_registry.messages import format_validation_error
from gvbsm_registry.testing import (
    backbones,
    components,
    data,
    losses,
    matchers,
    running,
    synthesis,
    training,
    views,
)
from gvbsm_registry.testing.requirements import ConformanceError, Context, Requirement, fail

REQUIREMENTS = tuple(
    value
    for module in (components, backbones, data, losses, matchers, running, synthesis, training, views)
    for value in vars(module).values()
    if isinstance(value, Requirement)
)


@dataclass(frozen=True)
class Case:
    """One requirement on one component. Call it: it raises ConformanceError if it is not met."""

    requirement: Requirement = field(repr=False)
    context: Context = field(repr=False)

    @property
    def name(self) -> str:
        """The requirement in a few words, with the device if it is tried on each."""
        name = self.requirement.check.__name__.strip("_").replace("_", " ")
        return f"{name} ({self.context.device})" if self.requirement.devices else name

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> None:
        try:
            self.requirement.check(self.context)
        except ConformanceError as error:
            raise ConformanceError(self._message(str(error))) from error
        except Exception as error:
            raise ConformanceError(self._message(f"it raised {type(error).__name__}: {error}")) from error

    def _message(self, what: str) -> str:
        component, asked = self.context.component, inspect.getdoc(self.requirement.check)
        who = f"{component.kind} {component.full_name!r}"
        return " ".join(f"{who}, case {self.name}: {what}. The contract asks: {asked}".split())


def devices() -> list[str]:
    """Return the devices to try: "cpu", and "cuda" if there is one."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def cases(component: Component | type[Component], **circumstances: Any) -> list[Case]:
    """Return the cases of a component (or of a class that needs no options), for pytest's `parametrize`.

    circumstances: `image_sizes` (for a backbone) and `model` (for a matcher), see `Context`.
    Raises ConformanceError if it is not a component of a known kind, or the class can't be made.
    """
    made = _instance(component)
    return [
        Case(each, Context(made, device, **circumstances))
        for each in REQUIREMENTS
        if each.kind in ("component", made.kind)
        for device in (devices() if each.devices else ["cpu"])
    ]


def _instance(component: Component | type[Component]) -> Component:
    kind = getattr(component, "kind", None)
    if kind not in [known.kind for known in KINDS]:
        fail(
            f"{component!r} is not a component: derive it from one of {', '.join(k.__name__ for k in KINDS)}"
        )
    if not inspect.isclass(component):
        assert isinstance(component, Component)
        return component
    if inspect.isabstract(component):
        fail(f"{component.__name__} lacks {', '.join(sorted(component.__abstractmethods__))}")
    try:
        return component()
    except ValidationError as error:
        why = format_validation_error(error, component)
        fail(f"{component.__name__} needs options ({why}); give a component, not its class")


def run(given: Iterable[Case]) -> None:
    """Run cases; raises one ConformanceError that lists all that are not met."""
    failures = []
    for case in given:
        try:
            case()
        except ConformanceError as error:
            failures.append(str(error))
    if failures:
        raise ConformanceError("\n".join(failures))
