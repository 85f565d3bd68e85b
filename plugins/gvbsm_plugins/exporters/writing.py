"""What exporters share: class folders of PNG files, and a destination that appears whole or not at all."""

from __future__ import annotations

import contextlib
import io
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gvbsm_registry import GvbsmError

if TYPE_CHECKING:
    from torch import Tensor

SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9 ._-]{0,99}")


@contextlib.contextmanager
def whole_folder(destination: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `destination` at the end; on an error nothing is left behind.

    Raises GvbsmError if `destination` exists (an empty folder may) or can't be written.
    """
    draft = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.part")
    try:
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise GvbsmError(f"{destination}: exists; give a folder that does not")
        draft.mkdir(parents=True)
        yield draft
        draft.replace(destination)
    except OSError as error:
        raise GvbsmError(
            f"{destination}: can't be written ({error}); check the folder and its space"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def folder_names(classes: Sequence[str]) -> list[str]:
    """Return a folder name for each class, such that their sorted order is that of the labels.

    The class names themselves where file systems take them and they are sorted; else the label goes before
    what is left of the name.
    """
    names = list(classes)
    fine = all(SAFE.fullmatch(name) and not name.endswith((".", " ")) for name in names)
    if fine and sorted(names) == names and len({name.lower() for name in names}) == len(names):
        return names
    digits = len(str(max(len(names) - 1, 0)))
    return [
        f"{label:0{digits}d}_{re.sub(r'[^A-Za-z0-9_-]+', '-', name)[:40].strip('-') or 'class'}"
        for label, name in enumerate(names)
    ]


def png(image: Tensor) -> bytes:
    """Return one uint8 image [C, H, W] as a PNG file: grey if C is 1, else colour; without loss."""
    from PIL import Image

    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(file, "PNG")
    return file.getvalue()


def write_pictures(
    folder: Path, images: Tensor, labels: Tensor, classes: Sequence[str]
) -> list[tuple[str, int]]:
    """Write images [N, C, H, W] as CLASS/00000.png below `folder`; return (path, label) in their order."""
    names = folder_names(classes)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    counts = [0] * len(names)
    written = []
    for image, label in zip(images, labels.tolist(), strict=True):
        path = f"{names[label]}/{counts[label]:05d}.png"
        counts[label] += 1
        (folder / path).write_bytes(png(image))
        written.append((path, label))
    return written
