"""A data-set folder for the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field

from gvbsm_plugins.exporters.writing import png, whole_folder
from gvbsm_registry import Exporter, FinishedRun, GvbsmError

OPENING = """from pathlib import Path

from datasets import load_dataset

dataset = load_dataset(str(Path().resolve()))["train"]  # takes its name from the folder's"""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


class HuggingFaceFolder(Exporter):
    """Parquet files (pictures as PNG, class labels with their names) and a card, for `load_dataset`.

    Upload the folder as it is, or open it: `datasets.load_dataset("DIR")["train"]`.
    """

    name = "huggingface"

    license: str = Field("unknown", description="the card's licence: that of the data the set is made from")

    def export(self, run: FinishedRun, destination: Path) -> None:
        """Write the folder; raises GvbsmError if `datasets` is not installed or the run has no set."""
        images = run.images
        try:
            import datasets
        except ImportError as error:
            raise GvbsmError(
                "exporter 'huggingface' needs the package datasets; pip install gvbsm[huggingface]"
            ) from error
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(run.classes))}
        )
        rows = {
            "image": [{"bytes": png(image), "path": None} for image in images],
            "label": run.labels.tolist(),
        }
        with whole_folder(destination) as folder:
            (folder / "data").mkdir()
            path = folder / "data" / "train-00000-of-00001.parquet"
            datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
            run.write_card(folder, OPENING, self._front(run))

    def _front(self, run: FinishedRun) -> str:
        """Return the card's YAML header (JSON values, which YAML reads)."""
        count = len(run.labels)
        size = next((name for most, name in SIZES if count < most), "n>1M")
        configs = [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]
        header = {
            "license": self.license,
            "task_categories": ["image-classification"],
            "tags": ["dataset-distillation", "dataset-condensation", "gvbsm"],
            "size_categories": [size],
            "pretty_name": f"Condensed {run.meta.get('data', 'image')} set",
            "configs": configs,
        }
        lines = [f"{key}: {json.dumps(value)}" for key, value in header.items()]
        return "\n".join(["---", *lines, "---", "", ""])
