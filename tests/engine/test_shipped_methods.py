"""Every shipped method runs, and says what it is known for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gvbsm import pipeline
from gvbsm.recipe import loading
from gvbsm.results.records import read_records
from gvbsm_registry import Registry, discover

METHODS = sorted(
    name.removeprefix("methods/") for name in discover().recipes() if name.startswith("methods/")
)
KNOWN_FOR: dict[str, dict[str, Any]] = {
    "cda": {"synthesis.augmentation.curriculum": 1.0, "synthesis.augmentation.scale": [0.08, 1.0]},
    "cv-dd": {
        "synthesis.population.per_step": 2,
        "synthesis.population.order": "fixed",
        "synthesis.population.by_accuracy": 5.0,
        "synthesis.population.first": 0,
        "relabel.batch_norm": "batch",
    },
    "datadam": {
        "synthesis.iterations": 20000,
        "synthesis.terms.0.weight": 100.0,
        "synthesis.terms.0.power": 1.0,
        "synthesis.terms.0.real": 64,
        "synthesis.terms.1.weight": 1.0,
        "synthesis.terms.1.real": 64,
        "synthesis.batching": "one_class",
        "synthesis.learning_rate": 1.0,
        "evaluation.soft": False,
    },
    "delt": {"synthesis.callbacks.0.rounds": 8, "synthesis.initializer.pick": "medium"},
    "dm": {
        "synthesis.iterations": 20000,
        "synthesis.population.every": 1,
        "synthesis.terms.0.real": 256,
        "synthesis.terms.0.same_view": True,
        "synthesis.batching": "one_class",
        "synthesis.augmentation.per_image": False,
        "synthesis.optimizer.momentum": 0.5,
        "synthesis.learning_rate": 1.0,
        "evaluation.soft": False,
    },
    "dwa": {
        "synthesis.population.ascend": 12,
        "synthesis.population.radius": 0.015,
        "synthesis.matchers.0.variance_weight": 11.0,
        "synthesis.batching": "across_classes",
        "synthesis.initializer.use": "real",
    },
    "edc": {
        "synthesis.iterations": 75,
        "synthesis.matchers.1.by_class": 0.5,
        "synthesis.matchers.1.momentum": 0.8,
        "synthesis.terms.1.use": "flatness",
        "synthesis.terms.1.temperature": 4.0,
        "synthesis.terms.1.weight": 0.25,
    },
    "fadrm": {
        "synthesis.iterations": 2000,
        "synthesis.callbacks.0.every": 500,
        "synthesis.callbacks.0.times": 3,
        "synthesis.callbacks.0.keep": 0.5,
        "relabel.batch_norm": "batch",
        "relabel.batch": 16,
    },
    "forgetting": {"synthesis.iterations": 0},
    "gvbsm": {"synthesis.iterations": 4000, "synthesis.population.per_step": 1},
    "herding": {"synthesis.iterations": 0},
    "k-center": {"synthesis.iterations": 0},
    "lpld": {
        "synthesis.batching": "one_class",
        "synthesis.matchers.0.by_class": 1.0,
        "relabel.pruning": "batches",
        "relabel.keep_fraction": 0.025,
    },
    "lpqld": {
        "synthesis.batching": "one_class",
        "relabel.codec.use": "topk",
        "relabel.pruning": "batches",
    },
    "random": {"synthesis.iterations": 0, "synthesis.initializer.use": "real"},
    "rded": {
        "synthesis.iterations": 0,
        "synthesis.initializer.use": "mosaic",
        "synthesis.initializer.pool": 300,
        "synthesis.initializer.crops": 5,
        "synthesis.initializer.pick": "top",
    },
    "sre2l": {
        "synthesis.initializer.use": "noise",
        "synthesis.matchers.0.weight": 0.01,
        "synthesis.matchers.0.momentum": 0.0,
        "synthesis.matchers.0.first_site_weight": 10.0,
        "synthesis.optimizer.betas": [0.5, 0.9],
        "synthesis.learning_rate": 0.25,
    },
    "sre2lpp": {"relabel.batch_norm": "batch", "synthesis.initializer.pick": "medium"},
}
"""By method and key, what the papers (and their authors' code) are known for."""


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_what_it_is_known_for(name: str, registry: Registry) -> None:
    tables = loading.load("digits", registry, [("method", name)]).tables()
    for key, value in KNOWN_FOR[name].items():
        place: Any = tables
        for part in key.split("."):
            place = place[int(part)] if part.isdecimal() else place[part]
        assert place == value, key
    assert tables["method"] == name


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs(name: str, tmp_path: Path, shared_store: Path, registry: Registry) -> None:
    """On digits with tiny networks and a few steps, from data to accuracies."""
    backbones = [{"use": "convnet", "width": 8, "depth": depth} for depth in (2, 1)]
    steps = loading.load("digits", registry, [("method", name)]).synthesis.iterations and 8
    short = {
        "backbones": backbones,
        "pretrain.epochs": 2,
        "synthesis.ipc": 3,
        "synthesis.iterations": steps,
        "synthesis.compile": False,
        "relabel.epochs": 40,
        "evaluation.students": backbones[:1],
        "evaluation.seeds": [0],
        "evaluation.epochs": 2,
        "evaluation.full_baseline": False,
        "evaluation.random_baseline": False,
    }
    folder = pipeline.run(
        "digits",
        method=name,
        out=tmp_path / "out",
        store=shared_store,
        overrides=list(short.items()),
        registry=registry,
        report=False,
    )
    (record,) = read_records(folder)
    assert record["set"] == "distilled"
    assert 0.05 < record["top1"] < 1


def test_the_engine_names_no_method() -> None:
    """What differs between methods stands in recipes and plugins."""
    words = "|".join(["sre2l", "cda", "dwa", "rded", "edc", "fadrm", "delt", "lpld", "lpqld", "cv[-_]?dd"])
    engine = Path(pipeline.__file__).parent
    named = [
        f"{path.name}: {line.strip()}"
        for path in engine.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(rf"\b({words})\b", line, re.IGNORECASE)
    ]
    assert not named
