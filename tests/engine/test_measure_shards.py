"""Measuring in shards: sums and counts are merged, so that the split changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gvbsm.runtime.run import Workspace

from gvbsm import pipeline
from gvbsm.runtime.units import execute
from gvbsm.stages import measure
from gvbsm_registry import Artifact

Make = Callable[..., Workspace]


def measured(make: Make, stages: Any, shards: int, *changes: tuple[str, Any]) -> list[Artifact]:
    run = make(("measure.shards", shards), *changes)
    planned = run.plan.statistics(run.backbones())
    if extra := measure.shards(planned):
        execute(run, "measure", extra)
    execute(run, "measure", planned)
    return [unit.read() for unit in planned]


@pytest.mark.parametrize("augmentation", ["none", {"use": "crop_flip_roll", "padding": 1}])
@pytest.mark.parametrize("shards", [2, 3, 5])
def test_shards_measure_what_one_pass_measures(
    make_run: Make, stages: Any, shards: int, augmentation: Any
) -> None:
    change = ("measure.augmentation", augmentation)
    one = measured(make_run, 1, change)
    several = measured(make_run, shards, change)
    for whole, merged in zip(one, several, strict=True):
        assert whole.tensors.keys() == merged.tensors.keys()
        assert whole.meta["images"] == merged.meta["images"] == 24
        for name, value in whole.tensors.items():
            # both are float64 sums of the same batches, rounded once to float32
            assert torch.allclose(value, merged.tensors[name], rtol=2**-23, atol=0), name


def test_one_shard_keeps_its_key_and_more_shards_have_their_own(make_run: Make, stages: Any) -> None:
    def keys(shards: int) -> list[str]:
        run = make_run(("measure.shards", shards))
        return [unit.key for unit in run.plan.statistics(run.backbones())]

    run = make_run()
    options = run.recipe.model_dump(mode="json")["measure"]
    planned = run.plan.statistics(run.backbones())
    assert "shards" in options
    assert all("shards" not in unit.depends["options"] for unit in planned)
    assert keys(1) == [unit.key for unit in planned]
    assert len({*keys(1), *keys(2), *keys(3)}) == 6


def test_more_shards_than_batches(make_run: Make, stages: Any) -> None:
    many = measured(make_run, 7)
    one = measured(make_run, 1)
    for name, value in one[0].tensors.items():
        assert torch.allclose(value, many[0].tensors[name], rtol=2**-23, atol=0)


def test_a_run_measures_its_shards_first_and_once(make_run: Make, tmp_path: Any) -> None:
    run = make_run(("measure.shards", 2), store=tmp_path / "store")
    pipeline.run_stages(run, "measure")
    log = (run.out / "log.jsonl").read_text()
    assert "measure shards" in log
    again = make_run(("measure.shards", 2), out="again", store=tmp_path / "store")
    pipeline.run_stages(again, "measure")
    assert "measure shards" not in (again.out / "log.jsonl").read_text()
