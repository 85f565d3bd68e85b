"""What the contract asks of augmentations."""

from __future__ import annotations

from typing import Any

from gvbsm_registry.testing.requirements import Context, require, requirement
from gvbsm_registry.testing.samples import SEED, close, compiled, images, unseeded
from gvbsm_registry.views import NEUTRAL, View


def _draw(
    context: Context, count: int, image_size: int, seed: int = SEED, progress: float | None = None
) -> View:
    import torch

    generator = torch.Generator().manual_seed(seed)
    told = {} if progress is None else {"progress": progress}
    view: Any = unseeded(lambda: context.component.draw(count, image_size, generator, **told))
    require(isinstance(view, View), f"draw returns {view!r}, not a gvbsm_registry.View")
    assert isinstance(view, View)
    return view


@requirement("augmentation")
def _draws_views(context: Context) -> None:
    """`draw(count, image_size, generator, progress=1.0)` returns a View with boxes float [count, 4] of
    positive size, flips bool [count] and rolls int64 [count, 2], on the CPU, and if there are any, colors
    float [count, 3], angles float [count] and cutouts int64 [count, 4] within the image; of one image and of
    odd and tiny sizes, and at any progress from 0 to 1."""
    import torch

    for count, image_size, progress in ((5, 16, 0.0), (1, 16, 0.5), (3, 7, 1.0), (3, 1, 0.0)):
        view = _draw(context, count, image_size, progress=progress)
        expected = {"boxes": ((count, 4), torch.float32), "flips": ((count,), torch.bool)}
        expected |= {"rolls": ((count, 2), torch.int64), "colors": ((count, 3), torch.float32)}
        expected |= {"angles": ((count,), torch.float32), "cutouts": ((count, 4), torch.int64)}
        for name, (shape, dtype) in expected.items():
            tensor = getattr(view, name)
            if tensor is None and name in NEUTRAL:
                continue
            same = tuple(tensor.shape) == shape and tensor.dtype == dtype and tensor.device.type == "cpu"
            require(
                same,
                f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, not {dtype} {shape}",
            )
        require(view.boxes.isfinite().all() and (view.boxes[:, 2:] > 0).all(), f"boxes {view.boxes.tolist()}")
        for name in ("colors", "angles"):
            part = getattr(view, name)
            require(part is None or part.isfinite().all(), f"{name} are not finite")
        within = view.cutouts is None or ((view.cutouts >= 0) & (view.cutouts <= image_size)).all()
        require(within, f"cutouts reach beyond an image of {image_size} pixels")


def _require_same(one: View, other: View, otherwise: str) -> None:
    import torch

    for name in ("boxes", "flips", "rolls", *NEUTRAL):
        first, second = getattr(one, name), getattr(other, name)
        same = first is second if first is None or second is None else torch.equal(first, second)
        require(same, f"{name} {otherwise}")


@requirement("augmentation")
def _a_view_is_the_generators(context: Context) -> None:
    """all randomness comes from `generator`: equal generators give equal views, whatever torch's own is."""
    _require_same(_draw(context, 64, 16), _draw(context, 64, 16), "differ the second time")


@requirement("augmentation")
def _progress_is_1_unless_told(context: Context) -> None:
    """without `progress` the views are those of finished work, progress 1: labels are stored for them."""
    _require_same(_draw(context, 8, 16, progress=1.0), _draw(context, 8, 16), "differ from those untold")


@requirement("augmentation", devices=True)
def _views_of_images_are_differentiable(context: Context) -> None:
    """applied to images, grey ones too and under autocast, its views give finite images of the same shape and
    finite gradients."""
    import torch

    for channels, image_size in ((3, 16), (1, 16), (3, 7)):
        batch = images(4, channels, image_size, context.device).requires_grad_(True)
        view = _draw(context, 4, image_size)
        seen = view.apply(batch)
        require(
            seen.shape == batch.shape and seen.isfinite().all(),
            f"{channels}×{image_size}×{image_size}: its views are not such images",
        )
        (gradient,) = torch.autograd.grad(seen.square().sum(), [batch])
        require(
            gradient.isfinite().all(), f"{channels}×{image_size}×{image_size}: the gradient is not finite"
        )
        with torch.autocast(context.device, torch.bfloat16):
            require(torch.equal(view.apply(batch), seen), "autocast changes the view")


@requirement("augmentation")
def _views_apply_compiled(context: Context) -> None:
    """applying its views gives the same images under torch.compile."""
    batch, view = images(4), _draw(context, 4, 16)
    require(close(compiled(view.apply)(batch), view.apply(batch)), "compiled it gives other images")
