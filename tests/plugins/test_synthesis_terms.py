"""Terms of the synthesis loss against their equations, written out in float64."""

from __future__ import annotations

import pytest
import torch

from gvbsm_plugins.terms import Attention, CrossEntropy, Flatness, MeanFeatures
from gvbsm_registry import GvbsmError, Network
from gvbsm_registry.testing.steps import SampleStep, SampleStock


def networks(*weights: float) -> list[Network]:
    stock = SampleStock()
    drawn = [stock.pretrained(index) for index in range(len(weights))]
    return [Network(n.name, n.module.double(), w) for n, w in zip(drawn, weights, strict=True)]


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cross_entropy_is_the_mean_log_likelihood_weighed_by_network() -> None:
    batch, drawn = images().requires_grad_(True), networks(0.25, 2.0)
    step = SampleStep(batch, drawn)
    loss = CrossEntropy().loss(step, {})
    expected = torch.zeros((), dtype=torch.float64)
    for network in drawn:
        exponentials = network.module(batch).exp()
        likely = exponentials[torch.arange(6), step.labels] / exponentials.sum(1)
        expected = expected - network.weight * likely.log().mean()
    torch.testing.assert_close(loss, expected)
    assert torch.equal(
        *(torch.autograd.grad(each, batch, retain_graph=True)[0].sign() for each in (loss, expected))
    )


@pytest.mark.parametrize(("temperature", "momentum"), [(4.0, 0.99), (1.5, 0.5)])
def test_flatness_is_the_divergence_from_the_averaged_images(temperature: float, momentum: float) -> None:
    term, memory, (network,) = Flatness(temperature=temperature, momentum=momentum), {}, networks(1.5)
    average = images(0)
    for number in range(4):
        batch = images(number).requires_grad_(True)
        loss = term.loss(SampleStep(batch, [network]), memory)
        average = average if number == 0 else momentum * average + (1 - momentum) * batch.detach()

        def softmax(x: torch.Tensor) -> torch.Tensor:
            exponentials = (network.module(x) / temperature).exp()
            return exponentials / exponentials.sum(1, keepdim=True)

        target, given = softmax(average).detach(), softmax(batch)
        expected = 1.5 * (target * (target / given).log()).sum() / 6
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)
        gradient, other = (torch.autograd.grad(each, batch)[0] for each in (loss, expected))
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-7)
    assert set(memory) == {"average"}


@pytest.mark.parametrize("real", [1, 7])
def test_mean_features_are_compared_class_by_class(real: int) -> None:
    """One class after the other, as a loop; features by the network without its last layer."""
    batch, drawn = images().requires_grad_(True), networks(0.5, 2.0)
    step = SampleStep(batch, drawn)
    loss = MeanFeatures(real=real).loss(step, {})
    others, truth = step.real(real)
    expected = torch.zeros((), dtype=torch.float64)
    for network in drawn:
        body = network.module[:-1]
        for label in range(4):
            wanted = body(others[truth == label]).sum(0) / real
            own = [body(batch[i : i + 1])[0] for i in range(6) if step.labels[i] == label]
            difference = wanted - sum(own) / len(own)
            expected = expected + network.weight * (difference * difference).sum()
    torch.testing.assert_close(loss, expected)
    gradient, other = (torch.autograd.grad(each, batch)[0] for each in (loss, expected))
    torch.testing.assert_close(gradient, other)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize(("real", "power"), [(1, 1.0), (5, 4.0)])
def test_attention_maps_are_compared_class_by_class(real: int, power: float) -> None:
    """Image by image, as loops: the channels' powers summed, of length 1, averaged over a class."""
    batch, (network,) = images().requires_grad_(True), networks(0.5)
    step = SampleStep(batch, [network])
    loss = Attention(real=real, power=power).loss(step, {})
    others, truth = step.real(real)
    block = network.module[0]  # it ends in the first of two ReLUs

    def attention(image: torch.Tensor) -> torch.Tensor:
        summed = sum(channel.abs() ** power for channel in block(image[None])[0])
        return summed / (summed**2).sum().sqrt()

    expected = torch.zeros((), dtype=torch.float64)
    for label in range(4):
        wanted = sum(attention(image) for image in others[truth == label]) / real
        own = [attention(batch[i]) for i in range(6) if step.labels[i] == label]
        expected = expected + 0.5 * ((wanted - sum(own) / len(own)) ** 2).sum()
    torch.testing.assert_close(loss, expected)
    gradient, other = (torch.autograd.grad(each, batch)[0] for each in (loss, expected))
    torch.testing.assert_close(gradient, other)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_attention_asks_for_maps() -> None:
    plain = Network("plain", torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4)))
    with pytest.raises(GvbsmError, match="network 'plain' has fewer than two ReLUs"):
        Attention().loss(SampleStep(images().float(), [plain]), {})


def test_flatness_begins_again_when_other_images_take_part() -> None:
    term, memory, drawn = Flatness(), {}, networks(1.0)
    term.loss(SampleStep(images(), drawn), memory)
    loss = term.loss(SampleStep(images(1)[:4], drawn), memory)
    assert float(loss) == pytest.approx(0, abs=1e-12)  # judged against itself
    assert len(memory["average"]) == 4
