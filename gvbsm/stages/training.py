"""Trains a classifier, and tests it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gvbsm.runtime import distributed
from gvbsm.runtime.asking import built_optimizer, drawn
from gvbsm.runtime.context import Context
from gvbsm.runtime.rates import rate_factor, set_rates
from gvbsm_registry import GvbsmError

if TYPE_CHECKING:
    from gvbsm.recipe.schema import Pretrain
    from gvbsm.runtime.units import Unit
    from gvbsm_registry import Augmentation, Schedule, View

TEST_BATCH = 500
Loss = Callable[[Tensor], Tensor]
Batch = tuple[Tensor, Loss]


class DivergedError(GvbsmError):
    """A network is not one any more: its weights, or its logits, are not finite."""


@contextmanager
def diverging(unit: Unit, table: str) -> Iterator[None]:
    """Tell, of a unit's network that diverges, which and by what keys of the recipe's `table`."""
    try:
        yield
    except DivergedError as error:
        raise GvbsmError(
            f"{unit.stage} {unit.name}: {error}; lower {table}.learning_rate, or the weight decay"
        ) from error


def fit(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    epochs: int,
    steps: int,
    batches: Callable[[int], Iterable[Batch]],
    after: Callable[[int, float], None],
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Train `module` in place.

    batches(epoch): yields `steps` times (images, loss function of the logits), of this process's part of each
    batch where several train together (see `gvbsm.runtime.distributed`). The learning rate follows `schedule`
    step by step. on_step() is called after every step; after(epoch, mean loss) at the end of every epoch,
    with the module in evaluation mode. Raises GvbsmError if the schedule gives what is not a factor, and
    DivergedError if the weights after an epoch are not finite.
    """
    if epochs == 0:  # there is nothing to wrap for several processes
        return
    trained = distributed.wrap_ddp(module)
    rates = [group["lr"] for group in optimizer.param_groups]
    for epoch in range(epochs):
        trained.train()
        total = torch.zeros(())
        numbers = range(epoch * steps, (epoch + 1) * steps)
        for step, (images, loss_of) in zip(numbers, batches(epoch), strict=True):
            set_rates(optimizer, rates, rate_factor(schedule, step, epochs * steps))
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(trained(images))
            loss.backward()
            optimizer.step()
            on_step()
            total = total + loss.detach().cpu()
        trained.eval()
        if not all(bool(weights.isfinite().all()) for weights in module.state_dict().values()):
            raise DivergedError(f"training has diverged in epoch {epoch + 1}: weights are not finite")
        after(epoch, float(total) / max(steps, 1))


class AveragedWeights:
    """A running mean of a module's weights, from those at the start: decay × mean + (1 - decay) × weights.

    Buffers, such as BatchNorm's running statistics, are not averaged but the module's own (arXiv:2404.13733).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self._mean = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's weights after a step."""
        for mean, weights in zip(self._mean.parameters(), self._module.parameters(), strict=True):
            mean.lerp_(weights, 1 - self._decay)

    @torch.no_grad()
    def module(self) -> nn.Module:
        """Return a module with the mean weights and the present buffers, in evaluation mode."""
        for kept, buffer in zip(self._mean.buffers(), self._module.buffers(), strict=True):
            kept.copy_(buffer)
        return self._mean


def fit_real(
    context: Context,
    section: Pretrain,
    module: nn.Module,
    generator: torch.Generator,
    progress: Callable[[int, int], None],
) -> None:
    """Train on the whole training split with hard labels, as [pretrain] says."""
    train = context.data.train
    steps = batches_of(len(train), section.batch)

    def batches(epoch: int) -> Iterable[Batch]:
        drawn = split_batches(torch.randperm(len(train), generator=generator), section.batch)
        parts = [distributed.local_shard(batch) for batch in drawn]
        for step, (images, labels) in enumerate(context.batches(train, parts)):
            progress(epoch * steps + step, section.epochs * steps)
            size = len(drawn[step])
            share = (epoch + step / len(drawn)) / section.epochs
            view = own_view(section.augmentation, size, train.image_size, generator, share)
            yield view.apply(images), hard_loss(labels, size)
        progress((epoch + 1) * steps, section.epochs * steps)

    optimizer = built_optimizer(section.optimizer, module.parameters(), section.learning_rate)
    fit(module, optimizer, section.schedule, section.epochs, steps, batches, lambda epoch, loss: None)


def split_batches(order: Tensor, size: int) -> list[Tensor]:
    """Split `order` into batches of `size`; a last one too small for BatchNorm joins the one before.

    BatchNorm needs two images in each process.
    """
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) < 2 * distributed.size():
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def batches_of(count: int, size: int) -> int:
    """Return how many batches `split_batches` makes of `count` images."""
    return len(split_batches(torch.arange(count), size))


def own_view(
    augmentation: Augmentation, size: int, image_size: int, generator: torch.Generator, progress: float
) -> View:
    """Draw the views of a batch of `size`, as all processes do; return those of this one's images.

    progress: the share of all epochs that is done, 0 to 1.
    """
    view = drawn(augmentation, size, image_size, generator, progress=progress)
    return view if distributed.size() == 1 else view.select(distributed.local_shard(torch.arange(size)))


def hard_loss(labels: Tensor, batch: int) -> Loss:
    """Return the cross-entropy with this process's labels of a batch of that many images."""
    return lambda logits: cross_entropy(logits, labels) * distributed.shard_weight(len(labels), batch)


@torch.no_grad()
def test(context: Context, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return (predicted classes, labels), int64 [N] on the CPU, of the real test split.

    Raises DivergedError if logits are not finite: their largest means nothing.
    """
    split = context.data.test
    parts = torch.arange(len(split)).split(TEST_BATCH)
    predicted = []
    for images, _ in context.batches(split, parts):
        logits = module(images)
        if not bool(logits.isfinite().all()):
            raise DivergedError("training has diverged: logits of test images are not finite")
        predicted.append(logits.argmax(1).cpu())
    return torch.cat(predicted), split.labels.cpu()


def top1(context: Context, module: nn.Module) -> float:
    """Return Top-1 accuracy, 0 to 1, on the real test split."""
    return accuracy(*test(context, module))


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of `predicted` that equals `labels`, 0 to 1."""
    return float((predicted == labels).double().mean())
