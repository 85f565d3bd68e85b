from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gvbsm_plugins.regularizers import DataDensification, SquaredNorm, TotalVariation


def pool(images: np.ndarray, out: int) -> np.ndarray:
    """Average pooling by loops, windows floor(i n / out) to ceil((i + 1) n / out)."""
    batch, channels, height, width = images.shape
    pooled = np.zeros((batch, channels, out, out))
    for i in range(out):
        for j in range(out):
            rows = slice(i * height // out, -(-(i + 1) * height // out))
            columns = slice(j * width // out, -(-(j + 1) * width // out))
            pooled[:, :, i, j] = images[:, :, rows, columns].mean((2, 3))
    return pooled


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def dd_terms(images: np.ndarray, labels: list[int], tau: float, fixed=None):
    """Eq. 5 by loops, eigenvalues by numpy's general solver. `fixed`: the stop-gradient factors."""
    total, factors = 0.0, {}
    pooled = pool(images, 32) if images.shape[-1] > 32 else images
    for label in sorted(set(labels)):
        rows = [pooled[i].reshape(-1) for i in range(len(labels)) if labels[i] == label]
        gram = np.array([[float(a @ b) for b in rows] for a in rows])
        spectrum = sorted(np.linalg.eigvals(gram).real)
        factors[label] = softmax([value / tau for value in spectrum]) if fixed is None else fixed[label]
        q = softmax(spectrum)
        total += sum(p * (math.log(p) - math.log(r)) for p, r in zip(factors[label], q, strict=True))
    return total, factors


CASES = [
    ((6, 1, 7, 7), [0, 1, 0, 1, 0, 2], 4.0),
    ((5, 3, 5, 5), [2, 2, 0, 0, 0], 4.0),
    ((4, 2, 40, 40), [1, 1, 0, 0], 2.0),
    ((4, 1, 64, 64), [3, 3, 3, 3], 4.0),
    ((3, 1, 8, 8), [0, 1, 2], 4.0),
]


@pytest.mark.parametrize(("shape", "labels", "tau"), CASES)
def test_dd_equals_equation_5(shape, labels, tau):
    x = 0.15 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = DataDensification(temperature=tau).penalty(x, torch.tensor(labels))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(dd_terms(x.numpy(), labels, tau)[0], rel=1e-9, abs=1e-13)


@pytest.mark.parametrize(("shape", "labels", "tau"), CASES)
def test_dd_gradient_equals_finite_differences_with_the_target_held(shape, labels, tau):
    generator = torch.Generator().manual_seed(3)
    x = (0.15 * torch.randn(shape, dtype=torch.float64, generator=generator)).requires_grad_()
    DataDensification(temperature=tau).penalty(x, torch.tensor(labels)).backward()
    fixed = dd_terms(x.detach().numpy(), labels, tau)[1]
    for _ in range(5):
        direction = torch.randn(shape, dtype=torch.float64, generator=generator)
        ends = [
            dd_terms((x.detach() + sign * 1e-5 * direction).numpy(), labels, tau, fixed)[0]
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / 2e-5
        assert (x.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=9),
    st.integers(1, 3),
    st.floats(0.01, 0.3),
    st.integers(0, 999),
)
def test_dd_of_any_batch(labels, channels, size, seed):
    generator = torch.Generator().manual_seed(seed)
    x = size * torch.randn(len(labels), channels, 3, 3, dtype=torch.float64, generator=generator)
    x.requires_grad_()
    loss = DataDensification().penalty(x, torch.tensor(labels))
    assert loss.item() == pytest.approx(dd_terms(x.detach().numpy(), labels, 4.0)[0], rel=1e-7, abs=1e-11)
    loss.backward()
    alone = torch.tensor([labels.count(label) == 1 for label in labels])
    assert (x.grad[alone] == 0).all()
    assert x.grad.isfinite().all()


def test_dd_one_image_a_class_adds_exactly_nothing():
    torch.manual_seed(0)
    x = torch.randn(3, 1, 8, 8, requires_grad=True)
    loss = DataDensification().penalty(x, torch.tensor([0, 1, 2]))
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()
    pair, single = torch.randn(2, 1, 4, 4) / 4, torch.randn(1, 1, 4, 4)
    both = DataDensification().penalty(torch.cat([pair, single]), torch.tensor([0, 0, 1]))
    assert both.item() == DataDensification().penalty(pair, torch.tensor([0, 0])).item()


def test_dd_of_identical_images_is_finite():
    """Repeated eigenvalues, a spectrum of (n‖x‖², 0, …) and huge values, in float32."""
    torch.manual_seed(0)
    for scale in (0.1, 1.0, 100.0):
        x = (scale * torch.randn(1, 3, 32, 32)).repeat(6, 1, 1, 1).requires_grad_()
        loss = DataDensification().penalty(x, torch.tensor([0, 0, 0, 1, 1, 1]))
        loss.backward()
        assert loss.isfinite()
        assert x.grad.isfinite().all()


def entropy(x: torch.Tensor) -> float:
    rows = x.detach().flatten(1)
    q = torch.linalg.eigvalsh(rows @ rows.T).softmax(0)
    return -(q * q.log()).sum().item()


def test_dd_is_least_for_orthogonal_images_and_its_gradient_evens_the_spectrum():
    labels = torch.zeros(4, dtype=torch.int64)
    eye = torch.eye(4, dtype=torch.float64).reshape(4, 1, 2, 2).requires_grad_()
    loss = DataDensification().penalty(eye, labels)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert eye.grad.abs().max() < 1e-12
    x = torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 2
    before = DataDensification().penalty(x.requires_grad_(), labels)
    before.backward()
    moved = x.detach() - 0.01 * x.grad
    assert DataDensification().penalty(moved, labels) < before
    assert entropy(moved) > entropy(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dd_in_half_precision_is_computed_in_float32(dtype):
    x = (torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) / 8).to(dtype).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = DataDensification().penalty(x, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    exact = DataDensification().penalty(x.detach().double(), labels).item()
    # The loss is a small difference of log-probabilities of order 1, two in each of two classes. Each of them
    # is rounded to float32, so the error is absolute. A Gram matrix in half precision would be off by 1e-5.
    assert loss.item() == pytest.approx(exact, rel=0, abs=4 * torch.finfo(torch.float32).eps)
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_dd_of_broken_images_is_nan_not_an_exception(bad):
    torch.manual_seed(0)
    x = torch.randn(4, 1, 4, 4)
    x[1, 0, 2, 2] = bad
    assert DataDensification().penalty(x, torch.tensor([0, 0, 1, 1])).isnan()


def test_dd_of_an_empty_batch():
    assert DataDensification().penalty(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64)).item() == 0


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (1, 2, 1, 4), (3, 1, 8, 8)])
def test_tv_and_l2_equal_their_formulas(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    values, labels = x.detach().numpy(), torch.zeros(shape[0], dtype=torch.int64)
    down, right, squares = [], [], []
    for b, c, i, j in np.ndindex(*shape):
        squares.append(values[b, c, i, j] ** 2)
        if i + 1 < shape[2]:
            down.append(abs(values[b, c, i + 1, j] - values[b, c, i, j]))
        if j + 1 < shape[3]:
            right.append(abs(values[b, c, i, j + 1] - values[b, c, i, j]))
    variation = sum(down) / max(len(down), 1) + sum(right) / max(len(right), 1)
    assert TotalVariation().penalty(x, labels).item() == pytest.approx(variation, abs=1e-12)
    assert SquaredNorm().penalty(x, labels).item() == pytest.approx(sum(squares) / len(squares))
    assert torch.autograd.gradcheck(lambda t: TotalVariation().penalty(t, labels), x)
    assert torch.autograd.gradcheck(lambda t: SquaredNorm().penalty(t, labels), x)


def test_temperature_is_positive():
    with pytest.raises(ValidationError):
        DataDensification(temperature=0)
