"""What the contract asks of every component, whatever its kind."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

from pydantic import ValidationError

from gvbsm_registry.kinds import KINDS
from gvbsm_registry.testing.cases import Bench, asks, demand, fail


@asks("component")
def _is_named_and_documented(bench: Bench) -> None:
    """a name without spaces that users type, a class docstring, and a description for every option."""
    component = type(bench.component)
    demand(component.name and not any(map(str.isspace, component.name)), f"its name is {component.name!r}")
    documented = (
        component.__doc__ and component.__doc__ != next(k for k in KINDS if issubclass(component, k)).__doc__
    )
    demand(documented, f"{component.__name__} has no docstring")
    bare = [option for option, field in component.model_fields.items() if not field.description]
    demand(not bare, f"options without Field(description=...): {', '.join(bare)}")
    family = component.name.endswith("/*")
    demand(not family or "variant" in component.model_fields, "a family needs the option `variant`")


@asks("component")
def _options_are_validated(bench: Bench) -> None:
    """options are typed: unknown ones and values of another type are refused with a ValidationError."""
    component = bench.component
    given = component.model_dump()
    _refused(component, {**given, "no_such_option": 1}, "the unknown option no_such_option")
    for option in type(component).model_fields:
        _refused(component, {**given, option: object()}, f"{option} = object()")


def _refused(component: Any, options: dict[str, Any], what: str) -> None:
    try:
        type(component)(**options)
    except ValidationError:
        return
    except Exception as error:
        fail(f"{what} raised {type(error).__name__} instead of a ValidationError")
    fail(f"{what} was accepted")


@asks("component")
def _is_frozen(bench: Bench) -> None:
    """a component never changes once it is made (keep what you compute in local variables)."""
    component = bench.component
    for option in type(component).model_fields:
        try:
            setattr(component, option, getattr(component, option))
        except ValidationError:
            continue
        fail(f"the option {option} can be set afterwards")


@asks("component")
def _its_table_makes_it_again(bench: Bench) -> None:
    """`table()` holds plain TOML values (after JSON) and makes an equal component."""
    component = bench.component
    table = component.table()
    demand(table.pop("use") == component.title, f"its table says {component.table()['use']!r}")
    if type(component).name.endswith("/*"):
        table["variant"] = component.variant
    again = type(component).model_validate(table)
    demand(again == component, f"its table {table} makes another component, {again!r}")


@asks("component")
def _can_be_pickled(bench: Bench) -> None:
    """components can be sent to other processes: they pickle, and come back equal."""
    if "<locals>" in type(bench.component).__qualname__:
        return  # a class made inside a function can't be found again; no plugin module has one
    again = pickle.loads(pickle.dumps(bench.component))
    demand(again == bench.component, "pickling gives another component")


@asks("component")
def _methods_have_the_contracts_arguments(bench: Bench) -> None:
    """methods take the arguments that the kind's methods take, by the same names, in the same order."""
    component = type(bench.component)
    kind = next(known for known in KINDS if issubclass(component, known))
    for method in sorted(kind.__abstractmethods__):
        wanted = list(inspect.signature(getattr(kind, method)).parameters)
        found = list(inspect.signature(getattr(component, method)).parameters)
        demand(
            found[: len(wanted)] == wanted, f"{method} takes ({', '.join(found)}), not ({', '.join(wanted)})"
        )
