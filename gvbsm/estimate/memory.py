"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path
from types import TracebackType

import torch

PROCESS = Path("/proc/self")


class Peak:
    """A context that measures the peak of the memory in use on `device` while it is open.

    After it is closed: `before`, `peak` and `extra` = peak - before, in bytes. On a CUDA device they count
    torch's allocations. On the CPU they count the process's resident memory, which only Linux tells;
    elsewhere all three are None.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before: int | None = None
        self.peak: int | None = None

    @property
    def extra(self) -> int | None:
        return None if self.peak is None or self.before is None else self.peak - self.before

    def __enter__(self) -> Peak:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            self.before = _resident_afresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device)
        elif self.before is not None:
            self.peak = _status("VmHWM")


def _resident_afresh() -> int | None:
    """Give freed memory back, forget the earlier peak and return what is resident, in bytes; or None."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what an allocator keeps for later would hide what the work takes
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(name: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in (PROCESS / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
