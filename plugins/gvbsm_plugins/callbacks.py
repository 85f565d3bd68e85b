"""Callbacks: real images blended in, images that join later, other resolutions, an average of the images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gvbsm_registry import Callback, Component, SynthesisState, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class FuseReal(Callback):
    """Blends real images in (FADRM, arXiv 2506.24125): x ← keep · x + (1 - keep) · real, a few times."""

    name = "fuse_real"

    every: int = Field(500, ge=1, description="steps between two blends")
    times: int = Field(3, ge=1, description="how often images are blended; never after the last step")
    keep: float = Field(0.5, ge=0, le=1, description="how much of the images is kept")
    real: Literal["start", "random"] = Field(
        "start",
        description="start: the images before step 0; random: other real images of the class each time",
    )

    def after(self, step: int, state: SynthesisState) -> None:
        if step == 0:
            if self.real == "start":
                state.memory["start"] = state.images.clone()
            return
        if step // self.every <= self.times and step < state.steps:
            real = self._real(state)
            state.replace(self.keep * state.images + (1 - self.keep) * real)

    def _real(self, state: SynthesisState) -> Tensor:
        import torch

        if self.real == "start":
            real = state.memory["start"]
        else:
            train = state.source.train
            chosen = torch.empty(len(state.labels), dtype=torch.int64)
            for position, label in enumerate(state.labels.tolist()):
                members = (train.labels == label).nonzero().flatten()
                chosen[position] = members[torch.randint(len(members), (), generator=state.generator)]
            real = state.source.normalize(train.read(chosen)).to(state.images.device)
        return _resized(real, state.images.shape[-1])


class EarlyLate(Callback):
    """Images join one after another (DELT, arXiv 2411.19946): the later, the fewer steps are left for them.

    In round r = 1, 2, … of `rounds`, the first ⌈r · n / rounds⌉ of the n images of each class take part.
    """

    name = "early_late"

    rounds: int = Field(8, ge=1, description="into how many rounds of equal length the steps are split")

    def after(self, step: int, state: SynthesisState) -> None:
        number = min(step * self.rounds // max(state.steps, 1) + 1, self.rounds)
        ranks = state.ranks.unique()  # sorted
        joined = ranks[: -(-number * len(ranks) // self.rounds)]
        state.activate((state.ranks[:, None] == joined).any(1))


class Resolutions(Callback):
    """Images of other resolutions in turn (FADRM): resized, bilinearly, every so many steps.

    The last one to be kept is the data set's own. For networks that take images of any size.
    """

    name = "resolutions"

    every: int = Field(500, ge=1, description="steps between two changes")
    sizes: tuple[int, ...] = Field(
        (200, 224), description="pixels of the images' side, in turn from the start", min_length=1
    )

    def after(self, step: int, state: SynthesisState) -> None:
        if step < state.steps:
            size = self.sizes[step // self.every % len(self.sizes)]
            if size != state.images.shape[-1]:
                state.replace(_resized(state.images, size))


def _resized(images: Tensor, size: int) -> Tensor:
    from torch.nn.functional import interpolate

    if images.shape[-1] == size:
        return images
    return interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


class ImageAverage(Callback):
    """The images at the end are the average of those on the way (FTD, arXiv 2211.11004; DATM).

    x̄ ← momentum · x̄ + (1 - momentum) · x, from the images before step 0 on.
    """

    name = "image_average"

    momentum: float = Field(0.999, ge=0, lt=1, description="how slowly the average follows the images")

    def after(self, step: int, state: SynthesisState) -> None:
        now = state.images
        average = state.memory.get("average", now)
        state.memory["average"] = self.momentum * average + (1 - self.momentum) * now
        if step == state.steps:
            state.replace(state.memory["average"])


@hookimpl
def gvbsm_components() -> list[type[Component]]:
    return [FuseReal, EarlyLate, Resolutions, ImageAverage]
