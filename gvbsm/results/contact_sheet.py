"""Contact sheets: images in rows, for the card and the report."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor

GAP_SHADE = 128  # a grey that parts images on a light page and on a dark one


def contact_sheet(rows: Sequence[Tensor], tile: int) -> Image:
    """Return a picture of rows of images, uint8 [n, C, S, S] each, a pixel apart, in colour.

    Images become `tile` × `tile` pixels: enlarged as they are, reduced smoothly. Shorter rows are filled up.
    """
    from torchvision.transforms.v2.functional import InterpolationMode, resize, to_pil_image
    from torchvision.utils import make_grid

    longest = max(len(row) for row in rows)
    mode = InterpolationMode.BILINEAR if tile < rows[0].shape[-1] else InterpolationMode.NEAREST
    filled = [torch.cat([row, row.new_full((longest - len(row), *row.shape[1:]), GAP_SHADE)]) for row in rows]
    tiles = resize(torch.cat(filled), [tile, tile], mode).expand(-1, 3, -1, -1)
    if len(tiles) == 1:  # make_grid returns a single image without the border that is cut off below
        return to_pil_image(tiles[0])
    return to_pil_image(make_grid(tiles, nrow=longest, padding=1, pad_value=GAP_SHADE)[:, 1:-1, 1:-1])
