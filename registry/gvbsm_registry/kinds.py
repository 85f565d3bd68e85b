"""The kinds of component: what a plugin may add.

A component is a frozen pydantic model. Its fields are its options (validated; an unknown key is an error;
`Field(description=...)` is its help), its class attribute `name` is what a user types, and its base class is
its kind. A name that ends in `/*` is a family: `use = "timm/vit_tiny"` makes the component `timm/*` with
`variant = "vit_tiny"`.

Import torch inside methods, not at the top of a plugin module: listing plugins must stay cheap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from gvbsm_registry.source import Source

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.nn import Module

    from gvbsm_registry.finished import FinishedRun
    from gvbsm_registry.splits import Split
    from gvbsm_registry.views import View

CONTRACT_VERSION = "2.0"

Task = Callable[[Callable[[Any], None]], Any]
"""What an executor runs: a callable of one argument, a function that sends a message to the caller."""


class Component(BaseModel, ABC):
    """Base of all kinds. `kind` is set by the kind, `name` by the component."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""

    @property
    def full_name(self) -> str:
        """The name as a user types it: the family's star replaced by the variant."""
        return self.name.replace("*", getattr(self, "variant", "*"))

    def to_recipe(self) -> dict[str, Any]:
        """Return the recipe table that makes this component: `use` beside every option that is not None."""
        options = self.model_dump(mode="json", exclude_none=True)
        options.pop("variant", None)
        return {"use": self.full_name, **options}

    def files(self) -> tuple[Path, ...]:
        """Return the files whose contents the component reads; work that uses it is keyed by their contents.

        A data set need not name its files: its splits have digests.
        """
        return ()


class Dataset(Component):
    """A labelled image data set with the splits `train` and `test`."""

    kind = "dataset"

    mean: tuple[float, ...] | None = Field(None, description="channel means in 0..1; measured if not given")
    std: tuple[float, ...] | None = Field(None, description="channel deviations; measured if not given")

    @abstractmethod
    def open(self, split: Literal["train", "test"], cache: Path) -> Split:
        """Open one split. `cache` is a folder where decoded pixels may be kept between runs.

        Raises GvbsmError if the data is missing, empty or broken, naming the path.
        """


class Backbone(Component):
    """A classifier: it is matched against in synthesis, labels, and serves as student."""

    kind = "backbone"

    weights: str | None = Field(
        None, description='"DEFAULT" (the provider\'s own), a .safetensors or weights-only .pth file, or none'
    )
    match_weight: float = Field(1.0, ge=0, description="factor on all matching terms of this backbone")

    @abstractmethod
    def build(self, classes: int, image_size: int, channels: int) -> Module:
        """Return a module: float [B, channels, S, S], normalised, to logits [B, classes].

        Fresh parameters come from torch's global generator, which the engine seeds. With `weights` they are
        loaded; raises GvbsmError if they do not fit, naming the file.
        """

    def files(self) -> tuple[Path, ...]:
        """Return the weights file, if `weights` is the path of one that exists."""
        if self.weights in (None, "DEFAULT"):
            return ()
        path = Path(self.weights).expanduser()
        return (path,) if path.is_file() else ()


class Activation(Protocol):
    """What one site saw of one image batch: its input, with shared reductions of it.

    Each reduction is computed once per forward pass, whoever asks.
    """

    @property
    def tensor(self) -> Tensor:
        """The site's input itself: [B, C, H, W] for convolutions, or whatever shape the module takes."""

    def channel_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance by channel, float32 [C] each: over batch and space."""

    def patch_moments(self, patch_size: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance by patch, float32 [⌈H/patch_size⌉, ⌈W/patch_size⌉] each.

        Over batch, channels and the pixels of a patch, which are fewer at the lower and right border.
        """


class Matcher(Component):
    """A statistic of activations that synthetic images have to match (one term of L_BN or L_Conv).

    The engine does the rest for every matcher alike: measuring targets over the data set (Eq. 9), running
    averages (Eq. 6) and the stop-gradient form (Eqs. 10, 14), dropping, weights.
    """

    kind = "matcher"

    weight: float = Field(0.01, ge=0, description="w: weight of this matcher's term in the loss")
    momentum: float = Field(0.8, ge=0, lt=1, description="α of Eq. 6; 0 matches each batch by itself (Eq. 1)")
    drop_rate: float = Field(0.0, ge=0, lt=1, description="β_dr: chance that a site is skipped in a step")
    first_site_weight: float = Field(10.0, ge=0, description="factor on the first site of every backbone")

    @abstractmethod
    def sites(self, model: Module) -> list[str]:
        """Return the names (as in `model.named_modules()`) of modules whose input is observed, in order."""

    @abstractmethod
    def statistics(self, activation: Activation) -> dict[str, Tensor]:
        """Return named statistics of one batch at one site, of any shapes, differentiable."""

    def targets(self, module: Module) -> dict[str, Tensor] | None:
        """Return the real data's statistics if the site's module knows them (BatchNorm), else None."""
        return None

    def measured_by(self) -> dict[str, Any]:
        """Return the options that the measured targets depend on."""
        return {"use": self.full_name, **self.model_dump(mode="json", exclude=set(Matcher.model_fields))}


class Regularizer(Component):
    """A loss on the images themselves."""

    kind = "regularizer"

    weight: float = Field(1.0, ge=0, description="weight of this term in the loss")

    @abstractmethod
    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return a scalar from normalised images, float [B, C, H, W], and their labels, int64 [B]."""


class Initializer(Component):
    """The images before step 0. With zero iterations they are the result (the coreset baselines)."""

    kind = "initializer"

    @abstractmethod
    def images(self, labels: Tensor, ranks: Tensor, source: Source, generator: Generator) -> Tensor:
        """Return the image of each (class label, rank within the class), normalised float [n, C, H, W].

        labels, ranks: int64 [n]. A choice of real images must depend on (label, rank, source) alone, so
        that it does not matter how images are split into batches; `generator` is for noise.
        """

    def prepare(self, source: Source) -> dict[str, Tensor]:
        """Return what is worked out once for a data set, backbone and seed, whatever the number of images.

        The engine stores it and hands it to `images` as `source.prepared`, which is {} here.
        """
        return {}

    def per_class(self) -> int | None:
        """How many images there are of each class if that is fixed; None if any number can be asked for."""
        return None


class Augmentation(Component):
    """The view of the images that a training or synthesis step sees."""

    kind = "augmentation"

    @abstractmethod
    def draw(self, count: int, image_size: int, generator: Generator) -> View:
        """Draw `count` views of images of `image_size` pixels, all randomness from the CPU `generator`."""


class Schedule(Component):
    """The learning rate over the steps."""

    kind = "schedule"

    @abstractmethod
    def factor(self, step: int, steps: int) -> float:
        """Return what the base learning rate is multiplied by at `step` (0 to steps - 1)."""


class Ensembler(Component):
    """Many backbones' logits → one (Eq. 8)."""

    kind = "ensembler"

    @abstractmethod
    def combine(self, logits: Tensor) -> Tensor:
        """Return [B, K] from the stacked logits [S, B, K] of S backbones."""


class Codec(Component):
    """How soft labels are stored."""

    kind = "codec"

    @abstractmethod
    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """Return named tensors, each with leading axis B, that stand for finite logits, float32 [B, K].

        Every row is coded by itself, so that it does not matter how rows are split into blocks.
        """

    @abstractmethod
    def decode(self, parts: dict[str, Tensor], classes: int) -> Tensor:
        """Return finite logits, float32 [B, classes], from what `encode` returned."""


class Objective(Component):
    """The student's loss on soft labels (Eq. 11)."""

    kind = "objective"

    @abstractmethod
    def loss(self, output: Tensor, logits: Tensor, truth: Tensor) -> Tensor:
        """Return a scalar from the student's logits, the stored logits and the true class mixture.

        All float [B, K]; a row of `truth` is one-hot, or mixed by area where CutMix was used.
        """


class Executor(Component):
    """Runs independent pieces of work somewhere."""

    kind = "executor"

    @abstractmethod
    def run(self, tasks: Sequence[Task], on_message: Callable[[Any], None]) -> Iterator[tuple[int, Any]]:
        """Run every task, yielding (its index, its result) as each ends.

        A task that raises ends the iteration with that error. A task is a picklable callable of one argument,
        `send`: each picklable message that it sends arrives at `on_message` in the calling process, those of
        one task in order and before its result is yielded.
        """


class Exporter(Component):
    """Writes a distilled set in someone else's format."""

    kind = "exporter"

    @abstractmethod
    def export(self, run: FinishedRun, destination: Path) -> None:
        """Write what `run` holds to `destination`, which does not exist yet.

        Raises GvbsmError if the run is not finished or the destination can't be written.
        """


KINDS: tuple[type[Component], ...] = (
    Dataset,
    Backbone,
    Matcher,
    Regularizer,
    Initializer,
    Augmentation,
    Schedule,
    Ensembler,
    Codec,
    Objective,
    Executor,
    Exporter,
)
