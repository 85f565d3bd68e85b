"""Trains a classifier, and tests it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gvbsm.runtime import distributed as parallel
from gvbsm.runtime.workspace import Workspace

if TYPE_CHECKING:
    from gvbsm.recipe.schema import Evaluation, Pretrain
    from gvbsm_registry import Augmentation, Schedule, View

TEST_BATCH = 500
Loss = Callable[[Tensor], Tensor]
Batch = tuple[Tensor, Loss]


def fit(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    epochs: int,
    batches: Callable[[int], Iterable[Batch]],
    after: Callable[[int, float], None],
) -> None:
    """Train `module` in place.

    batches(epoch): yields (images, loss function of the logits), of this process's part of each batch where
    several train together (see `gvbsm.runtime.distributed`). The learning rate follows `schedule` by
    epoch. after(epoch, mean loss) is called at the end of every epoch, with the module in evaluation mode.
    """
    trained = parallel.joined(module)
    base = [group["lr"] for group in optimizer.param_groups]
    for epoch in range(epochs):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * schedule.factor(epoch, epochs)
        trained.train()
        total, count = torch.zeros(()), 0
        for images, loss_of in batches(epoch):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(trained(images))
            loss.backward()
            optimizer.step()
            total, count = total + loss.detach().cpu(), count + 1
        trained.eval()
        after(epoch, float(total) / max(count, 1))


def sgd(module: nn.Module, section: Pretrain | Evaluation) -> torch.optim.Optimizer:
    """Return SGD with the section's learning rate, momentum and weight decay."""
    return torch.optim.SGD(
        module.parameters(),
        section.learning_rate,
        momentum=section.momentum,
        weight_decay=section.weight_decay,
    )


def fit_real(
    workspace: Workspace, module: nn.Module, generator: torch.Generator, progress: Callable[[int, int], None]
) -> None:
    """Train on the whole training split with hard labels, as the recipe's [pretrain] says."""
    section = workspace.recipe.pretrain
    train = workspace.train
    steps = -(-len(train) // section.batch)

    def batches(epoch: int) -> Iterable[Batch]:
        lots = split_batches(torch.randperm(len(train), generator=generator), section.batch)
        parts = [parallel.mine(lot) for lot in lots]
        for step, (images, labels) in enumerate(workspace.batches(train, parts)):
            progress(epoch * steps + step, section.epochs * steps)
            size = len(lots[step])
            view = own_view(section.augmentation, size, train.image_size, generator)
            yield view.apply(images), hard_loss(labels, size)
        progress((epoch + 1) * steps, section.epochs * steps)

    optimizer = sgd(module, section)
    fit(module, optimizer, section.schedule, section.epochs, batches, lambda epoch, loss: None)


def split_batches(order: Tensor, size: int) -> list[Tensor]:
    """Split `order` into lots of `size`; a last one too small for BatchNorm joins the one before.

    BatchNorm needs two images in each process.
    """
    lots = list(order.split(size))
    if len(lots) > 1 and len(lots[-1]) < 2 * parallel.size():
        lots[-2:] = [torch.cat(lots[-2:])]
    return lots


def own_view(augmentation: Augmentation, size: int, image_size: int, generator: torch.Generator) -> View:
    """Draw the views of a batch of `size`, as all processes do; return those of this one's images."""
    view = augmentation.draw(size, image_size, generator)
    return view if parallel.size() == 1 else view.select(parallel.mine(torch.arange(size)))


def hard_loss(labels: Tensor, whole: int) -> Loss:
    """Return the cross-entropy with this process's labels of a batch of `whole`."""
    return lambda logits: cross_entropy(logits, labels) * parallel.share(len(labels), whole)


@torch.no_grad()
def predict(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return (predicted classes, labels), int64 [N] on the CPU, of a module in evaluation mode."""
    pairs = [(module(images).argmax(1).cpu(), labels.cpu()) for images, labels in batches]
    predicted, labels = zip(*pairs, strict=True)
    return torch.cat(predicted), torch.cat(labels)


def test(workspace: Workspace, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return (predicted classes, labels), int64 [N] on the CPU, of the real test split."""
    return predict(
        module, workspace.batches(workspace.test, torch.arange(len(workspace.test)).split(TEST_BATCH))
    )


def top1(workspace: Workspace, module: nn.Module) -> float:
    """Return Top-1 accuracy, 0 to 1, on the real test split."""
    return accuracy(*test(workspace, module))


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of `predicted` that equals `labels`, 0 to 1."""
    return float((predicted == labels).double().mean())
