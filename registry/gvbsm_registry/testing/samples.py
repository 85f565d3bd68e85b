"""Small made-up things to try components on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvbsm_registry.artifacts import write_text
from gvbsm_registry.errors import GvbsmError
from gvbsm_registry.source import CommitteeMember
from gvbsm_registry.splits import TensorSplit

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

SEED = 20_24


class PlainActivation:
    """`gvbsm_registry.Activation` written down plainly, without sharing: each reduction from the tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def channel_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance by channel (axis 1), float32 (float64 for float64) [C] each."""
        values = _wide(self.tensor).transpose(0, 1).flatten(1)
        return values.mean(1), values.var(1, unbiased=False)

    def patch_moments(self, patch_size: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance by patch, [⌈H/patch_size⌉, ⌈W/patch_size⌉] each."""
        import torch

        values = _wide(self.tensor)
        rows, columns = (math.ceil(length / patch_size) for length in values.shape[-2:])
        patches = [
            values[
                ...,
                row * patch_size : (row + 1) * patch_size,
                column * patch_size : (column + 1) * patch_size,
            ]
            for row in range(rows)
            for column in range(columns)
        ]
        means = torch.stack([patch.mean() for patch in patches])
        variances = torch.stack([patch.var(unbiased=False) for patch in patches])
        return means.reshape(rows, columns), variances.reshape(rows, columns)


def _wide(tensor: Tensor) -> Tensor:
    import torch

    return tensor if tensor.dtype == torch.float64 else tensor.float()


def images(count: int = 6, channels: int = 3, image_size: int = 16, device: str = "cpu") -> Tensor:
    """Return normalised images, float32 [count, channels, S, S], always the same."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(count, channels, image_size, image_size, generator=generator).to(device)


def models(channels: int = 3) -> dict[str, Module]:
    """Return small classifiers of 4 classes, by what they are made of; any image size from 4 pixels on."""
    import torch
    from torch import nn

    class Tokens(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return maps.flatten(2).transpose(1, 2)

    class Pool(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens.mean(1)

    def convolutional(norm: Module) -> Module:
        features = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), norm, nn.ReLU())
        second = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        tail = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)]
        return (
            nn.Sequential(features, second, *tail)
            if isinstance(norm, nn.BatchNorm2d)
            else nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4))
        )

    def transformer() -> Module:
        mixing = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 4, stride=4), Tokens(), mixing, nn.LayerNorm(8), Pool(), nn.Linear(8, 4)
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        classifiers = {
            "with BatchNorm": convolutional(nn.BatchNorm2d(4)),
            "with GroupNorm": convolutional(nn.GroupNorm(4, 4)),
            "with LayerNorm over tokens": transformer(),
        }
    return {name: model.eval().requires_grad_(False) for name, model in classifiers.items()}


def observe(model: Module, sites: list[str], batch: Tensor) -> dict[str, PlainActivation]:
    """Return what the modules called `sites` get in one forward pass; those not reached are left out."""
    seen: dict[str, PlainActivation] = {}
    modules = dict(model.named_modules())

    def recorder(site: str) -> Callable[..., None]:
        def record(module: Module, inputs: tuple[Any, ...]) -> None:
            seen[site] = PlainActivation(inputs[0])

        return record

    handles = [modules[site].register_forward_pre_hook(recorder(site)) for site in sites]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {site: seen[site] for site in sites if site in seen}


class SampleSource:
    """`gvbsm_registry.Source` on made-up images: `classes` × `per_class`, uint8 [N, channels, S, S]."""

    def __init__(self, classes: int = 3, per_class: int = 5, channels: int = 3, image_size: int = 8) -> None:
        import torch

        generator = torch.Generator().manual_seed(SEED)
        count = classes * per_class
        pixels = torch.randint(0, 256, (count, channels, image_size, image_size), generator=generator).to(
            torch.uint8
        )
        labels = torch.arange(count) % classes
        self.train = TensorSplit(pixels, labels, tuple(f"class {label}" for label in range(classes)))
        self.seed = 7
        self.classes = classes
        self.prepared: dict[str, Tensor] = {}

    def features(self, indices: Tensor) -> Tensor:
        """Features [n, 5]: fixed random projections of the pixels."""
        import torch

        pixels = self.train.read(indices).flatten(1).float() / 255
        generator = torch.Generator().manual_seed(SEED)
        return pixels @ torch.randn(pixels.shape[1], 5, generator=generator)

    @property
    def committee(self) -> tuple[CommitteeMember, ...]:
        """Two linear classifiers."""
        import torch

        members: list[CommitteeMember] = []
        for name, accuracy in (("first", 0.9), ("second", 0.6)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED + len(members))
                module = self.backbone().eval().requires_grad_(False)
            members.append(CommitteeMember(name, accuracy, module))
        return tuple(members)

    def backbone(self) -> Module:
        """A linear classifier with fresh parameters."""
        from torch import nn

        return nn.Sequential(nn.Flatten(), nn.Linear(self.train.images[0].numel(), self.classes))

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 to float in -1..1."""
        return images.float() / 127.5 - 1


RECIPE: dict[str, Any] = {
    "name": "made-up",
    "seed": 0,
    "backbones": [{"use": "convnet", "width": 8, "depth": 2}],
    "pretrain": {"epochs": 2, "batch": 64, "learning_rate": 0.05},
    "synthesis": {"ipc": 2, "iterations": 10},
    "relabel": {
        "epochs": 5,
        "augmentation": {"use": "resized_crop"},
        "cutmix": 1.0,
        "cutmix_alpha": 1.0,
        "ensembler": {"use": "mean"},
    },
    "evaluation": {
        "students": [{"use": "convnet", "width": 8, "depth": 2}],
        "seeds": [0],
        "epochs": 5,
        "batch": 50,
        "optimizer": {"use": "adamw", "betas": [0.9, 0.999], "weight_decay": 0.01},
        "learning_rate": 0.001,
        "schedule": {"use": "cosine", "warmup": 0.0, "stretch": 1.0},
        "objective": {"use": "mse_gt", "gamma": 0.15},
    },
}
"""Part of a resolved recipe."""


class SampleRun:
    """`gvbsm_registry.FinishedRun` on made-up images: 3 classes of 2, uint8 [6, channels, 8, 8]."""

    def __init__(self, folder: Path, channels: int = 3, finished: bool = True) -> None:
        train = SampleSource(3, 2, channels).train
        order = train.labels.argsort(stable=True)
        self.folder, self.finished = folder, finished
        self._images, self.labels = train.images[order], train.labels[order]
        self.classes, self.key = train.classes, "0" * 64
        self.mean, self.std = (0.5,) * channels, (0.25,) * channels
        self.meta: dict[str, Any] = {"ipc": 2, "data": "made up", "provenance": {"recipe": "made-up"}}
        self.recipe = copy.deepcopy(RECIPE)
        self.baseline = (self._images.flip(0), self.labels.flip(0))
        self.records: list[dict[str, Any]] = []

    @property
    def images(self) -> Tensor:
        """The images; raises GvbsmError if the run is one that is not finished."""
        if not self.finished:
            raise GvbsmError(f"{self.folder}: holds no distilled set; finish it with 'gvbsm run'")
        return self._images

    def write_card(self, destination: Path, opening: str, front: str = "") -> None:
        """Write README.md."""
        write_text(destination / "README.md", f"{front}A made-up set.\n\n{opening}\n")


def unseeded(call: Callable[[], Any]) -> Any:
    """Return `call()` with torch's global generator in a state that no caller can have set."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.seed()
        return call()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two tensors of one shape are equal up to rounding (relative to their largest value)."""
    if actual.shape != expected.shape:
        return False
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    difference = (actual.detach().double() - expected.detach().double()).abs()
    return bool((difference <= tolerance * scale).all())


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` under torch.compile: graphs and their gradients are traced, no kernels are built."""
    import torch

    torch.compiler.reset()
    made: Callable[..., Any] = torch.compile(function, backend="aot_eager")
    return made
