import numpy as np
import pytest
import torch
from gvbsm_gram import Gram, GramDiversity

from gvbsm_registry import Matcher, Regularizer
from gvbsm_registry.testing import PlainActivation, cases, check_plugin


@pytest.mark.parametrize("case", [*cases(Gram()), *cases(GramDiversity())], ids=str)
def test_conforms(case):
    case()


def test_gram_is_the_mean_outer_product():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = sum(
        np.outer(x[b, :, i, j], x[b, :, i, j]) for b in range(2) for i in range(4) for j in range(5)
    )
    found = Gram().statistics(PlainActivation(torch.from_numpy(x)))["gram"]
    np.testing.assert_allclose(found.numpy(), expected / (2 * 4 * 5), rtol=1e-5, atol=1e-6)


def test_diversity_compares_images_of_one_class_only():
    images = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0], [5.0, 0.0]]).reshape(4, 1, 1, 2)
    loss = GramDiversity().penalty(images, torch.tensor([0, 0, 1, 0]))
    assert loss.item() == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    assert GramDiversity().penalty(images, torch.tensor([0, 1, 2, 3])).item() == 0


def test_is_a_plugin():
    registry = check_plugin("gvbsm_gram")
    assert registry.names(Matcher) == ["gram"]
    assert registry.names(Regularizer) == ["gram_diversity"]
