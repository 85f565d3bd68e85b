"""Brings what workers report to the reporter of the process that started them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gvbsm.runtime.reporting import Event, Reporter
from gvbsm_registry import relay

EVERY = 0.5  # seconds between two reports of one unit's progress


class RelayingReporter(Reporter):
    """The reporter of a worker: it writes and shows nothing, and sends everything on."""

    def __init__(self) -> None:
        self._sent: dict[str, float] = {}

    def tell(self, event: Event) -> None:
        relay.send(("tell", (event,)))

    def progress(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._sent.get(name, -EVERY) < EVERY:
            return
        self._sent[name] = now
        if done >= total:
            del self._sent[name]
        relay.send(("progress", (name, done, total)))

    def say(self, text: str) -> None:
        relay.send(("say", (text,)))


def receiver(reporter: Reporter) -> Callable[[Any], None]:
    """Return a function that hands what workers sent to `reporter`."""

    def take(message: Any) -> None:
        method, arguments = message
        if method in ("tell", "progress", "say"):
            getattr(reporter, method)(*arguments)

    return take
