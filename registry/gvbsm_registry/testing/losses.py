"""What the contract asks of regularizers, objectives, ensemblers and codecs: functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gvbsm_registry.kinds import Member
from gvbsm_registry.testing.requirements import Context, require, requirement
from gvbsm_registry.testing.samples import SEED, close, compiled, images

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[..., "Tensor"]


def _labels(count: int, classes: int, device: str) -> Tensor:
    import torch

    return torch.arange(count, device=device) % classes


def _logits(*shape: int, device: str = "cpu", offset: int = 0) -> Tensor:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED + offset)).to(device)


def _is_loss(value: object, what: str) -> Tensor:
    import torch

    require(isinstance(value, torch.Tensor), f"{what} gives {value!r}, not a tensor")
    assert isinstance(value, torch.Tensor)
    shape = tuple(value.shape)
    require(
        value.is_floating_point() and shape == (), f"{what} gives {value.dtype} {shape}, not a float scalar"
    )
    require(value.isfinite(), f"{what} gives {float(value.detach())}")
    return value


def _gradient(value: Tensor, inputs: Tensor, what: str) -> Tensor:
    import torch

    require(value.requires_grad, f"{what}: the loss has no gradient (detached, or computed outside torch?)")
    (gradient,) = torch.autograd.grad(value, [inputs], allow_unused=True)
    require(gradient is not None, f"{what}: the loss does not depend on its input")
    require(gradient.isfinite().all(), f"{what}: the gradient is not finite")
    return gradient


def _same_twice(loss: Callable[[], Tensor], what: str) -> None:
    import torch

    values = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            values.append(loss())
    require(torch.equal(*values), f"{what} differs the second time")


def _same_compiled(loss: Loss, first: Tensor, *rest: Tensor) -> None:
    eager, traced = (first.clone().requires_grad_(True) for _ in range(2))
    expected, actual = loss(eager, *rest), compiled(loss)(traced, *rest)
    require(close(actual, expected), f"compiled it gives {actual}, else {expected}")
    gradients = [
        _gradient(value.sum(), inputs, "compiled") for value, inputs in ((expected, eager), (actual, traced))
    ]
    require(close(gradients[1], gradients[0]), "the gradient differs when compiled")


def _batches(device: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield images and labels: usual ones, one image, one class, grey ones, odd and tiny sizes."""
    for what, count, classes, channels, image_size in (
        ("6 images of 3 classes", 6, 3, 3, 16),
        ("one image", 1, 1, 3, 16),
        ("4 images of one class", 4, 1, 3, 16),
        ("grey images", 6, 3, 1, 16),
        ("images of 7×7", 6, 3, 3, 7),
        ("images of 1×1", 2, 2, 3, 1),
        ("images of 48×48", 2, 1, 3, 48),
    ):
        yield what, images(count, channels, image_size, device), _labels(count, classes, device)


@requirement("regularizer", devices=True)
def _a_scalar_with_a_gradient(context: Context) -> None:
    """`penalty` returns a finite float scalar, differentiable in the images with a finite gradient; for one
    image, one class, grey images, odd sizes and images of one colour too."""
    import torch

    for what, batch, labels in _batches(context.device):
        batch.requires_grad_(True)
        _gradient(_is_loss(context.component.penalty(batch, labels), what), batch, what)
    flat = torch.zeros(4, 3, 8, 8, device=context.device, requires_grad=True)
    what = "images of one colour"
    value = context.component.penalty(flat, _labels(4, 2, context.device))
    _gradient(_is_loss(value, what), flat, what)


@requirement("regularizer")
def _deterministic_and_without_side_effects(context: Context) -> None:
    """under one seed equal images give equal losses; images and labels are left as they were."""
    import torch

    batch, labels = images(), _labels(6, 3, "cpu")
    before = batch.clone(), labels.clone()
    _same_twice(lambda: context.component.penalty(batch, labels), "the loss")
    require(torch.equal(batch, before[0]) and torch.equal(labels, before[1]), "it changes its arguments")


@requirement("regularizer", devices=True)
def _works_with_autocast(context: Context) -> None:
    """under autocast to bfloat16 the loss stays finite and differentiable."""
    import torch

    batch, labels = images(device=context.device).requires_grad_(True), _labels(6, 3, context.device)
    with torch.autocast(context.device, torch.bfloat16):
        value = context.component.penalty(batch, labels)
    _gradient(_is_loss(value.float(), "under autocast"), batch, "under autocast")


@requirement("regularizer")
def _works_compiled(context: Context) -> None:
    """torch.compile changes neither the loss nor its gradient."""
    labels = _labels(6, 3, "cpu")
    _same_compiled(lambda batch: context.component.penalty(batch, labels), images())


def _rows(count: int, classes: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return (student's logits, stored logits, true mixture), float [count, classes] each."""
    truth = _logits(count, classes, device=device, offset=2).softmax(1)
    return _logits(count, classes, device=device), _logits(count, classes, device=device, offset=1), truth


@requirement("objective", devices=True)
def _an_objective_is_a_scalar_with_a_gradient(context: Context) -> None:
    """`loss` returns a finite float scalar, differentiable in the student's logits; for one image, one
    class and one-hot truth too."""
    from torch.nn.functional import one_hot

    for count, classes in ((5, 4), (1, 4), (3, 1)):
        what = f"{count} images of {classes} classes"
        output, logits, mixed = _rows(count, classes, context.device)
        for truth in (mixed, one_hot(mixed.argmax(1), classes).to(mixed)):
            output = output.detach().requires_grad_(True)
            _gradient(_is_loss(context.component.loss(output, logits, truth), what), output, what)


@requirement("objective")
def _an_objective_is_deterministic(context: Context) -> None:
    """under one seed equal logits give equal losses."""
    rows = _rows(5, 4, "cpu")
    _same_twice(lambda: context.component.loss(*rows), "the loss")


@requirement("objective", devices=True)
def _an_objective_works_under_autocast(context: Context) -> None:
    """under autocast to bfloat16 the loss stays finite and differentiable."""
    import torch

    output, logits, truth = _rows(5, 4, context.device)
    output.requires_grad_(True)
    with torch.autocast(context.device, torch.bfloat16):
        value = context.component.loss(output, logits, truth)
    _gradient(_is_loss(value, "under autocast"), output, "under autocast")


@requirement("objective")
def _an_objective_works_compiled(context: Context) -> None:
    """torch.compile changes neither the loss nor its gradient."""
    _same_compiled(context.component.loss, *_rows(5, 4, "cpu"))


def _members(count: int, worst: float = 0.3, best: float = 0.9) -> list[Member]:
    """Return members whose accuracies climb from `worst` to `best`."""
    rise = (best - worst) / max(count - 1, 1)
    return [Member(f"network-{number}", worst + rise * number) for number in range(count)]


@requirement("ensembler", devices=True)
def _combines_to_one_matrix(context: Context) -> None:
    """`combine` takes [S, B, K] and S members to finite floats [B, K] on its device; of one member, one image
    and members of any accuracy from 0 to 1 too."""
    for shape in ((3, 5, 4), (1, 5, 4), (3, 1, 4), (3, 5, 1)):
        logits = context.component.combine(_logits(*shape, device=context.device), _members(shape[0]))
        require(tuple(logits.shape) == shape[1:], f"{shape} gives {tuple(logits.shape)}")
        require(
            logits.is_floating_point() and logits.isfinite().all(),
            f"{shape} gives values that are not finite floats",
        )
        require(logits.device.type == context.device, f"the result is on {logits.device}")
    some = _logits(3, 5, 4, device=context.device)
    require(context.component.combine(some * 0, _members(3)).isfinite().all(), "zeros: not finite")
    for accuracy in (0.0, 1.0):
        combined = context.component.combine(some, _members(3, accuracy, accuracy))
        require(combined.isfinite().all(), f"members of accuracy {accuracy}: not finite")


@requirement("ensembler")
def _an_ensembler_is_deterministic(context: Context) -> None:
    """equal logits give equal results, and the logits are left as they were."""
    import torch

    logits = _logits(3, 5, 4)
    before = logits.clone()
    _same_twice(lambda: context.component.combine(logits, _members(3)), "the result")
    require(torch.equal(logits, before), "it changes the logits")


@requirement("ensembler")
def _an_ensembler_works_in_half_precision(context: Context) -> None:
    """logits of up to a few hundred in bfloat16 and under autocast give finite results."""
    import torch

    logits = _logits(3, 5, 4) * 100
    with torch.autocast("cpu", torch.bfloat16):
        combined = context.component.combine(logits, _members(3))
        require(combined.isfinite().all(), "under autocast it is not finite")
    combined = context.component.combine(logits.bfloat16(), _members(3))
    require(combined.isfinite().all(), "in bfloat16 it is not finite")


@requirement("ensembler")
def _an_ensembler_works_compiled(context: Context) -> None:
    """torch.compile does not change the result."""
    logits = _logits(3, 5, 4)

    def combine(given: Tensor) -> Tensor:
        combined: Tensor = context.component.combine(given, _members(3))
        return combined

    expected, actual = combine(logits), compiled(combine)(logits)
    require(close(actual, expected), "compiled it gives another result")


@requirement("codec")
def _codes_row_by_row(context: Context) -> None:
    """`encode` of finite float32 [B, K] returns named tensors with leading axis B, `decode` of these finite
    float32 [B, K]; the code of a row does not depend on the other rows; of one row and one class too."""
    import torch

    for count, classes in ((5, 12), (1, 12), (3, 1)):
        logits = _logits(count, classes) * 5
        before = logits.clone()
        parts = context.component.encode(logits)
        require(torch.equal(before, logits), "encode changes the logits")
        ok = isinstance(parts, dict) and parts and all(len(part) == count for part in parts.values())
        require(ok, f"encode of {count} rows gives {parts!r}")
        decoded = context.component.decode(parts, classes)
        right = decoded.dtype == torch.float32 and tuple(decoded.shape) == (count, classes)
        require(right and decoded.isfinite().all(), f"decode gives {decoded.dtype} {tuple(decoded.shape)}")
        for row in range(count):
            alone = context.component.encode(logits[row : row + 1])
            same = all(torch.equal(alone[name][0], parts[name][row]) for name in parts)
            require(same, "a row is coded otherwise when it is alone")
        twice = context.component.encode(logits)
        require(all(torch.equal(twice[name], parts[name]) for name in parts), "the second code is another")
