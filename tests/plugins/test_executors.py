from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from gvbsm_plugins import executors
from gvbsm_plugins.executors.local import Local


def test_local_runs_each_task_once_in_order_as_results_are_taken():
    done: list[int] = []

    def task(number: int, send: Callable[[Any], None]) -> int:
        send(-number)
        done.append(number)
        return number * number

    messages: list[int] = []
    results = Local().run([partial(task, number) for number in range(4)], messages.append)
    assert done == []
    assert next(results) == (0, 0)
    assert done == [0]
    assert messages == [0]
    assert list(results) == [(1, 1), (2, 4), (3, 9)]
    assert done == [0, 1, 2, 3]
    assert messages == [0, -1, -2, -3]
    assert list(Local().run([], messages.append)) == []


def test_local_ends_with_the_error_of_a_task():
    def fails(send: Callable[[Any], None]) -> None:
        raise ZeroDivisionError("here")

    results = Local().run([lambda send: 1, fails, lambda send: 3], print)
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError, match="here"):
        next(results)
    assert list(results) == []


def test_local_is_offered():
    assert Local in executors.gvbsm_components()
