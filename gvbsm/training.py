"""Trains a classifier, and tests it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gvbsm.workspace import Workspace

if TYPE_CHECKING:
    from gvbsm.recipe import Evaluation, Pretrain
    from gvbsm_registry import Schedule

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

    batches(epoch): yields (images, loss function of the logits). The learning rate follows `schedule` by
    epoch. after(epoch, mean loss) is called at the end of every epoch, with the module in evaluation mode.
    """
    base = [group["lr"] for group in optimizer.param_groups]
    for epoch in range(epochs):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * schedule.factor(epoch, epochs)
        module.train()
        total, count = torch.zeros(()), 0
        for images, loss_of in batches(epoch):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(module(images))
            loss.backward()
            optimizer.step()
            total, count = total + loss.detach().cpu(), count + 1
        module.eval()
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
        order = torch.randperm(len(train), generator=generator)
        for step, (images, labels) in enumerate(workspace.batches(train, section.batch, order)):
            progress(epoch * steps + step, section.epochs * steps)
            if len(images) > 1:  # a lone image has no batch statistics to train BatchNorm with
                view = section.augmentation.draw(len(images), train.side, generator)
                yield view.apply(images), _hard_loss(labels)
        progress((epoch + 1) * steps, section.epochs * steps)

    optimizer = sgd(module, section)
    fit(module, optimizer, section.schedule, section.epochs, batches, lambda epoch, loss: None)


def _hard_loss(labels: Tensor) -> Loss:
    return lambda logits: cross_entropy(logits, labels)


@torch.no_grad()
def predict(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return (predicted classes, labels), int64 [N] on the CPU, of a module in evaluation mode."""
    pairs = [(module(images).argmax(1).cpu(), labels.cpu()) for images, labels in batches]
    predicted, labels = zip(*pairs, strict=True)
    return torch.cat(predicted), torch.cat(labels)


def test(workspace: Workspace, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return (predicted classes, labels), int64 [N] on the CPU, of the real test split."""
    return predict(module, workspace.batches(workspace.test, TEST_BATCH))


def top1(workspace: Workspace, module: nn.Module) -> float:
    """Return Top-1 accuracy, 0 to 1, on the real test split."""
    return accuracy(*test(workspace, module))


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of `predicted` that equals `labels`, 0 to 1."""
    return float((predicted == labels).double().mean())
