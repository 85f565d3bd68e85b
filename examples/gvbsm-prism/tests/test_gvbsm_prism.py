import math
import tomllib

import pytest
import torch
from gvbsm_prism import Prism, TeacherCrossEntropy

from gvbsm_registry import GvbsmError, Network, Population, Term
from gvbsm_registry.testing import SampleStep, SampleStock, cases, check_plugin


def drawn(stock, **options):
    return Prism(**options).open(stock, torch.Generator().manual_seed(0)).draw(0)


@pytest.mark.parametrize("case", [*cases(Prism()), *cases(TeacherCrossEntropy())], ids=str)
def test_conforms(case):
    case()


@pytest.mark.parametrize("others", [1, 2, 9])
def test_the_teacher_has_no_weight_and_the_others_share_one(others):
    stock = SampleStock()
    teacher, *rest = drawn(stock, others=others)
    assert (teacher.name, teacher.weight) == (stock.names[0], 0)
    assert len(rest) == len({network.name for network in rest}) == min(others, len(stock.names) - 1)
    assert teacher.name not in [network.name for network in rest]
    assert [network.weight for network in rest] == [pytest.approx(1 / len(rest))] * len(rest)


def test_every_image_batch_has_others_of_its_own():
    assert not Prism().joint
    stock = SampleStock()
    seeds = [torch.Generator().manual_seed(seed) for seed in range(20)]
    found = {Prism(others=1).open(stock, seed).draw(0)[1].name for seed in seeds}
    assert found == set(stock.names[1:])


def test_a_teacher_alone_is_too_few():
    stock = SampleStock()
    stock.names = stock.names[:1]
    with pytest.raises(GvbsmError, match="add a backbone"):
        drawn(stock)


def test_the_loss_and_its_gradient_are_those_of_the_teachers_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    weights, other = torch.randn(2, 4, 12, generator=generator, dtype=torch.float64)
    images = torch.randn(3, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    networks = [Network("teacher", linear(weights), weight=0.0), Network("other", linear(other))]
    step = SampleStep(images, networks)
    loss = TeacherCrossEntropy().loss(step, {})
    loss.backward()
    # -ln of the softmax at the label, and W'(p - y), written down by hand
    expected, gradients = 0.0, []
    for image, label in zip(images.detach().flatten(1), step.labels.tolist(), strict=True):
        powers = [math.exp(float(row @ image)) for row in weights]
        likely = [power / sum(powers) for power in powers]
        expected -= math.log(likely[label]) / 3
        gap = torch.tensor([p - (k == label) for k, p in enumerate(likely)], dtype=torch.float64)
        gradients.append(gap @ weights / 3)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(images.grad.flatten(1), torch.stack(gradients), rtol=1e-12, atol=1e-12)


def linear(weights):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4, bias=False))
    module[1].weight.data = weights
    return module.requires_grad_(False).eval()


def test_is_a_plugin_and_ships_its_method():
    registry = check_plugin("gvbsm_prism")
    assert registry.names(Population) == ["prism"]
    assert registry.names(Term) == ["teacher_cross_entropy"]
    recipe = tomllib.loads(registry.recipe("methods/prism").read_text())
    assert recipe["method"]["title"] == "PRISM"
    assert registry.create(Population, recipe["synthesis"]["population"]) == Prism(others=2)
