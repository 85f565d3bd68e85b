"""The synthesis loop: optimises the images of one or more image batches in one forward pass a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from gvbsm.matching.forward import MatchedBackbone
from gvbsm.matching.terms import term_names
from gvbsm.recipe.schema import Synthesis
from gvbsm_registry import View

OnStep = Callable[[int, str, dict[str, float]], None]


class NotFiniteError(ArithmeticError):
    """A loss or its gradient became infinite or not a number."""


@dataclass
class Network:
    """A network that steps look through (a candidate of Eq. 7); `weight` is on its matching terms."""

    name: str
    backbone: MatchedBackbone
    weight: float


class SynthesisLoop:
    """Optimises `images`, normalised float [G·B, C, H, W]: G image batches of B, one after another.

    Each batch has its own statistics, running averages and random stream (`generators`), so that it comes
    out as if it were optimised alone. `order` draws the backbones if they are not taken in turn.
    """

    def __init__(
        self,
        section: Synthesis,
        images: Tensor,
        labels: Tensor,
        pixel_range: tuple[Tensor, Tensor],
        networks: Sequence[Network],
        generators: Sequence[Generator],
        order: Generator,
        log_every: int = 10,
    ) -> None:
        self.section, self.networks, self.log_every = section, networks, log_every
        names = term_names([*section.matchers, *section.regularizers])[len(section.matchers) :]
        self.regularizers = dict(zip(names, section.regularizers, strict=True))
        self.images, self.labels = images.requires_grad_(True), labels
        self.low, self.high = pixel_range
        self.generators, self.order = generators, order
        self.optimizer = section.optimizer.build([self.images], section.learning_rate)

    def run(self, on_step: OnStep, progress: Callable[[int, int], None]) -> None:
        """Take all steps; on_step(step, backbone, values) gets the loss terms of every `log_every`-th step.

        Raises NotFiniteError if a loss or its gradient is not finite; the images are then as before.
        """
        count = self.section.iterations
        for step in range(count):
            network = self.networks[self._turn(step)]
            values = self._step(network, step, count)
            if step // len(self.networks) % self.log_every == 0 or step == count - 1:
                on_step(step, network.name, values())
            progress(step + 1, count)

    def _turn(self, step: int) -> int:
        if self.section.backbone_order == "cycle":
            return step % len(self.networks)
        return int(torch.randint(len(self.networks), (), generator=self.order))

    def _step(self, network: Network, step: int, count: int) -> Callable[[], dict[str, float]]:
        rate = self.section.learning_rate * self.section.schedule.factor(step, count)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        terms = self._terms(network)
        total = torch.stack(list(terms.values())).sum()
        (gradient,) = torch.autograd.grad(total, [self.images])
        # One transfer for both: a finite loss can have a gradient that is not, which would spoil the images.
        value, steepest = torch.stack([total.detach(), gradient.abs().amax()]).tolist()
        if not (math.isfinite(value) and math.isfinite(steepest)):
            raise NotFiniteError(_diagnosis(step, count, network.name, value, terms))
        self.images.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            self.images.clamp_(self.low, self.high)
        batches = len(self.generators)

        def values() -> dict[str, float]:
            named = {name: float(term.detach()) / batches for name, term in terms.items()}
            return {**named, "total": value / batches, "learning_rate": rate}

        return values

    def _terms(self, network: Network) -> dict[str, Tensor]:
        """Return the weighted terms of the total loss of one step, each summed over the image batches."""
        section, groups = self.section, len(self.generators)
        size, image_size = len(self.images) // groups, self.images.shape[-1]
        views = [section.augmentation.draw(size, image_size, generator) for generator in self.generators]
        sites = len(network.backbone.sites)
        uniforms = torch.stack([torch.rand(sites, generator=generator) for generator in self.generators])
        seen = View.join(views).apply(self.images)
        logits, matched = network.backbone.observe(seen, uniforms.to(seen.device))
        pairs = zip(logits.split(size), self.labels.split(size), strict=True)
        classified = torch.stack([cross_entropy(output, labels) for output, labels in pairs]).sum()
        terms: dict[str, Tensor] = {"cross_entropy": section.cross_entropy * classified}
        terms |= {name: network.weight * term for name, term in matched.items()}
        for name, regularizer in self.regularizers.items():
            sets = zip(self.images.split(size), self.labels.split(size), strict=True)
            losses = [regularizer.loss(images, labels) for images, labels in sets]
            terms[name] = regularizer.weight * torch.stack(losses).sum()
        return terms


def _diagnosis(step: int, count: int, backbone: str, value: float, terms: dict[str, Tensor]) -> str:
    bad = [name for name, term in terms.items() if not math.isfinite(float(term.detach()))]
    what = f"loss is {value} (from {', '.join(bad) or 'the sum of its terms'})"
    if math.isfinite(value):
        what = f"gradient is not finite (of the sum of {', '.join(terms)})"
    return (
        f"step {step} of {count} with backbone {backbone!r}: the {what}; "
        "lower a term's weight or synthesis.learning_rate"
    )
