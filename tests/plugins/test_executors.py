from __future__ import annotations

from functools import partial

import pytest

from gvbsm_plugins import executors
from gvbsm_plugins.executors.local import Local


def test_local_runs_each_task_once_in_order_as_results_are_taken():
    done: list[int] = []

    def task(number: int) -> int:
        done.append(number)
        return number * number

    results = Local().run([partial(task, number) for number in range(4)])
    assert done == []
    assert next(results) == (0, 0)
    assert done == [0]
    assert list(results) == [(1, 1), (2, 4), (3, 9)]
    assert done == [0, 1, 2, 3]
    assert list(Local().run([])) == []


def test_local_ends_with_the_error_of_a_task():
    def fails() -> None:
        raise ZeroDivisionError("here")

    results = Local().run([lambda: 1, fails, lambda: 3])
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError, match="here"):
        next(results)
    assert list(results) == []


def test_local_is_offered():
    assert Local in executors.gvbsm_components()
