"""Seeds: all randomness of a run derives from its recipe's seed and what it is for."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*parts: object) -> int:
    """Return a seed from any values that have a faithful `repr` (numbers and strings)."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:15], 16)


def generator_of(*parts: object) -> torch.Generator:
    """Return a CPU generator with the seed of `parts`."""
    return torch.Generator().manual_seed(seed_of(*parts))
