"""The stages around synthesis: what each leaves behind, against plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import functional as reference

from benchmarks import textbook
from gvbsm.matching.targets import target_name
from gvbsm.runtime.seeds import generator_of
from gvbsm.stages import measure, pretrain
from gvbsm_registry import GvbsmError


def opened(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and metadata by safetensors alone."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(  # noqa: SIM118
            file.metadata()["meta"]
        )


def toy_net(width: int, path: Path) -> nn.Module:
    """The toy backbone for 3 classes of 8×8 grey images, written again, with stored weights."""
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * width, 3),
    )
    model.load_state_dict(opened(path)[0])
    return model.eval().requires_grad_(False)


# Pretrain


def test_a_backbone_no_better_than_chance_stops_the_run(make_run):
    run = make_run(("pretrain.learning_rate", 1e-9), ("pretrain.epochs", 1), ("data.noise", 900.0))
    with pytest.raises(GvbsmError, match=r"'toy_net' reaches \d+\.\d% .*below the 51\.6%.*pretrain\.epochs"):
        run.until("evaluation")
    assert not (run.out / "distilled").exists()


def test_a_floor_above_what_a_backbone_reaches_stops_the_run_and_trains_nothing_anew(make_run):
    units = make_run(("data.noise", 110.0)).backbones()
    accuracies = [unit.read().meta["top1"] for unit in units]
    assert all(0.55 < accuracy < 1 for accuracy in accuracies)
    run = make_run(("data.noise", 110.0), ("pretrain.min_accuracy", 1.0))
    assert all(unit.done() for unit in run.plan.backbones)
    with pytest.raises(GvbsmError, match=r"below the 100\.0%"):
        run.until("pretrain")
    enough = make_run(("data.noise", 110.0), ("pretrain.min_accuracy", min(accuracies)))
    enough.until("pretrain")


def test_a_test_split_too_small_to_tell_can_be_passed(make_run):
    run = make_run(("data.tests", 1), ("data.noise", 1.0))
    units = run.backbones()
    assert units[0].read().meta["top1"] == 1.0
    pretrain.check_accuracies(units, run.data, 0.0)


def test_weights_of_a_file_are_taken_as_they_are(make_run, tmp_path):
    first = make_run(("backbones", [{"use": "convnet", "width": 8, "depth": 2}]))
    (trained,) = first.backbones()
    weights = opened(trained.path)[0]
    save_file(weights, tmp_path / "weights.safetensors")
    table = {"use": "convnet", "width": 8, "depth": 2, "weights": str(tmp_path / "weights.safetensors")}
    run = make_run(("backbones", [table]), ("pretrain.epochs", 0))
    (taken,) = run.backbones()
    found, meta = opened(taken.path)
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert meta["top1"] == trained.read().meta["top1"]
    assert meta["epochs"] == 0
    module = pretrain.load_backbone(run.context, taken)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())

    weights["classifier.bias"][0] += 100  # another file behind the same name is another unit
    save_file(weights, tmp_path / "weights.safetensors")
    again = make_run(("backbones", [table]), ("pretrain.epochs", 0))
    assert again.plan.backbones[0].key != taken.key


def test_two_equal_backbones_are_trained_apart(make_run):
    run = make_run(("backbones", ["toy_net", "toy_net"]))
    units = run.backbones()
    assert [unit.name for unit in units] == ["toy_net", "toy_net-2"]
    assert not torch.equal(units[0].read().tensors["0.weight"], units[1].read().tensors["0.weight"])


def test_artifacts_of_other_classes_are_refused(make_run):
    units = make_run().backbones()
    renamed = make_run(("data.names", ["ant", "cat", "bee"]))
    with pytest.raises(GvbsmError, match=r"another order.*use the data set it was made for"):
        pretrain.load_backbone(renamed.context, units[0])
    fewer = make_run(("data.names", ["ant", "bee", "dog", "elk"]))
    with pytest.raises(GvbsmError, match=r"3 classes.*4.*lacks \['dog', 'elk'\], has \['cat'\]"):
        pretrain.load_backbone(fewer.context, units[0])
    assert renamed.plan.backbones[0].key != units[0].key


# Measure


@pytest.mark.parametrize("batch", [8, 10])  # three equal batches; two and a ragged one
def test_statistics_are_equation_9(make_run, batch):
    run = make_run(("measure.batch", batch))
    units = run.statistics()
    for width, backbone, unit in zip((6, 8), run.backbones(), units, strict=True):
        tensors, meta = opened(unit.path)
        assert meta["classes"] == ["ant", "bee", "cat"]
        assert meta["images"] == 24
        model = toy_net(width, backbone.path).double()
        order = torch.randperm(24, generator=generator_of("measure", 0))
        (mean,), (std,) = run.data.normalization.mean, run.data.normalization.std
        images = (run.data.train.images.double() / 255 - mean) / std
        right = textbook.measure(model, [images[index] for index in order.split(batch)])
        whole = textbook.measure(model, [images])
        matchers = run.recipe.synthesis.matchers[1:]
        assert len(tensors) == 2 * 2 * 2
        for matcher in matchers:
            for site, moments in right[matcher.name].items():
                for statistic, value in moments.items():
                    found = tensors[target_name(matcher, site, statistic)]
                    assert found.dtype == torch.float32
                    torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-6)
                # Means of batches are the mean of all; variances within batches leave out those between.
                name = target_name(matcher, site, "mean")
                torch.testing.assert_close(
                    tensors[name].double(), whole[matcher.name][site]["mean"], rtol=1e-5, atol=1e-6
                )
                variance = tensors[target_name(matcher, site, "var")].double()
                assert bool((variance <= whole[matcher.name][site]["var"] + 1e-6).all())


def test_measuring_again_does_no_work(make_run, monkeypatch):
    make_run().statistics()
    again = make_run(("synthesis.iterations", 99), ("synthesis.ipc", 1), out="other")
    monkeypatch.setattr(measure, "StatisticsCollector", lambda *_: pytest.fail("measured again"))
    units = again.statistics()
    assert all(unit.done() for unit in units)


def test_matchers_that_know_their_targets_measure_nothing(make_run):
    assert make_run(("synthesis.matchers", ["bn"])).statistics() == []


def test_streamed_data_gives_the_same_statistics(make_run, tmp_path):
    kept = make_run().statistics()
    streamed = make_run(("data.streamed", True), out="b")
    (moved,) = streamed.execute([kept[0].stored_in(tmp_path / "s")])
    for name, value in kept[0].read().tensors.items():
        assert torch.equal(moved.read().tensors[name], value)


# Relabel


def plain_views(images: Tensor, block: dict[str, Tensor], epoch: int) -> Tensor:
    """One epoch's views by the documented format: torch, numpy and torchvision."""
    count, image_size = len(images), images.shape[-1]

    def of(name: str) -> list:
        part = block[name][epoch]  # [N, …], or [1, …] where it is the same for all images
        return part.expand(count, *part.shape[1:]).tolist()

    flips = np.unpackbits(block["flip"][epoch].numpy(), bitorder="little")[:count]
    seen = []
    for image, (top, left, height, width), flip, roll in zip(
        images, of("crop"), flips, of("roll"), strict=True
    ):
        box = (int(top), int(left), int(height), int(width))
        view = reference.resized_crop(image, *box, [image_size, image_size], antialias=False)
        seen.append((reference.hflip(view) if flip else view).roll(tuple(roll), (-2, -1)))
    mixed = [view.clone() for view in seen]
    for index, (partner, (top, left, bottom, right)) in enumerate(
        zip(of("partner"), of("cutmix"), strict=True)
    ):
        mixed[index][:, top:bottom, left:right] = seen[partner][:, top:bottom, left:right]
    return torch.stack(mixed)


def test_labels_can_be_made_again_from_the_files_alone(make_run):
    changes = [("relabel.augmentation", {"use": "resized_crop", "roll": 2}), ("relabel.cutmix", 0.7)]
    run = make_run(*changes).until("relabel")
    folder = run.out / "distilled"
    stored, meta = opened(folder / "images.safetensors")
    images = (stored["images"].float() / 255 - meta["mean"][0]) / meta["std"][0]
    units = run.plan.backbones
    models = [toy_net(width, unit.path) for width, unit in zip((6, 8), units, strict=True)]
    files = sorted(folder.glob("labels-*.safetensors"))
    assert [opened(path)[1]["first_epoch"] for path in files] == [0, 2]
    for path in files:
        block, _ = opened(path)
        for epoch in range(2):
            views = plain_views(images, block, epoch)
            logits = sum(model(views) for model in models) / 2
            assert block["logits.logits"].dtype == torch.float16
            torch.testing.assert_close(block["logits.logits"][epoch].float(), logits, rtol=2**-10, atol=2e-3)


def labels_of(run) -> list[dict[str, Tensor]]:
    from gvbsm.distilled.dataset import DistilledDataset

    data = DistilledDataset(run.out / "distilled")
    epochs = [data.epoch(number) for number in range(data.epochs)]
    return [{"logits": epoch.logits, **epoch.views.tensors()} for epoch in epochs]


def test_the_size_of_blocks_changes_no_epoch(make_run):
    found = []
    for block, epochs in ((2, 4), (3, 4), (50, 4), (2, 3)):
        changes = [("relabel.epochs_per_file", block), ("relabel.epochs", epochs)]
        found.append(labels_of(make_run(*changes, out=f"{block}-{epochs}").until("relabel")))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=False):
            assert all(torch.equal(one[name], two[name]) for name in one)
    assert [len(epochs) for epochs in found] == [4, 4, 4, 3]
    assert not torch.equal(found[0][0]["logits"], found[0][1]["logits"])


def test_logit_normalisation_is_equation_8(make_run):
    """Every backbone's logits of a labelled batch, scaled to the mean of their Frobenius norms."""
    changes = [("relabel.ensembler", "normalized"), ("relabel.cutmix", 0.0), ("relabel.augmentation", "none")]
    run = make_run(*changes, ("relabel.batch", 6), ("relabel.epochs", 1)).until("relabel")
    stored, meta = opened(run.out / "distilled" / "images.safetensors")
    images = (stored["images"].float() / 255 - meta["mean"][0]) / meta["std"][0]
    units = run.plan.backbones
    each = [toy_net(width, unit.path)(images) for width, unit in zip((6, 8), units, strict=True)]
    norms = [logits.square().sum().sqrt() for logits in each]
    expected = sum(logits * (sum(norms) / 2) / norm for logits, norm in zip(each, norms, strict=True)) / 2
    torch.testing.assert_close(labels_of(run)[0]["logits"], expected, rtol=2**-10, atol=2e-3)


# Evaluate


RECORD = {"set", "labels", "ipc", "student", "seed", "top1", "epochs", "image_bytes", "label_bytes"}


def test_results_hold_the_distilled_set_and_its_baselines(make_run):
    changes = [("evaluation.seeds", [0, 5]), ("evaluation.epochs", 3), ("evaluation.test_every", 2)]
    run = make_run(*changes).until("evaluation")
    results = json.loads((run.out / "results.json").read_text())
    assert results["schema"] == 2
    records = results["records"]
    assert [(r["set"], r["labels"], r["seed"]) for r in records] == [
        (which, labels, seed)
        for which, labels in (("distilled", "soft"), ("random", "hard"), ("random", "soft"))
        for seed in (0, 5)
    ]
    for record in records:
        assert set(record) >= RECORD | {"best_top1", "protocol"}
        assert record["ipc"] == 2
        assert record["student"] == "toy_net"
        assert record["epochs"] == 3
        assert 0 <= record["top1"] <= record["best_top1"] <= 1
        assert (record["top1"] * 60) == pytest.approx(round(record["top1"] * 60))
        assert record["protocol"]["epochs"] == 3
        folder = run.out / ("distilled" if record["set"] == "distilled" else "baselines/random")
        assert record["image_bytes"] == (folder / "images.safetensors").stat().st_size
        soft = sum(path.stat().st_size for path in folder.glob("labels-*"))
        assert record["label_bytes"] == (soft if record["labels"] == "soft" else 8 * 6)


def test_the_whole_set_and_hard_labels_on_demand(make_run):
    run = make_run(("evaluation.full_baseline", True), ("evaluation.distilled_hard", True)).until(
        "evaluation"
    )
    records = {
        (r["set"], r["labels"]): r for r in json.loads((run.out / "results.json").read_text())["records"]
    }
    assert set(records) == {
        ("distilled", "soft"),
        ("distilled", "hard"),
        ("random", "hard"),
        ("random", "soft"),
        ("full", "hard"),
    }
    full = records["full", "hard"]
    assert full["ipc"] is None
    assert full["epochs"] == 6
    assert full["image_bytes"] == 24 * 64
    assert full["label_bytes"] == 24 * 8
    assert full["top1"] > 0.8


def test_random_images_are_distinct_training_images_of_their_class(make_run):
    run = make_run(("synthesis.ipc", 8), ("synthesis.iterations", 0)).until("synthesis")
    stored, _ = opened(run.out / "baselines" / "random" / "images.safetensors")
    train = run.data.train
    for label in range(3):
        mine = {tuple(i.flatten().tolist()) for i in stored["images"][stored["labels"] == label]}
        assert mine == {tuple(i.flatten().tolist()) for i in train.images[train.labels == label]}
        assert len(mine) == 8


def test_a_finished_run_is_not_done_again(make_run):
    run = make_run().until("evaluation")
    files = {path: path.stat().st_mtime_ns for path in run.out.rglob("*.safetensors")}
    before = (run.out / "results.json").read_text()
    make_run().until("evaluation")
    assert {path: path.stat().st_mtime_ns for path in run.out.rglob("*.safetensors")} == files
    assert (run.out / "results.json").read_text() == before
    started = [
        json.loads(line)
        for line in (run.out / "log.jsonl").read_text().splitlines()
        if '"stage_started"' in line
    ]
    half = len(started) // 2
    assert all(event["units"] == 0 for event in started[half:])


def test_relabelling_otherwise_leaves_no_block_of_before(make_run):
    make_run(("relabel.epochs", 6)).until("relabel")
    run = make_run(("relabel.epochs", 2)).until("relabel")
    assert len(list((run.out / "distilled").glob("labels-*"))) == 1
    assert len(labels_of(run)) == 2
