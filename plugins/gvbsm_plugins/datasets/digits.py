"""scikit-learn's digits: 1797 grey pictures of 8×8 pixels, shipped with that package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gvbsm_registry import Dataset, Split, TensorSplit


class Digits(Dataset):
    """Handwritten digits, 8×8 grey: 1347 to train, 450 to test; nothing to download."""

    name = "digits"

    def open(self, split: Literal["train", "test"], cache: Path) -> Split:
        """Return uint8 [1347 or 450, 1, 8, 8], the original 0..16 stretched to 0..255.

        In the order of (class, position in the file) every fourth picture, from the first on, is a test
        picture: a stratified split that hangs on no random generator and no version of one.
        """
        import numpy as np
        import torch
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        by_class = np.argsort(labels, kind="stable")
        in_test = np.arange(len(labels)) % 4 == 0
        chosen = np.sort(by_class[in_test == (split == "test")])
        # Integer arithmetic: rounding half up is the same on every machine.
        grey = (images[chosen].astype(np.int64) * 255 + 8) // 16
        pixels = torch.from_numpy(grey.astype(np.uint8)).reshape(-1, 1, 8, 8)
        return TensorSplit(
            pixels,
            torch.from_numpy(labels[chosen].astype(np.int64)),
            tuple(str(digit) for digit in range(10)),
        )
