"""The opened data set, and the context of units: what they hold, and how they travel to other processes."""

from __future__ import annotations

import dataclasses
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from conftest import MakeRun
from toys import ToyData

from gvbsm.distilled.dataset import DistilledDataset
from gvbsm.runtime import execution
from gvbsm.runtime.data import open_data
from gvbsm_registry import GvbsmError


def test_normalisation_is_given_or_measured(make_run: MakeRun) -> None:
    run = make_run(("data.channels", 3))
    images = run.data.train.read(torch.arange(24))
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    mean, std = run.data.normalization.mean, run.data.normalization.std
    assert mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-6)
    assert std == pytest.approx(pixels.std(1, unbiased=False).tolist(), abs=1e-6)
    assert torch.equal(run.data.normalization.quantize(run.context.normalize(images)), images)
    half = make_run(("data.channels", 3), ("data.mean", [0.1, 0.2, 0.3]))
    assert (half.data.normalization.mean, half.data.normalization.std) == ((0.1, 0.2, 0.3), std)
    with pytest.raises(GvbsmError, match=r"data\.std: needs 3 values"):
        make_run(("data.channels", 3), ("data.std", [0.5]))


def test_a_data_set_is_opened_again_where_it_arrives(tmp_path: Path) -> None:
    opened = open_data(ToyData(per_class=5000, noise=3.0), tmp_path)
    sent = pickle.dumps(opened)
    assert len(sent) < 2000  # its 15000 images are not in it
    data = pickle.loads(sent)
    assert pickle.loads(sent) is data  # many units of a worker share it
    assert (data.key, data.name, data.classes) == (opened.key, opened.name, opened.classes)
    assert data.normalization == opened.normalization
    index = torch.tensor([4, 0, 14999])
    assert torch.equal(data.train.read(index), opened.train.read(index))
    assert torch.equal(data.test.labels, opened.test.labels)
    other = pickle.loads(pickle.dumps(open_data(ToyData(per_class=3), tmp_path)))
    assert (len(other.train), other.key != data.key) == (9, True)


@pytest.mark.parametrize("streamed", [False, True])
def test_only_some_classes_are_used_and_renumbered(tmp_path: Path, streamed: bool) -> None:
    everything = open_data(ToyData(streamed=streamed), tmp_path)
    some = open_data(ToyData(streamed=streamed, only=("cat", 0)), tmp_path)
    assert some.classes == ("cat", "ant")
    for split, full in ((some.train, everything.train), (some.test, everything.test)):
        assert split.in_memory is not streamed
        places = [place for place, label in enumerate(full.labels.tolist()) if label in (2, 0)]
        assert split.labels.tolist() == [{2: 0, 0: 1}[int(full.labels[place])] for place in places]
        index = torch.tensor([3, 0, len(split) - 1])
        assert torch.equal(split.read(index), full.read(torch.tensor(places)[index]))
        assert split.digest != full.digest
    pixels = some.train.read(torch.arange(len(some.train))).double() / 255
    assert some.normalization.mean == pytest.approx([float(pixels.mean())], abs=1e-6)
    again = open_data(ToyData(streamed=streamed, only=(2, "ant")), tmp_path)
    other = open_data(ToyData(streamed=streamed, only=(0, 2)), tmp_path)
    assert (again.key, other.key) == (some.key, other.key)
    assert len({some.key, other.key, everything.key}) == 3
    assert pickle.loads(pickle.dumps(some)).classes == some.classes


@pytest.mark.parametrize(
    ("only", "told"),
    [
        (("dog",), r"'dog' is not one of the 3 classes \(ant, bee, cat\)"),
        ((3,), r"3 is not one of the 3 classes"),
        ((-1,), r"-1 is not one of"),
        (("bee", 1), "names a class twice"),
    ],
)
def test_classes_that_are_not_there_are_refused(tmp_path: Path, only: tuple, told: str) -> None:
    with pytest.raises(GvbsmError, match=rf"data\.only: {told}"):
        open_data(ToyData(only=only), tmp_path)


def test_a_run_on_some_classes_is_of_those_alone(make_run: MakeRun) -> None:
    run = make_run(("data.only", ["cat", "ant"])).until("relabel")
    found = DistilledDataset(run.out / "distilled")
    assert found.classes == ("cat", "ant")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.epoch(0).logits.shape == (4, 2)


def test_data_of_no_data_set_travel_as_they_are(tmp_path: Path) -> None:
    given = dataclasses.replace(open_data(ToyData(), tmp_path), origin=None, key="mine")
    data = pickle.loads(pickle.dumps(given))
    assert (data.key, data.origin, data.normalization) == ("mine", None, given.normalization)
    index = torch.arange(24)
    assert torch.equal(data.train.read(index), given.train.read(index))


def test_a_context_travels_without_its_reporter(make_run: MakeRun) -> None:
    context = make_run().context
    far = pickle.loads(pickle.dumps(context))
    assert far.device == context.device
    assert far.data.key == context.data.key
    names = [component.name for component in context.registry.components()]
    assert [component.name for component in far.registry.components()] == names
    assert context.reporter.log is not None
    far.reporter.print("nobody listens")
    far.reporter.progress("nothing", 1, 2)
    assert not context.reporter.log.exists()


@pytest.mark.usefixtures("one_thread")
def test_another_process_makes_the_same_artifacts(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = make_run()
    planned = [*run.statistics(), *run.plan.image_batches]
    here, there = ([unit.stored_in(tmp_path / name) for unit in planned] for name in ("here", "there"))
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for unit in there:
            told = pool.submit(execution.perform, run.context, [unit]).result()
            assert told[unit.name]["seconds"] > 0
    for one, other in zip(here, there, strict=True):
        execution.perform(run.context, [one])
        assert one.path.read_bytes() == other.path.read_bytes()
