"""Kinds that give images: data sets, what synthesis starts from, and views."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from gvbsm_registry.kinds.component import Component

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from gvbsm_registry.source import Source
    from gvbsm_registry.splits import Split
    from gvbsm_registry.views import View


class Dataset(Component):
    """A labelled image data set with the splits `train` and `test`.

    `open` returns all classes: where `only` names some of them the engine leaves out the others.
    """

    kind = "dataset"

    mean: tuple[float, ...] | None = Field(None, description="channel means in 0..1; measured if not given")
    std: tuple[float, ...] | None = Field(None, description="channel deviations; measured if not given")
    only: tuple[int | str, ...] | None = Field(
        None,
        min_length=1,
        description="classes that are used, by name or number, in this order; default: all",
    )

    @field_validator("mean", "std")
    @classmethod
    def _pixels_keep_apart(
        cls, values: tuple[float, ...] | None, info: ValidationInfo
    ) -> tuple[float, ...] | None:
        """With a deviation of 0 or below, or one of 10³⁰⁸, images would be all white, or all alike."""
        lowest = 0.001 if info.field_name == "std" else -1000
        if values is not None and not all(lowest <= value <= 1000 for value in values):
            raise PydanticCustomError(
                "gvbsm", "must be numbers from {lowest} to 1000", {"lowest": f"{lowest:g}"}
            )
        return values

    @abstractmethod
    def open(self, split: Literal["train", "test"], cache: Path) -> Split:
        """Open one split. `cache` is a folder where decoded pixels may be kept between runs.

        Raises GvbsmError if the data is missing, empty or broken, naming the path.
        """


class Initializer(Component):
    """The images before step 0. With zero iterations they are the result (the coreset baselines).

    The class attribute `uses_networks = False` says that it asks `source` for no committee, features or
    backbone; no network is trained for it then.
    """

    kind = "initializer"

    uses_networks: ClassVar[bool] = True
    """False: it needs none of `source`'s committee, features and backbone; then none is trained for it."""

    @abstractmethod
    def images(self, labels: Tensor, ranks: Tensor, source: Source, generator: Generator) -> Tensor:
        """Return the image of each (class label, rank within the class), normalised float [n, C, H, W].

        Called once for each image batch, with the labels and ranks of its images, int64 [n]. A choice of real
        images must depend on (label, rank, source) alone, so that it does not matter how images are split
        into batches; `generator` is for noise.
        """

    def prepare(self, source: Source) -> dict[str, Tensor]:
        """Return what is worked out once for a data set, backbones and seed, whatever the number of images.

        The engine stores it and hands it to `images` as `source.prepared`, which is {} here.
        """
        return {}

    def looks_at(self, per_class: int) -> int:
        """Return how many of a class's `per_class` training images it looks at: what its time grows with."""
        return per_class

    def per_class(self) -> int | None:
        """How many images there are of each class if that is fixed; None if any number can be asked for."""
        return None


class Augmentation(Component):
    """The view of the images that a training or synthesis step sees."""

    kind = "augmentation"

    @abstractmethod
    def draw(self, count: int, image_size: int, generator: Generator, progress: float = 1.0) -> View:
        """Draw `count` views of images of `image_size` pixels, all randomness from the CPU `generator`.

        progress: how much of the work is done, 0 at the first step to 1, for those that follow a curriculum:
        of the steps in synthesis, of the epochs in training. Measuring and relabelling leave it at 1, so that
        stored labels do not depend on how many epochs there are.
        """
