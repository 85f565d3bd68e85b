"""What initializers are handed: real images, and the pretrained backbones as a committee."""

from __future__ import annotations

import pytest
import torch
from conftest import MakeRun, ToyRun

from gvbsm.runtime.units import Unit
from gvbsm.stages import pretrain, real_images
from gvbsm.stages.real_images import RealData


@pytest.fixture
def run(make_run: MakeRun) -> ToyRun:
    return make_run()


def test_the_committee_is_all_pretrained_backbones_frozen_in_the_recipes_order(run: ToyRun) -> None:
    units = run.backbones()
    committee = RealData(run.context, 0, units).committee
    assert [member.name for member in committee] == ["toy_net", "toy_net-2"]
    assert [member.accuracy for member in committee] == [unit.read().meta["top1"] for unit in units]
    images = run.context.normalize(run.data.train.read(torch.arange(5)))
    for member, unit in zip(committee, units, strict=True):
        assert not member.module.training
        assert not any(parameter.requires_grad for parameter in member.module.parameters())
        expected = pretrain.load_backbone(run.context, unit)(images)
        assert torch.equal(member.module(images), expected)


def test_backbones_are_loaded_once_and_only_when_asked_for(
    run: ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, loaded = run.backbones(), []

    def load(context: object, unit: Unit) -> torch.nn.Module:
        loaded.append(unit.name)
        return pretrain.load_backbone(run.context, unit)

    monkeypatch.setattr(real_images, "load_backbone", load)
    source = RealData(run.context, 0, units)
    source.normalize(source.train.read(torch.arange(2)))
    assert loaded == []
    for _ in range(2):
        source.features(torch.arange(3))
    assert loaded == ["toy_net"]
    for _ in range(2):
        assert len(source.committee) == 2
    assert loaded == ["toy_net", "toy_net-2"]


def test_what_is_prepared_depends_on_all_backbones(make_run: MakeRun) -> None:
    initializer = ("synthesis.initializer", "forgetting")
    other = ("backbones", [{"use": "toy_net"}, {"use": "toy_net", "width": 9}])
    (one,), (two,) = (made.plan.preparation for made in (make_run(initializer), make_run(initializer, other)))
    assert [unit.name for unit in one.input_list("backbones")] == ["toy_net", "toy_net-2"]
    assert one.key != two.key
