"""A way from a task to the process that gave it to an executor, whatever lies between.

An executor that runs tasks elsewhere installs a sender there, by `sending`; a task calls `send`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Sender = Callable[[Any], None]
_senders: list[Sender] = []


def send(message: Any) -> None:
    """Send a picklable message to whoever watches the tasks; it is lost if nobody does."""
    if _senders:
        _senders[-1](message)


@contextmanager
def sending(sender: Sender) -> Iterator[None]:
    """While this context lasts, `send` in this process calls `sender`."""
    _senders.append(sender)
    try:
        yield
    finally:
        _senders.pop()
