"""What the contract asks of every component, whatever its kind."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

from pydantic import ValidationError

from gvbsm_registry.kinds import KINDS
from gvbsm_registry.testing.requirements import Context, fail, require, requirement


@requirement("component")
def _is_named_and_documented(context: Context) -> None:
    """a name without spaces that users type, a class docstring, and a description for every option."""
    component = type(context.component)
    require(component.name and not any(map(str.isspace, component.name)), f"its name is {component.name!r}")
    documented = (
        component.__doc__ and component.__doc__ != next(k for k in KINDS if issubclass(component, k)).__doc__
    )
    require(documented, f"{component.__name__} has no docstring")
    bare = [option for option, field in component.model_fields.items() if not field.description]
    require(not bare, f"options without Field(description=...): {', '.join(bare)}")
    family = component.name.endswith("/*")
    require(not family or "variant" in component.model_fields, "a family needs the option `variant`")


@requirement("component")
def _options_are_validated(context: Context) -> None:
    """options are typed: unknown ones and values of another type are refused with a ValidationError."""
    component = context.component
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


@requirement("component")
def _is_frozen(context: Context) -> None:
    """a component never changes once it is made (keep what you compute in local variables)."""
    component = context.component
    for option in type(component).model_fields:
        try:
            setattr(component, option, getattr(component, option))
        except ValidationError:
            continue
        fail(f"the option {option} can be set afterwards")


@requirement("component")
def _its_table_makes_it_again(context: Context) -> None:
    """`to_recipe()` holds plain TOML values (after JSON) and makes an equal component."""
    component = context.component
    table = component.to_recipe()
    require(table.pop("use") == component.full_name, f"its table says {component.to_recipe()['use']!r}")
    if type(component).name.endswith("/*"):
        table["variant"] = component.variant
    again = type(component).model_validate(table)
    require(again == component, f"its table {table} makes another component, {again!r}")


@requirement("component")
def _can_be_pickled(context: Context) -> None:
    """components can be sent to other processes: they pickle, and come back equal."""
    if "<locals>" in type(context.component).__qualname__:
        return  # a class made inside a function can't be found again; no plugin module has one
    again = pickle.loads(pickle.dumps(context.component))
    require(again == context.component, "pickling gives another component")


@requirement("component")
def _methods_have_the_contracts_arguments(context: Context) -> None:
    """methods take the arguments that the kind's methods take, by the same names, in the same order."""
    component = type(context.component)
    kind = next(known for known in KINDS if issubclass(component, known))
    for method in sorted(kind.__abstractmethods__):
        expected = list(inspect.signature(getattr(kind, method)).parameters)
        actual = list(inspect.signature(getattr(component, method)).parameters)
        require(
            actual[: len(expected)] == expected,
            f"{method} takes ({', '.join(actual)}), not ({', '.join(expected)})",
        )
