"""Every first-party component does what its kind asks, and a broken one of each kind is told why."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import nn

from gvbsm_registry import (
    KINDS,
    Augmentation,
    Backbone,
    Callback,
    Codec,
    Component,
    Dataset,
    Ensembler,
    Executor,
    Exporter,
    FinishedRun,
    GvbsmError,
    Initializer,
    Matcher,
    Memory,
    Network,
    Objective,
    OpenPopulation,
    Optimizer,
    Parameterization,
    Population,
    Regularizer,
    Schedule,
    Stock,
    SynthesisState,
    SynthesisStep,
    TensorSplit,
    Term,
    View,
    artifacts,
    discover,
    identity_view,
    testing,
)
from gvbsm_registry.testing import ConformanceError, cases, check, check_plugin, samples
from gvbsm_registry.testing.cases import REQUIREMENTS

TINY_VIT = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
VARIANTS: dict[str, list[tuple[dict[str, Any], int]]] = {
    "timm/*": [({"variant": "vit_tiny_patch16_224", "options": TINY_VIT}, 16)],
    "torchvision/*": [({"variant": "squeezenet1_1"}, 32)],
}
FROM_EXTRAS = {"executor ray": "ray", "exporter huggingface": "datasets"}
BOUND = {"folder"}  # to the classes of one data set, so not to the made-up ones; see test_exporters.py
OURS = [
    c for c in discover().components() if c.__module__.startswith("gvbsm_plugins.") and c.name not in BOUND
]


def ours(*kinds: str) -> list[Any]:
    return [
        pytest.param(c, id=f"{c.kind} {c.name}", marks=pytest.mark.slow if c.name == "ray" else ())
        for c in OURS
        if (c.kind in kinds) == bool(kinds)
    ]


def made(component: type[Component]) -> tuple[Component, dict[str, Any]]:
    """A component with the least that it needs, and the circumstances to try it in."""
    if component.name in VARIANTS:
        options, image_size = VARIANTS[component.name][0]
        return component(**options), {"image_sizes": (image_size,)}
    assert not component.name.endswith("/*"), f"say in VARIANTS which {component.name} to try"
    return component(), {}


@pytest.mark.parametrize("component", ours(*(k.kind for k in KINDS if k is not Dataset)))
def test_first_party(component: type[Component]) -> None:
    if package := FROM_EXTRAS.get(f"{component.kind} {component.name}"):
        pytest.importorskip(package)
    instance, circumstances = made(component)
    check(instance, **circumstances)


def test_all_kinds_have_cases() -> None:
    assert {"component", *(kind.kind for kind in KINDS)} == {each.kind for each in REQUIREMENTS}
    assert all(each.check.__doc__ for each in REQUIREMENTS)
    assert {f"check_{kind.kind}" for kind in KINDS} < set(testing.__all__)


def pictures(root: Path) -> dict[str, Any]:
    from PIL import Image

    for split in ("train", "test"):
        for label, name in enumerate(("ape", "bee")):
            for number in range(2):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                shade = 60 * label + 10 * number + (5 if split == "test" else 0)
                Image.new("RGB", (7, 7), (shade, 20, 30)).save(path)
    return {"root": root}


def tiny_imagenet(root: Path) -> dict[str, Any]:
    from PIL import Image

    lines = []
    for label, name in enumerate(("n01", "n02")):
        path = root / "train" / name / "images" / "0.JPEG"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (64, 64), (90 * label, 0, 0)).save(path)
        path = root / "val" / "images" / f"val_{label}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (90 * label, 9, 9)).save(path)
        lines.append(f"{path.name}\t{name}\t0\t0\t9\t9\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return {"root": root}


def webdataset(root: Path) -> dict[str, Any]:
    from PIL import Image

    root.mkdir(parents=True)
    for split, base in (("train", 0), ("test", 9)):
        with tarfile.open(root / f"{split}-0000.tar", "w") as tar:
            for number in range(4):
                picture = io.BytesIO()
                Image.new("RGB", (8, 8), (40 * number + base, 0, 0)).save(picture, "PNG")
                contents = {"png": picture.getvalue(), "cls": str(number % 2).encode()}
                for suffix, content in contents.items():
                    info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return {"root": root, "image_size": 8}


def huggingface(root: Path) -> dict[str, Any]:
    library = pytest.importorskip("datasets")
    from PIL import Image

    library.disable_progress_bars()
    features = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["a", "b"])})
    made = {}
    for name, base in (("train", 0), ("test", 7)):
        columns = {
            "image": [Image.new("RGB", (9, 9), (base + k, 0, 0)) for k in range(4)],
            "label": [0, 1, 0, 1],
        }
        made[name] = library.Dataset.from_dict(columns, features=features)
    library.DatasetDict(made).save_to_disk(str(root))
    return {"root": root}


def cifar(root: Path, kind: Any, key: str, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """torchvision's files, made small, with torchvision's checksums set to theirs."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    contents: dict[str, Any] = {kind.meta["filename"]: {kind.meta["key"]: ["ape", "bee"]}}
    for number, (name, _) in enumerate(kind.train_list + kind.test_list):
        pixels = torch.full((4, 3072), number, dtype=torch.uint8).numpy()
        contents[name] = {"data": pixels, key: [0, 1, 0, 1]}
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    for listed in ("train_list", "test_list"):
        patch.setattr(kind, listed, [[name, sums[name]] for name, _ in getattr(kind, listed)])
    patch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})
    return {"root": root}


def idx(root: Path) -> dict[str, Any]:
    """MNIST's four files, made small."""
    root.mkdir(parents=True)
    for number, prefix in enumerate(("train", "t10k"), 1):
        head = bytes([0, 0, 8, 3, *(0, 0, 0, 3), *(0, 0, 0, 4), *(0, 0, 0, 4)])
        (root / f"{prefix}-images-idx3-ubyte").write_bytes(head + bytes(range(number, number + 48)))
        (root / f"{prefix}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 0, 1, 0]))
    return {"root": root}


@pytest.mark.parametrize("component", ours("dataset"))
def test_first_party_datasets(
    component: type[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10, CIFAR100

    options: dict[str, Callable[[Path], dict[str, Any]]] = {
        "digits": lambda root: {},
        "imagefolder": pictures,
        "tiny_imagenet": tiny_imagenet,
        "huggingface": huggingface,
        "webdataset": webdataset,
        "idx": idx,
        "cifar10": lambda root: cifar(root, CIFAR10, "labels", monkeypatch),
        "cifar100": lambda root: cifar(root, CIFAR100, "fine_labels", monkeypatch),
    }
    check(component(**options[component.name](tmp_path / "data")))


# From here on: components that break one rule each.


class OneNetwork(OpenPopulation):
    """The members of a population with one network; it draws what `drawn` makes of it."""

    def __init__(
        self, network: Any, drawn: Callable[[Any, int], Any] = lambda network, step: [network]
    ) -> None:
        self.network, self.drawn = network, drawn

    def draw(self, step: int) -> Any:
        return self.drawn(self.network, step)


class Bad:
    """One of each kind that conforms, to be broken in the tests; all with a docstring and a name."""

    class Data(Dataset):
        """Two colours."""

        name = "colours"
        labels: list[int] = Field([0, 1], description="labels")
        same: bool = Field(False, description="train equals test")

        def open(self, split: Any, cache: Path) -> TensorSplit:
            base = 0 if split == "train" or self.same else 50
            images = torch.arange(2 * 3 * 16, dtype=torch.uint8).reshape(2, 3, 4, 4) + base
            return TensorSplit(images, torch.tensor(self.labels), ("red", "blue"))

    class Net(Backbone):
        """A linear classifier."""

        name = "linear"
        frozen: bool = Field(False, description="a constant module")

        def build(self, classes: int, image_size: int, channels: int) -> nn.Module:
            if self.weights:
                raise GvbsmError(f"{self.weights}: no such file")
            return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size * image_size, classes))

    class Means(Matcher):
        """Means."""

        name = "means"

        def sites(self, model: nn.Module) -> list[str]:
            return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]

        def statistics(self, activation: Any) -> dict[str, torch.Tensor]:
            return {"mean": activation.channel_moments()[0]}

    class Norm(Regularizer):
        """Squares."""

        name = "squares"

        def penalty(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return images.square().mean()

    class Sum(Term):
        """Squares of the logits."""

        name = "sum"

        def loss(self, step: SynthesisStep, memory: Memory) -> torch.Tensor:
            return step.logits(step.networks[0]).square().mean()

    class First(Population):
        """The first backbone."""

        name = "first"

        def open(self, stock: Stock, generator: torch.Generator) -> OpenPopulation:
            return OneNetwork(stock.pretrained(0))

    class Double(Parameterization):
        """Half of the pixels."""

        name = "double"

        def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"half": images / 2}

        def decode(self, leaves: dict[str, torch.Tensor]) -> torch.Tensor:
            return 2 * leaves["half"]

    class Fade(Callback):
        """Less contrast."""

        name = "fade"

        def after(self, step: int, state: SynthesisState) -> None:
            state.replace(0.9 * state.images)

    class Start(Initializer):
        """Noise."""

        name = "start"

        def images(self, labels: Any, ranks: Any, source: Any, generator: Any) -> torch.Tensor:
            train = source.train
            return torch.randn(
                len(labels), train.channels, train.image_size, train.image_size, generator=generator
            )

    class Look(Augmentation):
        """Nothing."""

        name = "look"

        def draw(
            self, count: int, image_size: int, generator: torch.Generator, progress: float = 1.0
        ) -> View:
            return identity_view(count, image_size)

    class Rate(Schedule):
        """One."""

        name = "rate"

        def factor(self, step: int, steps: int) -> float:
            return 1.0

    class Down(Optimizer):
        """Downhill."""

        name = "down"

        def build(self, parameters: Any, learning_rate: float) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, learning_rate)

    class All(Ensembler):
        """The mean."""

        name = "all"

        def combine(self, logits: torch.Tensor, members: Any) -> torch.Tensor:
            return logits.mean(0)

    class Goal(Objective):
        """Squares."""

        name = "goal"

        def loss(self, output: Any, logits: Any, truth: Any) -> torch.Tensor:
            return (output - logits).square().mean()

    class Half(Codec):
        """Half precision."""

        name = "half"

        def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": logits.half()}

        def decode(self, parts: dict[str, torch.Tensor], classes: int) -> torch.Tensor:
            return parts["logits"].float()

    class Here(Executor):
        """Here."""

        name = "here"

        def run(self, tasks: Any, on_message: Any) -> Any:
            for index, task in enumerate(tasks):
                yield index, task(on_message)

    class Raw(Exporter):
        """The pixels as bytes."""

        name = "raw"

        def export(self, run: FinishedRun, destination: Path) -> None:
            pixels = run.images.numpy().tobytes()
            with artifacts.replacing(destination / "pixels") as path:
                path.write_bytes(pixels)


GOOD = [value for value in vars(Bad).values() if isinstance(value, type)]


@pytest.mark.parametrize("component", GOOD, ids=lambda component: component.kind)
def test_small_components_conform(component: type[Component]) -> None:
    getattr(testing, f"check_{component.kind}")(component)
    assert {component.kind for component in GOOD} == {kind.kind for kind in KINDS}


def _without_errors(tasks: Any, on_message: Any) -> Any:
    for index, task in enumerate(tasks):
        with contextlib.suppress(ZeroDivisionError):
            yield index, task(on_message)


def _without_messages(tasks: Any) -> Any:
    for index, task in enumerate(tasks):
        yield index, task(lambda message: None)


def _stubborn(parameters: Any, learning_rate: float) -> torch.optim.Optimizer:
    """Take every step at the rate that it was made with."""
    optimizer = torch.optim.SGD(parameters, learning_rate)

    def reset(*_: Any) -> None:
        optimizer.param_groups[0]["lr"] = learning_rate

    optimizer.register_step_pre_hook(reset)
    return optimizer


def _forgetful(parameters: Any, learning_rate: float) -> torch.optim.Optimizer:
    """Keep what a step depends on outside the state."""
    optimizer, steps = torch.optim.SGD(parameters, learning_rate), [0]

    def count(*_: Any) -> None:
        steps[0] += 1
        for values in optimizer.param_groups[0]["params"]:
            values.grad.mul_(1 / steps[0])

    optimizer.register_step_pre_hook(count)
    return optimizer


BROKEN: list[tuple[type[Component], str, Callable[..., Any], str]] = [
    (Bad.Data, "open", lambda self, split, cache: None, "not a gvbsm_registry.Split"),
    (
        Bad.Data,
        "open",
        lambda self, split, cache: TensorSplit(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), ("a", "b")),
        "not uint8",
    ),
    (
        Bad.Data,
        "open",
        lambda self, split, cache: TensorSplit(
            torch.randint(0, 9, (2, 3, 4, 4)).byte(), torch.tensor([0, 2]), ("a", "b")
        ),
        "labels 0 to 2",
    ),
    (Bad.Net, "build", lambda self, classes, image_size, channels: nn.Flatten(), "gives the shape"),
    (Bad.Net, "build", lambda self, classes, image_size, channels: 3, "not a torch module"),
    (
        Bad.Net,
        "build",
        lambda self, classes, image_size, channels: nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * image_size * image_size, classes).requires_grad_(False),
            nn.Dropout(),
        ),
        "a weights file that does not exist raised nothing",
    ),
    (Bad.Means, "sites", lambda self, model: ["nowhere"], "which are not modules of it"),
    (Bad.Means, "sites", lambda self, model: [], "it has no site in any model"),
    (Bad.Means, "statistics", lambda self, activation: {"all": activation.tensor}, "shapes with 6, 3 and 1"),
    (
        Bad.Means,
        "statistics",
        lambda self, activation: {"mean": activation.channel_moments()[0].detach()},
        "has no gradient",
    ),
    (
        Bad.Means,
        "statistics",
        lambda self, activation: {"deviation": activation.tensor.var((0, 2, 3), unbiased=False).sqrt()},
        "the gradient is not finite",
    ),
    (
        Bad.Means,
        "statistics",
        lambda self, activation: {"mean": activation.tensor.add_(1).mean((0, 2, 3))},
        "changes the activation in place",
    ),
    (Bad.Means, "targets", lambda self, module: {"mean": torch.zeros(99)}, "targets {'mean': (99,)}"),
    (Bad.Norm, "penalty", lambda self, images, labels: images.square(), "not a float scalar"),
    (
        Bad.Norm,
        "penalty",
        lambda self, images, labels: images.square().sum().sqrt(),
        "gradient is not finite",
    ),
    (Bad.Norm, "penalty", lambda self, images, labels: images.square().mean() + torch.rand(()), "compiled"),
    (Bad.Sum, "loss", lambda self, step, memory: step.logits(step.networks[0]), "not a float scalar"),
    (Bad.Sum, "loss", lambda self, step, memory: step.images.detach().sum(), "has no gradient"),
    (Bad.Sum, "loss", lambda self, step, memory: step.images.sum() * torch.rand(()), "differs the second"),
    (
        Bad.Sum,
        "loss",
        lambda self, step, memory: memory.setdefault("kept", step.images.sum()),
        "the gradient is not finite",
    ),
    (Bad.First, "open", lambda self, stock, generator: None, "not a gvbsm_registry.OpenPopulation"),
    (Bad.First, "keeps", "none", "it asks for the pretrained network 0"),
    (
        Bad.First,
        "open",
        lambda self, stock, generator: OneNetwork(stock.pretrained(0), lambda network, step: []),
        "it draws no network",
    ),
    (
        Bad.First,
        "open",
        lambda self, stock, generator: OneNetwork(
            stock.pretrained(0),
            lambda network, step: [Network("n", network.module, float(torch.rand(())))],
        ),
        "the second time other networks",
    ),
    (Bad.Double, "decode", lambda self, leaves: leaves["half"], "is not the images"),
    (Bad.Double, "decode", lambda self, leaves: 2 * leaves["half"].detach(), "it raised RuntimeError"),
    (Bad.Double, "project", lambda self, leaves, pixel_range: leaves, "it changes the leaves in place"),
    (Bad.Fade, "after", lambda self, step, state: state.replace(state.images[:1]), "the images are (1, 3"),
    (
        Bad.Fade,
        "after",
        lambda self, step, state: state.replace(state.images + torch.rand(())),
        "otherwise the second time",
    ),
    (
        Bad.Fade,
        "after",
        lambda self, step, state: state.activate(torch.arange(6) > 2),
        "some images never take part",
    ),
    (
        Bad.Start,
        "images",
        lambda self, labels, ranks, source, generator: torch.randn(
            len(labels), source.train.channels, source.train.image_size, source.train.image_size
        ),
        "the images differ the second time",
    ),
    (
        Bad.Start,
        "images",
        lambda self, labels, ranks, source, generator: source.train.images[: len(labels)],
        "values that are not finite floats",
    ),
    (
        Bad.Start,
        "images",
        lambda self, labels, ranks, source, generator: source.normalize(source.train.images[: len(labels)]),
        "depends on the others of its batch",
    ),
    (Bad.Start, "prepare", lambda self, source: [torch.zeros(1)], "not a dict of tensors by name"),
    (Bad.Start, "prepare", lambda self, source: {"x": torch.rand(3)}, "something else the second time"),
    (
        Bad.Look,
        "draw",
        lambda self, count, image_size, generator, progress=1.0: torch.zeros(count, 4),
        "not a gvbsm_registry.View",
    ),
    (
        Bad.Look,
        "draw",
        lambda self, count, image_size, generator, progress=1.0: View(
            identity_view(count, image_size).boxes,
            torch.rand(count) < 0.5,
            identity_view(count, image_size).rolls,
        ),
        "flips differ the second time",
    ),
    (
        Bad.Look,
        "draw",
        lambda self, count, image_size, generator, progress=1.0: replace(
            identity_view(count, image_size), colors=torch.ones(count, 2)
        ),
        "colors is torch.float32 (5, 2)",
    ),
    (
        Bad.Look,
        "draw",
        lambda self, count, image_size, generator, progress=1.0: replace(
            identity_view(count, image_size), angles=torch.full((count,), torch.nan)
        ),
        "angles are not finite",
    ),
    (
        Bad.Look,
        "draw",
        lambda self, count, image_size, generator, progress=1.0: replace(
            identity_view(count, image_size), cutouts=torch.tensor([[0, 0, 17, 17]]).repeat(count, 1)
        ),
        "cutouts reach beyond",
    ),
    (
        Bad.Look,
        "draw",
        lambda self, count, image_size, generator, progress=0.0: replace(
            identity_view(count, image_size), angles=torch.full((count,), 90 * progress)
        ),
        "angles differ from those untold",
    ),
    (
        Bad.Look,
        "draw",
        lambda self, count, image_size, generator: identity_view(count, image_size),
        "progress",
    ),
    (Bad.Rate, "factor", lambda self, step, steps: 1 / step, "ZeroDivisionError"),
    (Bad.Rate, "factor", lambda self, step, steps: -1.0, "is not negative"),
    (Bad.Down, "build", lambda self, parameters, learning_rate: None, "not a torch optimizer"),
    (
        Bad.Down,
        "build",
        lambda self, parameters, learning_rate: torch.optim.SGD(list(parameters)[:1], learning_rate),
        "it holds 1 of 3 parameters",
    ),
    (
        Bad.Down,
        "build",
        lambda self, parameters, learning_rate: torch.optim.SGD(parameters, 0.1),
        "its groups' rates are [0.1], not 0.01",
    ),
    (
        Bad.Down,
        "build",
        lambda self, parameters, learning_rate: torch.optim.SGD(parameters, learning_rate, maximize=True),
        "20 steps take the loss from",
    ),
    (
        Bad.Down,
        "build",
        lambda self, parameters, learning_rate: _stubborn(parameters, learning_rate),
        "at learning",
    ),
    (
        Bad.Down,
        "build",
        lambda self, parameters, learning_rate: _forgetful(parameters, learning_rate),
        "steps differ",
    ),
    (Bad.All, "combine", lambda self, logits, members: logits.sum(), "gives ()"),
    (
        Bad.All,
        "combine",
        lambda self, logits, members: logits.div_(logits.abs().max()).mean(0),
        "zeros: not finite",
    ),
    (
        Bad.All,
        "combine",
        lambda self, logits, members: (
            sum(member.accuracy * each for member, each in zip(members, logits, strict=True))
            / torch.tensor(sum(member.accuracy for member in members))
        ),
        "members of accuracy 0.0: not finite",
    ),
    (Bad.Goal, "loss", lambda self, output, logits, truth: output.argmax().float(), "has no gradient"),
    (Bad.Goal, "loss", lambda self, output, logits, truth: output.log().mean(), "gives nan"),
    (Bad.Half, "encode", lambda self, logits: {"logits": logits - logits.mean()}, "when it is alone"),
    (Bad.Half, "decode", lambda self, parts, classes: parts["logits"], "decode gives torch.float16"),
    (Bad.Here, "run", lambda self, tasks, on_message: [(0, tasks[0](on_message))], "5 tasks give [(0, 0)]"),
    (Bad.Here, "run", lambda self, tasks, on_message: _without_errors(tasks, on_message), "raised nothing"),
    (Bad.Here, "run", lambda self, tasks, on_message: _without_messages(tasks), "there arrive [] before"),
    (Bad.Raw, "export", lambda self, run, destination: None, "a run that is not finished raised nothing"),
    (
        Bad.Raw,
        "export",
        lambda self, run, destination: open(run.folder / "x").close(),
        "instead of a GvbsmError",
    ),
]


@pytest.mark.parametrize(("component", "method", "body", "said"), BROKEN)
def test_a_broken_component_is_told_what_the_contract_asks(
    component: type[Component], method: str, body: Callable[..., Any], said: str
) -> None:
    broken = type("Broken", (component,), {"__doc__": "Broken.", "__module__": __name__, method: body})
    with pytest.raises(ConformanceError) as caught:
        check(broken())
    text = str(caught.value)
    assert said in text
    assert all("The contract asks: " in line for line in text.splitlines())
    assert f"{component.kind} {component.name!r}, case " in text


def test_every_kind_has_a_broken_one() -> None:
    assert {component.kind for component, *_ in BROKEN} == {kind.kind for kind in KINDS}


class Loose(Schedule):
    name = "loose rate"
    anything: Any = 3

    model_config = {"frozen": False, "extra": "ignore"}

    def factor(self, at: int, of: int) -> float:  # type: ignore[override]
        return 1.0


def test_what_every_component_must_do() -> None:
    with pytest.raises(ConformanceError) as caught:
        check(Loose)
    text = str(caught.value)
    for said in (
        "its name is 'loose rate'",
        "no_such_option was accepted",
        "can be set afterwards",
        "factor takes (self, at, of), not (self, step, steps)",
    ):
        assert said in text


def test_what_is_no_component_or_of_another_kind() -> None:
    with pytest.raises(ConformanceError, match="is not a component: derive it from one of Dataset, Backbone"):
        cases(int)  # type: ignore[arg-type]
    with pytest.raises(ConformanceError, match=r"is not a matcher: derive it from gvbsm_registry\.Matcher"):
        testing.check_matcher(Bad.Rate())  # type: ignore[arg-type]
    with pytest.raises(ConformanceError, match="Schedule lacks factor"):
        check(Schedule)

    class Needy(Bad.Rate):
        """Needs an option."""

        needed: int = Field(description="something")

    with pytest.raises(ConformanceError, match=r"Needy needs options .*give a component, not its class"):
        check(Needy)
    check(Needy(needed=3))


def test_an_initializer_that_hides_its_networks() -> None:
    class Secret(Bad.Start):
        """Asks for features."""

        uses_networks = False

        def prepare(self, source: Any) -> dict[str, torch.Tensor]:
            return {"features": source.features(torch.arange(3))}

    with pytest.raises(ConformanceError, match=r"it asks for features.*uses_networks = False"):
        check(Secret())


@pytest.mark.parametrize("case", cases(Bad.Means), ids=str)
def test_cases_can_be_parametrised(case: testing.Case) -> None:
    case()


def test_a_matcher_is_tried_on_the_model_that_it_is_for() -> None:
    class Bilinear(Bad.Means):
        """Inputs of bilinear layers, which no usual model has."""

        def sites(self, model: nn.Module) -> list[str]:
            return [name for name, module in model.named_modules() if isinstance(module, nn.Upsample)]

    with pytest.raises(ConformanceError, match="give one that it is meant for as `model`"):
        testing.check_matcher(Bilinear())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2))
    testing.check_matcher(Bilinear(), model=model)


def test_plain_activation_equals_the_definition() -> None:
    tensor = samples.images(3, 2, 7).double()
    activation = testing.PlainActivation(tensor)
    mean, var = activation.channel_moments()
    assert mean[1].item() == pytest.approx(tensor[:, 1].mean().item(), abs=1e-12)
    assert var[1].item() == pytest.approx(((tensor[:, 1] - mean[1]) ** 2).mean().item(), abs=1e-12)
    mean, var = activation.patch_moments(4)
    assert mean.shape == var.shape == (2, 2)
    corner = tensor[:, :, 4:, 4:]
    assert mean[1, 1].item() == pytest.approx(corner.mean().item(), abs=1e-12)
    assert var[1, 1].item() == pytest.approx(((corner - corner.mean()) ** 2).mean().item(), abs=1e-12)


def test_a_plugin_module_is_checked_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "plugin_heavy.py").write_text("import torch\n")
    (tmp_path / "plugin_misspelt.py").write_text("def gvbsm_component(): pass\n")
    with pytest.raises(ConformanceError, match="plugin_heavy: imports torch, numpy when it is loaded"):
        check_plugin("plugin_heavy")
    with pytest.raises(ConformanceError, match="did you mean 'gvbsm_components'"):
        check_plugin("plugin_misspelt")
    assert "mean" in check_plugin("gvbsm_plugins.ensemblers").names(Ensembler)
