"""Folders of PNG files with a manifest."""

from __future__ import annotations

import json
from pathlib import Path

from gvbsm_plugins.exporters.writing import whole_folder, write_pictures
from gvbsm_registry import Exporter, FinishedRun

MANIFEST = "manifest.json"
OPENING = """from torchvision.datasets import ImageFolder

dataset = ImageFolder("images")"""


class ImageFolderFiles(Exporter):
    """PNG files in class folders below images/, manifest.json and a card; `gvbsm import` takes it back.

    The PNGs hold the set's pixels bit for bit. The manifest tells class names, the order and the label of
    every file, the normalisation, the accuracies and where the set comes from. Any reader of class folders
    gives equal labels: the folders' sorted order is that of the labels.
    """

    name = "imagefolder"

    def export(self, run: FinishedRun, destination: Path) -> None:
        images = run.images
        with whole_folder(destination) as folder:
            files = write_pictures(folder / "images", images, run.labels, run.classes)
            manifest = {
                "format": "gvbsm-imagefolder",
                "schema": 1,
                "key": run.key,
                "classes": run.classes,
                "mean": run.mean,
                "std": run.std,
                "ipc": run.meta.get("ipc"),
                "data": run.meta.get("data"),
                "channels": images.shape[1],
                "image_size": images.shape[-1],
                "provenance": run.meta.get("provenance", {}),
                "images": [{"file": f"images/{path}", "label": label} for path, label in files],
                "results": run.records,
            }
            text = json.dumps(manifest, indent=1, ensure_ascii=False)
            (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
            run.write_card(folder, OPENING)
