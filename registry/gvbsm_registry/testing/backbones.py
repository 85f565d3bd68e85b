"""What the contract asks of a backbone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvbsm_registry.errors import GvbsmError
from gvbsm_registry.testing.cases import Bench, asks, demand, demand_error, fail
from gvbsm_registry.testing.samples import SEED, close, compiled, images

if TYPE_CHECKING:
    from torch.nn import Module


def _build(bench: Bench, classes: int = 4, side: int = 0, channels: int = 3, seed: int = SEED) -> Module:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = bench.component.build(classes, side or bench.sides[0], channels)
    demand(isinstance(model, torch.nn.Module), f"build returns {model!r}, no module")
    return model.to(bench.device).eval()


@asks("backbone", devices=True)
def _maps_images_to_logits(bench: Bench) -> None:
    """`build(classes, side, channels)` returns a module from float [B, channels, side, side] to finite float
    logits [B, classes]: for one image, one class and grey images too."""
    import torch

    side = bench.sides[0]
    trials = [(4, side, 3, 5), (4, side, 3, 1), (1, side, 3, 2), (4, side, 1, 2)]
    trials += [(4, other, 3, 2) for other in bench.sides[1:]]
    for classes, pixels, channels, count in trials:
        model = _build(bench, classes, pixels, channels)
        with torch.no_grad():
            logits = model(images(count, channels, pixels, bench.device))
        what = f"{count} images {channels}×{pixels}×{pixels} to {classes} classes"
        demand(isinstance(logits, torch.Tensor), f"{what}: gives {type(logits).__name__}, no tensor")
        demand(tuple(logits.shape) == (count, classes), f"{what}: gives the shape {tuple(logits.shape)}")
        demand(logits.is_floating_point() and logits.isfinite().all(), f"{what}: gives no finite floats")


@asks("backbone")
def _takes_or_refuses_odd_sizes(bench: Bench) -> None:
    """images of an odd or tiny side are taken, or refused with a GvbsmError when the module is built."""
    import torch

    for side in (bench.sides[0] + 1, 5):
        try:
            model = _build(bench, side=side)
        except GvbsmError:
            continue
        with torch.no_grad():
            logits = model(images(2, 3, side))
        demand(tuple(logits.shape) == (2, 4), f"images of {side}×{side} give {tuple(logits.shape)}")


@asks("backbone")
def _parameters_come_from_torchs_generator(bench: Bench) -> None:
    """fresh parameters come from torch's global generator: equal after equal seeds, else different."""
    import torch

    first, second, other = (_build(bench, seed=seed).state_dict() for seed in (1, 1, 2))
    demand(list(first) == list(second), "two builds have different parameters' names")
    for name in first:
        demand(torch.equal(first[name], second[name]), f"{name!r} differs after equal seeds")
    demand(any(not torch.equal(first[name], other[name]) for name in first), "another seed changes nothing")


@asks("backbone")
def _state_fits_a_fresh_module(bench: Bench) -> None:
    """the state is a dict of tensors that loads into another build, which then gives the same logits."""
    import torch

    first, second = _build(bench, seed=1), _build(bench, seed=2)
    state = first.state_dict()
    wrong = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    demand(not wrong, f"the state's {wrong} are no tensors, so that safetensors can't keep them")
    second.load_state_dict(state)
    batch = images(3, side=bench.sides[0])
    with torch.no_grad():
        demand(torch.equal(first(batch), second(batch)), "the same state gives other logits")


@asks("backbone", devices=True)
def _gradients_reach_the_images(bench: Bench) -> None:
    """with frozen parameters the logits are differentiable in the images, with finite gradients."""
    import torch

    model = _build(bench).requires_grad_(False)
    batch = images(3, side=bench.sides[0], device=bench.device).requires_grad_(True)
    logits = model(batch)
    demand(logits.requires_grad, "the logits have no gradient (detached, or computed outside torch?)")
    (gradient,) = torch.autograd.grad(logits.square().sum(), [batch])
    demand(gradient.isfinite().all() and gradient.any(), "the gradient is not finite, or zero everywhere")


@asks("backbone")
def _evaluation_is_deterministic(bench: Bench) -> None:
    """in evaluation mode an image's logits are the same each time, whatever other images are in the batch."""
    import torch

    model, batch = _build(bench), images(4, side=bench.sides[0])
    with torch.no_grad():
        first, again, alone = model(batch), model(batch), model(batch[:1])
    demand(torch.equal(first, again), "the logits differ the second time (dropout without eval mode?)")
    demand(close(alone, first[:1]), "an image's logits depend on the other images of the batch")


@asks("backbone")
def _keeps_its_inputs(bench: Bench) -> None:
    """no module changes a convolution's or a normalisation's input in place (build with inplace=False), so
    that matchers can observe it."""
    import torch

    model, batch = _build(bench), images(2, side=bench.sides[0])
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
    demand(not changed, f"the inputs of these are changed in place: {', '.join(changed[:5])}")


@asks("backbone")
def _weights_that_are_not_there_are_refused(bench: Bench) -> None:
    """`weights` that can't be had raise a GvbsmError that names the file."""
    with tempfile.TemporaryDirectory() as folder:
        missing = str(Path(folder, "missing.safetensors"))
        asked = bench.component.model_copy(update={"weights": missing})
        demand_error(lambda: asked.build(4, bench.sides[0], 3), "a weights file that does not exist")
        try:
            asked.build(4, bench.sides[0], 3)
        except GvbsmError as error:
            demand("missing.safetensors" in str(error), f"the error does not name the file: {error}")


@asks("backbone", devices=True)
def _trains(bench: Bench) -> None:
    """in training mode a step of SGD changes the parameters and leaves them finite."""
    import torch

    model = _build(bench).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    labels = torch.arange(4, device=bench.device)
    batch = images(4, side=bench.sides[0], device=bench.device)
    torch.nn.functional.cross_entropy(model(batch), labels).backward()
    optimizer.step()
    after = list(model.parameters())
    demand(all(parameter.isfinite().all() for parameter in after), "a parameter is not finite after a step")
    moved = any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    demand(moved, "a step changes no parameter (requires_grad=False?)")


@asks("backbone", devices=True)
def _runs_under_autocast(bench: Bench) -> None:
    """under autocast to bfloat16 the logits stay finite."""
    import torch

    model = _build(bench)
    with torch.no_grad(), torch.autocast(bench.device, torch.bfloat16):
        logits = model(images(2, side=bench.sides[0], device=bench.device))
    demand(logits.isfinite().all(), "the logits are not finite")


@asks("backbone")
def _runs_compiled(bench: Bench) -> None:
    """torch.compile does not change the logits."""
    import torch

    model, batch = _build(bench).requires_grad_(False), images(2, side=bench.sides[0])
    with torch.no_grad():
        expected, found = model(batch), compiled(model)(batch)
    if not close(found, expected, 1e-3):
        fail("compiled it gives other logits")
