"""Requirements: what the contract asks of a component, one function each, in the words of its docstring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from gvbsm_registry.errors import GvbsmError


class ConformanceError(AssertionError):
    """A component does not do what its kind's contract asks."""


@dataclass(frozen=True)
class Context:
    """What a requirement is tried on: the component and the circumstances.

    device: "cpu" or "cuda". image_sizes: image sizes that a backbone must be able to take.
    model: the module that a matcher is tried on, beside the small ones that every matcher meets.
    """

    component: Any
    device: str = "cpu"
    image_sizes: tuple[int, ...] = (16,)
    model: Any = None


@dataclass(frozen=True)
class Requirement:
    """What is asked of the components of `kind` ("component": of all); `devices`: on each device there is."""

    kind: str
    check: Callable[[Context], None]
    devices: bool


def requirement(kind: str, devices: bool = False) -> Callable[[Callable[[Context], None]], Requirement]:
    """Make a requirement of the function below, which fails if its context's component does not meet it."""
    return lambda check: Requirement(kind, check, devices)


def fail(what: str) -> NoReturn:
    """Say that a requirement is not met."""
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
