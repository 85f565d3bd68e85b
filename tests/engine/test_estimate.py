"""An estimate against a real run of the same small recipe."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import MakeRun, ToyRun
from safetensors import safe_open

from gvbsm.cli.main import main
from gvbsm.estimate.cost import estimate, label_bytes
from gvbsm.estimate.fake_data import FakeData
from gvbsm.estimate.starts import choosing
from gvbsm.estimate.trial import Trial
from gvbsm.synthesis.real import RealImages
from gvbsm.terminal import duration, size
from gvbsm_registry import Initializer, Source

TINY = {
    "backbones": [{"use": "convnet", "width": 4, "depth": 1}],
    "evaluation.students": [{"use": "convnet", "width": 4, "depth": 1}],
    "synthesis.batch": 4,
}
STAGES = ["pretrain", "measure", "synthesis", "relabel", "evaluation"]


def _tensor_bytes(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118


def _estimated(run: ToyRun) -> dict[str, Any]:
    return estimate(run.recipe, run.context.registry, torch.device("cpu"), steps=2)


def test_bytes_are_those_of_a_real_run(make_run: MakeRun) -> None:
    run = make_run(("relabel.epochs", 5))
    found = _estimated(run)
    run.until("relabel")
    out, store = run.out / "distilled", run.store

    assert found["bytes"]["images"] == _tensor_bytes(out / "images.safetensors")
    labels = sum(_tensor_bytes(path) for path in out.glob("labels-*"))
    assert found["bytes"]["labels"] == pytest.approx(labels, rel=0.05)
    backbones, statistics = run.backbones(), run.statistics()
    assert found["bytes"]["backbones"] == sum(_tensor_bytes(unit.path) for unit in backbones)
    assert found["bytes"]["statistics"] == sum(_tensor_bytes(unit.path) for unit in statistics)
    assert all(unit.path.is_relative_to(store) for unit in backbones)


def test_time_is_of_the_right_order(make_run: MakeRun, tmp_path: Path) -> None:
    changes = [("synthesis.iterations", 60), ("pretrain.epochs", 8), ("evaluation.epochs", 12)]
    run = make_run(*changes, store=tmp_path / "fresh")
    found = _estimated(run)
    started = time.monotonic()
    try:
        run.until("evaluation")
    except Exception as error:  # a toy backbone below chance: what ran until then is no measure
        pytest.skip(f"the run ended early: {error}")
    assert found["seconds"] / 20 < time.monotonic() - started < found["seconds"] * 20


def test_steps_are_those_that_the_recipe_asks_for(make_run: MakeRun) -> None:
    run = make_run()
    costs = {cost["stage"]: cost for cost in _estimated(run)["stages"]}
    recipe, train = run.recipe, run.data.train
    assert list(costs) == STAGES
    assert costs["pretrain"]["steps"] == 2 * recipe.pretrain.epochs * len(train) // recipe.pretrain.batch
    assert costs["measure"]["steps"] == 2 * -(-len(train) // recipe.measure.batch)
    assert costs["synthesis"]["steps"] == 2 * recipe.synthesis.iterations  # 6 images in batches of 4
    assert costs["relabel"]["steps"] == 2 * recipe.relabel.epochs * 2
    for cost in costs.values():
        assert cost["seconds"] == pytest.approx(cost["seconds_per_step"] * cost["steps"])


@pytest.mark.parametrize(("share", "passes"), [(0.5, 2), (1.0, 1)])
def test_measuring_by_class_is_a_pass_of_its_own(make_run: MakeRun, share: float, passes: int) -> None:
    matchers = [{"use": name, "by_class": share} for name in ("bn", "conv_channel")]
    run = make_run(("synthesis.matchers", matchers), ("data.names", list("abcdefgh")), ("data.per_class", 9))
    found = _estimated(run)
    cost = found["stages"][1]
    batch, of_classes = run.recipe.measure.batch, 8  # 9 images of each of 8 classes, in batches of 10
    assert cost["steps"] == 2 * (of_classes + (passes - 1) * -(-72 // batch))
    assert cost["seconds"] > 0
    assert found["bytes"]["statistics"] == sum(_tensor_bytes(unit.path) for unit in run.statistics())


def test_real_images_of_a_step_are_priced_in_full(make_run: MakeRun, monkeypatch: Any) -> None:
    """Though the trial itself is on a few images, in which whole classes may be missing."""
    run = make_run(
        ("data.per_class", 50),
        ("pretrain.batch", 4),
        ("measure.batch", 4),
        ("synthesis.terms", ["mean_features"]),
        ("synthesis.batch", 6),
    )
    drawn, draw = [], RealImages.draw

    def noting(self: RealImages, *given: Any, **where: float) -> Any:
        found = draw(self, *given, **where)
        drawn.append(len(found[0]))
        return found

    monkeypatch.setattr(RealImages, "draw", noting)
    _estimated(run)
    assert set(drawn) == {150}


def test_nothing_is_left_behind(make_run: MakeRun) -> None:
    run = make_run(out="untouched")
    _estimated(run)
    assert not run.out.exists()


def test_a_data_set_that_is_not_at_hand() -> None:
    arguments = [
        "estimate",
        "digits",
        "--images",
        "50000",
        "--classes",
        "20",
        "--image-size",
        "16",
        "--steps",
        "1",
    ]
    for key, value in TINY.items():
        arguments += ["--set", f"{key}={_toml(value)}"]
    done = CliRunner().invoke(main, [*arguments, "--ipc", "2", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert [cost["stage"] for cost in found["stages"]] == STAGES
    assert found["stages"][1]["steps"] == -(-50000 // 64)
    assert found["bytes"]["images"] == 40 * (3 * 16 * 16 + 8)
    assert found["seconds"] == pytest.approx(sum(cost["seconds"] for cost in found["stages"]))


def test_a_stand_in_needs_all_of_its_sizes() -> None:
    done = CliRunner().invoke(main, ["estimate", "digits", "--images", "500"])
    assert done.exit_code == 2
    assert "--image-size" in done.output


def test_a_stand_in_takes_no_memory() -> None:
    data = FakeData.like(images=1_281_167, tests=50_000, classes=1000, image_size=224, channels=3)
    train = data.open("train", Path())
    assert (len(train), len(train.classes)) == (1_281_167, 1000)
    assert train.read(torch.tensor([0, 1_281_166])).shape == (2, 3, 224, 224)


def test_label_bytes_of_larger_sets() -> None:
    tensors = {
        "partner": torch.zeros(3, 10, dtype=torch.uint8),
        "flip": torch.zeros(3, 2, dtype=torch.uint8),
        "roll": torch.zeros(3, 1, 2, dtype=torch.uint8),
        "logits.values": torch.zeros(3, 10, 7, dtype=torch.float16),
    }
    assert label_bytes(tensors, 10, 10) == sum(tensor[0].nbytes for tensor in tensors.values())
    assert label_bytes(tensors, 10, 1001) == 1001 * 2 + 126 + 2 + 1001 * 14


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.04, "2.0 s"), (90, "2 min"), (7500, "2 h 05 min"), (100_000, "1 d 3 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes() -> None:
    assert [size(None), size(12), size(2048), size(3 * 2**30)] == ["unknown", "12 B", "2.0 KiB", "3.0 GiB"]


def _toml(value: Any) -> str:
    import tomli_w

    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip().replace("\n", " ")


def test_what_is_not_needed_costs_nothing_and_teachers_do(make_run: MakeRun, tmp_path: Path) -> None:
    chosen = [("synthesis.iterations", 0), ("synthesis.initializer", "real")]
    hard = _estimated(make_run(*chosen, ("evaluation.soft", False)))
    steps = {table["stage"]: table["steps"] for table in hard["stages"]}
    assert steps["pretrain"] == steps["relabel"] == hard["bytes"]["labels"] == hard["bytes"]["backbones"] == 0
    assert steps["evaluation"] > 0
    pruned = [("relabel.pruning", "batches"), ("relabel.keep_fraction", 0.5)]
    labels = [_estimated(make_run(*chosen, *each))["bytes"]["labels"] for each in ([], pruned)]
    assert labels[1] == labels[0] / 2
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    given = {"use": "toy_net", "width": 5, "weights": str(weights)}
    for teachers, networks, trained in (([{"use": "toy_net"}], 1, 1), ([given, {"use": "convnet"}], 2, 1)):
        cost = _estimated(make_run(*chosen, ("relabel.teachers", teachers)))
        assert cost["stages"][0]["steps"] == trained * 6 * 3
        assert cost["bytes"]["backbones"] > 0, networks


class Slow(Initializer):
    """Takes a unit of time for every image that it looks at: 20 of a class at most."""

    name = "slow"

    def looks_at(self, per_class: int) -> int:
        return min(20, per_class)

    def prepare(self, source: Source) -> dict[str, torch.Tensor]:
        counts = torch.bincount(source.train.labels, minlength=source.classes)
        CLOCK.append(sum(self.looks_at(int(count)) for count in counts if count))
        return {}

    def images(self, labels: Any, ranks: Any, source: Any, generator: Any) -> torch.Tensor:
        CLOCK.append(0)
        return torch.zeros(len(labels), 1, 8, 8)


CLOCK: list[int] = []


def test_choosing_images_is_scaled_by_what_is_looked_at(make_run: MakeRun, monkeypatch: Any) -> None:
    """A part of the data is timed; the whole has 40 images of each class, of which 20 are looked at."""
    run = make_run(("data.per_class", 40), ("data.tests", 4))
    monkeypatch.setattr(Trial, "seconds", lambda self, work: (work(), float(CLOCK[-1]))[1])
    trial = Trial(run.recipe, run.data, run.context.registry, run.context.device, run.out, 15)
    trial.make_untrained()
    seconds = choosing(trial, run.data, Slow())
    assert seconds == pytest.approx(3 * 20)
