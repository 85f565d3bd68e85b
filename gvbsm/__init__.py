"""Data-set condensation by plugins: distil a labelled image set into a few images per class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gvbsm.version import __version__

if TYPE_CHECKING:
    from gvbsm.distilled.dataset import DistilledDataset
    from gvbsm.pipeline import run

__all__ = ["DistilledDataset", "__version__", "run"]


def __getattr__(name: str) -> Any:  # torch is imported on first use, not by `import gvbsm`
    if name == "DistilledDataset":
        from gvbsm.distilled.dataset import DistilledDataset

        return DistilledDataset
    if name == "run":
        from gvbsm.pipeline import run

        return run
    raise AttributeError(f"module 'gvbsm' has no attribute {name!r}")
