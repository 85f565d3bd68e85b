"""What the contract asks of data sets and initializers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvbsm_registry.errors import GvbsmError
from gvbsm_registry.splits import Split
from gvbsm_registry.testing.requirements import Context, require, require_error, requirement
from gvbsm_registry.testing.samples import SEED, SampleSource, unseeded

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def _opened(context: Context) -> Iterator[tuple[Split, Split, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        train, test = context.component.open("train", cache), context.component.open("test", cache)
        for split in (train, test):
            require(isinstance(split, Split), f"open returns {split!r}, not a gvbsm_registry.Split")
        yield train, test, cache
        del train, test  # memory maps must be gone before their folder


@requirement("dataset")
def _splits_say_what_they_hold(context: Context) -> None:
    """both splits are not empty and say classes (names, each once, the same in both), labels int64 [N] within
    them, an image size, and channels 1 or 3."""
    import torch

    with _opened(context) as (train, test, _):
        for name, split in (("train", train), ("test", test)):
            require(len(split) > 0, f"{name} is empty")
            texts = isinstance(split.classes, tuple) and all(isinstance(each, str) for each in split.classes)
            require(
                texts and len(set(split.classes)) == len(split.classes), f"{name}: classes {split.classes!r}"
            )
            labels = split.labels
            require(
                labels.dtype == torch.int64 and labels.ndim == 1,
                f"{name}: labels {labels.dtype} {labels.shape}",
            )
            inside = int(labels.min()) >= 0 and int(labels.max()) < len(split.classes)
            require(inside, f"{name}: labels {int(labels.min())} to {int(labels.max())}")
            require(
                split.channels in (1, 3) and split.image_size >= 1,
                f"{name}: {split.channels}×{split.image_size}",
            )
        require(train.classes == test.classes, "the splits have different classes")
        require(
            (train.image_size, train.channels) == (test.image_size, test.channels),
            "the splits have different shapes",
        )


@requirement("dataset")
def _reads_images(context: Context) -> None:
    """`read` of int64 [n] returns uint8 [n, channels, S, S] in the order asked for; of one index, of a
    repeated one and of none too."""
    import torch

    with _opened(context) as (train, test, _):
        for split in (train, test):
            last = len(split) - 1
            for indices in ([0, last, 0], [last], []):
                pixels = split.read(torch.tensor(indices, dtype=torch.int64))
                shape = (len(indices), split.channels, split.image_size, split.image_size)
                ok = pixels.dtype == torch.uint8 and tuple(pixels.shape) == shape
                require(ok, f"read({indices}) gives {pixels.dtype} {tuple(pixels.shape)}, not uint8 {shape}")
            pair, single = split.read(torch.tensor([last, 0])), split.read(torch.tensor([0]))
            require(torch.equal(pair[1], single[0]), "an image differs with the order in which it is read")


@requirement("dataset")
def _opening_again_gives_the_same(context: Context) -> None:
    """opening again, with the same cache or another, gives the same digest, labels and images; the digest of
    train is another than that of test."""
    import torch

    with _opened(context) as (train, test, cache), tempfile.TemporaryDirectory() as elsewhere:
        require(isinstance(train.digest, str) and train.digest, f"the digest is {train.digest!r}")
        require(train.digest != test.digest, "train and test have one digest")
        for place in (cache, Path(elsewhere)):
            again = context.component.open("train", place)
            require(again.digest == train.digest, "the digest is another the second time")
            require(torch.equal(again.labels, train.labels), "the labels are others the second time")
            indices = torch.tensor([0, len(train) - 1])
            require(torch.equal(again.read(indices), train.read(indices)), "images differ the second time")
            del again


@requirement("dataset")
def _missing_data_is_refused(context: Context) -> None:
    """data that is not there raises a GvbsmError (tried on data sets with the option `root`)."""
    if "root" not in type(context.component).model_fields:
        return
    with tempfile.TemporaryDirectory() as folder:
        asked = context.component.model_copy(update={"root": Path(folder, "missing")})
        require_error(lambda: asked.open("train", Path(folder, "cache")), "a root that does not exist")


def _prepared(context: Context, classes: int = 3, channels: int = 3, image_size: int = 8) -> SampleSource:
    source = SampleSource(classes, channels=channels, image_size=image_size)
    source.prepared = unseeded(lambda: context.component.prepare(source))
    return source


def _images(
    context: Context, source: SampleSource, labels: Tensor, ranks: Tensor, seed: int = SEED
) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(seed)
    images: Tensor = unseeded(lambda: context.component.images(labels, ranks, source, generator))
    return images


def _labels_and_ranks(classes: int, ipc: int) -> tuple[Tensor, Tensor]:
    import torch

    return torch.arange(classes).repeat_interleave(ipc), torch.arange(ipc).repeat(classes)


@requirement("initializer")
def _prepares_tensors(context: Context) -> None:
    """`prepare` returns tensors by name, the same each time whatever torch's global generator is."""
    import torch

    first, second = (_prepared(context).prepared for _ in range(2))
    ok = isinstance(first, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in first.items()
    )
    require(ok, f"prepare returns {type(first).__name__}, not a dict of tensors by name")
    same = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    require(same, "prepare returns something else the second time")


class _WithoutNetworks(SampleSource):
    @property
    def committee(self) -> Any:
        raise GvbsmError("it asks for the committee")

    def features(self, indices: Tensor) -> Any:
        raise GvbsmError("it asks for features")

    def backbone(self) -> Any:
        raise GvbsmError("it asks for a backbone")


@requirement("initializer")
def _says_whether_it_needs_networks(context: Context) -> None:
    """one with `uses_networks = False` asks the source for no committee, features or backbone."""
    if context.component.uses_networks:
        return
    source = _WithoutNetworks()
    source.prepared = context.component.prepare(source)
    _images(context, source, *_labels_and_ranks(3, 2))


@requirement("initializer")
def _gives_an_image_for_each_label(context: Context) -> None:
    """`images` returns normalised finite floats [n, C, H, W]: of one image, one class, grey images and odd
    sizes too."""
    for classes, ipc, channels, image_size in (
        (3, 2, 3, 8),
        (1, 1, 3, 8),
        (1, 4, 3, 8),
        (3, 2, 1, 8),
        (3, 2, 3, 7),
    ):
        source = _prepared(context, classes, channels, image_size)
        images = _images(context, source, *_labels_and_ranks(classes, ipc))
        shape = (classes * ipc, channels, image_size, image_size)
        what = f"{ipc} images of {classes} classes"
        require(tuple(images.shape) == shape, f"{what}: shape {tuple(images.shape)}, not {shape}")
        require(
            images.is_floating_point() and images.isfinite().all(),
            f"{what}: values that are not finite floats",
        )
        require(
            float(images.abs().max()) < 50, f"{what}: values up to {float(images.abs().max()):.0f}: pixels?"
        )


@requirement("initializer")
def _all_randomness_is_the_generators(context: Context) -> None:
    """with equal generators the images are equal, whatever torch's global generator is."""
    import torch

    labels_and_ranks = _labels_and_ranks(3, 2)
    first, second = (_images(context, _prepared(context), *labels_and_ranks) for _ in range(2))
    require(torch.equal(first, second), "the images differ the second time")


@requirement("initializer")
def _choices_do_not_depend_on_the_batch(context: Context) -> None:
    """a choice of real images depends on (label, rank, source) alone: not on the generator or on how images
    are split into batches; two ranks of a class are different images."""
    import torch

    labels, ranks = _labels_and_ranks(3, 4)
    source = _prepared(context)
    together = _images(context, source, labels, ranks)
    if not torch.equal(together, _images(context, source, labels, ranks, seed=SEED + 1)):
        return  # noise, not a choice
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    for index in order.split(3):
        part = _images(context, source, labels[index], ranks[index])
        require(torch.equal(part, together[index]), "an image depends on the others of its batch")
    different = len({image.numpy().tobytes() for image in together}) == len(together)
    require(different, "an image is chosen twice")
