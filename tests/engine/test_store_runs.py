"""Runs over a store at a URL: artifacts travel between machines that share nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeRun, ToyRun
from pydantic import PrivateAttr

from gvbsm.runtime.environment import open_store
from gvbsm.runtime.remote_store import RemoteStore
from gvbsm_registry import Executor, GvbsmError


def over(remote: RemoteStore, run: ToyRun, **changes: Any) -> ToyRun:
    """Return a run that keeps its artifacts in a store at a URL, too."""
    storing = dataclasses.replace(run.opened.storing, remote=remote)
    return ToyRun(dataclasses.replace(run.opened, storing=storing, **changes))


def test_another_machine_reuses_everything(make_run: MakeRun, tmp_path: Path) -> None:
    remote = RemoteStore(f"memory://{tmp_path}")
    first = over(remote, make_run(out="one", store=tmp_path / "cache1")).until("evaluation")
    second = over(remote, make_run(out="two", store=tmp_path / "cache2")).until("evaluation")
    made = {path.relative_to(first.out) for path in first.out.rglob("*") if path.suffix != ".jsonl"}
    assert made == {path.relative_to(second.out) for path in second.out.rglob("*") if path.suffix != ".jsonl"}
    for name in made:
        if (first.out / name).is_file():
            assert (first.out / name).read_bytes() == (second.out / name).read_bytes(), name
    log = (second.out / "log.jsonl").read_text()
    assert '"event": "step"' not in log


class Elsewhere(Executor):
    """Tasks run where none of the artifacts in `folder` are, as on a machine with a disk of its own."""

    name = "elsewhere"

    folder: Path
    _count: int = PrivateAttr(0)

    def run(
        self, tasks: Sequence[Callable[[Callable[[Any], None]], Any]], on_message: Callable[[Any], None]
    ) -> Iterator[tuple[int, Any]]:
        for index, task in enumerate(tasks):
            self._count += 1
            hidden = {path: path.read_bytes() for path in self.folder.rglob("*.safetensors")}
            for path in hidden:
                path.unlink()
            summary = task(on_message)
            for path in self.folder.rglob("*.safetensors"):
                path.unlink()
            for path, content in hidden.items():
                path.write_bytes(content)
            yield index, summary


def test_workers_need_nothing_but_the_store(make_run: MakeRun, tmp_path: Path) -> None:
    plain = make_run(out="plain", store=tmp_path / "plain" / "store").until("evaluation")
    executor = Elsewhere(folder=tmp_path / "far")
    far = make_run(out="far/out", store=tmp_path / "far" / "store")
    run = over(RemoteStore(f"file://{tmp_path}/remote"), far, executor=executor).until("evaluation")
    assert executor._count > 8
    for name in ("distilled/images.safetensors", "distilled/labels-00002.safetensors", "results.json"):
        assert (plain.out / name).read_bytes() == (run.out / name).read_bytes()


def test_an_altered_object_stops_the_run_by_name(make_run: MakeRun, tmp_path: Path) -> None:
    remote = RemoteStore(f"file://{tmp_path}/remote")
    over(remote, make_run(out="one", store=tmp_path / "cache1")).until("pretrain")
    victim = next((tmp_path / "remote" / "backbone").glob("*.safetensors"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    with pytest.raises(GvbsmError, match=victim.name):
        over(remote, make_run(out="two", store=tmp_path / "cache2")).until("pretrain")


def test_stores_are_folders_or_urls(tmp_path: Path) -> None:
    assert open_store(tmp_path) == (tmp_path, None)
    assert open_store(str(tmp_path)) == (tmp_path, None)
    cache, remote = open_store("s3://bucket/folder/")
    assert remote is not None
    assert remote.url == "s3://bucket/folder"
    assert cache != open_store("s3://bucket/other")[0]
    assert open_store(None)[1] is None
