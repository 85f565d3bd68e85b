"""Labels pruned by batch and by class: which are kept, that they replay, and which of them students use."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import islice

import pytest
import torch
from conftest import MakeRun, ToyRun
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from gvbsm.distilled.dataset import DistilledDataset
from gvbsm.distilled.pool import LabelPool
from gvbsm.distilled.views import EpochViews
from gvbsm.recipe.schema import Relabel
from gvbsm.runtime.seeds import generator_of, seed_of
from gvbsm.stages import label_views
from gvbsm_plugins.codecs import Half
from gvbsm_registry import GvbsmError, identity_view

EPOCHS = 6


def labelled(make: MakeRun, pruning: str, keep: float, *changes: tuple[str, object], out: str = "") -> ToyRun:
    run = make(
        ("relabel.epochs", EPOCHS),
        ("relabel.pruning", pruning),
        ("relabel.keep_fraction", keep),
        ("relabel.augmentation", {"use": "dsa"}),
        *changes,
        out=out or f"{pruning}-{keep}",
    )
    return run.until("relabel")


def opened(run: ToyRun) -> tuple[DistilledDataset, LabelPool]:
    data = DistilledDataset(run.out / "distilled")
    assert data.pool is not None
    return data, data.pool


def batches_of_epochs(data: DistilledDataset, seed: int) -> dict[tuple[int, int], tuple[Tensor, ...]]:
    """Each batch labelled without pruning, by (epoch, number): its images, views, logits and truth."""
    found = {}
    for epoch in range(EPOCHS):
        order = torch.randperm(6, generator=generator_of(seed, "views", "distilled", epoch))
        for number, images in enumerate(order.split(4)):
            (shown,) = data.labelled(epoch, [images])
            found[epoch, number] = (images, *shown)
    return found


def test_kept_batches_are_a_random_choice_of_all_and_as_they_are_unpruned(make_run: MakeRun) -> None:
    all_of_them = batches_of_epochs(DistilledDataset(labelled(make_run, "epochs", 1.0).out / "distilled"), 0)
    data, pool = opened(labelled(make_run, "batches", 0.5))
    assert (len(pool.batches), data.epochs) == (EPOCHS * 2 // 2, 0)
    kept = []
    for positions, (views, logits, truth) in zip(pool.batches, data.pooled(pool.batches), strict=True):
        (where,) = [
            name
            for name, (images, *_) in all_of_them.items()
            if torch.equal(images, pool.views.images[positions])
            and torch.allclose(all_of_them[name][2], logits, atol=2e-2, rtol=2e-3)
        ]
        _, seen, _, mixed = all_of_them[where]
        torch.testing.assert_close(views, seen, atol=1e-6, rtol=0)
        torch.testing.assert_close(truth, mixed)
        kept.append(where)
    drawn = torch.randperm(EPOCHS * 2, generator=generator_of(0, "pool", "distilled"))[:EPOCHS]
    assert kept == [divmod(place, 2) for place in sorted(drawn.tolist())]


@pytest.mark.parametrize("keep", [0.25, 0.5, 1.0])
def test_kept_views_of_classes_are_equally_many_of_each(make_run: MakeRun, keep: float) -> None:
    run = labelled(make_run, "classes", keep)
    data, pool = opened(run)
    images = pool.views.images
    assert Counter(data.labels[images].tolist()) == dict.fromkeys(range(3), round(keep * EPOCHS * 2))
    assert max(Counter(images.tolist()).values()) <= EPOCHS  # an image has no more views than epochs
    if keep == 1:
        assert Counter(images.tolist()) == dict.fromkeys(range(6), EPOCHS)
    assert {len(batch) for batch in pool.batches} <= {4, 5, 2, 3}


@pytest.mark.parametrize("pruning", ["batches", "classes"])
def test_a_pools_labels_are_the_teachers_on_its_views(make_run: MakeRun, pruning: str) -> None:
    from gvbsm.stages.pretrain import load_backbone

    run = labelled(make_run, pruning, 0.5, ("relabel.epochs_per_file", 1))
    assert len(list((run.out / "distilled").glob("labels-*"))) > 1
    data, pool = opened(run)
    modules = [load_backbone(run.context, unit) for unit in run.plan.teachers]
    for views, logits, truth in data.pooled(pool.batches):
        with torch.no_grad():
            expected = torch.stack([module(views) for module in modules]).mean(0)
        torch.testing.assert_close(logits, expected, atol=0.02, rtol=2e-3)
        torch.testing.assert_close(truth.sum(1), torch.ones(len(truth)))


@pytest.mark.parametrize("pruning", ["batches", "classes"])
def test_the_size_of_files_changes_no_label(make_run: MakeRun, pruning: str) -> None:
    one, many = (
        opened(labelled(make_run, pruning, 0.7, ("relabel.epochs_per_file", each), out=f"{pruning}{each}"))[1]
        for each in (50, 1)
    )
    assert one.sizes == many.sizes
    assert torch.equal(one.views.images, many.views.images)
    assert torch.equal(one.views.partners, many.views.partners)
    everything = torch.arange(sum(one.sizes))
    torch.testing.assert_close(one.logits(everything), many.logits(everything))


def pool_of(labels: list[int], images: list[int], sizes: tuple[int, ...], pruning: str) -> LabelPool:
    count = len(images)
    views = EpochViews(
        identity_view(count, 4),
        torch.arange(count),
        torch.zeros(count, 4, dtype=torch.int64),
        torch.tensor(images),
    )
    logits = {"logits": torch.arange(count * 3.0).view(count, 3)}
    return LabelPool(pruning, views, sizes, logits, Half(), torch.tensor(labels), 3)


def test_batches_are_drawn_each_once_and_then_anew() -> None:
    pool = pool_of([0, 1, 2], [0, 1, 2, 2, 0, 1, 1], (3, 2, 2), "batches")
    stream = pool.draw_batches(torch.Generator().manual_seed(1))
    rounds = [[tuple(batch.tolist()) for batch in islice(stream, 3)] for _ in range(20)]
    assert all(sorted(each) == [(0, 1, 2), (3, 4), (5, 6)] for each in rounds)
    assert len({tuple(each) for each in rounds}) == 6


def test_views_of_classes_are_drawn_as_often_as_there_are_images() -> None:
    pool = pool_of([0, 0, 1, 2], [0, 1, 1, 2, 2, 2, 3], (7,), "classes")
    epochs = list(islice(pool.draw_epochs(torch.Generator().manual_seed(1)), 6))
    classes = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    for order in epochs:
        assert Counter(classes[order].tolist()) == {0: 2, 1: 1, 2: 1}
    total = Counter(torch.cat(epochs).tolist())
    assert total == {0: 4, 1: 4, 2: 4, 3: 2, 4: 2, 5: 2, 6: 6}
    assert len({tuple(order.tolist()) for order in epochs}) > 3


@pytest.mark.parametrize("pruning", ["batches", "classes"])
def test_a_student_on_a_pool_equals_a_plain_loop(make_run: MakeRun, pruning: str) -> None:
    run = labelled(
        make_run,
        pruning,
        0.4,
        ("evaluation.objective", {"use": "mse_gt", "gamma": 0.0}),
        ("evaluation.epochs", 4),
        ("evaluation.schedule", "constant"),
        ("evaluation.random_baseline", False),
    ).until("evaluation")
    data, pool = opened(run)
    torch.manual_seed(seed_of("student", 0))
    student = run.context.build(run.recipe.evaluation.students[0])
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3, weight_decay=0.01)
    order = torch.Generator().manual_seed(seed_of("order", 0))
    batches, epochs = pool.draw_batches(order), pool.draw_epochs(order)
    reached = []
    for _ in range(4):
        student.train()
        drawn = list(islice(batches, 2)) if pruning == "batches" else next(epochs).split(4)
        for positions in drawn:
            ((views, logits, _),) = data.pooled([positions])
            optimizer.zero_grad()
            mse_loss(student(views), logits).backward()
            optimizer.step()
        reached.append(top1(student.eval(), run))
    (unit,) = [unit for unit in run.plan.students if unit.options["labels"] == "soft"]
    assert unit.read().tensors["top1"].tolist() == pytest.approx(reached, abs=1e-6)
    record = unit.read().meta["record"]
    assert record["label_bytes"] == sum(
        path.stat().st_size for path in (run.out / "distilled").glob("labels-*")
    )


def top1(module: nn.Module, run: ToyRun) -> float:
    split = run.data.test
    with torch.no_grad():
        found = module(run.context.normalize(split.images)).argmax(1)
    return float((found == split.labels).double().mean())


def test_pruned_labels_take_fewer_bytes(make_run: MakeRun) -> None:
    full = labelled(make_run, "epochs", 1.0, ("relabel.batch", 6), ("evaluation.batch", 6))
    few = labelled(make_run, "batches", 1 / 6, ("relabel.batch", 6), ("evaluation.batch", 6))
    assert opened(few)[1].sizes == (6,)
    assert (
        DistilledDataset(few.out / "distilled").label_bytes
        < DistilledDataset(full.out / "distilled").label_bytes
    )


def test_at_least_one_is_kept() -> None:
    tables = {"epochs": 2, "batch": 3, "keep_fraction": 1e-6, "augmentation": "none"}
    for pruning, batches in (("batches", 1), ("classes", 2)):
        section = Relabel.model_construct(**{**tables, "pruning": pruning, "batch_norm": "running"})
        assert label_views.pool_size(section, 2, 5) == batches


def test_a_pool_has_no_epochs_and_epochs_no_pool(make_run: MakeRun) -> None:
    data = DistilledDataset(labelled(make_run, "classes", 0.5).out / "distilled")
    for ask in (lambda: data.epoch(0), lambda: data.set_epoch(1), lambda: list(data.batches(0, 2))):
        with pytest.raises(GvbsmError, match=r"pruned by classes, .* draw from DistilledDataset\.pool"):
            ask()
    assert DistilledDataset(labelled(make_run, "epochs", 0.5).out / "distilled").pool is None


def test_a_pool_that_lacks_a_file_says_so(make_run: MakeRun) -> None:
    run = labelled(make_run, "batches", 1.0, ("relabel.epochs_per_file", 2))
    (run.out / "distilled" / "labels-00004.safetensors").unlink()
    with pytest.raises(GvbsmError, match="lacks the labels of batch 4; run the relabel stage"):
        opened(run)
    run.until("relabel")
    assert len(opened(run)[1].batches) == 12


def test_epochs_and_a_pool_make_no_set(make_run: MakeRun) -> None:
    epochs = labelled(make_run, "epochs", 1.0, out="one").out / "distilled"
    pool = labelled(make_run, "batches", 0.5, out="other").out / "distilled"
    shutil.copy(epochs / "labels-00000.safetensors", pool / "labels-00009.safetensors")
    with pytest.raises(
        GvbsmError, match=r"labels-00009\.safetensors: holds labels by epochs, .* relabel them"
    ):
        DistilledDataset(pool)


def test_batches_are_of_one_size_for_labels_and_students(make_run: MakeRun) -> None:
    with pytest.raises(GvbsmError, match=r"relabel\.batch \(4\) and evaluation\.batch \(3\) must be equal"):
        make_run(("relabel.pruning", "batches"), ("evaluation.batch", 3))
    make_run(("relabel.pruning", "batches"), ("evaluation.batch", 3), ("evaluation.soft", False))
    make_run(("relabel.pruning", "classes"), ("evaluation.batch", 3))


def test_another_way_of_pruning_takes_the_place_of_the_first(make_run: MakeRun) -> None:
    labelled(make_run, "epochs", 1.0, out="same")
    _, pool = opened(labelled(make_run, "batches", 0.25, out="same"))
    assert len(pool.batches) == 3
    assert DistilledDataset(labelled(make_run, "epochs", 0.5, out="same").out / "distilled").epochs == 3
