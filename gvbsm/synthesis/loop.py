"""The synthesis loop: optimises the images of one or more image batches, a forward pass a step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor

from gvbsm.matching.terms import term_names
from gvbsm.recipe.schema import Synthesis
from gvbsm.runtime.blame import calling, refuse, returned
from gvbsm.runtime.rates import rate_factor
from gvbsm.synthesis.images import BatchState, LearntImages
from gvbsm.synthesis.networks import BackboneStock
from gvbsm.synthesis.real import RealImages
from gvbsm.synthesis.step import BatchStep, JointStep
from gvbsm_registry import GvbsmError, Matcher, Memory, Network, OpenPopulation

LOSS = "a float scalar that is differentiable in step.images"
OPEN = "a gvbsm_registry.OpenPopulation"
DRAWN = "gvbsm_registry.Networks, one at least"
OnStep = Callable[[int, str, dict[str, float]], None]


class NotFiniteError(ArithmeticError):
    """A loss or its gradient became infinite or not a number."""


class SynthesisLoop:
    """Optimises the images of `stock`: G image batches of B, one after another.

    Each batch has its own statistics, running averages, memories and random stream (`generators`), so that it
    comes out as if it were optimised alone. reals: the real images, with a random stream for each batch.
    order: the population's random stream. own: that of callbacks, which act on a single image batch. `taken`
    counts the steps.
    """

    def __init__(
        self,
        section: Synthesis,
        stock: BackboneStock,
        pixel_range: tuple[Tensor, Tensor],
        generators: Sequence[Generator],
        reals: RealImages,
        order: Generator,
        own: Generator,
        ranks: Tensor,
        log_every: int = 10,
    ) -> None:
        self.section, self.stock, self.log_every, self.taken = section, stock, log_every, 0
        self.generators, self.reals, self.order, self.own = generators, reals, order, own
        self.labels, self.learnt = stock.labels, LearntImages(section, stock.images, pixel_range)
        with calling(section.population, "open", OPEN):
            self.members = section.population.open(stock, order)
        if not isinstance(self.members, OpenPopulation):
            raise refuse(section.population, "open", type(self.members).__name__, OPEN)
        components = [*section.terms, *section.matchers, *section.regularizers]
        self.terms = dict(zip(term_names(components), components, strict=True))
        matchers = section.all_matchers
        self.matchers = dict(zip(term_names(matchers), matchers, strict=True))
        self.memories: dict[str, list[Memory]] = {name: [{} for _ in generators] for name in self.terms}
        names = term_names(section.callbacks)
        self.notes: dict[str, Memory] = {name: {} for name in names}
        self._callbacks = [
            (
                callback,
                BatchState(self.learnt, section.iterations, self.labels, ranks, reals.source, own, notes),
            )
            for callback, notes in zip(section.callbacks, self.notes.values(), strict=True)
        ]
        self._warn_of_idle_matchers()

    def _warn_of_idle_matchers(self) -> None:
        """Warn of matchers without a site in any network that the population has taken."""
        networks = self.stock.handed_out()
        for name in self.matchers:
            if networks and not any(name in self.stock.matched(network)[0].names for network in networks):
                taken = ", ".join(network.name for network in networks)
                population = self.section.population.full_name
                warnings.warn(
                    f"matcher {name!r} has no site in any network that the population {population!r} takes "
                    f"({taken}), so that it changes nothing; take another backbone, or leave it out",
                    stacklevel=2,
                )

    def run(
        self,
        on_step: OnStep,
        progress: Callable[[int, int], None],
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """Take all steps that are left.

        on_step(step, networks, values) gets the loss terms of every `log_every`-th step; between() is called
        between two steps. Raises NotFiniteError if a loss or its gradient is not finite; the images are then
        as before.
        """
        steps = self.section.iterations
        if self.taken == 0:
            self._call_back()
        for step in range(self.taken, steps):
            joint = self._next(step)
            values = self._take(joint)
            if step // len(self.stock.names) % self.log_every == 0 or step == steps - 1:
                on_step(step, _names(joint.networks), values())
            self.taken = step + 1
            self._call_back()
            progress(self.taken, steps)
            between()

    def _draw(self, step: int) -> Sequence[Network]:
        population = self.section.population
        with calling(population, "draw", DRAWN):
            networks = self.members.draw(step)
        if not (networks and all(isinstance(network, Network) for network in networks)):
            raise refuse(population, "draw", repr(networks), DRAWN)
        return networks

    def _next(self, step: int) -> JointStep:
        networks = self._draw(step)
        images, labels = self.learnt.decode(), self.labels
        if not bool(self.learnt.active.all()):
            images, labels = images[self.learnt.active], labels[self.learnt.active]
        section = self.section
        return JointStep(
            step,
            section.iterations,
            images,
            labels,
            networks,
            self.stock,
            self.matchers,
            section.augmentation,
            self.generators,
            self.reals,
        )

    def _take(self, joint: JointStep) -> Callable[[], dict[str, float]]:
        """Take a step; return what reads its values, each by the image batch, off the device."""
        step, steps, section = joint.index, joint.steps, self.section
        factor = rate_factor(section.schedule, step, steps)
        seen = [BatchStep(joint, batch) for batch in range(joint.batches)]
        terms = self._losses(joint, seen)
        total = torch.stack(list(terms.values())).sum() if terms else torch.zeros(())
        if not total.requires_grad:
            raise GvbsmError(
                f"no term of [synthesis] depends on the images ({', '.join(terms) or 'there is none'}), so "
                "that there is nothing to optimise; name one, such as --term cross_entropy, or take no steps"
            )
        gradients = torch.autograd.grad(total, list(self.learnt.leaves.values()), materialize_grads=True)
        # One transfer for all: a finite loss can have a gradient that is not, which would spoil the images.
        steepest = torch.stack([gradient.abs().amax() for gradient in gradients]).amax()
        value, largest = torch.stack([total.detach(), steepest]).tolist()
        if not (math.isfinite(value) and math.isfinite(largest)):
            raise NotFiniteError(_diagnosis(joint, value, terms))
        self.learnt.update(gradients, factor)
        with calling(section.population, "settle", "networks that go on after a step"):
            for each in seen:
                self.members.settle(each)

        def values() -> dict[str, float]:
            named = {name: float(term.detach()) / joint.batches for name, term in terms.items()}
            rate = section.learning_rate * factor
            return {**named, "total": value / joint.batches, "learning_rate": rate}

        return values

    def _losses(self, joint: JointStep, seen: Sequence[BatchStep]) -> dict[str, Tensor]:
        """Return the weighted terms of the step's loss, each summed over the image batches."""
        losses = {}
        matched = iter(self.matchers)
        for name, term in self.terms.items():
            if isinstance(term, Matcher):
                if (loss := joint.matched(next(matched))) is not None:
                    losses[name] = loss
                continue
            memories = self.memories[name]
            with calling(term, "loss", LOSS):
                of_batches = [term.loss(step, memory) for step, memory in zip(seen, memories, strict=True)]
            for loss in of_batches:
                returned(term, "loss", loss, LOSS, shape=())
            losses[name] = term.weight * torch.stack(of_batches).sum()
        return losses

    def _call_back(self) -> None:
        for callback, state in self._callbacks:
            if self.taken % callback.every == 0:
                with calling(callback, "after", "a change of the state between two steps"):
                    callback.after(self.taken, state)

    def state(self) -> dict[str, Tensor]:
        """Return all that a later run of the same unit needs to go on from here, equal to the bit (CPU)."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "learnt": self.learnt.state(),
            "members": self.members.state(),
            "networks": self.stock.state(),
            "streams": {str(i): each.get_state() for i, each in enumerate(self._streams())},
        }
        parts |= self._memories()
        return {f"{part}::{name}": value for part, state in parts.items() for name, value in state.items()}

    def restore(self, taken: int, state: Mapping[str, Tensor]) -> None:
        """Go on after `taken` steps from what `state` returned then."""
        parts: dict[str, dict[str, Tensor]] = {}
        for full, value in state.items():
            part, _, name = full.partition("::")
            parts.setdefault(part, {})[name] = value
        self.taken = taken
        self.learnt.restore(parts["learnt"])
        self.stock.restore(parts.get("networks", {}))
        self.members.restore(parts.get("members", {}))
        for index, stream in enumerate(self._streams()):
            stream.set_state(parts["streams"][str(index)])
        device = self.labels.device
        for part, memory in self._memories().items():
            memory.update({name: value.to(device) for name, value in parts.get(part, {}).items()})

    def _memories(self) -> dict[str, Memory]:
        memories = {f"notes.{name}": memory for name, memory in self.notes.items()}
        for name, of_batches in self.memories.items():
            memories |= {f"memory.{name}.{batch}": memory for batch, memory in enumerate(of_batches)}
        return memories

    def _streams(self) -> list[Generator]:
        return [self.order, self.own, *self.generators, *self.reals.generators]


def _names(networks: Sequence[Network]) -> str:
    return "+".join(network.name for network in networks)


def _diagnosis(joint: JointStep, value: float, terms: dict[str, Tensor]) -> str:
    bad = [name for name, term in terms.items() if not math.isfinite(float(term.detach()))]
    what = f"loss is {value} (from {', '.join(bad) or 'the sum of its terms'})"
    if math.isfinite(value):
        what = f"gradient is not finite (of the sum of {', '.join(terms)})"
    return (
        f"step {joint.index} of {joint.steps} with backbone {_names(joint.networks)!r}: the {what}; "
        "lower a term's weight or synthesis.learning_rate"
    )
