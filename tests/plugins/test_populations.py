"""Populations: which networks are drawn, how they are weighed, and weights that climb the loss."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch

from gvbsm_plugins.populations import Fresh, Pretrained
from gvbsm_registry.testing.steps import SampleStock


def drawn(steps: int, seed: int = 0, **options: object) -> list[list[str]]:
    members = Pretrained(**options).open(SampleStock(), torch.Generator().manual_seed(seed))
    return [[network.name for network in members.draw(step)] for step in range(steps)]


NAMES = SampleStock().names


def test_in_turn_one_or_several_a_step() -> None:
    assert drawn(4) == [[NAMES[0]], [NAMES[1]], [NAMES[2]], [NAMES[0]]]
    pairs = drawn(3, per_step=2)
    assert pairs == [[NAMES[0], NAMES[1]], [NAMES[2], NAMES[0]], [NAMES[1], NAMES[2]]]
    assert drawn(1, per_step=7) == [NAMES]


def test_at_random_each_as_often_and_never_twice_a_step() -> None:
    counts = Counter(names[0] for names in drawn(600, order="random"))
    assert set(counts) == set(NAMES)
    assert min(counts.values()) > 150
    pairs = drawn(300, order="random", per_step=2)
    assert all(len(set(pair)) == 2 for pair in pairs)
    assert len({tuple(pair) for pair in pairs}) == 6
    assert drawn(9, 1, order="random") != drawn(9, 2, order="random")


def test_fixed_are_drawn_once_for_an_image_batch() -> None:
    several = {tuple(map(tuple, drawn(5, seed, order="fixed", per_step=2))) for seed in range(20)}
    assert all(len(set(map(frozenset, steps))) == 1 for steps in several)
    assert len({frozenset(steps[0]) for steps in several}) == 3
    assert not Pretrained(order="fixed").joint
    assert Pretrained(order="random").joint


def test_networks_weigh_by_their_accuracy() -> None:
    stock = SampleStock()
    members = Pretrained(per_step=3, by_accuracy=5.0).open(stock, torch.Generator())
    weights = torch.tensor([network.weight for network in members.draw(0)], dtype=torch.float64)
    powers = (torch.tensor([90.0, 80.0, 70.0], dtype=torch.float64) / 5).exp()
    torch.testing.assert_close(weights, powers / powers.sum())


@pytest.mark.parametrize("steps", [1, 12])
def test_weights_climb_the_loss_of_the_first_images(steps: int) -> None:
    """Against the update written out, parameter by parameter, with the gradient of all as one vector."""
    stock = SampleStock()
    population = Pretrained(ascend=steps, radius=0.03)
    (network,) = population.open(stock, torch.Generator()).draw(0)
    module = copy.deepcopy(stock._models[stock.names[0]]).requires_grad_(True)
    before = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    vector = before.clone()
    for _ in range(steps):
        torch.nn.utils.vector_to_parameters(vector, module.parameters())
        loss = torch.nn.functional.cross_entropy(module(stock.images), stock.labels)
        gradient = torch.cat(
            [part.flatten() for part in torch.autograd.grad(loss, list(module.parameters()))]
        )
        vector = vector + 0.03 / steps * gradient / gradient.norm()
    found = torch.nn.utils.parameters_to_vector(network.module.parameters())
    torch.testing.assert_close(found, vector, rtol=1e-5, atol=1e-7)
    assert float((found - before).norm()) <= 0.03 * 1.001

    def loss_of(module: torch.nn.Module) -> float:
        return float(torch.nn.functional.cross_entropy(module(stock.images), stock.labels))

    assert loss_of(network.module) > loss_of(stock.pretrained(0).module)
    assert not population.joint
    assert not any(parameter.requires_grad for parameter in network.module.parameters())


def test_untrained_networks_are_drawn_anew_and_take_turns() -> None:
    members = Fresh(every=3, first=2).open(SampleStock(), torch.Generator().manual_seed(0))
    drawn = [members.draw(step)[0] for step in range(12)]
    assert [network.name for network in drawn] == [NAMES[0]] * 3 + [NAMES[1]] * 3 + [NAMES[0]] * 3 + [
        NAMES[1]
    ] * 3
    weights = [next(network.module.parameters()) for network in drawn]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[6])
    one, other = (Fresh().open(SampleStock(), torch.Generator().manual_seed(seed)).draw(0) for seed in (0, 1))
    assert not torch.equal(*(next(network.module.parameters()) for (network,) in (one, other)))
    assert Fresh.keeps == "none"
    assert Fresh().joint


def test_an_untrained_network_is_the_same_after_a_restart_between_two_turns() -> None:
    generator = torch.Generator().manual_seed(0)
    members = Fresh(every=4).open(SampleStock(), generator)
    drawn = [members.draw(step)[0] for step in range(3)]
    again = Fresh(every=4).open(SampleStock(), torch.Generator())
    again.restore(members.state())
    batch = SampleStock().images
    assert torch.equal(again.draw(3)[0].module(batch), drawn[-1].module(batch))
