"""What the contract asks of terms, populations, parameterizations and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gvbsm_registry.step import Memory, Network, OpenPopulation
from gvbsm_registry.testing.requirements import Context, fail, require, requirement
from gvbsm_registry.testing.samples import SEED, close, images, unseeded
from gvbsm_registry.testing.steps import SampleState, SampleStep, SampleStock

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.nn import Module


@requirement("term", devices=True)
def _a_term_is_a_scalar_with_a_gradient(context: Context) -> None:
    """`loss` returns a finite float scalar, differentiable in `step.images` with a finite gradient; step
    after step, with the memory that it keeps."""
    import torch

    memory: Memory = {}
    for number in range(2):
        what = f"step {number}"
        batch = (images(device=context.device) * (1 + number)).requires_grad_(True)
        value = context.component.loss(SampleStep(batch), memory)
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape == ()
        require(is_float, f"{what} gives {value!r}, not a float scalar")
        require(value.isfinite(), f"{what} gives {float(value.detach())}")
        require(value.requires_grad, f"{what}: the loss has no gradient (detached, or outside torch?)")
        (gradient,) = torch.autograd.grad(value, [batch], allow_unused=True)
        require(gradient is not None and gradient.isfinite().all(), f"{what}: the gradient is not finite")


@requirement("term")
def _a_term_remembers_tensors_alone(context: Context) -> None:
    """what a term keeps in `memory` are tensors without gradients; all that it remembers is there, so that a
    copy of the memory goes on alike."""
    import torch

    memory: Memory = {}
    context.component.loss(SampleStep(images()), memory)
    for name, value in memory.items():
        is_plain = isinstance(value, torch.Tensor) and not value.requires_grad
        require(is_plain, f"memory[{name!r}] is {value!r}, not a tensor without gradient")
    copied = {name: value.clone() for name, value in memory.items()}
    losses = [context.component.loss(SampleStep(2 * images()), each) for each in (memory, copied)]
    require(torch.equal(*losses), "a copy of the memory gives another loss")


@requirement("term")
def _a_term_is_deterministic(context: Context) -> None:
    """equal steps give equal losses, whatever torch's global generator; the images are left as they were."""
    import torch

    batch = images()
    before = batch.clone()
    losses = [unseeded(lambda: context.component.loss(SampleStep(batch), {})) for _ in range(2)]
    require(torch.equal(*losses), "the loss differs the second time")
    require(torch.equal(batch, before), "it changes the images")


def _drawn(context: Context, stock: SampleStock, steps: int = 6) -> list[Sequence[Network]]:
    members = context.component.open(stock, _generator())
    require(
        isinstance(members, OpenPopulation), f"open returns {members!r}, not a gvbsm_registry.OpenPopulation"
    )
    return [members.draw(step) for step in range(steps)]


def _generator() -> Generator:
    import torch

    return torch.Generator().manual_seed(SEED)


@requirement("population", devices=True)
def _draws_networks(context: Context) -> None:
    """`draw` returns one network or more, named, frozen, with a weight; they take the images of the stock."""
    stock = SampleStock(context.device)
    for networks in _drawn(context, stock):
        require(len(networks) > 0, "it draws no network")
        for network in networks:
            require(isinstance(network, Network), f"{network!r} is not a gvbsm_registry.Network")
            frozen = not any(parameter.requires_grad for parameter in network.module.parameters())
            require(frozen and not network.module.training, f"{network.name!r} is not frozen")
            require(tuple(network.module(stock.images).shape) == (6, 4), f"{network.name!r}: wrong logits")


@requirement("population")
def _draws_the_same_again(context: Context) -> None:
    """under one generator the same networks are drawn, step by step; and after `restore` of a `state`, with
    the generator as it was, those that would have come."""
    from torch import Generator

    stock = SampleStock()
    generator = _generator()
    members = context.component.open(stock, generator)
    before = [_outputs(members.draw(step), stock) for step in range(3)]
    state, stream = members.state(), generator.get_state()
    after = [_outputs(members.draw(step), stock) for step in range(3, 6)]
    other = Generator().manual_seed(SEED)
    again = context.component.open(stock, other)
    same = [_outputs(again.draw(step), stock) for step in range(3)]
    require(_equal(before, same), "the second time other networks are drawn")
    other = Generator().manual_seed(SEED)
    restored = context.component.open(stock, other)
    restored.restore(state)
    other.set_state(stream)
    later = [_outputs(restored.draw(step), stock) for step in range(3, 6)]
    require(_equal(after, later), "after restore other networks are drawn")


@requirement("population")
def _asks_for_what_it_keeps(context: Context) -> None:
    """`keeps` is "none" or "final"; with "none" no pretrained network is asked for."""
    keeps = context.component.keeps
    require(keeps in ("none", "final"), f"keeps is {keeps!r}")
    _drawn(context, SampleStock() if keeps == "final" else _Untrained())


class _Untrained(SampleStock):
    def pretrained(self, index: int, change: Callable[[Module], None] | None = None) -> Network:
        fail(f'it asks for the pretrained network {index}, but keeps "none"')


def _outputs(networks: Sequence[Network], stock: SampleStock) -> list[Tensor]:
    return [network.weight * network.module(stock.images) for network in networks]


def _equal(one: list[list[Tensor]], other: list[list[Tensor]]) -> bool:
    import torch

    return [len(each) for each in one] == [len(each) for each in other] and all(
        torch.equal(a, b)
        for ones, others in zip(one, other, strict=True)
        for a, b in zip(ones, others, strict=True)
    )


@requirement("population")
def _settles_after_a_step(context: Context) -> None:
    """`settle` takes a step and leaves its images as they are."""
    import torch

    stock = SampleStock()
    members = context.component.open(stock, _generator())
    step = SampleStep(stock.images, members.draw(0))
    before = stock.images.clone()
    members.settle(step)
    require(torch.equal(stock.images, before), "it changes the images")


PIXEL_RANGE = (-1.0, 1.0)


def _range(channels: int = 3) -> tuple[Any, Any]:
    import torch

    low, high = (torch.full((channels, 1, 1), value) for value in PIXEL_RANGE)
    return low, high


@requirement("parameterization", devices=True)
def _comes_back_from_what_is_learnt(context: Context) -> None:
    """`decode(encode(images))` is the images, up to rounding; every leaf is a float tensor whose first axis
    is that of the images, each coded by itself."""
    batch = images(device=context.device).clamp(*PIXEL_RANGE)
    leaves = context.component.encode(batch)
    require(isinstance(leaves, dict) and leaves, f"encode returns {leaves!r}, not a table of tensors")
    for name, leaf in leaves.items():
        require(leaf.is_floating_point() and len(leaf) == len(batch), f"leaf {name!r}: {tuple(leaf.shape)}")
    decoded = context.component.decode(leaves)
    require(tuple(decoded.shape) == tuple(batch.shape), f"decode gives {tuple(decoded.shape)}")
    require(close(decoded, batch, 1e-3), "decode(encode(images)) is not the images")
    alone = context.component.decode(context.component.encode(batch[1:2]))
    require(close(alone, decoded[1:2]), "an image is coded otherwise when it is alone")


@requirement("parameterization")
def _a_parameterization_is_differentiable(context: Context) -> None:
    """`decode` is differentiable in every leaf, with a finite gradient."""
    import torch

    encoded = context.component.encode(images().clamp(*PIXEL_RANGE))
    leaves = {name: leaf.detach().clone().requires_grad_(True) for name, leaf in encoded.items()}
    value = context.component.decode(leaves).square().sum()
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    for name, gradient in zip(leaves, gradients, strict=True):
        require(gradient is not None and gradient.isfinite().all(), f"leaf {name!r} has no finite gradient")


@requirement("parameterization")
def _projects_in_place(context: Context) -> None:
    """`project` changes the leaves in place; images within the pixels' range stay as they are."""
    import torch

    batch = 0.9 * images().clamp(*PIXEL_RANGE)
    leaves = {name: leaf.clone() for name, leaf in context.component.encode(batch).items()}
    with torch.no_grad():
        returned = context.component.project(leaves, _range())
    require(returned is None, f"project returns {returned!r}; it changes the leaves in place")
    require(close(context.component.decode(leaves), batch, 1e-3), "images within the range are changed")


@requirement("callback")
def _acts_on_the_state(context: Context) -> None:
    """`after` takes the state from before the first step to after the last one; the images keep their number
    and channels and stay finite, some image takes part in every step, and all do at the end."""
    state = SampleState()
    shape = tuple(state.images.shape)
    for step in range(state.steps + 1):
        if step % context.component.every == 0:
            context.component.after(step, state)
        found = tuple(state.images.shape)
        require(found[:2] == shape[:2] and len(found) == 4, f"after step {step} the images are {found}")
        require(state.images.isfinite().all(), f"after step {step} the images are not finite")
        is_mask = tuple(state.active.shape) == (6,) and str(state.active.dtype) == "torch.bool"
        require(is_mask and state.active.any(), f"after step {step} `active` is {state.active}")
    require(state.active.all(), "some images never take part")


@requirement("callback")
def _a_callback_is_deterministic(context: Context) -> None:
    """equal states end equal, whatever torch's global generator: randomness comes from `state.generator`, and
    what is remembered is in `state.memory`, tensors alone."""
    import torch

    def ended() -> SampleState:
        state = SampleState()
        for step in range(state.steps + 1):
            if step % context.component.every == 0:
                context.component.after(step, state)
        return state

    one, other = unseeded(ended), unseeded(ended)
    require(torch.equal(one.images, other.images), "the images end otherwise the second time")
    for name, value in one.memory.items():
        require(isinstance(value, torch.Tensor), f"memory[{name!r}] is {value!r}, not a tensor")
