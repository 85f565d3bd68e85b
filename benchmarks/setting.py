"""One synthesis step in four ways: bare, textbook, ours eager, ours compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.textbook import Targets, TextbookStep, measure
from gvbsm.estimate.trial import calibrate
from gvbsm.matching.collector import StatisticsCollector
from gvbsm.matching.forward import MatchedBackbone, Precision
from gvbsm.matching.frozen import freeze
from gvbsm.matching.targets import target_name
from gvbsm.matching.terms import Matching
from gvbsm.recipe.text import parse_component
from gvbsm_registry import Backbone, Matcher, Registry, Regularizer, discover

MATCHERS = ("bn", "conv_channel", "conv_patch")
PER_CLASS = 10
LEARNING_RATE, BETAS = 0.05, (0.5, 0.9)
VARIANTS = ("bare", "textbook", "eager", "compiled")
BY_CLASS = {"by_class": "eager", "by_class_compiled": "compiled"}

Loss = Callable[[Tensor], Tensor]


@dataclass
class Setting:
    """A frozen network with random weights, and a batch of random images of PER_CLASS per class."""

    registry: Registry
    model: nn.Module
    images: Tensor
    labels: Tensor
    by_class: float = 0.5

    @staticmethod
    def make(
        backbone: str,
        image_size: int,
        batch: int,
        classes: int = 10,
        channels: int = 3,
        device: torch.device | None = None,
    ) -> Setting:
        """Build a setting; BatchNorm's running statistics are those of another random batch."""
        registry = discover()
        torch.manual_seed(0)
        chosen = registry.create(Backbone, parse_component(backbone))
        model = chosen.build(classes, image_size, channels).to(device or "cpu").requires_grad_(False)
        images = torch.randn(batch, channels, image_size, image_size).to(device or "cpu")
        labels = (torch.arange(batch) // PER_CLASS % classes).to(images.device)
        calibrate(model, torch.randn_like(images))
        return Setting(registry, model, images, labels)

    @cached_property
    def targets(self) -> Targets:
        """The convolutions' statistics on another random batch."""
        generator = torch.Generator().manual_seed(1)
        other = torch.randn(self.images.shape, generator=generator).to(self.images)
        return measure(self.model, [other])

    def loss(self, variant: str, precision: Precision = "fp32") -> Loss:
        """Return the loss of one of VARIANTS, images to a scalar; `precision` is that of ours.

        Or of one of BY_CLASS, with a share `self.by_class` of every matcher's term matched by class.
        """
        if variant == "bare":
            return lambda images: functional.cross_entropy(self.model(images), self.labels)
        if variant == "textbook":
            textbook = TextbookStep(self.model, targets=dict(self.targets))
            return lambda images: textbook.loss(images, self.labels)[0]
        share = self.by_class if variant in BY_CLASS else 0.0
        matchers = [self.registry.create(Matcher, {"use": name, "by_class": share}) for name in MATCHERS]
        measured = self._class_targets(matchers) if share else {}
        measured |= {
            target_name(matcher, site, name): value
            for matcher in matchers
            for site, moments in self.targets.get(matcher.full_name, {}).items()
            for name, value in moments.items()
        }
        density = self.registry.create(Regularizer, "dd")
        compiled = BY_CLASS.get(variant, variant) == "compiled"
        matched = matching_loss(
            freeze(copy.deepcopy(self.model)), matchers, measured, self.labels, compiled, precision
        )
        return lambda images: matched(images) + density.weight * density.penalty(images, self.labels)

    def _class_targets(self, matchers: list[Matcher]) -> dict[str, Tensor]:
        """The statistics of each class, on another random batch with the labels of this one."""
        collect = StatisticsCollector(self.model, matchers, by_class=True)
        other = torch.randn(self.images.shape, generator=torch.Generator().manual_seed(2)).to(self.images)
        rows = [collect(other[self.labels == label]) for label in self.labels.unique()]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def step(self, loss: Loss) -> Callable[[], None]:
        """Return one whole step on a loss of `self.loss`: its gradient in the images, then Adam."""
        images = self.images.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([images], LEARNING_RATE, betas=BETAS)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            (images.grad,) = torch.autograd.grad(loss(images), [images])
            optimizer.step()

        return step


def matching_loss(
    model: nn.Module,
    matchers: list[Matcher],
    measured: dict[str, Tensor],
    labels: Tensor,
    compiled: bool,
    precision: Precision,
) -> Loss:
    """Return the engine's cross-entropy and matching terms, nothing dropped, as one function of images."""
    observer = MatchedBackbone(model, Matching(model, matchers, measured, labels=labels), compiled, precision)
    nothing_dropped = torch.ones(1, len(observer.sites), device=labels.device)

    def loss(images: Tensor) -> Tensor:
        logits, terms = observer.observe(images, nothing_dropped)
        return functional.cross_entropy(logits, labels) + torch.stack(list(terms.values())).sum()

    return loss
