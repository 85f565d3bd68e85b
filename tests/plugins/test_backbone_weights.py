"""Weights from local files: every form round-trips, the rest is refused by name, nothing is executed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from gvbsm_plugins.backbones import checkpoints, surgery
from gvbsm_plugins.backbones.convnet import ConvNet
from gvbsm_plugins.backbones.providers import Timm, Torchvision
from gvbsm_plugins.backbones.small import WRN162, MobileNetV2Small, ShuffleNetV2Small
from gvbsm_registry import Artifact, Backbone, GvbsmError, artifacts

NET = ConvNet(width=8)  # a network that is quick to make


def equal(one: nn.Module, two: nn.Module, but: str = "\0") -> bool:
    """Whether all parameters and buffers are equal, but those whose names begin with `but`."""
    theirs = two.state_dict()
    return all(torch.equal(t, theirs[n]) for n, t in one.state_dict().items() if not n.startswith(but))


def saved(path: Path, save: Callable[[Any, Path], None], what: Any) -> str:
    save(what, path)
    return str(path)


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
@pytest.mark.parametrize("backbone", [NET, WRN162(), Timm(variant="resnet10t")], ids=lambda b: b.full_name)
def test_every_form_of_file_round_trips(backbone: Backbone, form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = backbone.build(3, 8, 1)
    FORMS[form](made, tmp_path / form)
    again = backbone.model_copy(update={"weights": str(tmp_path / form)}).build(3, 8, 1)
    assert equal(made, again)


def test_grey_takes_colour_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
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
    "backbone", [NET, MobileNetV2Small(), Torchvision(variant="squeezenet1_1")], ids=lambda b: b.full_name
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
    torch.save({k: v for k, v in state.items() if k != "features.conv1.bias"}, path)
    assert "1 missing keys (features.conv1.bias)" in refused(path)
    torch.save({**state, "extra.weight": torch.zeros(1)}, path)
    assert "1 unexpected keys (extra.weight)" in refused(path)
    torch.save({**state, "features.conv1.weight": torch.zeros(8, 2, 3, 3)}, path)
    assert "features.conv1.weight is 8×2×3×3 instead of 8×1×3×3" in refused(path)
    torch.save(WRN162().build(3, 8, 1).state_dict(), path)
    message = refused(path)
    assert "convnet for 3 classes and 1×8×8 images" in message
    assert len(message) < 700
    torch.save(NET.build(3, 32, 1).state_dict(), path)
    assert "1 wrong shapes (classifier.weight is 3×128 instead of 3×32)" in refused(path)


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
        (tmp_path / name).write_text("" if "empty" in name else "these are not weights, " * 20)
        assert "can't be read as" in refused(tmp_path / name)
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    assert "holds no state dict but Tensor" in refused(tmp_path / "tensor.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    assert "epoch is not a tensor" in refused(tmp_path / "epoch.pth")
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
