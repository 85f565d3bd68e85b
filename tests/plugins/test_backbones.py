"""The paper's networks: sizes, shapes and training against known numbers, peers and plain second versions."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from gvbsm_plugins import backbones as plugin
from gvbsm_plugins.backbones.convnet import ConvNet
from gvbsm_plugins.backbones.providers import Timm, Torchvision
from gvbsm_plugins.backbones.small import WRN162, MobileNetV2Small, ResNet18Small, ShuffleNetV2Small
from gvbsm_registry import Backbone, GvbsmError, discover

SMALL = [ConvNet, MobileNetV2Small, ResNet18Small, ShuffleNetV2Small, WRN162]


def equal(one: nn.Module, two: nn.Module, but: str = "\0") -> bool:
    """Whether all parameters and buffers are equal, but those whose names begin with `but`."""
    theirs = two.state_dict()
    return all(torch.equal(t, theirs[n]) for n, t in one.state_dict().items() if not n.startswith(but))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_component_is_a_backbone_that_this_file_builds() -> None:
    listed = set(plugin.gvbsm_components())
    assert listed == {*SMALL, Timm, Torchvision}
    assert all(issubclass(component, Backbone) for component in listed)
    assert all(field.description for component in listed for field in component.model_fields.values())


def test_listing_imports_no_torch() -> None:
    code = "import sys, gvbsm_plugins.backbones as b; b.gvbsm_components(); print('torch' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "False"


def test_recipe_tables_make_backbones_and_come_back() -> None:
    registry = discover([EntryPoint("backbones", plugin.__name__, "gvbsm")])
    assert registry.problems() == []
    for table in (
        {"use": "convnet", "width": 16},
        {"use": "wrn_16_2", "weights": "/nowhere/file.safetensors", "reset_classifier": True},
        {"use": "timm/vit_tiny_patch16_224", "options": {"img_size": 32, "patch_size": 4}},
        {"use": "torchvision/resnet18", "weights": "DEFAULT", "match_weight": 0.5},
    ):
        made = registry.create(Backbone, table)
        assert table.items() <= made.to_recipe().items()
        assert registry.create(Backbone, made.to_recipe()) == made
    with pytest.raises(GvbsmError, match=r"wdith.*did you mean 'width'"):
        registry.create(Backbone, {"use": "convnet", "wdith": 16})


@pytest.mark.parametrize(
    ("backbone", "classes", "parameters"),
    [
        (ConvNet(), 10, 320_010),  # the figure usual in the literature on condensation
        (ResNet18Small(), 10, 11_173_962),  # the figure usual for ResNet18 on CIFAR-10
        (WRN162(), 10, 691_674),
        # 812 836 is usual in the literature on distillation, for networks whose first block has an expanding
        # convolution (16 → 16, with BatchNorm) although t = 1.
        (MobileNetV2Small(), 100, 812_836 - (16 * 16 + 2 * 16)),
        # torchvision's, with 10 classes of 1000 and a stem of 1×1 instead of 3×3
        (ShuffleNetV2Small(), 10, 1_366_792 - 990 * 1025 - 24 * 3 * 8),
    ],
    ids=lambda value: getattr(value, "full_name", str(value)),
)
def test_parameters_equal_published_counts(backbone: Backbone, classes: int, parameters: int) -> None:
    assert count(backbone.build(classes, 32, 3)) == parameters


def test_mobilenet_has_17_blocks_and_ends_at_2_by_2() -> None:
    model = MobileNetV2Small().build(10, 32, 3)
    blocks = [m for m in model.modules() if type(m).__name__ == "InvertedResidual"]
    assert len(blocks) == 17
    features = model.get_submodule("features").eval()
    assert features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280, 2, 2)


def test_shufflenet_has_the_papers_stages() -> None:
    model = ShuffleNetV2Small().build(10, 32, 3)
    assert [len(model.get_submodule(f"stage{k}")) for k in (2, 3, 4)] == [1 + 3, 1 + 7, 1 + 3]  # type: ignore[arg-type]
    seen = {}
    for name in ("conv1", "stage2", "stage3", "stage4", "conv5"):
        model.get_submodule(name).register_forward_hook(
            lambda module, given, output, name=name: seen.update({name: tuple(output.shape[1:])})
        )
    model.eval()(torch.zeros(1, 3, 32, 32))
    assert seen == {
        "conv1": (24, 32, 32),
        "stage2": (48, 16, 16),
        "stage3": (96, 8, 8),
        "stage4": (192, 4, 4),
        "conv5": (1024, 4, 4),
    }


@pytest.mark.parametrize(
    ("image_size", "channels"), [(7, 1), (7, 3), (8, 1), (14, 3), (28, 1), (32, 3), (64, 3)]
)
@pytest.mark.parametrize("backbone", SMALL)
def test_small_networks_take_any_side(backbone: type[Backbone], image_size: int, channels: int) -> None:
    torch.manual_seed(0)
    model = backbone().build(5, image_size, channels).train()
    images = torch.randn(2, channels, image_size, image_size, requires_grad=True)
    logits = model(images)
    assert logits.shape == (2, 5)
    functional.cross_entropy(logits, torch.tensor([1, 4])).backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("image_size", [7, 8])
@pytest.mark.parametrize("backbone", SMALL)
def test_small_networks_see_the_image(backbone: type[Backbone], image_size: int) -> None:
    torch.manual_seed(0)
    model = backbone().build(5, image_size, 1).eval()
    one, two = model(torch.randn(2, 1, image_size, image_size))
    assert (one - two).abs().max() > 1e-4 * one.abs().max()


@pytest.mark.parametrize("backbone", SMALL)
def test_a_few_steps_fit_a_batch_and_evaluation_is_deterministic(backbone: type[Backbone]) -> None:
    torch.manual_seed(0)
    model = backbone().build(4, 8, 1).train()
    labels = torch.arange(16) % 4
    images = torch.randn(4, 1, 8, 8)[labels] + 0.3 * torch.randn(16, 1, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    model.eval()
    assert torch.equal(model(images), model(images))
    assert torch.allclose(model(images)[:3], model(images[:3]), atol=1e-5)


@pytest.mark.parametrize("backbone", SMALL)
def test_fresh_parameters_come_from_the_global_generator(backbone: type[Backbone]) -> None:
    built = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        built.append(backbone().build(4, 8, 3))
    assert equal(built[0], built[1])
    assert not equal(built[0], built[2])


def plain_convnet(state: dict[str, Tensor], images: Tensor, depth: int) -> Tensor:
    """ConvNet written out: normalisation by explicit moments, pooling by slices."""
    parts = [p.double() for p in state.values()]
    x = images.double()
    for block in range(depth):
        weight, bias, scale, shift = parts[4 * block : 4 * block + 4]
        patches = functional.unfold(x, 3, padding=1)
        x = (weight.flatten(1) @ patches + bias[:, None]).unflatten(-1, x.shape[-2:])
        mean = x.mean((2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean((2, 3), keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]
        x = x * (x > 0)
        image_size = x.shape[-1] // 2
        if image_size >= 4 or block == depth - 1:
            x = x[..., : 2 * image_size, : 2 * image_size]
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    return x.flatten(1) @ parts[-2].T + parts[-1]


@settings(max_examples=20, deadline=None)
@given(
    image_size=st.integers(2, 40),
    width=st.integers(1, 9),
    depth=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**31),
)
def test_convnet_is_what_it_says(image_size: int, width: int, depth: int, channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = ConvNet(width=width, depth=depth).build(6, image_size, channels).double()
    for p in model.parameters():
        nn.init.normal_(p)
    images = torch.randn(3, channels, image_size, image_size, dtype=torch.float64)
    expected = plain_convnet(model.state_dict(), images, depth)
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)


def test_wrn_is_the_plain_pre_activation_network() -> None:
    torch.manual_seed(0)
    model = WRN162().build(4, 12, 3).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    s = model.state_dict()

    def active(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            s[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)

    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    x = functional.conv2d(images, s["stem.weight"], padding=1)
    for group, stride in ((1, 1), (2, 2), (3, 2)):
        for block in (0, 1):
            at = f"group{group}.{block}"
            a = active(x, f"{at}.bn1")
            step = stride if block == 0 else 1
            y = functional.conv2d(a, s[f"{at}.conv1.weight"], stride=step, padding=1)
            y = functional.conv2d(active(y, f"{at}.bn2"), s[f"{at}.conv2.weight"], padding=1)
            x = y + (functional.conv2d(a, s[f"{at}.shortcut.weight"], stride=step) if block == 0 else x)
    expected = active(x, "bn").mean((2, 3)) @ s["classifier.weight"].T + s["classifier.bias"]
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)


def test_resnet_differs_from_torchvisions_in_stem_and_pool_only() -> None:
    torch.manual_seed(0)
    small = ResNet18Small().build(10, 32, 3).eval()
    peer = torchvision.models.resnet18(num_classes=10).eval()
    mine = {k: v.shape for k, v in small.state_dict().items()}
    theirs = {k: v.shape for k, v in peer.state_dict().items()}
    assert {k for k in mine if mine[k] != theirs[k]} == {"conv1.weight"}
    assert mine.keys() == theirs.keys()
    peer.load_state_dict({**small.state_dict(), "conv1.weight": peer.conv1.weight})
    x = torch.randn(1, 64, 32, 32)
    for name in ("layer1", "layer2", "layer3", "layer4"):
        a, b = small.get_submodule(name)(x), peer.get_submodule(name)(x)
        assert torch.equal(a, b)
        x = a
    assert x.shape == (1, 512, 4, 4)


def test_convnet_refuses_an_image_of_one_pixel() -> None:
    with pytest.raises(GvbsmError, match="at least 2×2"):
        ConvNet().build(2, 1, 1)


OBSERVABLE = [
    *(component() for component in SMALL),
    Torchvision(variant="mobilenet_v3_small"),
    Torchvision(variant="densenet121"),
    Timm(variant="resnet10t"),
    Timm(variant="efficientnet_lite0"),
]


@pytest.mark.parametrize("backbone", OBSERVABLE, ids=lambda b: b.full_name)
def test_inputs_of_observed_modules_are_left_alone(backbone: Backbone) -> None:
    torch.manual_seed(0)
    model = backbone.build(4, 32, 3).train()
    kept: list[tuple[str, Tensor, Tensor]] = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.Linear)):
            module.register_forward_pre_hook(
                lambda module, given, name=name: kept.append((name, given[0], given[0].detach().clone()))
            )
    model(torch.randn(2, 3, 32, 32))
    assert kept
    assert [name for name, now, then in kept if not torch.equal(now, then)] == []
    assert not any(getattr(module, "inplace", False) for module in model.modules())
