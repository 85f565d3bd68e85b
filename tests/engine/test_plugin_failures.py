"""Every kind that fails in a run, in every way: one line with the component, its owner and the contract."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import Run
from click.testing import CliRunner
from conftest import MakeRun, ToyRun
from torch import nn

from gvbsm.cli.main import main
from gvbsm.recipe import loading
from gvbsm.runtime.asking import check_logits
from gvbsm.runtime.context import Context
from gvbsm.runtime.data import open_data
from gvbsm.runtime.reporting import Reporter
from gvbsm_registry import Backbone, Dataset, Executor, Exporter, GvbsmError, Registry, TensorSplit, View

Returns = Callable[..., Any]


def raising(*_: Any, **__: Any) -> Any:
    raise ValueError("broken\non purpose")


def always(value: Any) -> Returns:
    return lambda *_, **__: value


def views(**parts: torch.Tensor) -> Returns:
    def draw(self: Any, count: int, *_: Any, **__: Any) -> View:
        whole = {"boxes": torch.ones(count, 4), "flips": torch.zeros(count, dtype=torch.bool)}
        return View(**{**whole, "rolls": torch.zeros(count, 2, dtype=torch.int64), **parts})

    return draw


STAGES: list[tuple[str, str, str, Returns, str]] = [
    ("pretrain", "backbone toy_net", "build", raising, "raised ValueError: broken on purpose"),
    ("pretrain", "backbone toy_net", "build", always(3), "returned int"),
    ("pretrain", "augmentation crop_flip_roll", "draw", raising, "raised ValueError"),
    ("pretrain", "augmentation crop_flip_roll", "draw", always(None), "returned NoneType"),
    ("pretrain", "augmentation crop_flip_roll", "draw", views(boxes=torch.ones(1, 4)), r"float32 \[1, 4\]"),
    ("pretrain", "augmentation crop_flip_roll", "draw", lambda self, count: None, "raised TypeError"),
    ("pretrain", "schedule cosine", "factor", raising, "raised ValueError"),
    ("pretrain", "schedule cosine", "factor", always(float("nan")), "returned nan at step 0"),
    ("pretrain", "schedule cosine", "factor", always("fast"), "returned 'fast' at step 0"),
    ("pretrain", "optimizer sgd", "build", raising, "raised ValueError"),
    ("pretrain", "optimizer sgd", "build", always([]), "returned list"),
    ("measure", "augmentation crop_flip_roll", "draw", views(flips=torch.zeros(1)), r"float32 \[1\]"),
    ("measure", "matcher conv_channel", "sites", raising, "raised ValueError"),
    ("measure", "matcher conv_channel", "sites", always("0"), "returned str"),
    ("measure", "matcher conv_channel", "targets", raising, "raised ValueError"),
    ("measure", "matcher conv_channel", "statistics", raising, "raised ValueError"),
    ("measure", "matcher conv_channel", "statistics", always(None), "returned nothing"),
    ("measure", "matcher conv_channel", "statistics", always({"mean": 1.0}), "returned float as 'mean'"),
    ("synthesis", "matcher bn", "targets", always({"mean": torch.ones(2).long()}), "int64 .* as 'mean'"),
    ("synthesis", "matcher bn", "statistics", raising, "raised ValueError"),
    ("synthesis", "initializer noise", "images", raising, "raised ValueError"),
    ("synthesis", "initializer noise", "images", always(torch.zeros(4, 8, 8)), r"float32 \[4, 8, 8\]"),
    ("synthesis", "initializer noise", "images", always(torch.zeros(4, 1, 8, 8).byte()), "uint8"),
    ("synthesis", "initializer noise", "images", always(torch.full((4, 1, 8, 8), torch.inf)), "not finite"),
    ("synthesis", "initializer noise", "prepare", raising, "raised ValueError"),
    ("synthesis", "initializer noise", "prepare", always([1]), "returned list"),
    ("synthesis", "schedule cosine", "factor", raising, "raised ValueError"),
    ("synthesis", "optimizer adam", "build", raising, "raised ValueError"),
    ("synthesis", "optimizer adam", "build", always(None), "returned NoneType"),
    ("synthesis", "augmentation crop_flip_roll", "draw", always(None), "returned NoneType"),
    ("synthesis", "regularizer dd", "loss", raising, "raised ValueError"),
    ("synthesis", "regularizer dd", "loss", always(torch.zeros(2)), r"float32 \[2\]"),
    ("relabel", "augmentation resized_crop", "draw", raising, "raised ValueError"),
    ("relabel", "augmentation resized_crop", "draw", views(rolls=torch.zeros(6, 2)), "float32"),
    ("relabel", "ensembler mean", "combine", raising, "raised ValueError"),
    ("relabel", "ensembler mean", "combine", lambda self, logits, _: logits, r"float32 \[2, 4, 3\]"),
    ("relabel", "ensembler mean", "combine", lambda self, logits, _: logits.mean(), r"float32 \[\]"),
    ("relabel", "ensembler mean", "combine", lambda self, logits, _: logits[0][:1], r"float32 \[1, 3\]"),
    ("relabel", "ensembler mean", "combine", lambda self, logits, _: logits[0] / 0 * 0, "not finite"),
    ("relabel", "codec fp16", "encode", raising, "raised ValueError"),
    ("relabel", "codec fp16", "encode", always({"values": torch.zeros(2)}), r"float32 \[2\] as 'values'"),
    ("relabel", "codec fp16", "encode", always({}), "returned dict"),
    ("relabel", "codec fp16", "decode", raising, "raised ValueError"),
    ("relabel", "codec fp16", "decode", always(torch.zeros(1, 3).long()), "int64"),
    ("relabel", "codec fp16", "decode", always(torch.full((1, 3), torch.nan)), "not finite"),
    ("evaluation", "objective mse_gt", "loss", raising, "raised ValueError"),
    ("evaluation", "objective mse_gt", "loss", lambda self, output, *_: output, r"float32 \[4, 3\]"),
    ("evaluation", "objective mse_gt", "loss", always(0.5), "returned float, not a tensor"),
    ("evaluation", "optimizer adamw", "build", raising, "raised ValueError"),
]


@pytest.mark.parametrize(
    ("stage", "who", "method", "does", "told"),
    STAGES,
    ids=[f"{stage}-{who}-{method}-{number}" for number, (stage, who, method, *_) in enumerate(STAGES)],
)
def test_a_stage_tells_who_failed(
    make_run: MakeRun,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stage: str,
    who: str,
    method: str,
    does: Returns,
    told: str,
) -> None:
    kind, name = who.split()
    view = {"use": "crop_flip_roll", "padding": 1}
    changes = [("pretrain.augmentation", view), ("measure.augmentation", view)]
    before = {"measure": "pretrain", "synthesis": "measure", "relabel": "synthesis", "evaluation": "relabel"}
    if stage in before:
        make_run(*changes).until(before[stage])
    component = next(c for c in registry.components() if (c.kind, c.name) == (kind, name))
    # as a plugin of its own would have it
    does = always_in(component.__module__, does) if does is raising else does
    monkeypatch.setattr(component, method, does)
    store = tmp_path / "empty" if stage == "pretrain" else None
    with pytest.raises(GvbsmError) as caught:
        make_run(*changes, store=store).until(stage)
    line = str(caught.value)
    assert line.startswith(f"{kind} '{name}' of ")
    assert "gvbsm 0" in line or "toys" in line
    assert method in line
    assert "; the contract asks for " in line
    assert "\n" not in line
    assert re.search(told, line)


def always_in(module: str, does: Returns) -> Returns:
    """`does` as code of another module: a traceback names modules by the globals of their functions."""
    made: dict[str, Any] = {"__name__": module, "does": does}
    exec("def method(*arguments, **options): return does(*arguments, **options)", made)
    return made["method"]


class Broken(Dataset):
    """Two classes; each test breaks one thing."""

    name = "broken"
    breaks: str = ""

    def open(self, split: str, cache: Path) -> Any:
        if self.breaks == "raises":
            raise OSError("no such disk")
        if self.breaks == "type":
            return [1, 2]
        images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
        classes: Any = ("a", "b")
        match self.breaks:
            case "float":
                images = images.float()
            case "short":
                labels = labels[:3]
            case "int32":
                labels = labels.int()
            case "range":
                labels = labels + 1
            case "same":
                classes = ("a", "a")
            case "numbers":
                classes = (0, 1)
        found = TensorSplit(images, labels, classes)
        if self.breaks == "size":
            found.image_size = 9
        if self.breaks == "late":
            found.read = lambda indices: raising() if len(indices) == 3 else images[indices]  # type: ignore
        if self.breaks == "digest":
            found.digest = 3  # type: ignore[misc,assignment]
        return found


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        ("raises", r"open raised OSError: no such disk \(test_plugin_failures.py:\d+\)"),
        ("type", "open returned list"),
        ("float", r"read returned float32 \[2, 1, 8, 8\]"),
        ("short", "open returned 4 images and 3 labels"),
        ("int32", r"open returned labels that are int32 \[4\]"),
        ("range", "open returned labels from 1 to 2 for 2 classes"),
        ("same", "open returned two classes called 'a'"),
        ("numbers", r"open returned class names \(0, 1\), which are not strings"),
        ("size", r"read returned uint8 \[2, 1, 8, 8\]"),
        ("digest", "digest returned 3"),
    ],
)
def test_a_data_set_that_breaks_the_contract_is_named(tmp_path: Path, breaks: str, told: str) -> None:
    with pytest.raises(GvbsmError, match=f"^dataset 'broken' of the module .*: {told}.*; the contract asks"):
        open_data(Broken(breaks=breaks, mean=(0.5,), std=(0.2,)), tmp_path)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_picture_that_cant_be_read_later_is_told_as_plainly(
    registry: Registry, tmp_path: Path, in_memory: bool
) -> None:
    data = open_data(Broken(breaks="late", mean=(0.5,), std=(0.2,)), tmp_path)
    data.train.in_memory = in_memory
    context = Context(data, registry, torch.device("cpu"), Reporter(None, registry, quiet=True))
    assert len(list(context.batches(data.train, [torch.arange(2)]))) == 1
    with pytest.raises(GvbsmError, match=r"^dataset 'broken' .*: read raised ValueError: broken on"):
        list(context.batches(data.train, [torch.arange(2), torch.arange(3)]))


class Net(Backbone):
    name = "net"

    def build(self, classes: int, image_size: int, channels: int) -> nn.Module:
        return nn.Flatten()


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (nn.Flatten(), r"returned float32 \[2, 64\]"),
        (nn.Linear(3, 3), "raised RuntimeError"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(128, 3)), r"returned float32 \[3\]"),
    ],
)
def test_a_network_without_logits_is_named(module: nn.Module, told: str) -> None:
    with pytest.raises(GvbsmError, match=f"^backbone 'net' of .*forward {told}.*asks for logits"):
        check_logits(Net(), module, torch.zeros(2, 1, 8, 8), 3)


class Odd(Executor):
    name = "odd"
    breaks: str

    def run(self, tasks: Any, on_message: Any) -> Any:
        match self.breaks:
            case "loses":
                yield 0, tasks[0](on_message)
            case "twice":
                yield from [(0, tasks[0](on_message))] * 2
            case "number":
                yield 7, tasks[0](on_message)
            case "type":
                yield tasks[0](on_message)
            case "raises":
                yield 0, tasks[0](on_message)
                raise ConnectionError("gone")


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        ("loses", r"returned no result of 1 of 2 tasks \(1\)"),
        ("twice", "returned .* with 1 tasks left"),
        ("number", r"returned .\(7, .* with 2 tasks left"),
        ("type", "returned .* with 2 tasks left"),
        ("raises", "raised ConnectionError: gone"),
    ],
)
def test_an_executor_that_loses_work_is_named(
    make_run: MakeRun, tmp_path: Path, breaks: str, told: str
) -> None:
    run = make_run(store=tmp_path / "store")
    with pytest.raises(GvbsmError, match=f"^executor 'odd' of .*: run {told}.*; the contract asks for each"):
        run.execute(run.plan.backbones, Odd(breaks=breaks))


def test_what_a_task_raises_is_not_the_executors_failure(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: ToyRun = make_run(store=tmp_path / "store")
    monkeypatch.setattr("gvbsm.runtime.execution.perform", raising)
    for executor in (None, Odd(breaks="raises")):
        with pytest.raises(ValueError, match="on purpose"):
            run.execute(run.plan.backbones, executor)


def test_a_run_keeps_the_traceback_in_its_log(
    registry: Registry, toy_tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gvbsm import pipeline

    component = next(c for c in registry.components() if (c.kind, c.name) == ("schedule", "cosine"))
    monkeypatch.setattr(component, "factor", always_in(component.__module__, raising))
    made, out = loading.make(toy_tables, registry, where="toy"), tmp_path / "out"
    with pytest.raises(GvbsmError) as caught:
        pipeline.run(made, out=out, store=tmp_path / "store", device="cpu", registry=registry)
    log = out / "log.jsonl"
    assert str(caught.value).endswith(f"; the traceback is in {log}")
    (failed,) = [
        e for line in log.read_text().splitlines() if (e := json.loads(line))["event"] == "component_failed"
    ]
    assert "in factor" not in failed["error"]
    assert "on purpose" in failed["traceback"]


@pytest.mark.parametrize(
    ("does", "told"), [(raising, "raised ValueError"), (always(None), "without having written")]
)
def test_an_export_that_writes_nothing_is_named(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: Returns, told: str
) -> None:
    exporter = next(iter(registry_of(Exporter)))
    monkeypatch.setattr(exporter, "export", does)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = CliRunner().invoke(
        main, ["export", str(finished.out), str(tmp_path / "new"), "--to", exporter.name]
    )
    assert done.exit_code == 2, done.output
    assert done.output.startswith(f"gvbsm: exporter '{exporter.name}' of gvbsm ")
    assert told in done.output
    assert done.output.count("\n") == 1


def registry_of(kind: type) -> list[Any]:
    from gvbsm_registry import discover

    return [component for component in discover().components() if issubclass(component, kind)]
