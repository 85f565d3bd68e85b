"""Callbacks: what they do to the images, against a second way to say it."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from torch.nn.functional import interpolate

from gvbsm_plugins.callbacks import EarlyLate, FuseReal, ImageAverage, Resolutions
from gvbsm_registry import Callback
from gvbsm_registry.testing.steps import SampleState


class Moving(SampleState):
    """A state whose images move by a known amount with every step."""

    def take(self, callback: Callback, steps: int) -> list[torch.Tensor]:
        """Take steps from the start; return the images after each, before the callback acts."""
        self.steps = steps
        seen = []
        callback.after(0, self)
        for step in range(1, steps + 1):
            self.images = self.images + 0.01 * step
            seen.append(self.images.clone())
            if step % callback.every == 0:
                callback.after(step, self)
        return seen


@pytest.mark.parametrize(("keep", "times"), [(0.5, 3), (0.25, 1)])
def test_the_first_images_are_blended_in(keep: float, times: int) -> None:
    state = Moving()
    expected = state.images.double()
    start = expected.clone()
    state.take(FuseReal(every=2, times=times, keep=keep), 8)
    for step in range(1, 9):
        expected = expected + 0.01 * step
        if step in (2, 4, 6)[:times]:
            expected = keep * expected + (1 - keep) * start
    torch.testing.assert_close(state.images.double(), expected, rtol=1e-5, atol=1e-6)
    assert state.replaced == times


def test_nothing_is_blended_in_after_the_last_step() -> None:
    state = Moving()
    last = state.take(FuseReal(every=2, times=9, keep=0.0), 4)[-1]
    assert torch.equal(state.images, last)


def test_other_real_images_are_of_the_class() -> None:
    state = Moving()
    state.take(FuseReal(every=1, times=1, keep=0.0, real="random"), 2)
    train = state.source.train
    for label, image in zip(state.labels.tolist(), state.images - 0.02, strict=True):
        real = state.source.normalize(train.images[train.labels == label])
        assert any(torch.allclose(image, each, atol=1e-5) for each in real)


@pytest.mark.parametrize(("rounds", "ipc"), [(8, 2), (2, 2), (4, 8), (8, 3)])
def test_images_join_round_by_round(rounds: int, ipc: int) -> None:
    state = SampleState()
    state.labels, state.ranks = torch.arange(2 * ipc) // ipc, torch.arange(2 * ipc) % ipc + 5
    state.active, state.steps = torch.ones(2 * ipc, dtype=torch.bool), 40
    for step in range(41):
        EarlyLate(rounds=rounds).after(step, state)
        number = min(step // (40 // rounds), rounds - 1)  # this step's round
        due = ceil(ipc * (number + 1) / rounds)
        assert state.active.tolist() == [rank % ipc < due for rank in range(2 * ipc)]


def test_resolutions_change_in_turn() -> None:
    state = Moving()
    begun = state.images.clone()
    seen = state.take(Resolutions(every=2, sizes=(6, 10)), 6)
    assert [images.shape[-1] for images in seen] == [6, 6, 10, 10, 6, 6]
    smaller = interpolate(begun, size=(6, 6), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(seen[0], smaller + 0.01)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_average_of_all_images_is_the_last(momentum: float) -> None:
    state = Moving()
    begun = state.images.double()
    seen = [begun, *(images.double() for images in state.take(ImageAverage(momentum=momentum), 5))]
    weights = [(1 - momentum) * momentum ** (5 - step) if step else momentum**5 for step in range(6)]
    weights[0] += (1 - momentum) * momentum**5 - (1 - momentum) * momentum**5
    expected = sum(w * images for w, images in zip(weights, seen, strict=True))
    torch.testing.assert_close(state.images.double(), expected, rtol=1e-4, atol=1e-5)
