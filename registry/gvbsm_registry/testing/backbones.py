"""What the contract asks of a backbone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvbsm_registry.errors import GvbsmError
from gvbsm_registry.testing.requirements import Context, fail, require, require_error, requirement
from gvbsm_registry.testing.samples import SEED, close, compiled, images

if TYPE_CHECKING:
    from torch.nn import Module


def _build(
    context: Context, classes: int = 4, image_size: int = 0, channels: int = 3, seed: int = SEED
) -> Module:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Module = context.component.build(classes, image_size or context.image_sizes[0], channels)
    require(isinstance(model, torch.nn.Module), f"build returns {model!r}, not a torch module")
    return model.to(context.device).eval()


@requirement("backbone", devices=True)
def _maps_images_to_logits(context: Context) -> None:
    """`build(classes, image_size, channels)` returns a module from float [B, channels, S, S] to finite float
    logits [B, classes]: for one image, one class and grey images too."""
    import torch

    image_size = context.image_sizes[0]
    trials = [(4, image_size, 3, 5), (4, image_size, 3, 1), (1, image_size, 3, 2), (4, image_size, 1, 2)]
    trials += [(4, other, 3, 2) for other in context.image_sizes[1:]]
    for classes, pixels, channels, count in trials:
        model = _build(context, classes, pixels, channels)
        with torch.no_grad():
            logits = model(images(count, channels, pixels, context.device))
        what = f"{count} images {channels}×{pixels}×{pixels} to {classes} classes"
        require(isinstance(logits, torch.Tensor), f"{what}: gives {type(logits).__name__}, not a tensor")
        require(tuple(logits.shape) == (count, classes), f"{what}: gives the shape {tuple(logits.shape)}")
        require(
            logits.is_floating_point() and logits.isfinite().all(),
            f"{what}: gives values that are not finite floats",
        )


@requirement("backbone")
def _takes_or_refuses_odd_sizes(context: Context) -> None:
    """images of an odd or tiny size are taken, or refused with a GvbsmError when the module is built."""
    import torch

    for image_size in (context.image_sizes[0] + 1, 5):
        try:
            model = _build(context, image_size=image_size)
        except GvbsmError:
            continue
        with torch.no_grad():
            logits = model(images(2, 3, image_size))
        require(
            tuple(logits.shape) == (2, 4), f"images of {image_size}×{image_size} give {tuple(logits.shape)}"
        )


@requirement("backbone")
def _parameters_come_from_torchs_generator(context: Context) -> None:
    """fresh parameters come from torch's global generator: equal after equal seeds, else different."""
    import torch

    first, second, other = (_build(context, seed=seed).state_dict() for seed in (1, 1, 2))
    require(list(first) == list(second), "two builds have different parameters' names")
    for name in first:
        require(torch.equal(first[name], second[name]), f"{name!r} differs after equal seeds")
    require(any(not torch.equal(first[name], other[name]) for name in first), "another seed changes nothing")


@requirement("backbone")
def _state_fits_a_fresh_module(context: Context) -> None:
    """the state is a dict of tensors that loads into another build, which then gives the same logits."""
    import torch

    first, second = _build(context, seed=1), _build(context, seed=2)
    state = first.state_dict()
    wrong = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    require(not wrong, f"the state's {wrong} are not tensors, so that safetensors can't keep them")
    second.load_state_dict(state)
    batch = images(3, image_size=context.image_sizes[0])
    with torch.no_grad():
        require(torch.equal(first(batch), second(batch)), "the same state gives other logits")


@requirement("backbone", devices=True)
def _gradients_reach_the_images(context: Context) -> None:
    """with frozen parameters the logits are differentiable in the images, with finite gradients."""
    import torch

    model = _build(context).requires_grad_(False)
    batch = images(3, image_size=context.image_sizes[0], device=context.device).requires_grad_(True)
    logits = model(batch)
    require(logits.requires_grad, "the logits have no gradient (detached, or computed outside torch?)")
    (gradient,) = torch.autograd.grad(logits.square().sum(), [batch])
    require(gradient.isfinite().all() and gradient.any(), "the gradient is not finite, or zero everywhere")


@requirement("backbone")
def _evaluation_is_deterministic(context: Context) -> None:
    """in evaluation mode an image's logits are the same each time, whatever other images are in the batch."""
    import torch

    model, batch = _build(context), images(4, image_size=context.image_sizes[0])
    with torch.no_grad():
        first, again, alone = model(batch), model(batch), model(batch[:1])
    require(torch.equal(first, again), "the logits differ the second time (dropout without eval mode?)")
    require(close(alone, first[:1]), "an image's logits depend on the other images of the batch")


@requirement("backbone")
def _keeps_its_inputs(context: Context) -> None:
    """no module changes the input of a convolution or a normalisation in place (build with inplace=False), so
    that matchers can observe it."""
    import torch

    model, batch = _build(context), images(2, image_size=context.image_sizes[0])
    seen: dict[str, tuple[Any, int]] = {}

    def recorder(name: str) -> Any:
        def record(module: Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], torch.Tensor):
                seen[name] = inputs[0], inputs[0]._version

        return record

    for name, module in model.named_modules():
        if not list(module.children()) and list(module.parameters()):
            module.register_forward_pre_hook(recorder(name))
    with torch.no_grad():
        model(batch)
    changed = [name for name, (tensor, version) in seen.items() if tensor._version != version]
    require(not changed, f"the inputs of these are changed in place: {', '.join(changed[:5])}")


@requirement("backbone")
def _weights_that_are_not_there_are_refused(context: Context) -> None:
    """`weights` that do not exist raise a GvbsmError that names the file."""
    with tempfile.TemporaryDirectory() as folder:
        missing = str(Path(folder, "missing.safetensors"))
        asked = context.component.model_copy(update={"weights": missing})
        require_error(lambda: asked.build(4, context.image_sizes[0], 3), "a weights file that does not exist")
        try:
            asked.build(4, context.image_sizes[0], 3)
        except GvbsmError as error:
            require("missing.safetensors" in str(error), f"the error does not name the file: {error}")


@requirement("backbone", devices=True)
def _trains(context: Context) -> None:
    """in training mode a step of SGD changes the parameters and leaves them finite."""
    import torch

    model = _build(context).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    labels = torch.arange(4, device=context.device)
    batch = images(4, image_size=context.image_sizes[0], device=context.device)
    torch.nn.functional.cross_entropy(model(batch), labels).backward()
    optimizer.step()
    after = list(model.parameters())
    require(all(parameter.isfinite().all() for parameter in after), "a parameter is not finite after a step")
    moved = any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    require(moved, "a step changes no parameter (requires_grad=False?)")


@requirement("backbone", devices=True)
def _runs_under_autocast(context: Context) -> None:
    """under autocast to bfloat16 the logits stay finite."""
    import torch

    model = _build(context)
    with torch.no_grad(), torch.autocast(context.device, torch.bfloat16):
        logits = model(images(2, image_size=context.image_sizes[0], device=context.device))
    require(logits.isfinite().all(), "the logits are not finite")


@requirement("backbone")
def _runs_compiled(context: Context) -> None:
    """torch.compile does not change the logits."""
    import torch

    model, batch = _build(context).requires_grad_(False), images(2, image_size=context.image_sizes[0])
    with torch.no_grad():
        expected, actual = model(batch), compiled(model)(batch)
    if not close(actual, expected, 1e-3):
        fail("compiled it gives other logits")
