"""The executor `ray`: units of work on all cores and GPUs of one machine, or of a Ray cluster."""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from gvbsm_registry import Executor, GvbsmError, Task

if TYPE_CHECKING:
    from types import ModuleType

ATTEMPTS = 3
POLL = 0.3  # seconds
KNOCK = 10.0  # seconds
OBJECT_STORE = 128 * 2**20  # tasks and results are small; tensors go through the store of artifacts


class Ray(Executor):
    """Runs tasks in parallel on Ray, which it starts on this machine unless `address` says where one runs.

    A task whose worker or machine is lost is run again. With the same threads in a worker as in this process,
    results on CPUs are those of `local`.
    """

    name = "ray"

    address: str | None = Field(
        None, description='a running cluster ("auto": this machine\'s); none: start one'
    )
    workers: int | None = Field(
        None, ge=1, description="tasks at once, where Ray is started here [one a GPU, or cpus_per_task cores]"
    )
    threads: int | None = Field(None, ge=1, description="torch threads of a task [as in this process]")
    cpus_per_task: int | None = Field(None, ge=1, description="cores that a task takes [its threads]")
    gpus_per_task: float | None = Field(
        None, ge=0, description="GPUs that a task takes [1, where there are any]"
    )
    max_retries: int = Field(3, ge=0, description="how often a task whose worker is lost is run again")

    def run(self, tasks: Sequence[Task], on_message: Callable[[Any], None]) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) as tasks end.

        Raises what a task raises, and GvbsmError if Ray is missing or unreachable, or a task too often lost.
        """
        if not tasks:
            return
        ray = _import()
        threads = self.threads or _threads()
        _quietly(self._connect, ray, threads)
        mailbox = _mailbox(ray)
        call = ray.remote(
            num_cpus=self._cores(threads), num_gpus=self._gpus(ray), max_retries=self.max_retries
        )(_call)
        paths = [path for path in sys.path if path]
        waiting = {}
        try:
            for index, task in enumerate(tasks):
                reference = call.remote(ray.cloudpickle.dumps(task), paths, os.getcwd(), threads, mailbox)
                waiting[reference] = index
            while waiting:
                done, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL)
                for message in ray.get(mailbox.empty.remote()):
                    on_message(message)
                for reference in done:
                    yield waiting.pop(reference), self._result(ray, reference)
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)
            ray.kill(mailbox)

    def _connect(self, ray: ModuleType, threads: int) -> None:
        if ray.is_initialized():
            return
        # No reports to Ray's makers, and tasks that yield no more to others than this process does.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")
        for attempt in range(ATTEMPTS):
            try:
                if self.address is not None:
                    _knock(self.address)
                ray.init(log_to_driver=False, logging_level="ERROR", **self._cluster(threads))
                return
            except Exception as error:  # Ray raises bare ones
                ray.shutdown()
                # On a busy machine it may not come up within the half minute that it gives itself.
                if "timed out" not in str(error) or attempt == ATTEMPTS - 1:
                    raise self._unreachable(error) from error

    def _cluster(self, threads: int) -> dict[str, Any]:
        if self.address is not None:
            return {"address": self.address}
        cores = max(os.cpu_count() or 1, self._cores(threads))
        return {
            "num_cpus": self.workers * self._cores(threads) if self.workers else cores,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
            "_node_ip_address": "127.0.0.1",
        }

    def _unreachable(self, error: Exception) -> GvbsmError:
        where = f"at {self.address!r}" if self.address else "on this machine"
        why = " ".join(str(error).split())[:300]
        return GvbsmError(
            f"executor ray: no cluster can be used {where} ({why}); start one with 'ray start --head' "
            "or leave out address"
        )

    def _cores(self, threads: int) -> int:
        return self.cpus_per_task or threads

    def _gpus(self, ray: ModuleType) -> float:
        if self.gpus_per_task is not None:
            return self.gpus_per_task
        return 1 if ray.cluster_resources().get("GPU") else 0

    def _result(self, ray: ModuleType, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, Exception):
                raise
            raise error.cause from None
        except ray.exceptions.RayError as error:
            why = " ".join(str(error).split())[:300]
            raise GvbsmError(
                f"executor ray: a task lost its worker {self.max_retries + 1} times ({type(error).__name__}: "
                f"{why}); give tasks more memory (cpus_per_task) and run again: finished work is kept"
            ) from error


def _import() -> ModuleType:
    if importlib.util.find_spec("ray") is None:
        raise GvbsmError("executor ray: Ray is not installed; pip install 'gvbsm[ray]'")
    return importlib.import_module("ray")


def _knock(address: str) -> None:
    """Raise OSError within seconds if nothing listens at HOST:PORT; Ray itself would wait for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK).close()


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _quietly(function: Callable[..., None], *arguments: Any) -> None:
    """Call `function` with what it prints on standard error kept back: Ray greets its users there."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            function(*arguments)
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


class _Mailbox:
    """Keeps messages until they are fetched, in the order in which each task sent them.

    (Ray runs the calls that one process makes to such an actor in order; to its own queue it does not.)
    """

    def __init__(self) -> None:
        self._messages: list[Any] = []

    def put(self, message: Any) -> None:
        self._messages.append(message)

    def empty(self) -> list[Any]:
        messages, self._messages = self._messages, []
        return messages


def _mailbox(ray: ModuleType) -> Any:
    """Return a mailbox that lives beside this process, so that no other machine takes it along."""
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Mailbox).remote()


def _call(task: bytes, paths: list[str], folder: str, threads: int, mailbox: Any) -> Any:
    """Run a pickled task in a worker, which finds modules and files where the caller finds them."""
    import torch
    from ray import cloudpickle

    sys.path.extend(path for path in paths if path not in sys.path)
    if os.path.isdir(folder):
        os.chdir(folder)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)

    send = _Sender(mailbox)
    try:
        return cloudpickle.loads(task)(send)
    finally:
        send.wait()


class _Sender:
    """Sends messages without waiting: a task that waits lends its cores to another one meanwhile."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._latest: Any = None

    def __call__(self, message: Any) -> None:
        self._latest = self._mailbox.put.remote(message)

    def wait(self) -> None:
        """Return once all have arrived, or none will: that nobody listens any more is no reason to fail."""
        if self._latest is not None:
            ray = importlib.import_module("ray")
            ray.wait([self._latest], timeout=KNOCK)
