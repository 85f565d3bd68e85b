"""CIFAR-10 and CIFAR-100, from the files that torchvision knows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from gvbsm_plugins.datasets.base import existing_folder
from gvbsm_plugins.pictures.listing import expand_user
from gvbsm_registry import Dataset, GvbsmError, TensorSplit

if TYPE_CHECKING:
    from gvbsm_registry import Split


class _Cifar(Dataset):
    """50000 colour pictures of 32×32 pixels to train, 10000 to test."""

    torchvision_name: ClassVar[str]

    root: Path | None = Field(None, description="the folder that holds (or, with download, gets) the files")
    download: bool = Field(False, description="fetch the files from the Internet if they are not there")

    def open(self, split: Literal["train", "test"], cache: Path) -> Split:
        """Return uint8 [50000 or 10000, 3, 32, 32]; classes in the order of the files' own list.

        The files are pickles: each is compared with the published MD5 before it is opened. Raises
        GvbsmError if one is missing or altered, or if the download fails.
        """
        import torch
        import torchvision

        kind = getattr(torchvision.datasets, self.torchvision_name)
        root = self._root(kind)
        if not self.download:
            _check_files(root, kind)
        try:
            opened = kind(root, train=split == "train", download=self.download)
        except (OSError, RuntimeError) as error:
            remedy = "check the network and the folder" if self.download else "set data.download = true"
            raise GvbsmError(f"{root / kind.base_folder}: can't be opened ({error}); {remedy}") from error
        images = torch.from_numpy(opened.data).permute(0, 3, 1, 2).contiguous()
        return TensorSplit(images, torch.tensor(opened.targets, dtype=torch.int64), tuple(opened.classes))

    def _root(self, kind: Any) -> Path:
        """Return the folder that holds the folder of the files, whichever of both was given."""
        if self.root is not None and expand_user(self.root).name == kind.base_folder:
            return expand_user(self.root).absolute().parent
        if self.root is not None and self.download:
            return expand_user(self.root)
        return existing_folder(self.root, self.name)


def _check_files(root: Path, kind: Any) -> None:
    from torchvision.datasets.utils import check_integrity

    folder = root / kind.base_folder
    listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    missing = [name for name, _ in listed if not (folder / name).is_file()]
    if missing:
        raise GvbsmError(
            f"{folder}: lacks {', '.join(missing)}; set data.download = true, "
            f"or unpack {kind.filename} in {root}"
        )
    for name, md5 in listed:
        if not os.access(folder / name, os.R_OK) or not check_integrity(folder / name, md5):
            raise GvbsmError(
                f"{folder / name}: is unreadable or not the published file (its MD5 differs); set "
                f"data.download = true, or unpack {kind.filename} in {root} anew"
            )


class Cifar10(_Cifar):
    """CIFAR-10: ten classes of 32×32 colour pictures, 50000 to train and 10000 to test."""

    name = "cifar10"
    torchvision_name = "CIFAR10"

    mean: tuple[float, ...] | None = Field((0.4914, 0.4822, 0.4465), description="channel means in 0..1")
    std: tuple[float, ...] | None = Field((0.2470, 0.2435, 0.2616), description="channel deviations")


class Cifar100(_Cifar):
    """CIFAR-100: a hundred classes of 32×32 colour pictures, 50000 to train and 10000 to test."""

    name = "cifar100"
    torchvision_name = "CIFAR100"

    mean: tuple[float, ...] | None = Field((0.5071, 0.4865, 0.4409), description="channel means in 0..1")
    std: tuple[float, ...] | None = Field((0.2673, 0.2564, 0.2762), description="channel deviations")
