"""Backbones of torchvision and timm: shapes, published weights, and what they can't do."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from gvbsm_plugins.backbones import surgery
from gvbsm_plugins.backbones.convnet import ConvNet
from gvbsm_plugins.backbones.providers import Timm, Torchvision
from gvbsm_registry import Backbone, GvbsmError

NET = ConvNet(width=8)  # a network that is quick to make


def equal(one: nn.Module, two: nn.Module, but: str = "\0") -> bool:
    """Whether all parameters and buffers are equal, but those whose names begin with `but`."""
    theirs = two.state_dict()
    return all(torch.equal(t, theirs[n]) for n, t in one.state_dict().items() if not n.startswith(but))


def saved(path: Path, save: Callable[[Any, Path], None], what: Any) -> str:
    save(what, path)
    return str(path)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("backbone", "image_size"),
    [
        (Torchvision(variant="mobilenet_v3_small"), 8),
        (Torchvision(variant="resnet18"), 28),
        (Torchvision(variant="squeezenet1_1"), 64),
        (Timm(variant="resnet10t"), 7),
        (Timm(variant="vit_tiny_patch16_224", options={"img_size": 32, "patch_size": 4, "depth": 2}), 32),
        (Timm(variant="vit_tiny_patch16_224", options={"patch_size": 7, "depth": 2}), 28),
    ],
    ids=lambda value: getattr(value, "full_name", str(value)),
)
def test_providers_take_classes_sides_and_grey(backbone: Backbone, image_size: int, channels: int) -> None:
    torch.manual_seed(0)
    model = backbone.build(7, image_size, channels).train()
    images = torch.randn(2, channels, image_size, image_size, requires_grad=True)
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
    ids=lambda value: getattr(value, "full_name", str(value)),
)
def test_unknown_names_list_the_nearest_five(backbone: Backbone, near: str) -> None:
    with pytest.raises(GvbsmError, match=r"unknown (torchvision|timm) model") as caught:
        backbone.build(2, 32, 3)
    assert near in str(caught.value)
    assert str(caught.value).count(" or ") == 4


@pytest.mark.parametrize(
    ("backbone", "image_size", "says"),
    [
        (Torchvision(variant="alexnet"), 16, "3×16×16"),  # its pools need more pixels
        (Torchvision(variant="resnet18", options={"no_such": 1}), 32, "no_such"),
        (Timm(variant="resnet10t", options={"no_such": 1}), 32, "no_such"),
        (Timm(variant="resnet10t", options={"num_classes": 4}), 32, "num_classes"),
        (Timm(variant="resnet10t", options={"features_only": True}), 32, "list"),
    ],
    ids=lambda value: getattr(value, "full_name", str(value)),
)
def test_what_a_model_can_not_do_is_said(backbone: Backbone, image_size: int, says: str) -> None:
    with pytest.raises(GvbsmError, match="can't be built") as caught:
        backbone.build(3, image_size, 3)
    assert says in str(caught.value)
    assert "change `options`" in str(caught.value)


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
    torch.manual_seed(0)
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
    overlay = {"options": {"pretrained_cfg_overlay": {"file": path}}}  # which users may not give
    default = Timm(variant="resnet10t", weights="DEFAULT").model_copy(update=overlay)
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
        assert str(caught.value).startswith(f"{backbone.full_name}: ")


def test_models_without_published_weights_say_so() -> None:
    with pytest.raises(GvbsmError, match="no published weights"):
        NET.model_copy(update={"weights": "DEFAULT"}).build(3, 8, 1)
    names = timm.list_models("resnet*")
    without = next(n for n in names if not timm.models.get_pretrained_cfg(n).has_weights)
    with pytest.raises(GvbsmError, match="no published weights"):
        Timm(variant=without, weights="DEFAULT").build(3, 32, 3)
