"""From the bytes of a picture file to square uint8 pixels."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from gvbsm_registry import GvbsmError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# Only formats that Pillow decodes by itself: some others start programs (EPS calls Ghostscript).
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")


class BrokenPictureError(GvbsmError):
    """A file that can't be decoded; a data set's `skip_broken` passes over it. `problem`: where and why."""

    def __init__(self, where: str, why: str) -> None:
        self._given = where, why
        self.problem = f"{where}: {why}"
        super().__init__(
            f"{self.problem}; replace or remove the file, or set data.skip_broken = true to go on without it"
        )

    def __reduce__(self) -> tuple[type[BrokenPictureError], tuple[str, str]]:
        """From a loader's worker, too."""
        return type(self), self._given


def decode(data: bytes, where: str, image_size: int, channels: int) -> np.ndarray:
    """Return uint8 [C, S, S]: the short side resized to S = `image_size`, then the centre cropped.

    Bilinear with antialiasing: torchvision's `Resize(S)` and `CenterCrop(S)` of a PIL image.
    channels: 1 (luminance) or 3 (RGB). Raises BrokenPictureError, naming `where`.
    """
    import numpy as np

    try:
        pixels = np.asarray(_resize_and_crop(_convert(_open(data), channels), image_size))
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise BrokenPictureError(where, _reason(error)) from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def short_side(data: bytes, where: str) -> int:
    """Return the shorter of width and height in pixels. Raises BrokenPictureError, naming `where`."""
    try:
        return min(_open(data).size)
    except Exception as error:
        raise BrokenPictureError(where, _reason(error)) from error


def _open(data: bytes) -> Image.Image:
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=FORMATS)


def _convert(picture: Image.Image, channels: int) -> Image.Image:
    import numpy as np
    from PIL import Image

    if picture.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit grey at 255 instead of scaling it.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError("has 32 bits a pixel, of which no number is white; convert it to 8 or 16 bits")
    return picture.convert("RGB" if channels == 3 else "L")


def _resize_and_crop(picture: Image.Image, image_size: int) -> Image.Image:
    from PIL import Image
    from torchvision.transforms.functional import center_crop, resize

    short, long = sorted(picture.size)
    if short == long == image_size:
        return picture
    if short != image_size:
        pixels = image_size * (image_size * long // short)
        if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{picture.width}×{picture.height} pixels are too long a strip to resize")
        picture = resize(picture, image_size)
    cropped: Image.Image = center_crop(picture, image_size)
    return cropped


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "is not a picture, or of a format that is not read here"
    if isinstance(error, Image.DecompressionBombError):
        return f"is a decompression bomb, or too large a picture ({error})"
    return f"is broken ({error or type(error).__name__})"
