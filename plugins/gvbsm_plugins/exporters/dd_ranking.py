"""DD-Ranking's layout: images by method, data set and IPC, and the YAML file of its evaluator."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from gvbsm_plugins.exporters.writing import whole_folder, write_pictures
from gvbsm_registry import Exporter, FinishedRun

NAMES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny_imagenet": "TinyImageNet"}
ADAM = {"optimizer": "use", "weight_decay": "weight_decay"}
OPTIMIZERS = {"sgd": {**ADAM, "momentum": "momentum"}, "adam": ADAM, "adamw": ADAM}
USUAL = ({"nesterov": False}, {"betas": [0.9, 0.999]})
"""What DD-Ranking has no word for, as it is there."""
UNTOLD: tuple[tuple[str, str, Any], ...] = (
    ("relabel", "temperature", 1.0),
    ("relabel", "batch_norm", "running"),
    ("relabel", "keep_fraction", 1.0),
    ("evaluation", "ema", 0.0),
    ("evaluation", "soft", True),
)
"""Keys that DD-Ranking has no word for, by section, with the value at which it needs none."""
MODELS = {"resnet18_small": "ResNet-18-BN", "torchvision/resnet18": "ResNet-18-BN"}


class DDRanking(Exporter):
    """Folders baselines/METHOD/DATA/IPCn (and random_data/…) of PNG files, and METHOD/DATA/IPCn.yaml.

    Any reader of class folders opens them. The YAML file tells DD-Ranking's soft-label evaluator (version
    0.1.4) how the recipe trains students, and in comments what it has no word for; correct its paths where
    you run it.
    """

    name = "dd_ranking"

    method: str = Field("G-VBSM", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the method's name")
    dataset: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="what DD-Ranking calls the data set"
    )

    def export(self, run: FinishedRun, destination: Path) -> None:
        images, data = run.images, str(run.meta.get("data", "data"))
        dataset = (
            self.dataset or NAMES.get(data) or re.sub(r"[^A-Za-z0-9._-]+", "-", data).strip("-.") or "data"
        )
        place = f"{self.method}/{dataset}/IPC{run.meta.get('ipc')}"
        settings: dict[str, Any] = {
            "dataset": dataset,
            "real_data_path": "./datasets/",
            "ipc": run.meta.get("ipc"),
            "im_size": list(images.shape[-2:]),
            "teacher_dir": "./teacher_models",
            "syn_data_path": f"./baselines/{place}/",
            "save_path": f"./results/{place}.csv",
        }
        with whole_folder(destination) as folder:
            write_pictures(folder / "baselines" / place, images, run.labels, run.classes)
            if run.baseline is not None:
                write_pictures(folder / "random_data" / place, *run.baseline, run.classes)
                settings |= {"random_data_format": "image", "random_data_path": f"./random_data/{place}/"}
            trained, untold = _training(run)
            lines = [f"{key}: {json.dumps(value)}" for key, value in {**settings, **trained}.items()]
            lines += [f"# no counterpart here: {key} = {json.dumps(value)}" for key, value in untold.items()]
            path = folder / f"{place}.yaml"
            path.parent.mkdir(parents=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _training(run: FinishedRun) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the recipe's training of students in DD-Ranking's words, and what those can't say, by key."""
    evaluation, relabel = run.recipe["evaluation"], run.recipe["relabel"]
    student, schedule, objective = evaluation["students"][0], evaluation["schedule"], evaluation["objective"]
    optimizer = evaluation["optimizer"]
    normalize = {"name": "Normalize", "args": {"mean": list(run.mean), "std": list(run.std)}}
    settings = {
        "model_name": _model(student),
        "stu_use_torchvision": student["use"].startswith("torchvision/"),
        "use_zca": False,
        "custom_train_trans": [{"name": "ToTensor"}, normalize],
        "custom_val_trans": None,
        "data_aug_func": "cutmix" if relabel["cutmix"] else None,
        "aug_params": {"beta": relabel["cutmix_alpha"]} if relabel["cutmix"] else {},
        "soft_label_mode": "M",  # labels for each view, as all sets have here
        "default_lr": evaluation["learning_rate"],
        "num_eval": len(evaluation["seeds"]),
        "num_epochs": evaluation["epochs"],
        "syn_batch_size": evaluation["batch"],
        "real_batch_size": run.recipe["pretrain"]["batch"],
    }
    untold = {f"relabel.{key}": relabel[key] for key in ("augmentation", "ensembler")}
    for section, key, usual in UNTOLD:
        if run.recipe[section].get(key, usual) != usual:
            untold[f"{section}.{key}"] = run.recipe[section][key]
    if 0 < relabel["cutmix"] < 1:
        untold["relabel.cutmix"] = relabel["cutmix"]
    settings |= {
        word: optimizer[key] for word, key in OPTIMIZERS.get(optimizer["use"], {}).items() if key in optimizer
    }
    rest = {key: optimizer[key] for key in optimizer if key not in settings and key != "use"}
    if "optimizer" not in settings or rest not in USUAL:
        untold["evaluation.optimizer"] = optimizer
    if schedule["use"] == "cosine" and not schedule.get("warmup") and schedule.get("stretch", 1) == 1:
        settings["lr_scheduler"] = "cosine"
    else:
        untold["evaluation.schedule"] = schedule
    if objective["use"] == "mse_gt":
        settings |= {"soft_label_criterion": "mse_gt", "loss_fn_kwargs": {"ce_weight": objective["gamma"]}}
    elif objective["use"] == "kl":
        temperature = objective["temperature"]
        settings |= {"soft_label_criterion": "kl", "temperature": temperature}
        settings["loss_fn_kwargs"] = {"temperature": temperature}
        if objective.get("squared"):
            untold["evaluation.objective"] = objective
    else:
        untold["evaluation.objective"] = objective
    return settings, untold


def _model(student: Mapping[str, Any]) -> str:
    """Return what DD-Ranking calls a student (its ConvNets carry their depth)."""
    name = str(student["use"])
    return f"ConvNet-{student['depth']}" if name == "convnet" else MODELS.get(name, name)
