"""Codecs: round trips within their bounds, and the bytes they promise."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gvbsm_plugins.codecs import Byte, Half, Largest

ROWS = st.integers(1, 12).flatmap(
    lambda width: st.lists(
        st.lists(st.floats(-6e4, 6e4, width=32), min_size=width, max_size=width), min_size=1, max_size=5
    )
)


def tensor(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def size(parts: dict[str, Tensor]) -> int:
    return sum(part.numel() * part.element_size() for part in parts.values())


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_half_is_the_nearest_half_precision_number(rows: list[list[float]]) -> None:
    codec, logits = Half(), tensor(rows)
    found = codec.decode(codec.encode(logits), logits.shape[1])
    for before, after in zip(logits.flatten().tolist(), found.flatten().tolist(), strict=True):
        assert after == struct.unpack("e", struct.pack("e", before))[0]


def test_half_saturates() -> None:
    logits = tensor([[1e6, -1e6, 65504.0]])
    assert Half().decode(Half().encode(logits), 3).tolist() == [[65504.0, -65504.0, 65504.0]]


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_byte_errs_by_half_a_level_at_most(rows: list[list[float]]) -> None:
    codec, logits = Byte(), tensor(rows)
    found = codec.decode(codec.encode(logits), logits.shape[1])
    level = logits.double().abs().amax(1, keepdim=True) / 127
    assert bool(((found.double() - logits.double()).abs() <= level * (0.5 + 1e-4) + 1e-42).all())


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 14), st.sampled_from(["mass", "mean"]))
def test_largest_keeps_k_and_spreads_the_rest(rows: list[list[float]], k: int, rest: str) -> None:
    codec, logits = Largest(k=k, rest=rest), tensor(rows)
    found = codec.decode(codec.encode(logits), logits.shape[1])
    for before, after in zip(rows, found.tolist(), strict=True):
        order = sorted(range(len(before)), key=lambda i: -before[i])
        for i in order[:k]:
            assert after[i] == pytest.approx(before[i], rel=2**-10, abs=1e-7)
        others = [before[i] for i in order[k:]]
        if others:
            if rest == "mean":
                value = math.fsum(others) / len(others)
            else:
                top = max(others)
                value = top + math.log(math.fsum(math.exp(x - top) for x in others) / len(others))
            assert {after[i] for i in order[k:]} == {after[order[k]]}
            # the mean of large values of both signs is small beside the error of its terms
            assert after[order[k]] == pytest.approx(value, rel=2**-9, abs=1e-5 * max(map(abs, others)) + 1e-6)


def test_largest_keeps_the_probabilities_of_the_kept_classes() -> None:
    logits = 3 * torch.randn(20, 40, generator=torch.Generator().manual_seed(0))
    codec = Largest(k=4)
    found = codec.decode(codec.encode(logits), 40).softmax(1)
    true = logits.softmax(1)
    index = true.topk(4).indices
    assert torch.allclose(found.gather(1, index), true.gather(1, index), rtol=0.01)


@pytest.mark.parametrize(
    ("codec", "classes", "row"),
    [
        (Half(), 1000, 2000),
        (Byte(), 1000, 1004),
        (Largest(k=5), 10, 17),
        (Largest(k=5), 1000, 22),
        (Largest(k=5), 40000, 32),
        (Largest(k=50), 10, 30),
    ],
)
def test_a_row_takes_the_bytes_that_are_promised(codec: Half, classes: int, row: int) -> None:
    logits = torch.randn(3, classes, generator=torch.Generator().manual_seed(0))
    parts = codec.encode(logits)
    assert size(parts) == 3 * row
    assert codec.decode(parts, classes).argmax(1).tolist() == logits.argmax(1).tolist()
