"""What a synthesis step is to those who take part in it: terms, populations and callbacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.nn import Module

    from gvbsm_registry.kinds.component import Component
    from gvbsm_registry.source import Source
    from gvbsm_registry.views import View

Memory = dict[str, "Tensor"]
"""What a term or a callback keeps from step to step, by name: one for each image batch, saved with it."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network that a step looks through, frozen and in evaluation mode.

    name: the backbone's. weight: a factor on all that terms see through it; matchers heed it, and terms
    should. To give it another one: `dataclasses.replace(network, weight=…)`.
    """

    name: str
    module: Module
    weight: float = 1.0


class SynthesisStep(Protocol):
    """One step on one image batch of B images. Lazy: what nobody asks for is not computed, all else once.

    Tensors are on the run's device. B is less than the batch where a callback lets some images wait.
    """

    @property
    def index(self) -> int:
        """Which step it is, 0 to steps - 1."""

    @property
    def steps(self) -> int:
        """How many steps there are."""

    @property
    def labels(self) -> Tensor:
        """The classes of the images, int64 [B]."""

    @property
    def images(self) -> Tensor:
        """The images, normalised float [B, C, H, W], differentiable in what is learnt."""

    @property
    def view(self) -> View:
        """The views of this step, one an image; `view.apply` shows other images in the same way.

        Its numbers are on the CPU.
        """

    @property
    def seen(self) -> Tensor:
        """The views of the images, [B, C, H, W]: what networks are given."""

    @property
    def networks(self) -> Sequence[Network]:
        """The networks of this step, as the population drew them."""

    def real(self, per_class: int, *, same_view: bool = False) -> tuple[Tensor, Tensor]:
        """Views of real images, [M, C, H, W], and their classes, int64 [M], which are those in `labels`.

        `per_class` training images of each class, or all where there are fewer, drawn without replacement and
        anew for every step; the same ones for all that ask for as many in the same way. same_view: those of a
        class are seen as its images are, in turn (the same view for all where the augmentation draws one for
        the batch); else each through one that is drawn for it.
        """

    def logits(self, network: Network) -> Tensor:
        """The logits of `seen`, at least float32 [B, K]; from the forward pass that matchers look at, too."""

    def features(self, network: Network, images: Tensor | None = None) -> Tensor:
        """What the last linear layer is given for `seen`, [B, D]; the logits where there is no such layer.

        In a forward pass of its own. images: others to look at instead, such as views of real ones; with
        these nothing is shared.
        """

    def inputs(
        self, network: Network, sites: Sequence[str], images: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the modules called `sites` are given for `seen`, by site; in a forward pass of its own.

        images: as in `features`.
        """

    def matched(self, matcher: Component) -> Tensor:
        """The weighted term of a matcher, summed over the networks in which it has sites: a scalar.

        For a term that holds a matcher as an option. Raises GvbsmError if it has no site in any of them.
        """


class Stock(Protocol):
    """What a population draws from: the recipe's backbones, and the images before step 0."""

    @property
    def names(self) -> Sequence[str]:
        """The backbones' names."""

    @property
    def accuracies(self) -> Sequence[float]:
        """The pretrained backbones' test accuracies, 0 to 1; empty where the population keeps "none"."""

    @property
    def images(self) -> Tensor:
        """The images before step 0, normalised float [N, C, H, W]."""

    @property
    def labels(self) -> Tensor:
        """Their classes, int64 [N]."""

    def pretrained(self, index: int, change: Callable[[Module], None] | None = None) -> Network:
        """Return a pretrained backbone; what matchers ask of it was measured on the real data.

        Each call loads one of its own, with running averages of its own: call it in `open`, not in `draw`.
        change: is given the module, in evaluation mode, before it is frozen, and changes it in place.
        """

    def fresh(self, index: int, seed: int) -> Network:
        """Return a backbone with the random weights that it starts from, the same for one `seed`.

        It may be called in `draw`, for a network of its own in every step; draw the seed from the
        population's generator. Matchers have nothing to compare it with, and leave it out.
        """


class OpenPopulation(ABC):
    """An open population: the networks of one unit of work, and what they remember."""

    @abstractmethod
    def draw(self, step: int) -> Sequence[Network]:
        """Return the networks of a step, one at least."""

    def settle(self, step: SynthesisStep) -> None:  # noqa: B027
        """Do what follows a step: train, age or retire networks."""

    def state(self) -> dict[str, Tensor]:
        """Return what a later run needs to go on from here; the population's generator is kept anyway."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take over what `state` returned."""


class SynthesisState(Protocol):
    """The state of an image batch between two steps."""

    @property
    def steps(self) -> int:
        """How many steps there are in all."""

    @property
    def labels(self) -> Tensor:
        """The classes of the images, int64 [B]."""

    @property
    def ranks(self) -> Tensor:
        """The images' ranks within their classes, int64 [B]."""

    @property
    def images(self) -> Tensor:
        """The images as they are now, normalised float [B, C, H, W], without gradient."""

    def replace(self, images: Tensor) -> None:
        """Go on from other images, [B, C, H, W], clamped to the pixels' range.

        They may be of another size, for networks that take it; in the end they are resized to their own.
        """

    @property
    def active(self) -> Tensor:
        """Which images take part in steps, bool [B]; at first all."""

    def activate(self, active: Tensor) -> None:
        """Say which images take part in the next steps, bool [B]; the others stay as they are."""

    def restart_optimizer(self) -> None:
        """Forget the optimizer's running averages."""

    @property
    def source(self) -> Source:
        """Real images."""

    @property
    def generator(self) -> Generator:
        """A random stream of the callbacks' own, on the CPU."""

    @property
    def memory(self) -> Memory:
        """What this callback keeps from call to call."""
