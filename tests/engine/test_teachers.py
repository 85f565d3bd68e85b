"""Who labels, and how: teachers of their own, their BatchNorm, the labels' temperature."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import MakeRun, ToyRun
from torch import Tensor, nn

from gvbsm.distilled.dataset import DistilledDataset
from gvbsm.matching.frozen import freeze, use_batch_statistics
from gvbsm.stages import pretrain
from gvbsm_registry import GvbsmError

EXACT = [("relabel.epochs", 2), ("relabel.batch", 4)]


def modules_of(run: ToyRun, widths: tuple[int, ...], units: list) -> list[nn.Module]:
    """The trained networks as torch alone builds them."""
    found = []
    for width, unit in zip(widths, units, strict=True):
        module = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * width, 3),
        )
        module.load_state_dict(unit.read().tensors)
        found.append(module.eval())
    return found


def batches(run: ToyRun, epoch: int) -> list[tuple[Tensor, Tensor]]:
    """The views and logits of each batch that was labelled together: those that CutMix was drawn for."""
    data = DistilledDataset(run.out / "distilled")
    labelled, order = data.epoch(epoch), torch.arange(len(data))
    views = labelled.views.apply(data.normalized(), order)
    # one box a batch, so images of one box were together
    boxes = {tuple(box) for box in labelled.views.boxes.tolist()}
    together = [(labelled.views.boxes == torch.tensor(box)).all(1) for box in sorted(boxes)]
    assert [int(part.sum()) for part in together] in ([4, 2], [2, 4])
    return [(views[part], labelled.logits[part]) for part in together]


def test_a_teacher_that_equals_a_backbone_shares_its_unit(make_run: MakeRun) -> None:
    plain = make_run()
    assert plain.plan.teachers == plain.plan.backbones == plain.plan.networks
    tables = [{"use": "toy_net", "width": 8, "match_weight": 3.0}, {"use": "toy_net", "width": 7}]
    run = make_run(("relabel.teachers", tables), ("relabel.epochs", 2))
    assert [unit.name for unit in run.plan.networks] == ["toy_net", "toy_net-2", "toy_net-3"]
    assert run.plan.networks[:2] == run.plan.backbones == plain.plan.backbones
    assert run.plan.teachers == run.plan.networks[1:]
    run.until("relabel")
    teachers = modules_of(run, (8, 7), run.plan.teachers)
    data = DistilledDataset(run.out / "distilled")
    for views, logits, _ in data.batches(1, 6):
        with torch.no_grad():
            expected = torch.stack([module(views) for module in teachers]).mean(0)
        torch.testing.assert_close(logits, expected, atol=0.02, rtol=2e-3)


def test_equal_teachers_are_trained_anew_beyond_the_backbones(make_run: MakeRun) -> None:
    run = make_run(("relabel.teachers", [{"use": "toy_net"}] * 3))
    assert len(run.plan.networks) == 4
    assert [unit.key for unit in run.plan.teachers] == [run.plan.networks[at].key for at in (0, 2, 3)]
    assert len({unit.key for unit in run.plan.networks}) == 4


def test_a_teacher_with_weights_is_taken_as_it_is(make_run: MakeRun, tmp_path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(3)
    state = make_run().context.build(make_run().recipe.backbones[0]).state_dict()
    path = tmp_path / "teacher.safetensors"
    save_file(state, path)
    table = {"use": "convnet", "width": 8, "depth": 1}
    donor = make_run(("backbones", [table]), ("pretrain.epochs", 9), out="donor")
    (unit,) = donor.backbones()
    save_file(unit.read().tensors, path)
    changes = [("relabel.teachers", [{**table, "weights": str(path)}]), ("relabel.epochs", 1)]
    run = make_run(*changes).until("relabel")
    (teacher,) = run.plan.teachers
    taken, given = teacher.read(), unit.read()
    assert taken.meta["epochs"] == 0
    assert taken.meta["top1"] == given.meta["top1"]
    assert all(torch.equal(taken.tensors[name], given.tensors[name]) for name in given.tensors)


def test_teachers_are_in_the_labels_keys_alone(make_run: MakeRun) -> None:
    before, after = make_run().plan, make_run(("relabel.teachers", [{"use": "toy_net"}])).plan
    spelt = make_run(("relabel.teachers", [{"use": "toy_net"}, {"use": "toy_net", "width": 8}])).plan
    for plan in (after, spelt):
        assert [unit.key for unit in plan.image_batches] == [unit.key for unit in before.image_batches]
        assert [unit.key for unit in plan.backbones] == [unit.key for unit in before.backbones]
    assert before.labels["random"][0].key == spelt.labels["random"][0].key != after.labels["random"][0].key


def test_bad_teachers_are_refused_before_anything_runs(make_run: MakeRun) -> None:
    from gvbsm import pipeline

    run = make_run(("relabel.teachers", [{"use": "torchvision/no_such_net"}]))
    with pytest.raises(GvbsmError, match="no_such_net"):
        pipeline.check(run.recipe, run.context)
    bad = make_run(("relabel.teachers", [{"use": "toy_net", "width": 5}]), ("pretrain.min_accuracy", 1.0))
    with pytest.raises(GvbsmError, match=r"backbone 'toy_net.*' reaches"):
        bad.until("pretrain")


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_batch_statistics_are_those_of_a_module_in_train_mode(make_run: MakeRun, mode: str) -> None:
    run = make_run(*EXACT, ("relabel.batch_norm", mode)).until("relabel")
    teachers = modules_of(run, (6, 8), run.plan.backbones)
    for epoch in range(2):
        for views, logits in batches(run, epoch):
            with torch.no_grad():
                seen = [copy.deepcopy(module).train(mode == "batch")(views) for module in teachers]
            torch.testing.assert_close(logits, torch.stack(seen).mean(0), atol=0.02, rtol=2e-3)


def test_nothing_but_batch_norm_is_as_in_training() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(144, 5),
        nn.BatchNorm1d(5),
    )
    for norm in (module[1], module[5]):
        norm.running_mean.normal_()
        norm.weight.data.normal_()
    images = torch.randn(7, 3, 8, 8)
    expected = copy.deepcopy(module).double().train()
    expected[2].eval()
    ready = use_batch_statistics(freeze(copy.deepcopy(module)))
    before = {name: value.clone() for name, value in ready.state_dict().items()}
    torch.testing.assert_close(ready(images).double(), expected(images.double()), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in ready.state_dict().items())
    assert not torch.allclose(ready(images), freeze(copy.deepcopy(module))(images), atol=0.1)


def test_no_image_is_labelled_alone_where_its_batch_counts(make_run: MakeRun) -> None:
    run = make_run(("relabel.batch_norm", "batch"), ("relabel.batch", 5), ("relabel.epochs", 1))
    data = DistilledDataset(run.until("relabel").out / "distilled")
    assert len({tuple(box) for box in data.epoch(0).views.boxes.tolist()}) == 1  # all six together
    with pytest.raises(GvbsmError, match='relabel: batch_norm = "batch" needs a batch of 2 or more'):
        make_run(("relabel.batch_norm", "batch"), ("relabel.batch", 1))


def test_logits_are_divided_by_the_temperature(make_run: MakeRun) -> None:
    one, four = (
        DistilledDataset(
            make_run(*EXACT, ("relabel.temperature", value), out=f"t{value}").until("relabel").out
            / "distilled"
        )
        for value in (1.0, 4.0)
    )
    for epoch in range(2):
        torch.testing.assert_close(
            four.epoch(epoch).logits, one.epoch(epoch).logits / 4, atol=1e-2, rtol=2e-3
        )


def test_by_accuracy_is_told_the_teachers_accuracies(make_run: MakeRun) -> None:
    ensembler = {"use": "by_accuracy", "temperature": 0.02}
    changes = [
        ("relabel.ensembler", ensembler),
        ("backbones", [{"use": "toy_net"}, {"use": "toy_net", "width": 2}]),
    ]
    run = make_run(*changes, ("relabel.epochs", 1), ("pretrain.epochs", 2)).until("relabel")
    accuracies = [unit.read().meta["top1"] for unit in run.plan.backbones]
    assert accuracies[0] != accuracies[1]
    assert [pretrain.member(unit).accuracy for unit in run.plan.backbones] == accuracies
    weights = (torch.tensor(accuracies, dtype=torch.float64) / 0.02).softmax(0).float()
    data = DistilledDataset(run.out / "distilled")
    for views, logits, _ in data.batches(0, 6):
        with torch.no_grad():
            seen = [module(views) for module in modules_of(run, (6, 2), run.plan.backbones)]
        expected = weights[0] * seen[0] + weights[1] * seen[1]
        torch.testing.assert_close(logits, expected, atol=0.02, rtol=2e-3)
