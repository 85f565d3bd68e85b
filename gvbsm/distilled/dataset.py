"""A condensed set on disk: images, and the epochs of views and soft labels that go with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gvbsm.distilled.labels import codec_of, logits_of, views_of
from gvbsm.distilled.normalized import LazyNormalizedImages, Normalization
from gvbsm.distilled.pool import LabelPool, chained, coded_parts
from gvbsm.distilled.schema import LabelsMeta, check_images, check_meta, check_views, foreign_files
from gvbsm.distilled.views import EpochViews
from gvbsm_registry import Artifact, Codec, GvbsmError, Registry
from gvbsm_registry.artifacts import peek, read

LABELS = "labels-{:05d}.safetensors"
LABEL_FILE = re.compile(r"labels-(\d{5,})\.safetensors")


def label_files(folder: Path) -> list[Path]:
    """Return the label files of an image set in their order, without whatever else lies there."""
    numbered = [
        (match, path) for path in folder.glob("labels-*") if (match := LABEL_FILE.fullmatch(path.name))
    ]
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered)]


@dataclass(frozen=True)
class LabelledViews:
    """One epoch: the views of all N images, and the ensemble's logits on each, float32 [N, K]."""

    views: EpochViews
    logits: Tensor


class DistilledDataset(torch.utils.data.Dataset):
    """A condensed set: `OUT/distilled`, or any folder with the same files.

    Without soft labels, item i is (image, label): float32 [C, H, W] normalised, int. After `set_epoch(e)`
    it is (view, logits, truth): the view of image i in epoch e, the ensemble's logits on it, float32 [K],
    and the class mixture, float32 [K]. Works with any loader, persistent workers too, and any batch size;
    epochs repeat from the start when they run out. Labels that were pruned by batch or by class are no epochs
    but a `pool`.

    images: uint8 [N, C, H, W]; labels: int64 [N]; classes, mean, std, provenance: as stored.
    registry: where the labels' codec comes from; by default the installed plugins.
    """

    def __init__(self, folder: str | Path, registry: Registry | None = None) -> None:
        self.folder = Path(folder).expanduser()
        path = self.folder / "images.safetensors"
        artifact = read(path, "distilled")
        check_images(artifact, path)
        self.key = artifact.key
        self.images, self.labels = artifact.tensors["images"], artifact.tensors["labels"]
        self.meta: dict[str, Any] = artifact.meta
        self.classes: tuple[str, ...] = tuple(artifact.meta["classes"])
        self.mean, self.std = tuple(artifact.meta["mean"]), tuple(artifact.meta["std"])
        self.normalization = Normalization(self.mean, self.std)
        self.provenance: dict[str, Any] = artifact.meta["provenance"]
        self._blocks = LabelBlocks(self.folder, artifact.key, len(self.labels), registry)
        # in shared memory, so that a loader's workers, which live on, are told of a new epoch
        self._number = torch.tensor(-1).share_memory_()
        self._loaded: tuple[int, LabelledViews] | None = None
        self._lazy: tuple[torch.device, LazyNormalizedImages] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def epochs(self) -> int:
        """How many epochs of soft labels there are; 0 if none, or if they are a `pool`."""
        return self._blocks.epochs

    @property
    def label_keys(self) -> list[str]:
        """The digests of what each label file was made from."""
        return list(self._blocks.keys)

    @property
    def label_bytes(self) -> int:
        """The size of the soft labels' files; 0 if there are none."""
        return self._blocks.bytes

    def normalized(self) -> Tensor:
        """All images, float32 [N, C, H, W]: (pixel / 255 - mean) / std."""
        return self.normalization.normalize(self.images)

    def epoch(self, number: int) -> LabelledViews:
        """Return the views and logits of one epoch; raises GvbsmError if there are none."""
        return self._blocks.epoch(number)

    @cached_property
    def pool(self) -> LabelPool | None:
        """The soft labels, if they were pruned by batch or class; None if they are epochs or there are none.

        Raises GvbsmError if a file is missing or broken.
        """
        return self._blocks.pool(self.labels)

    def pooled(
        self, parts: Iterable[Tensor], device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (views, logits, truth) of the pool's views at each of `parts`, int64 [n], on the device."""
        pool, images = self.pool, self.lazily_normalized(device)
        assert pool is not None, "the labels are epochs"
        for index in parts:
            truth = pool.views.truth(self.labels, index, len(self.classes), images.shape[-1])
            yield pool.views.apply(images, index), pool.logits(index).to(device), truth.to(device)

    def set_epoch(self, number: int) -> None:
        """Make items the views of epoch `number`, with soft labels."""
        self._loaded = number, self.epoch(number)
        self._number.fill_(number)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of a set of {len(self)}")
        index %= len(self)
        number = int(self._number)
        if number < 0:
            return self.normalization.normalize(self.images[index]), int(self.labels[index])
        if self._loaded is None or self._loaded[0] != number:
            self._loaded = number, self.epoch(number)
        labelled = self._loaded[1]
        # The image and the one pasted into it are all that an item needs, however large the set is.
        pair = torch.stack([torch.tensor(index), labelled.views.partners[index]])
        alone = EpochViews(labelled.views.view.select(pair), torch.tensor([1, 1]), labelled.views.boxes[pair])
        first, size = torch.tensor([0]), self.images.shape[-1]
        view = alone.apply(self.normalization.normalize(self.images[pair]), first)[0]
        truth = alone.truth(self.labels[pair], first, len(self.classes), size)[0]
        return view, labelled.logits[index], truth

    def batches(
        self, epoch: int, size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield an epoch as (views [n, C, H, W], logits [n, K], truth [n, K]), shuffled by `generator`."""
        order = torch.randperm(len(self), generator=generator) if generator else torch.arange(len(self))
        yield from self.labelled(epoch, order.split(size))

    def labelled(
        self, epoch: int, parts: Sequence[Tensor], device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (views, logits, truth) of the images at each of `parts`, int64 [n], on the device."""
        labelled, images = self.epoch(epoch), self.lazily_normalized(device)
        for index in parts:
            truth = labelled.views.truth(self.labels, index, len(self.classes), images.shape[-1])
            yield labelled.views.apply(images, index), labelled.logits[index].to(device), truth.to(device)

    def lazily_normalized(self, device: torch.device | str = "cpu") -> LazyNormalizedImages:
        """Return the images, normalised on the device when they are indexed; the latest one is kept."""
        if self._lazy is None or self._lazy[0] != torch.device(device):
            self._lazy = torch.device(device), LazyNormalizedImages(self.images, self.normalization, device)
        return self._lazy[1]


class LabelBlocks:
    """The label files of an image set, read (and verified) one at a time."""

    def __init__(self, folder: Path, images_key: str, images: int, registry: Registry | None = None) -> None:
        self.folder, self._count, self._registry = folder, images, registry
        self.pruning = "epochs"
        self._files: list[tuple[int, int, Path]] = []
        self.keys: list[str] = []
        self._codec: Codec | None = None
        for path in label_files(folder):
            header = peek(path)
            meta = json.loads(header["meta"])
            check_meta(LabelsMeta, meta, path)
            if meta["images"] != images_key:
                raise GvbsmError(f"{path}: labels other images than those beside it; relabel them")
            pruning = meta.get("pruning", "epochs")
            if self._files and pruning != self.pruning:
                raise GvbsmError(f"{path}: holds labels by {pruning}, those beside it do not; relabel them")
            self.pruning = pruning
            first, count = (
                ("first_epoch", "epochs") if self.pruning == "epochs" else ("first_batch", "batches")
            )
            with foreign_files(path):
                self._files.append((meta[first], meta[count], path))
            self.keys.append(header["key"])
        self._open: tuple[Path, Artifact] | None = None

    @property
    def epochs(self) -> int:
        return sum(count for _, count, _ in self._files) if self.pruning == "epochs" else 0

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for _, _, path in self._files)

    def epoch(self, number: int) -> LabelledViews:
        if not self._files:
            raise GvbsmError(f"{self.folder}: holds no soft labels; run the relabel stage")
        if self.pruning != "epochs":
            raise GvbsmError(
                f"{self.folder}: its soft labels were pruned by {self.pruning}, so that there are no epochs "
                "of them; draw from DistilledDataset.pool"
            )
        self._check_complete()
        number %= self.epochs
        first, _, path = next(f for f in self._files if f[0] <= number < f[0] + f[1])
        if self._open is None or self._open[0] != path:
            self._open = path, read(path, "labels")
        artifact = self._open[1]
        codec = self._codec_of(artifact, path)
        with foreign_files(path):
            logits = logits_of(artifact.tensors, number - first, codec, len(artifact.meta["classes"]))
            labelled = LabelledViews(views_of(artifact.tensors, number - first, len(logits)), logits)
            check_views(labelled.views, self._count, pooled=False)
        return labelled

    def pool(self, labels: Tensor) -> LabelPool | None:
        """Return all files as one pool; None if they hold epochs. labels: int64 [N], of the images."""
        if self.pruning == "epochs":
            return None
        self._check_complete()
        artifacts = [read(path, "labels") for _, _, path in self._files]
        codec = self._codec_of(artifacts[0], self._files[0][2])
        with foreign_files(self._files[0][2]):
            made = self._joined(artifacts, codec, labels)
            check_views(made.views, len(labels), pooled=True)
            made.logits(torch.tensor([len(made.views.partners) - 1]))
        return made

    def _joined(self, artifacts: list[Artifact], codec: Codec, labels: Tensor) -> LabelPool:
        coded = [coded_parts(artifact.tensors) for artifact in artifacts]
        views = [
            views_of(artifact.tensors, 0, int(artifact.tensors["batch"].sum())) for artifact in artifacts
        ]
        return LabelPool(
            self.pruning,
            chained(views),
            tuple(size for artifact in artifacts for size in artifact.tensors["batch"].tolist()),
            {name: torch.cat([parts[name] for parts in coded]) for name in coded[0]},
            codec,
            labels,
            len(artifacts[0].meta["classes"]),
        )

    def _codec_of(self, artifact: Artifact, path: Path) -> Codec:
        if self._codec is None or self._codec.to_recipe() != artifact.meta.get("codec"):
            self._codec = codec_of(artifact.meta, path, self._registry)
        return self._codec

    def _check_complete(self) -> None:
        expected = 0
        for first, count, _ in self._files:
            if first != expected:
                what = "epoch" if self.pruning == "epochs" else "batch"
                raise GvbsmError(
                    f"{self.folder}: lacks the labels of {what} {expected}; run the relabel stage"
                )
            expected += count
