"""Kinds of losses: of synthesis, and of students."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field

from gvbsm_registry.kinds.component import Component

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from gvbsm_registry.step import Memory, SynthesisStep


class Activation(Protocol):
    """What one site saw of one image batch, or of one of its classes: its input, and reductions of it.

    Each reduction is computed once per forward pass, whoever asks.
    """

    @property
    def tensor(self) -> Tensor:
        """The site's input itself: [B, C, H, W] for convolutions, or whatever shape the module takes.

        Of the dtype that the module is given: bfloat16 with `synthesis.precision = "bf16"`.
        """

    def channel_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance by channel, float32 [C] each: over batch and space."""

    def patch_moments(self, patch_size: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance by patch, float32 [⌈H/patch_size⌉, ⌈W/patch_size⌉] each.

        Over batch, channels and the pixels of a patch, which are fewer at the lower and right border.
        """


class Term(Component):
    """A summand of the loss that images are optimised for.

    The class attribute `separable = False` says that the term of many images is not the sum of those of
    their image batches; the whole set is one image batch then.
    """

    kind = "term"

    weight: float = Field(1.0, ge=0, description="weight of this term in the loss")

    separable: ClassVar[bool] = True
    """Whether the term of many images is the sum of those of their image batches.

    Where a term says False, all images of the set are one image batch.
    """

    @abstractmethod
    def loss(self, step: SynthesisStep, memory: Memory) -> Tensor:
        """Return a scalar, differentiable in `step.images`; the engine multiplies it by `weight`.

        memory: tensors that this term keeps from step to step, one table for each image batch; {} at first.
        They carry no gradient: put in what is detached.
        """


class Matcher(Term):
    """A statistic of activations that synthetic images have to match (one term of L_BN or L_Conv).

    The engine does the rest for every matcher alike: measuring targets over the data set (Eq. 9), running
    averages (Eq. 6) and the stop-gradient form (Eqs. 10, 14), dropping, weights. So it does matching by
    class: a share `by_class` of the term is the mean, over the classes in an image batch, of the distance
    between a class's statistics and its own targets (half of it in EDC, arXiv 2404.13733). `statistics` is
    called with one class's images for that.
    """

    kind = "matcher"

    weight: float = Field(0.01, ge=0, description="w: weight of this matcher's term in the loss")
    momentum: float = Field(0.8, ge=0, lt=1, description="α of Eq. 6; 0 matches each batch by itself (Eq. 1)")
    drop_rate: float = Field(0.0, ge=0, lt=1, description="β_dr: chance that a site is skipped in a step")
    first_site_weight: float = Field(10.0, ge=0, description="factor on the first site of every backbone")
    by_class: float = Field(0.0, ge=0, le=1, description="share of the term that is matched class by class")

    @abstractmethod
    def sites(self, model: Module) -> list[str]:
        """Return the names (as in `model.named_modules()`) of modules whose input is observed, in order."""

    @abstractmethod
    def statistics(self, activation: Activation) -> dict[str, Tensor]:
        """Return named statistics of one batch at one site, of any shapes, differentiable."""

    def targets(self, module: Module) -> dict[str, Tensor] | None:
        """Return the real data's statistics if the site's module knows them (BatchNorm), else None."""
        return None

    def loss(self, step: SynthesisStep, memory: Memory) -> Tensor:
        """Return the term as the engine works it out; with `weight` in it."""
        return step.matched(self)

    def measured_by(self) -> dict[str, Any]:
        """Return the options that the measured targets depend on."""
        return {"use": self.full_name, **self.model_dump(mode="json", exclude=set(Matcher.model_fields))}


class Regularizer(Term):
    """A loss on the images themselves."""

    kind = "regularizer"

    @abstractmethod
    def penalty(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return a scalar from normalised images, float [B, C, H, W], and their labels, int64 [B]."""

    def loss(self, step: SynthesisStep, memory: Memory) -> Tensor:
        """Return the penalty on the step's images."""
        return self.penalty(step.images, step.labels)


class Objective(Component):
    """The student's loss on soft labels (Eq. 11)."""

    kind = "objective"

    @abstractmethod
    def loss(self, output: Tensor, logits: Tensor, truth: Tensor) -> Tensor:
        """Return a scalar from the student's logits, the stored logits and the true class mixture.

        All float [B, K]; a row of `truth` is one-hot, or mixed by area where CutMix was used.
        """
