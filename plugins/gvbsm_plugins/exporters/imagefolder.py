"""Folders of PNG files with a manifest."""

from __future__ import annotations

import json
from pathlib import Path

from gvbsm_plugins.exporters.writing import whole_folder, write_pictures
from gvbsm_registry import Exporter
from gvbsm_registry.card import distilled_set, records_of, write_card

MANIFEST = "manifest.json"


class ImageFolderFiles(Exporter):
    """PNG files in class folders below images/, manifest.json and a card; `gvbsm import` takes it back.

    The PNGs hold the set's pixels bit for bit. The manifest tells class names, the order and the label of
    every file, the normalisation, the accuracies and where the set comes from. Any reader of class folders
    gives equal labels: the folders' sorted order is that of the labels.
    """

    name = "imagefolder"

    def export(self, run: Path, destination: Path) -> None:
        artifact = distilled_set(run)
        images, labels = artifact.tensors["images"], artifact.tensors["labels"]
        with whole_folder(destination) as folder:
            files = write_pictures(folder / "images", images, labels, artifact.meta["classes"])
            manifest = {
                "format": "gvbsm-imagefolder",
                "schema": 1,
                "key": artifact.key,
                **{name: artifact.meta.get(name) for name in ("classes", "mean", "std", "ipc", "data")},
                "channels": images.shape[1],
                "image_size": images.shape[-1],
                "provenance": artifact.meta.get("provenance", {}),
                "images": [{"file": f"images/{path}", "label": label} for path, label in files],
                "results": records_of(run),
            }
            text = json.dumps(manifest, indent=1, ensure_ascii=False)
            (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
            write_card(run, folder)
