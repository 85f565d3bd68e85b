"""The executor `ray`: results, events and errors arrive; whole runs equal those of `local` bit for bit."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from gvbsm import pipeline
from gvbsm_plugins.executors.ray import Ray
from gvbsm_registry import GvbsmError

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.slow  # a cluster takes many seconds to start

RECIPE = """
data = "digits"
backbones = [{ use = "convnet", width = 8, depth = 2 }, { use = "convnet", width = 12, depth = 2 }]
pretrain = { epochs = 2, augmentation = "none" }
measure = { shards = 2 }
synthesis = { ipc = 2, iterations = 8, batch = 6, matchers = ["bn", "conv_channel"] }
relabel = { epochs = 4, epochs_per_file = 2 }
evaluation = { students = [{ use = "convnet", width = 8, depth = 2 }], seeds = [0, 1], epochs = 2 }
"""


@pytest.fixture(scope="module")
def one_machine() -> Iterator[Ray]:
    yield Ray(workers=2, threads=1, cpus_per_task=1)
    ray.shutdown()


def ignore(message: Any) -> None:
    pass


def square(number: int, send: Callable[[Any], None]) -> int:
    send(("seen", number))
    return number * number


def chat(send: Callable[[Any], None]) -> tuple[float, float]:
    """Send messages for a while; return when that began and ended."""
    began = time.time()
    while time.time() < began + 3:
        send("still here")
        sum(range(20_000))
    return began, time.time()


def refuse(send: Callable[[Any], None]) -> None:
    raise GvbsmError("out of tune; tune it")


def pid_once(folder: Path, send: Callable[[Any], None]) -> int:
    """Kill its own worker the first time."""
    first = folder / "first"
    if not first.exists():
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.get_num_threads()


def die(send: Callable[[Any], None]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_tasks_run_and_their_messages_arrive(one_machine: Ray) -> None:
    messages: list[Any] = []
    found = dict(one_machine.run([partial(square, n) for n in range(6)], messages.append))
    assert found == {n: n * n for n in range(6)}
    assert sorted(messages) == [("seen", n) for n in range(6)]
    assert list(one_machine.run([], messages.append)) == []


def test_tasks_that_talk_keep_their_cores_to_themselves(one_machine: Ray) -> None:
    """A worker that waited for Ray to take a message would lend its core to a third task."""
    spans = [span for _, span in one_machine.run([chat] * 5, ignore)]
    together = [sum(began <= now < ended for began, ended in spans) for now, _ in spans]
    assert max(together) <= 2


def test_an_error_arrives_as_itself(one_machine: Ray) -> None:
    with pytest.raises(GvbsmError) as error:
        list(one_machine.run([refuse], ignore))
    assert type(error.value) is GvbsmError
    assert str(error.value) == "out of tune; tune it"


def test_a_task_whose_worker_dies_is_run_again(one_machine: Ray, tmp_path: Path) -> None:
    assert list(one_machine.run([partial(pid_once, tmp_path)], ignore)) == [(0, 1)]


def test_a_task_that_kills_every_worker_ends_in_one_line(one_machine: Ray) -> None:
    fragile = one_machine.model_copy(update={"max_retries": 1})
    with pytest.raises(GvbsmError, match=r"lost its worker 2 times") as error:
        list(fragile.run([die], ignore))
    assert "\n" not in str(error.value)


def recipe_in(folder: Path) -> Path:
    path = folder / "tiny.toml"
    path.write_text(RECIPE)
    return path


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json")]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
        if "data" not in path.relative_to(folder).parts[:1]
    }


def ran(recipe: Path, folder: Path, executor: Any, threads: int = 1) -> dict[str, str]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pipeline.run(recipe, out=folder / "out", store=folder / "store", device="cpu", executor=executor)
    finally:
        torch.set_num_threads(before)
    found = digests(folder)
    assert len(found) > 15
    return found


def test_two_workers_make_the_files_that_local_makes(one_machine: Ray, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    local = ran(recipe, tmp_path / "local", "local")
    spread = ran(recipe, tmp_path / "ray", {"use": "ray", "workers": 2, "cpus_per_task": 1})
    assert spread == local
    log = (tmp_path / "ray" / "out" / "log.jsonl").read_text()
    assert '"event": "step"' in log


def test_no_cluster_at_an_address() -> None:
    ray.shutdown()
    with pytest.raises(GvbsmError, match="ray start --head"):
        list(Ray(address="127.0.0.1:1").run([partial(square, 1)], ignore))


def killed_in(stage: str, out: Path, kill: Callable[[], None]) -> Callable[[], None]:
    """Return a function that waits until the log says that a stage has begun, then kills."""

    def wait() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            log = out / "log.jsonl"
            if log.exists() and any(
                f'"stage": "{stage}"' in line and '"stage_started"' in line
                for line in log.read_text().splitlines()
            ):
                time.sleep(0.2)
                kill()
                return
            time.sleep(0.05)

    return wait


def test_a_node_killed_in_the_middle_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    cluster_utils = pytest.importorskip("ray.cluster_utils")
    recipe = recipe_in(tmp_path)
    local = ran(recipe, tmp_path / "local", "local")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    try:
        cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        node = cluster.add_node(num_cpus=1)
    except Exception as error:
        if "timed out" in str(error):
            pytest.skip("Ray's own half minute to start a node is too short on this busy machine")
        raise
    gone: list[float] = []

    def kill() -> None:
        cluster.remove_node(node, allow_graceful=False)
        gone.append(time.time())

    try:
        watcher = threading.Thread(target=killed_in("synthesis", tmp_path / "ray" / "out", kill), daemon=True)
        watcher.start()
        executor = {"use": "ray", "address": cluster.address, "cpus_per_task": 1}
        assert ran(recipe, tmp_path / "ray", executor) == local
        watcher.join(10)
        assert gone
        deadline = time.monotonic() + 60  # Ray takes some seconds to believe it
        while len([n for n in ray.nodes() if n["Alive"]]) > 1 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert len([n for n in ray.nodes() if n["Alive"]]) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
