"""What the contract asks of schedules and optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gvbsm_registry.testing.requirements import Context, require, requirement
from gvbsm_registry.testing.samples import SEED

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


@requirement("schedule")
def _factors_are_finite(context: Context) -> None:
    """`factor(step, steps)` returns a finite float that is not negative, for every step from 0 to steps - 1
    and any number of steps from 1 on; not 0 everywhere."""
    for steps in (1, 2, 3, 10, 1000):
        factors = [context.component.factor(step, steps) for step in range(steps)]
        finite = all(isinstance(factor, int | float) and math.isfinite(factor) for factor in factors)
        require(finite and min(factors) >= 0, f"in {steps} steps the factors are {factors[:5]}…")
        require(max(factors) > 0, f"in {steps} steps all factors are 0")


@requirement("schedule")
def _factors_depend_on_the_step_alone(context: Context) -> None:
    """a factor depends on (step, steps) alone, not on calls before: a resumed run starts in the middle."""
    forward = [context.component.factor(step, 20) for step in range(20)]
    backward = [context.component.factor(step, 20) for step in reversed(range(20))]
    require(forward == backward[::-1], "the factors depend on the order of the calls")


RATE = 0.01


def _parameters(device: str = "cpu") -> list[Tensor]:
    import torch

    generator = torch.Generator().manual_seed(SEED)
    shapes = ((4, 3), (4,), ())
    return [torch.randn(shape, generator=generator).to(device).requires_grad_(True) for shape in shapes]


def _steps(optimizer: Optimizer, parameters: list[Tensor], first: int, count: int) -> None:
    """Take steps towards targets that change from step to step."""
    import torch

    for step in range(first, first + count):
        optimizer.zero_grad(set_to_none=True)
        torch.stack([(values - 0.1 * step).square().sum() for values in parameters]).sum().backward()
        optimizer.step()


def _equal(first: Iterable[Tensor], second: Iterable[Tensor]) -> bool:
    import torch

    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@requirement("optimizer", devices=True)
def _an_optimizer_of_all_parameters(context: Context) -> None:
    """`build` takes parameters of any shape, an iterator of them too, and a learning rate; it returns a torch
    optimizer of exactly these, with this rate in every group."""
    import torch

    for given in (list, iter):
        parameters = _parameters(context.device)
        built = context.component.build(given(parameters), RATE)
        require(isinstance(built, torch.optim.Optimizer), f"build gives {built!r}, not a torch optimizer")
        held = [values for group in built.param_groups for values in group["params"]]
        same = {id(values) for values in held} == {id(values) for values in parameters}
        require(
            same and len(held) == len(parameters), f"it holds {len(held)} of {len(parameters)} parameters"
        )
        rates = [group["lr"] for group in built.param_groups]
        require(all(float(rate) == RATE for rate in rates), f"its groups' rates are {rates}, not {RATE}")


@requirement("optimizer", devices=True)
def _its_steps_go_downhill(context: Context) -> None:
    """steps change every parameter that has a gradient, leave finite values and lower a simple loss."""
    import torch

    parameters = _parameters(context.device)
    before = [values.detach().clone() for values in parameters]
    built = context.component.build(parameters, RATE)
    losses = []
    for _ in range(20):
        built.zero_grad(set_to_none=True)
        loss = torch.stack([(values - 3).square().sum() for values in parameters]).sum()
        loss.backward()
        built.step()
        losses.append(float(loss.detach()))
    require(all(values.isfinite().all() for values in parameters), "values are not finite after 20 steps")
    moved = [not torch.equal(old, new) for old, new in zip(before, parameters, strict=True)]
    require(all(moved), f"only {sum(moved)} of {len(moved)} parameters have changed after 20 steps")
    require(losses[-1] < losses[0], f"20 steps take the loss from {losses[0]} to {losses[-1]}")


@requirement("optimizer")
def _its_rate_can_be_changed(context: Context) -> None:
    """steps take the learning rate from each group's `lr`, where the schedule puts it; at 0 nothing moves."""
    parameters = _parameters()
    built = context.component.build(parameters, RATE)
    _steps(built, parameters, 0, 2)
    before = [values.detach().clone() for values in parameters]
    for group in built.param_groups:
        group["lr"] = 0.0
    _steps(built, parameters, 2, 1)
    require(_equal(before, parameters), "a step at learning rate 0 changes the parameters")


@requirement("optimizer")
def _its_state_goes_on(context: Context) -> None:
    """another optimizer that is given its `state_dict` takes the same steps: an interrupted run goes on."""
    whole, halves = _parameters(), _parameters()
    _steps(context.component.build(whole, RATE), whole, 0, 6)
    first = context.component.build(halves, RATE)
    _steps(first, halves, 0, 3)
    second = context.component.build(halves, RATE)
    second.load_state_dict(first.state_dict())
    _steps(second, halves, 3, 3)
    require(_equal(whole, halves), "its steps differ after its state was loaded into another one")
