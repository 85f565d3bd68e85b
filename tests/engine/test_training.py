"""Training: against a plain loop written with torch alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gvbsm.distilled.dataset import DistilledDataset
from gvbsm.runtime.seeds import seed_of
from gvbsm.stages import pretrain, training
from gvbsm_plugins.augmentations import CropFlipRoll
from gvbsm_registry import GvbsmError, Schedule


def toy_net(width: int = 6) -> nn.Module:
    """The toy backbone for 3 classes of 8×8 grey images, written again."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * width, 3),
    )


def pixels(run, name: str) -> tuple[Tensor, Tensor]:
    split = run.data.train if name == "train" else run.data.test
    (mean,), (std,) = run.data.normalization.mean, run.data.normalization.std
    return (split.images.float() / 255 - mean) / std, split.labels


def accuracy(module: nn.Module, run) -> float:
    images, labels = pixels(run, "test")
    with torch.no_grad():
        return float((module.eval()(images).argmax(1) == labels).double().mean())


def cosine(step: int, steps: int) -> float:
    return (1 + math.cos(math.pi * step / steps)) / 2


def evaluated(run, which: str, labels: str):
    """The record and curve of one finished evaluation unit."""
    for path in (run.out / "units" / "evaluation").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            import json

            record = json.loads(file.metadata()["meta"])["record"]
            if (record["set"], record["labels"]) == (which, labels):
                curve = zip(file.get_tensor("epochs").tolist(), file.get_tensor("top1").tolist(), strict=True)
                return record, list(curve)
    raise AssertionError((which, labels))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("objective", [{"use": "mse_gt", "gamma": 0.15}, {"use": "kl", "temperature": 20}])
def test_a_student_on_soft_labels_equals_a_plain_loop(make_run, optimizer, objective):
    changes = [
        ("evaluation.optimizer", {"use": optimizer, "weight_decay": 0.01}),
        ("evaluation.objective", objective),
    ]
    changes += [("evaluation.learning_rate", 0.01), ("evaluation.epochs", 5), ("evaluation.test_every", 2)]
    run = make_run(*changes).until("evaluation")
    data = DistilledDataset(run.out / "distilled")

    torch.manual_seed(seed_of("student", 0))
    student = toy_net()
    order = torch.Generator().manual_seed(seed_of("order", 0))
    if optimizer == "adamw":
        taken: torch.optim.Optimizer = torch.optim.AdamW(
            student.parameters(), betas=(0.9, 0.999), weight_decay=0.01
        )
    else:
        taken = torch.optim.SGD(student.parameters(), 1.0, momentum=0.9, weight_decay=0.01)
    curve = []
    for epoch in range(5):
        student.train()
        data.set_epoch(epoch % 4)
        views, logits, truth = (torch.stack(part) for part in zip(*[data[i] for i in range(6)], strict=True))
        for step, index in enumerate(torch.randperm(6, generator=order).split(4)):
            output = student(views[index])
            if objective["use"] == "mse_gt":
                hard = -(truth[index] * output.log_softmax(1)).sum(1).mean()
                loss = (output - logits[index]).square().mean() + 0.15 * hard
            else:
                p, q = (logits[index] / 20).softmax(1), (output / 20).softmax(1)
                loss = (p * (p.log() - q.log())).sum(1).mean()
            for group in taken.param_groups:
                group["lr"] = 0.01 * cosine(2 * epoch + step, 10)
            taken.zero_grad()
            loss.backward()
            taken.step()
        if epoch in (1, 3, 4):
            curve.append((epoch + 1, accuracy(student, run)))
    record, found = evaluated(run, "distilled", "soft")
    assert [epoch for epoch, _ in found] == [2, 4, 5]
    assert found == [(epoch, pytest.approx(value, abs=1e-6)) for epoch, value in curve]
    assert record["top1"] == pytest.approx(curve[-1][1])
    assert record["best_top1"] == pytest.approx(max(value for _, value in curve))


def test_a_student_on_hard_labels_equals_a_plain_loop(make_run):
    run = make_run(("evaluation.augmentation", "none"), ("evaluation.learning_rate", 0.01)).until(
        "evaluation"
    )
    with safe_open(run.out / "baselines" / "random" / "images.safetensors", "pt") as file:
        images, labels = file.get_tensor("images"), file.get_tensor("labels")
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    (mean,), (std,) = run.data.normalization.mean, run.data.normalization.std
    torch.manual_seed(seed_of("student", 0))
    student, order = toy_net(), torch.Generator().manual_seed(seed_of("order", 0))
    optimizer = torch.optim.AdamW(student.parameters(), weight_decay=0.01)
    curve = []
    for epoch in range(2):
        student.train()
        for step, index in enumerate(torch.randperm(6, generator=order).split(4)):
            optimizer.param_groups[0]["lr"] = 0.01 * cosine(2 * epoch + step, 4)
            optimizer.zero_grad()
            cross_entropy(student((images[index].float() / 255 - mean) / std), labels[index]).backward()
            optimizer.step()
        curve.append((epoch + 1, pytest.approx(accuracy(student, run), abs=1e-6)))
    assert evaluated(run, "random", "hard")[1] == curve


@pytest.mark.parametrize("streamed", [False, True])
def test_pretraining_equals_a_plain_loop(make_run, streamed, tmp_path):
    changes = [("data.streamed", streamed), ("backbones", ["toy_net"]), ("pretrain.epochs", 3)]
    (unit,) = make_run(*changes, store=tmp_path / "store").backbones()
    with safe_open(unit.path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    run = make_run()
    seed = seed_of("pretrain", 0, "toy_net", 0)
    torch.manual_seed(seed)
    module = toy_net().train()
    order = torch.Generator().manual_seed(seed)
    images, labels = pixels(run, "train")
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(3):
        for step, index in enumerate(torch.randperm(24, generator=order).split(8)):
            optimizer.param_groups[0]["lr"] = 0.05 * cosine(3 * epoch + step, 9)
            optimizer.zero_grad()
            cross_entropy(module(images[index]), labels[index]).backward()
            optimizer.step()
    assert set(weights) == set(module.state_dict())
    for name, value in module.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
    artifact = unit.read()
    assert artifact.meta["top1"] == pytest.approx(accuracy(module, run))
    assert artifact.meta["classes"] == ["ant", "bee", "cat"]
    assert pretrain.load_backbone(make_run(*changes).context, unit).training is False


def test_a_lone_last_image_joins_the_batch_before():
    batches = training.split_batches(torch.arange(9), 4)
    assert [len(batch) for batch in batches] == [4, 5]
    assert torch.cat(batches).tolist() == list(range(9))
    assert [len(batch) for batch in training.split_batches(torch.arange(8), 4)] == [4, 4]
    assert [len(batch) for batch in training.split_batches(torch.arange(1), 4)] == [1]


def test_augmentations_are_told_the_share_of_all_epochs(make_run, monkeypatch, tmp_path):
    """Of pretraining and of students with hard labels; measuring and relabelling tell nothing."""
    told: dict[str, list[float | None]] = {"pretrain": [], "measure": [], "relabel": [], "evaluation": []}
    kind = CropFlipRoll
    draw = kind.draw

    def watched(self, count, image_size, generator, **progress):
        told[stage].append(progress.get("progress"))
        return draw(self, count, image_size, generator, **progress)

    monkeypatch.setattr(kind, "draw", watched)
    view = {"use": "crop_flip_roll", "padding": 1, "flip": 0.0}
    changes = [(f"{name}.augmentation", view) for name in told]
    changes += [("pretrain.batch", 12), ("evaluation.batch", 3), ("synthesis.augmentation", "none")]
    run = make_run(*changes, store=tmp_path / "store")
    for stage in told:
        run.until(stage)
    assert told["pretrain"] == pytest.approx([step / 12 for step in range(12)] * 2)
    assert told["evaluation"] == [0.0, 0.25, 0.5, 0.75]
    for stage in ("measure", "relabel"):
        assert told[stage]
        assert set(told[stage]) == {None}


@pytest.mark.parametrize(("count", "size"), [(9, 4), (8, 4), (1, 4), (25, 5), (24, 5)])
def test_batches_are_counted_as_they_are_split(count, size):
    assert training.batches_of(count, size) == len(training.split_batches(torch.arange(count), size))


class Fixed(Schedule):
    """What the test says, or the step itself."""

    name = "fixed"

    value: Any = None

    def factor(self, step: int, steps: int) -> float:
        return self.value if self.value is not None else step / steps


def fit_ones(schedule: Schedule, epochs: int, steps: int) -> list[float]:
    """Train one weight, whose gradient is always 1; return it after every step, beginning at 0."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    seen: list[float] = []

    def batches(epoch: int) -> Iterator[training.Batch]:
        for _ in range(steps):
            seen.append(module.weight.item())
            yield torch.ones(1, 1), Tensor.sum
        seen.append(module.weight.item())

    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    training.fit(module, optimizer, schedule, epochs, steps, batches, lambda epoch, loss: None)
    return seen


def test_the_rate_changes_with_every_step():
    expected, weight = [], 0.0
    for step in range(6):
        expected.append(weight)
        weight -= step / 6
        if step % 3 == 2:  # the end of an epoch
            expected.append(weight)
    assert fit_ones(Fixed(), 2, 3) == pytest.approx(expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5, "fast"])
def test_a_schedule_that_gives_no_factor_is_blamed_by_name(value):
    with pytest.raises(
        GvbsmError, match=rf"^schedule 'fixed' of .* returned {value!r} at step 0 of 6; .* 0 or more"
    ):
        fit_ones(Fixed().model_copy(update={"value": value}), 2, 3)


def test_averaged_weights_are_tested_with_the_students_own_buffers(make_run):
    changes = [("evaluation.ema", 0.7), ("evaluation.learning_rate", 0.02), ("evaluation.epochs", 4)]
    run = make_run(*changes, ("evaluation.augmentation", "none"), ("evaluation.soft", False)).until(
        "evaluation"
    )
    with safe_open(run.out / "baselines" / "random" / "images.safetensors", "pt") as file:
        images, labels = file.get_tensor("images"), file.get_tensor("labels")
    (mean,), (std,) = run.data.normalization.mean, run.data.normalization.std
    torch.manual_seed(seed_of("student", 0))
    student, order = toy_net(), torch.Generator().manual_seed(seed_of("order", 0))
    averages = {name: weights.detach().double() for name, weights in student.named_parameters()}
    optimizer = torch.optim.AdamW(student.parameters(), weight_decay=0.01)
    curve = []
    for epoch in range(4):
        student.train()
        for step, index in enumerate(torch.randperm(6, generator=order).split(4)):
            optimizer.param_groups[0]["lr"] = 0.02 * cosine(2 * epoch + step, 8)
            optimizer.zero_grad()
            cross_entropy(student((images[index].float() / 255 - mean) / std), labels[index]).backward()
            optimizer.step()
            for name, weights in student.named_parameters():
                averages[name] = 0.7 * averages[name] + 0.3 * weights.detach().double()
        tested = toy_net()
        buffers = dict(student.named_buffers())
        tested.load_state_dict({name: value.float() for name, value in averages.items()} | buffers)
        curve.append((epoch + 1, pytest.approx(accuracy(tested, run), abs=1e-6)))
    assert evaluated(run, "random", "hard")[1] == curve


def test_a_running_mean_of_weights_in_float64():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    averaged = training.AveragedWeights(module, 0.9)
    expected = [weights.detach().clone() for weights in module.parameters()]
    for _ in range(5):
        with torch.no_grad():
            for weights in module.parameters():
                weights.add_(torch.randn_like(weights))
        module.train()(torch.randn(4, 3, dtype=torch.float64))
        averaged.update()
        expected = [0.9 * old + 0.1 * new for old, new in zip(expected, module.parameters(), strict=True)]
    ready = averaged.module()
    assert not ready.training
    for mean, right in zip(ready.parameters(), expected, strict=True):
        torch.testing.assert_close(mean, right, rtol=0, atol=1e-12)
        assert not mean.requires_grad
    for kept, buffer in zip(ready.buffers(), module.buffers(), strict=True):
        assert torch.equal(kept, buffer)
