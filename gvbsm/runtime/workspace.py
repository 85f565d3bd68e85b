"""What every unit of a run can reach: the recipe, the opened data, the folders and the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from platformdirs import user_cache_path
from torch import Tensor
from torch.utils.data import DataLoader

from gvbsm.recipe.schema import Recipe
from gvbsm.runtime.units import seed_of
from gvbsm.version import __version__
from gvbsm_registry import Artifact, Executor, GvbsmError, Registry, Split, Task, TensorSplit, discover
from gvbsm_registry.artifacts import digest
from gvbsm_registry.stores import RemoteStore, is_url

if TYPE_CHECKING:
    from gvbsm.runtime.reporting import Reporter

STATISTICS_SAMPLE = 4096


class Workspace:
    """One run: `recipe` executed into the folder `out`, sharing `store`, on `device`.

    With `remote`, artifacts are also kept there, for machines that do not share a disk.
    """

    def __init__(
        self,
        recipe: Recipe,
        registry: Registry,
        out: Path,
        store: Path,
        device: torch.device,
        reporter: Reporter,
        executor: Executor,
        remote: RemoteStore | None = None,
    ) -> None:
        self.recipe, self.registry = recipe, registry
        self.out, self.store, self.device = out, store, device
        self.reporter, self.executor = reporter, executor
        self.remote = remote

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker gets what says where and what; it finds plugins, opens the data and reports by itself."""
        return _elsewhere, (self.recipe, self.out, self.store, str(self.device), self.remote)

    @cached_property
    def train(self) -> Split:
        return self._open("train")

    @cached_property
    def test(self) -> Split:
        split = self._open("test")
        check_classes(split.classes, self.train.classes, f"{self.recipe.data.full_name}: the test split")
        return split

    def _open(self, name: Any) -> Split:
        split = self.recipe.data.open(name, self.store / "data")
        if len(split) == 0:
            raise GvbsmError(
                f"{self.recipe.data.full_name}: the {name} split holds no image; check its folder"
            )
        return split

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @cached_property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel means and deviations of the training pixels in 0..1, given by the data set or measured."""
        data = self.recipe.data
        for name, given in (("mean", data.mean), ("std", data.std)):
            if given is not None and len(given) != self.train.channels:
                raise GvbsmError(f"data.{name}: needs {self.train.channels} values, one a channel")
        if data.mean is not None and data.std is not None:
            return data.mean, data.std
        mean, std = self._measured_moments()
        return data.mean or mean, data.std or std

    def _measured_moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        count = len(self.train)
        sample = min(count, STATISTICS_SAMPLE if not self.train.in_memory else count)
        indices = torch.linspace(0, count - 1, sample).long()
        pixels = self.train.read(indices).transpose(0, 1).flatten(1)
        mean, std = [], []
        for channel in pixels:
            counts = torch.bincount(channel.int(), minlength=256).double()
            values = torch.arange(256, dtype=torch.float64) / 255
            average = (counts * values).sum() / counts.sum()
            spread = ((counts * (values - average) ** 2).sum() / counts.sum()).sqrt()
            mean.append(round(float(average), 6))
            std.append(round(max(float(spread), 1e-3), 6))
        return tuple(mean), tuple(std)

    def _moment_tensors(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(part, device=self.device)[:, None, None] for part in self.moments)
        return mean, std

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 [n, C, H, W] to normalised float32 on the device."""
        mean, std = self._moment_tensors()
        return (images.to(self.device, torch.float32) / 255 - mean) / std

    def quantize(self, images: Tensor) -> Tensor:
        """Normalised float [n, C, H, W] to the nearest 8-bit pixels, uint8 on the CPU."""
        mean, std = self._moment_tensors()
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).cpu()

    def pixel_range(self) -> tuple[Tensor, Tensor]:
        """The normalised values of black and white, [C, 1, 1] each."""
        mean, std = self._moment_tensors()
        return -mean / std, (1 - mean) / std

    @cached_property
    def data_key(self) -> str:
        """The digest of the data set's contents and normalisation."""
        return digest([self.train.digest, self.test.digest, self.moments])

    @property
    def provenance(self) -> dict[str, Any]:
        """Who made an artifact: versions, recipe and seed; no time, so that equal work has equal contents."""
        return {
            "gvbsm": __version__,
            "torch": torch.__version__,
            "recipe": self.recipe.name,
            "seed": self.recipe.seed,
        }

    def generator(self, *parts: object) -> torch.Generator:
        """A CPU generator seeded from the recipe's seed and `parts`."""
        return torch.Generator().manual_seed(seed_of(self.recipe.seed, *parts))

    def batches(self, split: Split, chunks: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (normalised images, labels) on the device, for each chunk of indices [n]."""
        if isinstance(split, TensorSplit) or split.in_memory:
            for chunk in chunks:
                yield self.normalize(split.read(chunk)), split.labels[chunk].to(self.device)
            return
        loader = DataLoader(
            _Chunks(split),
            sampler=_Order(chunks),
            batch_size=None,
            num_workers=max(1, (torch.get_num_threads() + 1) // 2),
            prefetch_factor=2,
            pin_memory=self.device.type == "cuda",
        )
        for chunk, images in zip(chunks, loader, strict=True):
            yield self.normalize(images), split.labels[chunk].to(self.device)

    def build(self, backbone: Any) -> torch.nn.Module:
        """Build a backbone for this data set, in evaluation mode, on the device."""
        module = backbone.build(len(self.classes), self.train.image_size, self.train.channels)
        return module.to(self.device).eval()

    def check(self, artifact: Artifact, what: str) -> None:
        """Raise GvbsmError unless an artifact was made for the same classes in the same order."""
        check_classes(tuple(artifact.meta["classes"]), self.classes, what)


class _Chunks(torch.utils.data.Dataset):
    """Lets a DataLoader's workers read whole batches."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.split.read(indices)


class _Order(torch.utils.data.Sampler):
    def __init__(self, chunks: Sequence[Tensor]) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)


def open_store(place: str | Path | None) -> tuple[Path, RemoteStore | None]:
    """Return the local folder of a store, and the store itself if `place` is a URL: the folder is its cache.

    place: a folder, a URL that fsspec knows, or None for the user's cache folder.
    """
    if place is None:
        return user_cache_path("gvbsm", False), None
    if isinstance(place, str) and is_url(place):
        remote = RemoteStore(place)
        return user_cache_path("gvbsm", False) / "remote" / digest(remote.url)[:16], remote
    return Path(place).expanduser(), None


_latest: list[Workspace] = []


def _elsewhere(recipe: Recipe, out: Path, store: Path, device: str, remote: RemoteStore | None) -> Workspace:
    """Make a workspace in a worker. The latest is kept, so that the data is opened once for many units."""
    from gvbsm.runtime.reporting import MessageReporter

    url = remote and remote.url
    for known in _latest:
        same = (known.recipe, known.out, known.store) == (recipe, out, store)
        if same and str(known.device) == device and (known.remote and known.remote.url) == url:
            return known
    where = torch.device(device)
    nowhere = _NoExecutor()
    reporter = MessageReporter(lambda message: None)  # each task brings its own way to send
    made = Workspace(recipe, discover(), out, store, where, reporter, nowhere, remote)
    _latest[:] = [made]
    return made


class _NoExecutor(Executor):
    """A unit does not start others."""

    name = "none"

    def run(self, tasks: Sequence[Task], on_message: Callable[[Any], None]) -> Iterator[tuple[int, Any]]:
        raise NotImplementedError("a unit of work started other units")


def check_classes(found: tuple[str, ...], expected: tuple[str, ...], what: str) -> None:
    """Raise GvbsmError, naming `what` and the first differences, unless the classes agree in order."""
    if found == expected:
        return
    missing = [name for name in expected if name not in found][:3]
    extra = [name for name in found if name not in expected][:3]
    detail = f"lacks {missing}, has {extra} instead" if missing or extra else "has them in another order"
    raise GvbsmError(
        f"{what} has {len(found)} classes that do not agree with the training split's {len(expected)}: "
        f"it {detail}; use the data set it was made for"
    )
