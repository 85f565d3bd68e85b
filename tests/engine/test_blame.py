"""A component that fails, or returns what it should not, is named in one line; the engine is not."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from gvbsm.cli.main import main
from gvbsm.runtime.blame import ComponentError, calling, refuse, returned
from gvbsm.runtime.reporting import Reporter
from gvbsm.runtime.seeds import generator_of
from gvbsm_registry import GvbsmError, Registry, Schedule


class Steps(Schedule):
    """Raises what it is told to."""

    name = "steps"

    def factor(self, step: int, steps: int, error: BaseException | None = None) -> float:
        if error is not None:
            raise error
        return generator_of  # type: ignore[return-value]


def failure(component: Schedule, *arguments: Any) -> BaseException:
    with pytest.raises(BaseException) as caught, calling(component, "factor", "a number"):  # noqa: PT011
        component.factor(*arguments)
    return caught.value


def test_what_a_component_raises_is_one_line_with_its_name_and_what_was_asked(registry: Registry) -> None:
    error = failure(Steps(), 0, 1, ValueError("a\nb"))
    assert isinstance(error, ComponentError)
    assert str(error).startswith(
        "schedule 'steps' of the module test_blame: factor raised ValueError: a b (test_"
    )
    assert str(error).endswith("; the contract asks for a number")
    assert "raise error" in error.traceback
    cosine = failure(registry.create(Schedule, "cosine"), "zero", "one")
    assert "schedule 'cosine' of gvbsm 0" in str(cosine)
    assert "raised ValueError (" in str(failure(Steps(), 0, 1, ValueError()))


@pytest.mark.parametrize("error", [GvbsmError("own line"), MemoryError(), KeyboardInterrupt()])
def test_own_lines_a_lack_of_memory_and_interrupts_pass(error: BaseException) -> None:
    assert failure(Steps(), 0, 1, error) is error


def test_leaving_the_program_is_a_failure_too() -> None:
    assert isinstance(failure(Steps(), 0, 1, SystemExit(3)), ComponentError)


def test_a_wrong_signature_is_the_components() -> None:
    assert "raised TypeError" in str(failure(Steps(), 0, 1, None, "more"))


def test_the_engines_own_error_is_not_blamed_on_a_component() -> None:
    with pytest.raises(AttributeError), calling(Steps(), "factor", "a number"):
        Reporter.progress(object(), "x", 1, 2)  # type: ignore[arg-type]


def test_it_can_be_sent_by_a_worker() -> None:
    error = failure(Steps(), 0, 1, ValueError("x"))
    assert isinstance(error, ComponentError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.traceback) == (str(error), error.traceback)


@pytest.mark.parametrize(
    ("value", "options", "told"),
    [
        (3, {}, "int, not a tensor"),
        (torch.zeros(2, 3), {"shape": (2, 4)}, r"float32 \[2, 3\]"),
        (torch.zeros(1, 2, 3), {"shape": (2, 3)}, r"float32 \[1, 2, 3\]"),
        (torch.zeros(2, dtype=torch.int64), {}, r"int64 \[2\]"),
        (torch.zeros(2), {"dtype": torch.uint8}, r"float32 \[2\]"),
        (torch.tensor([torch.nan]), {"finite": True}, "numbers that are not finite"),
    ],
)
def test_what_is_returned_is_checked(value: Any, options: Any, told: str) -> None:
    with pytest.raises(ComponentError, match=f"'steps' of .*: factor returned {told}.*asks for a thing"):
        returned(Steps(), "factor", value, "a thing", **options)


def test_what_fits_is_handed_on() -> None:
    value = torch.zeros(2, 3, dtype=torch.float64)
    assert returned(Steps(), "factor", value, "a thing", shape=(None, 3), finite=True) is value


def test_a_runs_log_keeps_the_traceback(registry: Registry, tmp_path: Path) -> None:
    error = failure(Steps(), 0, 1, ValueError("deep down"))
    log = tmp_path / "log.jsonl"
    with pytest.raises(ComponentError) as caught, Reporter(log, registry, quiet=True):
        raise error
    assert str(caught.value).endswith(f"; the traceback is in {log}")
    (line,) = log.read_text().splitlines()
    event = json.loads(line)
    assert event["event"] == "component_failed"
    assert "deep down" in event["traceback"]
    assert "Traceback" in event["traceback"]


def test_without_a_log_the_traceback_has_a_file_of_its_own(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    error = failure(Steps(), 0, 1, ValueError("deep down"))

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("gvbsm.pipeline.run", fail)
    done = CliRunner().invoke(main, ["run", "digits"])
    assert done.exit_code == 2
    (file,) = tmp_path.glob("gvbsm-*.txt")
    assert done.output.count("\n") == 1
    assert done.output.endswith(f"; the traceback is in {file}\n")
    assert "deep down" in file.read_text()


def test_a_refusal_has_no_traceback_to_keep(tmp_path: Path) -> None:
    error = refuse(Steps(), "factor", "nothing", "a number")
    error.keep(tmp_path / "log.jsonl")
    assert not list(tmp_path.iterdir())
    assert "traceback" not in str(error)
