"""Processes that torchrun started on this machine train one network together, data-parallel.

Rank 0 runs everything; the others follow: they wait for a training that rank 0 starts, and join it. Each
takes every n-th image of each batch, and DistributedDataParallel averages the gradients, so that a step is
that of one process with the whole batch (BatchNorm layers share their statistics on GPUs; on CPUs, where
torch can't, each process has those of its own images).
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gvbsm_registry import GvbsmError

Result = TypeVar("Result")

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(days=30)
"""How long followers wait while rank 0 does what it does alone; torchrun ends them if it dies."""


def start() -> None:
    """Join the other processes if torchrun started this one; followers stay in here until rank 0 ends."""
    if dist.is_initialized() or not dist.is_torchelastic_launched():
        return
    missing = [name for name in TORCHRUN if name not in os.environ]
    if missing:
        raise GvbsmError(
            f"TORCHELASTIC_RUN_ID is set, as torchrun does, but not {', '.join(missing)}; unset it, or start "
            "with torchrun"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    if dist.get_rank() == 0:
        atexit.register(_end)
        return
    while (job := _broadcast(None)) is not None:
        work, arguments = job
        with suppress(GvbsmError):  # rank 0 has the same to say, and says it
            work(*arguments)
    _leave()
    raise SystemExit(0)


def _broadcast(job: Any) -> Any:
    """Return rank 0's job, in all processes."""
    box = [job]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def _end() -> None:
    with suppress(RuntimeError):  # where a follower died, torchrun tells
        _broadcast(None)
    _leave()


def _leave() -> None:
    """Let go of the group and of all that hold it: its threads must have ended when the process does."""
    gc.collect()
    dist.destroy_process_group()
    gc.collect()


def run_on_all_ranks(work: Callable[..., Result], *arguments: Any) -> Result:
    """Call picklable `work` with picklable `arguments` in all processes; return what it returns here."""
    if size() > 1:
        _broadcast((work, arguments))
    return work(*arguments)


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wrap_ddp(module: nn.Module) -> nn.Module:
    """Return `module`, made to average its gradients over the processes."""
    if size() == 1:
        return module
    if next(module.parameters()).is_cuda:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return nn.parallel.DistributedDataParallel(module)


def local_shard(batch: Tensor) -> Tensor:
    """Return this process's part of a batch's indices, [n]; all of them where there is one process.

    Raises GvbsmError if there are fewer than the processes.
    """
    if size() == 1:
        return batch
    if len(batch) < size():
        raise GvbsmError(f"{size()} processes can't share a batch of {len(batch)}; raise the batch")
    return batch[dist.get_rank() :: size()]


def shard_weight(part: int, whole: int) -> float:
    """Return the factor on a mean over `part` of `whole` images that makes the processes' average right."""
    return part * size() / whole
