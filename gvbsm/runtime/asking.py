"""What several stages ask of components, with what the contract says about the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Generator, Tensor, nn

from gvbsm.runtime.blame import calling, describe_tensor, refuse, returned
from gvbsm_registry import (
    Augmentation,
    Backbone,
    Codec,
    Ensembler,
    GvbsmError,
    Member,
    Objective,
    Optimizer,
    View,
)

MODULE = "a torch module"
LOGITS = "logits [B, K] of images [B, channels, S, S]"
VIEWS = "a View of each image: boxes float [B, 4], flips bool [B], rolls int64 [B, 2]"
PARTS = "a dict of tensors, with a row for each row of the logits"
DECODED = "finite logits, float32 [B, K]"
COMBINED = "finite logits [B, K], with no axis for the networks"
LOSS = "a scalar, differentiable in the student's logits"
OPTIMIZER = "a torch optimizer whose groups have the learning rate that it was given"


def built(backbone: Backbone, classes: int, image_size: int, channels: int) -> nn.Module:
    """Return the module that a backbone builds."""
    with calling(backbone, "build", MODULE):
        module: object = backbone.build(classes, image_size, channels)
    if not isinstance(module, nn.Module):
        raise refuse(backbone, "build", type(module).__name__, MODULE)
    return module


@torch.no_grad()
def check_logits(backbone: Backbone, module: nn.Module, images: Tensor, classes: int) -> None:
    """Raise ComponentError unless a backbone's module, in evaluation mode, gives logits of `images`."""
    with calling(backbone, "the module's forward", LOGITS):
        logits = module(images)
    returned(backbone, "the module's forward", logits, LOGITS, shape=(len(images), classes))


def check_single(backbone: Backbone, module: nn.Module, image: Tensor, table: str) -> None:
    """Raise GvbsmError if a network can't be trained on one image, as BatchNorm often can't."""
    try:
        module.train()(image)
    except ValueError as error:
        raise GvbsmError(
            f"{backbone.full_name}: can't be trained on a batch of one image ({error}); raise {table}.batch, "
            "or the number of images"
        ) from error


def drawn(
    augmentation: Augmentation, count: int, image_size: int, generator: Generator, **progress: float
) -> View:
    """Draw the views of `count` images; see `Augmentation.draw`."""
    with calling(augmentation, "draw", VIEWS):
        view = augmentation.draw(count, image_size, generator, **progress)
    return check_view(augmentation, view, count)


def check_view(augmentation: Augmentation, view: object, count: int) -> View:
    """Return what an augmentation has drawn if it is views of `count` images."""
    if not isinstance(view, View):
        raise refuse(augmentation, "draw", type(view).__name__, VIEWS)
    returned(augmentation, "draw", view.boxes, VIEWS, shape=(count, 4))
    returned(augmentation, "draw", view.flips, VIEWS, shape=(count,), dtype=torch.bool)
    returned(augmentation, "draw", view.rolls, VIEWS, shape=(count, 2), dtype=torch.int64)
    return view


def built_optimizer(
    optimizer: Optimizer, parameters: Iterable[Tensor], learning_rate: float
) -> torch.optim.Optimizer:
    """Return the torch optimizer that a component builds."""
    with calling(optimizer, "build", OPTIMIZER):
        built: object = optimizer.build(parameters, learning_rate)
    if not isinstance(built, torch.optim.Optimizer):
        raise refuse(optimizer, "build", type(built).__name__, OPTIMIZER)
    return built


def combined(ensembler: Ensembler, logits: Tensor, members: Sequence[Member]) -> Tensor:
    """Return the logits [B, K] of a committee whose members say [S, B, K], where those are finite."""
    with calling(ensembler, "combine", COMBINED):
        one = ensembler.combine(logits, members)
    finite = bool(logits.isfinite().all())
    return returned(ensembler, "combine", one, COMBINED, shape=logits.shape[1:], finite=finite)


def encoded(codec: Codec, logits: Tensor) -> dict[str, Tensor]:
    """Return a codec's parts of logits, [B, K]; decoded, they must be logits again."""
    with calling(codec, "encode", PARTS):
        parts: object = codec.encode(logits)
    if not isinstance(parts, dict) or not parts:
        raise refuse(codec, "encode", type(parts).__name__, PARTS)
    for name, part in parts.items():
        if not isinstance(part, Tensor) or part.ndim == 0 or len(part) != len(logits):
            raise refuse(codec, "encode", f"{describe_tensor(part)} as {name!r} of {len(logits)} rows", PARTS)
    with calling(codec, "decode", DECODED):
        again = codec.decode({name: part[:1] for name, part in parts.items()}, logits.shape[1])
    shape = (min(1, len(logits)), logits.shape[1])
    returned(codec, "decode", again, DECODED, shape=shape, dtype=torch.float32, finite=True)
    return parts


def student_loss(objective: Objective, output: Tensor, logits: Tensor, truth: Tensor) -> Tensor:
    """Return an objective's loss, a scalar."""
    with calling(objective, "loss", LOSS):
        loss = objective.loss(output, logits, truth)
    return returned(objective, "loss", loss, LOSS, shape=())
