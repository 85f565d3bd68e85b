"""What the contract asks of augmentations and schedules."""

from __future__ import annotations

import math
from typing import Any

from gvbsm_registry.testing.cases import Bench, asks, demand
from gvbsm_registry.testing.samples import SEED, close, compiled, images, unseeded
from gvbsm_registry.views import View


def _draw(bench: Bench, count: int, side: int, seed: int = SEED) -> View:
    import torch

    generator = torch.Generator().manual_seed(seed)
    view: Any = unseeded(lambda: bench.component.draw(count, side, generator))
    demand(isinstance(view, View), f"draw returns {view!r}, no gvbsm_registry.View")
    assert isinstance(view, View)
    return view


@asks("augmentation")
def _draws_views(bench: Bench) -> None:
    """`draw(count, side, generator)` returns a View with boxes float [count, 4] of positive size, flips bool
    [count] and rolls int64 [count, 2], on the CPU; of one image and of odd and tiny sides too."""
    import torch

    for count, side in ((5, 16), (1, 16), (3, 7), (3, 1)):
        view = _draw(bench, count, side)
        found = {name: getattr(view, name) for name in ("boxes", "flips", "rolls")}
        wanted = {"boxes": ((count, 4), torch.float32), "flips": ((count,), torch.bool)}
        wanted["rolls"] = ((count, 2), torch.int64)
        for name, (shape, dtype) in wanted.items():
            tensor = found[name]
            same = tuple(tensor.shape) == shape and tensor.dtype == dtype and tensor.device.type == "cpu"
            demand(
                same,
                f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, not {dtype} {shape}",
            )
        demand(view.boxes.isfinite().all() and (view.boxes[:, 2:] > 0).all(), f"boxes {view.boxes.tolist()}")


@asks("augmentation")
def _a_view_is_the_generators(bench: Bench) -> None:
    """all randomness comes from `generator`: equal generators give equal views, whatever torch's own is."""
    import torch

    first, second = _draw(bench, 8, 16), _draw(bench, 8, 16)
    for name in ("boxes", "flips", "rolls"):
        demand(torch.equal(getattr(first, name), getattr(second, name)), f"{name} differ the second time")


@asks("augmentation", devices=True)
def _views_of_images_are_differentiable(bench: Bench) -> None:
    """applied to images, grey ones too and under autocast, its views give finite images of the same shape and
    finite gradients."""
    import torch

    for channels, side in ((3, 16), (1, 16), (3, 7)):
        batch = images(4, channels, side, bench.device).requires_grad_(True)
        view = _draw(bench, 4, side)
        seen = view.apply(batch)
        demand(
            seen.shape == batch.shape and seen.isfinite().all(), f"{channels}×{side}×{side}: no such images"
        )
        (gradient,) = torch.autograd.grad(seen.square().sum(), [batch])
        demand(gradient.isfinite().all(), f"{channels}×{side}×{side}: the gradient is not finite")
        with torch.autocast(bench.device, torch.bfloat16):
            demand(torch.equal(view.apply(batch), seen), "autocast changes the view")


@asks("augmentation")
def _views_apply_compiled(bench: Bench) -> None:
    """applying its views gives the same images under torch.compile."""
    batch, view = images(4), _draw(bench, 4, 16)
    demand(close(compiled(view.apply)(batch), view.apply(batch)), "compiled it gives other images")


@asks("schedule")
def _factors_are_finite(bench: Bench) -> None:
    """`factor(step, steps)` returns a finite float that is not negative, for every step from 0 to steps - 1
    and any number of steps from 1 on; not 0 everywhere."""
    for steps in (1, 2, 3, 10, 1000):
        factors = [bench.component.factor(step, steps) for step in range(steps)]
        plain = all(isinstance(factor, int | float) and math.isfinite(factor) for factor in factors)
        demand(plain and min(factors) >= 0, f"in {steps} steps the factors are {factors[:5]}…")
        demand(max(factors) > 0, f"in {steps} steps all factors are 0")


@asks("schedule")
def _factors_depend_on_the_step_alone(bench: Bench) -> None:
    """a factor depends on (step, steps) alone, not on calls before: a resumed run starts in the middle."""
    forward = [bench.component.factor(step, 20) for step in range(20)]
    backward = [bench.component.factor(step, 20) for step in reversed(range(20))]
    demand(forward == backward[::-1], "the factors depend on the order of the calls")
