"""Frozen networks give what torch's own modules give, and its gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ShuffleNetV2

from gvbsm.matching.frozen import FrozenBatchNorm2d, freeze
from gvbsm_plugins.backbones import ShuffleNetV2Small


def trained(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Give a BatchNorm statistics and weights of its own."""
    generator = torch.Generator().manual_seed(0)
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_batchnorm_and_its_gradient(affine: bool, last: bool) -> None:
    norm = trained(nn.BatchNorm2d(5, affine=affine)).eval()
    plain = copy.deepcopy(norm).double()
    assert isinstance(freeze(norm), FrozenBatchNorm2d)
    layout = torch.channels_last if last else torch.contiguous_format
    x = (torch.randn(4, 5, 3, 2) * 3 + 10).to(memory_format=layout).requires_grad_()
    other = x.detach().double().requires_grad_()
    found, wanted = norm(x), plain(other)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=layout)
    weights = torch.randn(found.shape)
    (one,) = torch.autograd.grad((found * weights).sum(), x)
    (two,) = torch.autograd.grad((wanted * weights).sum(), other)
    torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-5)


def test_what_freezing_leaves_as_it_is() -> None:
    class Own(nn.BatchNorm2d):
        pass

    model = nn.Sequential(trained(nn.BatchNorm2d(3)), Own(3), nn.BatchNorm2d(3, track_running_stats=False))
    seen: list[Tensor] = []
    model[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    names, kept = dict(model.named_modules()).keys(), {k: v.clone() for k, v in model.state_dict().items()}
    freeze(model)
    assert [type(part) for part in model] == [FrozenBatchNorm2d, Own, nn.BatchNorm2d]
    assert isinstance(model[0], nn.BatchNorm2d), "matchers find it"
    assert dict(model.named_modules()).keys() == names
    assert model.state_dict().keys() == kept.keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())
    assert not model.training
    assert not any(part.requires_grad for part in model.parameters())
    model(torch.randn(2, 3, 4, 4))
    assert len(seen) == 1, "hooks stay"
    wide = copy.deepcopy(model).double()
    assert wide(torch.randn(2, 3, 4, 4, dtype=torch.float64)).dtype == torch.float64


def test_autocast_keeps_the_activations_narrow() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), trained(nn.BatchNorm2d(3))).eval()
    plain = copy.deepcopy(model)
    freeze(model)
    images = torch.randn(2, 3, 4, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, wanted = model(images), plain(images)
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


def test_groupnorm_keeps_the_channels_first() -> None:
    first = freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(4, 4)))
    last = freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert first[0].weight.is_contiguous()
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_our_shufflenet_is_torchvisions_in_its_layout() -> None:
    ours = ShuffleNetV2Small().build(10, 32, 3).eval()
    theirs = ShuffleNetV2([4, 8, 4], [24, 48, 96, 192, 1024], 10).eval()
    theirs.conv1[0], theirs.maxpool = nn.Conv2d(3, 24, 1, bias=False), nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(4, 3, 32, 32)
    inputs = [images.clone().requires_grad_(), images.clone().requires_grad_()]
    layouts: list[bool] = []
    freeze(ours)
    ours.stage2[1].register_forward_hook(
        lambda _, __, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    outputs = [model(x) for model, x in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    grads = [torch.autograd.grad(out.square().sum(), x)[0] for out, x in zip(outputs, inputs, strict=True)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    assert layouts == [True]
