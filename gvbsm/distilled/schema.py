"""What the files of a distilled set must say and hold: checked when one is opened, whoever made it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gvbsm.distilled.views import EpochViews
from gvbsm_registry import Artifact, GvbsmError
from gvbsm_registry.messages import format_validation_error

Count = Annotated[int, Field(ge=1, le=10**12)]
From = Annotated[int, Field(ge=0, le=10**12)]


class _Meta(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    classes: Annotated[list[str], Field(min_length=1)]


class ImagesMeta(_Meta):
    """Meta of images.safetensors."""

    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]
    provenance: dict[str, Any]


class LabelsMeta(_Meta):
    """Meta of a label file, of epochs or of a pool's batches."""

    images: str
    codec: dict[str, Any]
    pruning: Literal["epochs", "batches", "classes"] = "epochs"
    first_epoch: From = 0
    epochs: Count = 1
    first_batch: From = 0
    batches: Count = 1


def check_meta(model: type[_Meta], meta: dict[str, Any], path: Path) -> None:
    """Raise GvbsmError, naming the file and the keys, unless its meta is what `model` says."""
    try:
        model.model_validate(meta)
    except ValidationError as error:
        raise _foreign(path, format_validation_error(error, model)) from error


def check_images(artifact: Artifact, path: Path) -> None:
    """Raise GvbsmError unless a file holds images with their labels."""
    check_meta(ImagesMeta, artifact.meta, path)
    images, labels = artifact.tensors.get("images"), artifact.tensors.get("labels")
    classes, channels = len(artifact.meta["classes"]), len(artifact.meta["mean"])
    if images is None or images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
        raise _foreign(path, "images are not uint8 [N, C, H, W]")
    if images.shape[1] != channels or len(artifact.meta["std"]) != channels:
        raise _foreign(path, f"images have {images.shape[1]} channels, mean and std another number")
    if labels is None or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise _foreign(path, "labels are not int64 [N]")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise _foreign(path, f"labels are not from 0 to {classes - 1}")


def check_views(views: EpochViews, images: int, pooled: bool) -> None:
    """Raise ValueError unless views fit each other and the number of images, and say of which they are."""
    count = len(views.partners)
    for part, width in ((views.view.boxes, 4), (views.view.rolls, 2), (views.boxes, 4)):
        if part.shape != (count, width):
            raise ValueError(f"a part of {count} views has the shape {list(part.shape)}")
    if pooled and views.images is None:
        raise ValueError("its views don't say of which images they are")
    if not pooled and count != images:
        raise ValueError(f"has {count} views an epoch, of {images} images")
    of_images = [] if views.images is None else [(views.images, images)]
    for index, most in [(views.partners, count), *of_images]:
        if index.shape != (count,) or not 0 <= int(index.min()) <= int(index.max()) < most:
            raise ValueError(f"a view is of, or mixed with, one that is not among {most}")


@contextmanager
def foreign_files(path: Path) -> Iterator[None]:
    """Turn what reading of a file's tensors raises, which do not fit each other, into a GvbsmError."""
    try:
        yield
    except GvbsmError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise _foreign(path, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _foreign(path: Path, why: str) -> GvbsmError:
    return GvbsmError(f"{path}: is not of a distilled set as gvbsm writes it ({why}); get the file anew")
