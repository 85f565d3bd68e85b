"""Cases: what the contract asks of a component, one function each; their docstrings are what it asks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from gvbsm_registry.discovery import format_validation_error
from gvbsm_registry.errors import GvbsmError
from gvbsm_registry.kinds import KINDS, Component

Check = Callable[["Context"], None]
F = TypeVar("F", bound=Check)
CHECKS: dict[str, list[tuple[Check, bool]]] = {"component": []}


class ConformanceError(AssertionError):
    """A component does not do what its kind's contract asks."""


@dataclass(frozen=True)
class Context:
    """What a case works on: the component and the circumstances it is tried in.

    device: "cpu" or "cuda". sides: image sides that a backbone must be able to take.
    model: the module that a matcher is tried on, beside the small ones that every matcher meets.
    """

    component: Any
    device: str = "cpu"
    sides: tuple[int, ...] = (16,)
    model: Any = None


@dataclass(frozen=True)
class Case:
    """One requirement on one component. Call it: it raises ConformanceError if it is not met."""

    check: Check = field(repr=False)
    context: Context = field(repr=False)
    name: str

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> None:
        try:
            self.check(self.context)
        except ConformanceError as error:
            raise ConformanceError(self._message(str(error))) from error
        except Exception as error:
            raise ConformanceError(self._message(f"it raised {type(error).__name__}: {error}")) from error

    def _message(self, what: str) -> str:
        component = self.context.component
        asked = " ".join((inspect.getdoc(self.check) or "").split())
        text = (
            f"{component.kind} {component.full_name!r}, case {self.name}: {what}. The contract asks: {asked}"
        )
        return " ".join(text.split())


def requirement(kind: str, devices: bool = False) -> Callable[[F], F]:
    """Register a check for a kind ("component": for all); with `devices`, it is run on each device."""

    def register(check: F) -> F:
        CHECKS.setdefault(kind, []).append((check, devices))
        return check

    return register


def fail(what: str) -> NoReturn:
    """Say that a case is not met."""
    raise ConformanceError(what)


def require(condition: object, what: str) -> None:
    """Fail with `what` unless the condition holds."""
    if not condition:
        fail(what)


def require_error(call: Callable[[], object], what: str) -> None:
    """Fail unless `call` raises a GvbsmError."""
    try:
        call()
    except GvbsmError:
        return
    except Exception as error:
        fail(f"{what} raised {type(error).__name__} ({error}) instead of a GvbsmError")
    fail(f"{what} raised nothing")


def devices() -> list[str]:
    """Return the devices to try: "cpu", and "cuda" if there is one."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def cases(component: Component | type[Component], **circumstances: Any) -> list[Case]:
    """Return the cases of a component (or of a class that needs no options), for pytest's `parametrize`.

    circumstances: `sides` (for a backbone) and `model` (for a matcher), see `Context`.
    Raises ConformanceError if it is not a component of a known kind, or the class can't be made.
    """
    made = _instance(component)
    found = []
    for check, by_device in [*CHECKS["component"], *CHECKS.get(made.kind, [])]:
        name = check.__name__.strip("_").replace("_", " ")
        for device in devices() if by_device else ["cpu"]:
            suffix = f" ({device})" if by_device else ""
            found.append(Case(check, Context(made, device, **circumstances), name + suffix))
    return found


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
