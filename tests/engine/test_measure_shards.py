"""Measuring in shards: sums and counts are merged, so that the split changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRun

from gvbsm_registry import Artifact


def measured(make: MakeRun, shards: int, *changes: tuple[str, Any]) -> list[Artifact]:
    return [unit.read() for unit in make(("measure.shards", shards), *changes).statistics()]


@pytest.mark.parametrize("augmentation", ["none", {"use": "crop_flip_roll", "padding": 1}])
@pytest.mark.parametrize("shards", [2, 3, 5])
def test_shards_measure_what_one_pass_measures(make_run: MakeRun, shards: int, augmentation: Any) -> None:
    change = ("measure.augmentation", augmentation)
    one = measured(make_run, 1, change)
    several = measured(make_run, shards, change)
    for whole, merged in zip(one, several, strict=True):
        assert whole.tensors.keys() == merged.tensors.keys()
        assert whole.meta["images"] == merged.meta["images"] == 24
        for name, value in whole.tensors.items():
            # both are float64 sums of the same batches, rounded once to float32
            assert torch.allclose(value, merged.tensors[name], rtol=2**-23, atol=0), name


def test_one_shard_keeps_its_key_and_more_shards_have_their_own(make_run: MakeRun) -> None:
    def keys(shards: int) -> list[str]:
        return [unit.key for unit in make_run(("measure.shards", shards)).plan.statistics]

    run = make_run()
    options = run.recipe.model_dump(mode="json")["measure"]
    planned = run.plan.statistics
    assert "shards" in options
    assert all("shards" not in unit.options["measure"] for unit in planned)
    assert keys(1) == [unit.key for unit in planned]
    assert len({*keys(1), *keys(2), *keys(3)}) == 6


def test_more_shards_than_batches(make_run: MakeRun) -> None:
    many = measured(make_run, 7)
    one = measured(make_run, 1)
    for name, value in one[0].tensors.items():
        assert torch.allclose(value, many[0].tensors[name], rtol=2**-23, atol=0)


def test_a_run_measures_its_shards_first_and_once(make_run: MakeRun, tmp_path: Path) -> None:
    def waves(out: str) -> list[list[str]]:
        """The units that were worked at in the measure stage, wave by wave."""
        run = make_run(("measure.shards", 2), out=out, store=tmp_path / "store").until("measure")
        events = [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]
        ended = [e for e in events if e["event"] == "stage_finished" and e["stage"] == "measure"]
        return [list(event["summaries"]) for event in ended]

    names = ["toy_net", "toy_net-2"]
    assert waves("out") == [[f"{name} {part}/2" for name in names for part in (1, 2)], names]
    assert waves("again") == [[]]
