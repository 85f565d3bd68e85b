"""Runs over a store at a URL: artifacts travel between machines that share nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gvbsm.runtime.run import Workspace, open_store

from gvbsm import pipeline
from gvbsm.runtime import units
from gvbsm.runtime.remote_store import RemoteStore
from gvbsm_registry import GvbsmError

Make = Callable[..., Workspace]


def test_another_machine_reuses_everything(make_run: Make, tmp_path: Path) -> None:
    url = f"memory://{tmp_path}"
    first = make_run(out="one", store=tmp_path / "cache1")
    first.remote = RemoteStore(url)
    pipeline.run_stages(first)
    second = make_run(out="two", store=tmp_path / "cache2")
    second.remote = RemoteStore(url)
    pipeline.run_stages(second)
    made = {path.relative_to(first.out) for path in first.out.rglob("*") if path.suffix != ".jsonl"}
    assert made == {path.relative_to(second.out) for path in second.out.rglob("*") if path.suffix != ".jsonl"}
    for name in made:
        if (first.out / name).is_file():
            assert (first.out / name).read_bytes() == (second.out / name).read_bytes(), name
    log = (second.out / "log.jsonl").read_text()
    assert '"event": "step"' not in log


class Elsewhere:
    """An executor whose tasks run in another folder tree, as on a machine with a disk of its own."""

    def __init__(self, folder: Path, remote: RemoteStore) -> None:
        self.folder, self.remote, self.count = folder, remote, 0

    def run_watched(self, tasks: Any, take: Any) -> Any:
        for index, task in enumerate(tasks):
            run, unit = task.args
            self.count += 1
            moved = Workspace(
                run.recipe,
                run.context.registry,
                run.out,
                run.store,
                run.context.device,
                run.reporter,
                run.executor,
                self.remote,
            )
            hidden = {path: path.read_bytes() for path in self.folder.rglob("*.safetensors")}
            for path in hidden:
                path.unlink()
            summary = units.perform(moved, unit)
            for path in self.folder.rglob("*.safetensors"):
                path.unlink()
            for path, content in hidden.items():
                path.write_bytes(content)
            yield index, summary


def test_workers_need_nothing_but_the_store(make_run: Make, tmp_path: Path) -> None:
    plain = make_run(out="plain", store=tmp_path / "plain" / "store")
    pipeline.run_stages(plain)
    run = make_run(out="far/out", store=tmp_path / "far" / "store")
    run.remote = RemoteStore(f"file://{tmp_path}/remote")
    executor = Elsewhere(tmp_path / "far", run.remote)
    run.executor = executor  # type: ignore[assignment]
    run.until("evaluation")
    assert executor.count > 8
    for name in ("distilled/images.safetensors", "distilled/labels-00002.safetensors", "results.json"):
        assert (plain.out / name).read_bytes() == (run.out / name).read_bytes()


def test_an_altered_object_stops_the_run_by_name(make_run: Make, tmp_path: Path) -> None:
    first = make_run(out="one", store=tmp_path / "cache1")
    first.remote = RemoteStore(f"file://{tmp_path}/remote")
    pipeline.run_stages(first, "pretrain")
    victim = next((tmp_path / "remote" / "backbone").glob("*.safetensors"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    second = make_run(out="two", store=tmp_path / "cache2")
    second.remote = first.remote
    with pytest.raises(GvbsmError, match=victim.name):
        pipeline.run_stages(second, "pretrain")


def test_a_workspace_travels(make_run: Make, tmp_path: Path) -> None:
    run = make_run()
    run.remote = RemoteStore(f"memory://{tmp_path}")
    far = pickle.loads(pickle.dumps(run))
    assert (far.recipe, far.out, far.store, far.device) == (
        run.recipe,
        run.out,
        run.store,
        run.context.device,
    )
    assert far.remote.url == run.remote.url
    assert far.data_key == run.data_key
    assert pickle.loads(pickle.dumps(run)) is far  # the data is opened once in a worker
    far.reporter.say("nobody listens")


def test_stores_are_folders_or_urls(tmp_path: Path) -> None:
    assert open_store(tmp_path) == (tmp_path, None)
    assert open_store(str(tmp_path)) == (tmp_path, None)
    cache, remote = open_store("s3://bucket/folder/")
    assert remote is not None
    assert remote.url == "s3://bucket/folder"
    assert cache != open_store("s3://bucket/other")[0]
    assert open_store(None)[1] is None
