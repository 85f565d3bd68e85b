"""DD-Ranking's layout: images by method, data set and IPC, and the YAML file of its evaluator."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field

from gvbsm_plugins.exporters.writing import whole_folder, write_pictures
from gvbsm_registry import Artifact, Exporter
from gvbsm_registry.artifacts import read
from gvbsm_registry.card import distilled_set

NAMES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny_imagenet": "TinyImageNet"}


class DDRanking(Exporter):
    """Folders baselines/METHOD/DATA/IPCn (and random_data/…) of PNG files, and METHOD/DATA/IPCn.yaml.

    Any reader of class folders opens them. The YAML file tells DD-Ranking's soft-label evaluator (version
    0.1.4) how students were trained here; correct its paths where you run it.
    """

    name = "dd_ranking"

    method: str = Field("G-VBSM", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the method's name")
    dataset: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="what DD-Ranking calls the data set"
    )

    def export(self, run: Path, destination: Path) -> None:
        artifact = distilled_set(run)
        data = str(artifact.meta.get("data", "data"))
        dataset = self.dataset or NAMES.get(data) or re.sub(r"[^A-Za-z0-9._-]+", "-", data).strip("-.")
        place = f"{self.method}/{dataset or 'data'}/IPC{artifact.meta.get('ipc')}"
        random = run / "baselines" / "random" / "images.safetensors"
        with whole_folder(destination) as folder:
            _write(folder / "baselines" / place, artifact)
            if random.is_file():
                _write(folder / "random_data" / place, read(random, "distilled"))
            path = folder / f"{place}.yaml"
            path.parent.mkdir(parents=True)
            settings = self._settings(run, artifact, dataset, place, random.is_file())
            lines = [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _settings(
        self, run: Path, artifact: Artifact, dataset: str, place: str, random: bool
    ) -> dict[str, Any]:
        recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
        evaluation = recipe.get("evaluation", {})
        image_size = artifact.tensors["images"].shape[-1]
        students = evaluation.get("students", [{"use": "convnet"}])
        normalise = {
            "name": "Normalize",
            "args": {"mean": artifact.meta["mean"], "std": artifact.meta["std"]},
        }
        settings: dict[str, Any] = {
            "dataset": dataset,
            "real_data_path": "./datasets/",
            "ipc": artifact.meta.get("ipc"),
            "im_size": [image_size, image_size],
            "model_name": _model(str(students[0].get("use", "convnet")), students[0]),
            "stu_use_torchvision": False,
            "tea_use_torchvision": False,
            "teacher_dir": "./teacher_models",
            "data_aug_func": "cutmix",
            "aug_params": {"beta": 1.0},
            "use_zca": False,
            "custom_train_trans": [{"name": "ToTensor"}, normalise],
            "custom_val_trans": None,
            "soft_label_mode": "M",
            "soft_label_criterion": "mse_gt",
            "optimizer": evaluation.get("optimizer", "adamw"),
            "lr_scheduler": "cosine",
            "weight_decay": evaluation.get("weight_decay", 0.01),
            "default_lr": evaluation.get("learning_rate", 0.001),
            "num_eval": max(5, len(evaluation.get("seeds", []))),
            "num_epochs": evaluation.get("epochs", 300),
            "syn_batch_size": evaluation.get("batch", 256),
            "real_batch_size": recipe.get("pretrain", {}).get("batch", 256),
            "syn_data_path": f"./baselines/{place}/",
            "save_path": f"./results/{place}.csv",
        }
        if random:
            settings |= {"random_data_format": "image", "random_data_path": f"./random_data/{place}/"}
        return settings


def _model(name: str, table: dict[str, Any]) -> str:
    """Return what DD-Ranking calls a student (its ConvNets carry their depth)."""
    if name == "convnet":
        return f"ConvNet-{table.get('depth', 3)}"
    return {"resnet18_small": "ResNet-18-BN", "torchvision/resnet18": "ResNet-18-BN"}.get(name, name)


def _write(folder: Path, artifact: Artifact) -> None:
    tensors = artifact.tensors
    write_pictures(folder, tensors["images"], tensors["labels"], artifact.meta["classes"])
