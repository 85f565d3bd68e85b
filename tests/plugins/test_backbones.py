"""Backbones: sizes, shapes and training against known numbers, peers and a plain second implementation."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from gvbsm_plugins import backbones as plugin
from gvbsm_plugins.backbones import checkpoints, surgery
from gvbsm_plugins.backbones.convnet import ConvNet
from gvbsm_plugins.backbones.providers import Timm, Torchvision
from gvbsm_plugins.backbones.small import WRN162, MobileNetV2Small, ResNet18Small, ShuffleNetV2Small
from gvbsm_registry import Artifact, Backbone, GvbsmError, artifacts, discover

SMALL = [ConvNet, MobileNetV2Small, ResNet18Small, ShuffleNetV2Small, WRN162]
NET = ConvNet(width=8)  # a network that is quick to make, for the tests of weights


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def saved(path: Path, save: Callable[[Any, Path], None], what: Any) -> str:
    save(what, path)
    return str(path)


def equal(one: nn.Module, two: nn.Module, but: str = "\0") -> bool:
    theirs = two.state_dict()
    return all(torch.equal(t, theirs[n]) for n, t in one.state_dict().items() if not n.startswith(but))


# Networks


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
        {"use": "wrn_16_2", "weights": "file.safetensors", "reset_classifier": True},
        {"use": "timm/vit_tiny_patch16_224", "options": {"img_size": 32, "patch_size": 4}},
        {"use": "torchvision/resnet18", "weights": "DEFAULT", "match_weight": 0.5},
    ):
        made = registry.create(Backbone, table)
        assert table.items() <= made.table().items()
        assert registry.create(Backbone, made.table()) == made
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
    ids=lambda value: getattr(value, "title", str(value)),
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


@pytest.mark.parametrize(("side", "channels"), [(7, 1), (7, 3), (8, 1), (14, 3), (28, 1), (32, 3), (64, 3)])
@pytest.mark.parametrize("backbone", SMALL)
def test_small_networks_take_any_side(backbone: type[Backbone], side: int, channels: int) -> None:
    torch.manual_seed(0)
    model = backbone().build(5, side, channels).train()
    images = torch.randn(2, channels, side, side, requires_grad=True)
    logits = model(images)
    assert logits.shape == (2, 5)
    functional.cross_entropy(logits, torch.tensor([1, 4])).backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("backbone", SMALL)
def test_small_networks_see_the_image(backbone: type[Backbone], side: int) -> None:
    torch.manual_seed(0)
    model = backbone().build(5, side, 1).eval()
    one, two = model(torch.randn(2, 1, side, side))
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
        side = x.shape[-1] // 2
        if side >= 4 or block == depth - 1:
            x = x[..., : 2 * side, : 2 * side]
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    return x.flatten(1) @ parts[-2].T + parts[-1]


@settings(max_examples=20, deadline=None)
@given(
    side=st.integers(2, 40),
    width=st.integers(1, 9),
    depth=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**31),
)
def test_convnet_is_what_it_says(side: int, width: int, depth: int, channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = ConvNet(width=width, depth=depth).build(6, side, channels).double()
    for p in model.parameters():
        nn.init.normal_(p)
    images = torch.randn(3, channels, side, side, dtype=torch.float64)
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


# What the engine observes

OBSERVABLE = [
    *(component() for component in SMALL),
    Torchvision(variant="mobilenet_v3_small"),
    Torchvision(variant="densenet121"),
    Timm(variant="resnet10t"),
    Timm(variant="efficientnet_lite0"),
]


@pytest.mark.parametrize("backbone", OBSERVABLE, ids=lambda b: b.title)
def test_inputs_of_observed_modules_are_left_alone(backbone: Backbone) -> None:
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


# torchvision and timm


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("backbone", "side"),
    [
        (Torchvision(variant="mobilenet_v3_small"), 8),
        (Torchvision(variant="resnet18"), 28),
        (Torchvision(variant="squeezenet1_1"), 64),
        (Timm(variant="resnet10t"), 7),
        (Timm(variant="vit_tiny_patch16_224", options={"img_size": 32, "patch_size": 4, "depth": 2}), 32),
        (Timm(variant="vit_tiny_patch16_224", options={"patch_size": 7, "depth": 2}), 28),
    ],
    ids=lambda value: getattr(value, "title", str(value)),
)
def test_providers_take_classes_sides_and_grey(backbone: Backbone, side: int, channels: int) -> None:
    model = backbone.build(7, side, channels).train()
    images = torch.randn(2, channels, side, side, requires_grad=True)
    logits = model(images)
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()


def test_fresh_models_are_the_libraries_own() -> None:
    torch.manual_seed(1)
    peer: nn.Module = torchvision.models.resnet18(num_classes=10)
    torch.manual_seed(1)
    assert equal(Torchvision(variant="resnet18").build(10, 32, 3), peer)
    torch.manual_seed(1)
    peer = timm.create_model("resnet10t", num_classes=10)
    torch.manual_seed(1)
    assert equal(Timm(variant="resnet10t").build(10, 32, 3), peer)


def test_torchvisions_transformers_are_made_for_the_side() -> None:
    with torch.device("meta"):  # shapes only, for they are large
        model = Torchvision(variant="vit_b_16").build(7, 32, 1)
        assert model.get_parameter("encoder.pos_embedding").shape == (1, 2 * 2 + 1, 768)
        assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
        with pytest.raises(GvbsmError, match="can't be built for 7 classes and 3×30×30 images"):
            Torchvision(variant="vit_b_16").build(7, 30, 3)


def test_grey_is_three_equal_colours() -> None:
    torch.manual_seed(1)
    colour = Torchvision(variant="resnet18").build(4, 32, 3).eval()
    torch.manual_seed(1)
    grey = Torchvision(variant="resnet18").build(4, 32, 1).eval()
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "near"),
    [
        (Torchvision(variant="resnet81"), "'resnet18'"),
        (Timm(variant="resnet10tt"), "'resnet10t'"),
        (Timm(variant="resnet18.a1_in1m"), "'resnet18.a1_in1k'"),
        (Torchvision(variant="fcn_resnet50"), "'resnet50'"),  # segmentation, no classifier
    ],
    ids=lambda value: getattr(value, "title", str(value)),
)
def test_unknown_names_list_the_nearest_five(backbone: Backbone, near: str) -> None:
    with pytest.raises(GvbsmError, match=r"unknown (torchvision|timm) model") as caught:
        backbone.build(2, 32, 3)
    assert near in str(caught.value)
    assert str(caught.value).count(" or ") == 4


@pytest.mark.parametrize(
    ("backbone", "side", "says"),
    [
        (Torchvision(variant="alexnet"), 16, "3×16×16"),  # its pools need more pixels
        (Torchvision(variant="resnet18", options={"no_such": 1}), 32, "no_such"),
        (Timm(variant="resnet10t", options={"no_such": 1}), 32, "no_such"),
        (Timm(variant="resnet10t", options={"num_classes": 4}), 32, "num_classes"),
        (Timm(variant="resnet10t", options={"features_only": True}), 32, "list"),
    ],
    ids=lambda value: getattr(value, "title", str(value)),
)
def test_what_a_model_can_not_do_is_said(backbone: Backbone, side: int, says: str) -> None:
    with pytest.raises(GvbsmError, match="can't be built") as caught:
        backbone.build(3, side, 3)
    assert says in str(caught.value)
    assert "change `options`" in str(caught.value)


# Published weights


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A ResNet18 of 1000 classes that torchvision takes for its published one."""
    torch.manual_seed(5)
    model: nn.Module = torchvision.models.resnet18()

    def fetch(weights: object, *args: object, **kwargs: object) -> dict[str, Tensor]:
        assert weights is torchvision.models.ResNet18_Weights.DEFAULT
        return model.state_dict()

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", fetch)
    return model


def test_torchvision_weights_get_a_classifier_of_the_right_size(published: nn.Module) -> None:
    default = Torchvision(variant="resnet18", weights="DEFAULT")
    model = default.build(6, 32, 3)
    assert equal(published, model, but="fc.")
    assert model.get_submodule("fc").weight.shape == (6, 512)
    assert equal(published, default.build(1000, 32, 3))
    fresh = default.model_copy(update={"reset_classifier": True}).build(1000, 32, 3)
    assert equal(published, fresh, but="fc.")
    assert not equal(published, fresh)


def test_torchvision_weights_see_grey_as_three_equal_colours(published: nn.Module) -> None:
    model = Torchvision(variant="resnet18", weights="DEFAULT").build(1000, 32, 1).eval()
    image = torch.randn(2, 1, 32, 32)
    expected = published.eval()(image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["squeezenet1_1", "mobilenet_v3_small"])
def test_other_classifiers_are_found(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.get_model(variant).state_dict()
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", lambda *a, **k: state)
    model = Torchvision(variant=variant, weights="DEFAULT").build(6, 64, 3)
    heads = [n for n, t in model.state_dict().items() if t.shape != state[n].shape]
    assert {name.rpartition(".")[0] for name in heads} == set(surgery.classifiers(model, 6))
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 6)


def test_timm_weights_are_fitted_by_timm(tmp_path: Path) -> None:
    torch.manual_seed(5)
    peer = timm.create_model("resnet10t")
    path = saved(tmp_path / "own.pth", torch.save, peer.state_dict())
    options = {"pretrained_cfg_overlay": {"file": path}}
    default = Timm(variant="resnet10t", weights="DEFAULT", options=options)
    model = default.build(6, 32, 3)
    assert equal(peer, model, but="fc.")
    assert equal(peer, default.build(1000, 32, 3))
    reset = default.model_copy(update={"reset_classifier": True}).build(1000, 32, 3)
    assert equal(peer, reset, but="fc.")
    assert not equal(peer, reset)
    grey = default.build(1000, 32, 1).eval()
    image = torch.randn(2, 1, 32, 32)
    expected = peer.eval()(image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey(image), expected, rtol=1e-4, atol=1e-4)


def test_a_failed_download_says_what_and_what_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", fail)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
    for backbone in (
        Torchvision(variant="resnet18", weights="DEFAULT"),
        Timm(variant="resnet10t", weights="DEFAULT"),
    ):
        with pytest.raises(GvbsmError, match=r"could not be fetched .*no route.*local file") as caught:
            backbone.build(3, 32, 3)
        assert str(caught.value).startswith(f"{backbone.title}: ")


def test_models_without_published_weights_say_so() -> None:
    with pytest.raises(GvbsmError, match="no published weights"):
        NET.model_copy(update={"weights": "DEFAULT"}).build(3, 8, 1)
    names = timm.list_models("resnet*")
    without = next(n for n in names if not timm.models.get_pretrained_cfg(n).has_weights)
    with pytest.raises(GvbsmError, match="no published weights"):
        Timm(variant=without, weights="DEFAULT").build(3, 32, 3)


# Local files


def as_artifact(model: nn.Module, path: Path) -> None:
    artifacts.write(path, Artifact("backbone", "key", dict(model.state_dict()), {"classes": ["a", "b", "c"]}))


FORMS: dict[str, Callable[[nn.Module, Path], None]] = {
    "plain.safetensors": lambda model, path: save_file(model.state_dict(), path),
    "own.safetensors": as_artifact,
    "plain.pth": lambda model, path: torch.save(model.state_dict(), path),
    "old.pt": lambda model, path: torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False),
    "state_dict.bin": lambda model, path: torch.save({"epoch": 3, "state_dict": model.state_dict()}, path),
    "model.pth": lambda model, path: torch.save({"model": model.state_dict(), "best": 0.5}, path),
    "parallel.pth.tar": lambda model, path: torch.save(
        {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path
    ),
    "compiled.pth": lambda model, path: torch.save(
        {f"module._orig_mod.{k}": v for k, v in model.state_dict().items()}, path
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backbone", [NET, WRN162(), Timm(variant="resnet10t")], ids=lambda b: b.title)
def test_every_form_of_file_round_trips(backbone: Backbone, form: str, tmp_path: Path) -> None:
    made = backbone.build(3, 8, 1)
    FORMS[form](made, tmp_path / form)
    again = backbone.model_copy(update={"weights": str(tmp_path / form)}).build(3, 8, 1)
    assert equal(made, again)


def test_grey_takes_colour_weights(tmp_path: Path) -> None:
    colour = ShuffleNetV2Small().build(3, 8, 3).eval()
    path = saved(tmp_path / "rgb.pth", torch.save, colour.state_dict())
    grey = ShuffleNetV2Small(weights=path).build(3, 8, 1).eval()
    image = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_auxiliary_heads_and_missing_counters_do_no_harm() -> None:
    whole = torchvision.models.googlenet(num_classes=3, init_weights=False).state_dict()
    assert any(name.startswith("aux1.") for name in whole)
    backbone = Torchvision(variant="googlenet", options={"init_weights": False})
    model = backbone.build(3, 32, 3)
    kept = {n: t for n, t in whole.items() if not n.startswith(backbone.ignored_keys)}
    old = {n: t for n, t in kept.items() if not n.endswith("num_batches_tracked")}
    checkpoints.load(model, old, "file", "googlenet", 3, reset=False)
    assert all(torch.equal(t, kept[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    "backbone", [NET, MobileNetV2Small(), Torchvision(variant="squeezenet1_1")], ids=lambda b: b.title
)
def test_other_classes_need_reset_classifier(backbone: Backbone, tmp_path: Path) -> None:
    made = backbone.build(5, 32, 3)
    path = saved(tmp_path / "five.pth", torch.save, made.state_dict())
    given = backbone.model_copy(update={"weights": path})
    with pytest.raises(GvbsmError) as caught:
        given.build(3, 32, 3)
    for part in (path, "5 classes", "3 are asked", "reset_classifier = true"):
        assert part in str(caught.value)
    model = given.model_copy(update={"reset_classifier": True}).build(3, 32, 3)
    (head,) = surgery.classifiers(model, 3)
    assert equal(made, model, but=head)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def refused(path: Path, backbone: Backbone = NET) -> str:
    with pytest.raises(GvbsmError) as caught:
        backbone.model_copy(update={"weights": str(path)}).build(3, 8, 1)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = NET.build(3, 8, 1).state_dict()
    path = tmp_path / "state.pth"
    torch.save({k: v for k, v in state.items() if k != "features.0.bias"}, path)
    assert "1 missing keys (features.0.bias)" in refused(path)
    torch.save({**state, "extra.weight": torch.zeros(1)}, path)
    assert "1 unexpected keys (extra.weight)" in refused(path)
    torch.save({**state, "features.0.weight": torch.zeros(8, 2, 3, 3)}, path)
    assert "features.0.weight is 8×2×3×3 instead of 8×1×3×3" in refused(path)
    torch.save(WRN162().build(3, 8, 1).state_dict(), path)
    message = refused(path)
    assert "convnet for 3 classes and 1×8×8 images" in message
    assert len(message) < 700
    torch.save(NET.build(3, 32, 1).state_dict(), path)
    assert "classifier.weight is 3×128 instead of 3×8" in refused(path)


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_payload_is_refused_and_not_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    evil = {"state_dict": NET.build(3, 8, 1).state_dict(), "extra": Payload(trace)}
    torch.save(evil, tmp_path / "zip.pth")
    torch.save(evil, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Payload(trace)))
    torch.save(NET.build(3, 8, 1), tmp_path / "module.pth")
    for name in ("zip.pth", "old.pth", "bare.pkl", "module.pth"):
        message = refused(tmp_path / name)
        assert "nothing in it was executed" in message
        assert "weights_only" not in message  # no advice to switch the protection off
    assert not trace.exists()
    pickle.loads((tmp_path / "bare.pkl").read_bytes())
    assert trace.exists(), "the payload works where it is let"


def test_odd_files_are_named(tmp_path: Path) -> None:
    assert "no such weights file" in refused(tmp_path / "missing.pth")
    assert "no such weights file" in refused(tmp_path)
    for name in ("text.safetensors", "text.pth", "empty.pth", "empty.safetensors"):
        (tmp_path / name).write_text("" if "empty" in name else "these are no weights, " * 20)
        assert "can't be read as" in refused(tmp_path / name)
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    assert "holds no state dict but Tensor" in refused(tmp_path / "tensor.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    assert "epoch is no tensor" in refused(tmp_path / "epoch.pth")
    torch.save({}, tmp_path / "nothing.pth")
    assert "no state dict" in refused(tmp_path / "nothing.pth")
    looped: dict[str, Any] = {}
    looped["model"] = looped
    torch.save(looped, tmp_path / "looped.pth")
    refused(tmp_path / "looped.pth")


def test_truncated_and_altered_files_are_refused(tmp_path: Path) -> None:
    model = NET.build(3, 8, 1)
    for form in ("own.safetensors", "plain.safetensors", "plain.pth"):
        path = tmp_path / form
        FORMS[form](model, path)
        path.write_bytes(path.read_bytes()[:-40])
        refused(path)
    own = tmp_path / "own.safetensors"
    as_artifact(model, own)
    data = bytearray(own.read_bytes())
    data[-3] ^= 1
    own.write_bytes(data)
    assert "altered" in refused(own)
