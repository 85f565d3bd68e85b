"""What a run tells its log, its listeners and the terminal."""

from __future__ import annotations

import json
import sys
import types
from importlib import metadata

import pytest

from gvbsm.runtime.reporting import Reporter
from gvbsm_registry import GvbsmError, StageFinished, StageStarted, Step, discover, hookimpl

EVENTS = [
    StageStarted("synthesize", 2, 1),
    Step("synthesize", "batch-0000", 3, 10, {"total": 1.5}, {"backbone": "convnet"}),
    StageFinished("synthesize", 2.5, {"batch-0000": {"seconds": 1.0}}),
]


def listening(name: str, **hooks: object):
    """A registry with one plugin that has these hooks."""
    module = types.ModuleType(name)
    for hook, function in hooks.items():
        setattr(module, hook, hookimpl(function))
    sys.modules[name] = module
    return discover([metadata.EntryPoint(name, name, "gvbsm")])


def test_events_go_to_the_log_one_a_line(registry, tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    for _ in range(2):  # a second run adds to it
        with Reporter(path, registry, quiet=True) as reporter:
            for event in EVENTS:
                reporter.tell(event)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["stage_started", "step", "stage_finished"] * 2
    assert lines[0]["units"] == 2
    assert lines[1]["values"] == {"total": 1.5}
    assert lines[1]["labels"] == {"backbone": "convnet"}
    assert lines[2]["summaries"] == {"batch-0000": {"seconds": 1.0}}
    assert lines[0]["time"] <= lines[-1]["time"]


def test_plugins_hear_every_event():
    heard = []

    def gvbsm_stage_started(event):
        heard.append(event)

    def gvbsm_step(event):
        heard.append(event)

    def gvbsm_stage_finished(event):
        heard.append(event)

    registry = listening(
        "toy_listener",
        gvbsm_stage_started=gvbsm_stage_started,
        gvbsm_step=gvbsm_step,
        gvbsm_stage_finished=gvbsm_stage_finished,
    )
    assert not registry.problems()
    reporter = Reporter(None, registry, quiet=True)
    for event in EVENTS:
        reporter.tell(event)
    assert heard == EVENTS


def test_a_listener_that_fails_is_named_once_and_stops_nothing(tmp_path):
    calls = []

    def gvbsm_step(event):
        calls.append(event)
        raise RuntimeError("no network")

    reporter = Reporter(tmp_path / "log.jsonl", listening("toy_failing", gvbsm_step=gvbsm_step), quiet=True)
    with pytest.warns(UserWarning, match=r"toy_failing.*gvbsm_step.*no network"):
        reporter.tell(EVENTS[1])
    reporter.tell(EVENTS[1])
    assert len(calls) == 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_log_that_cannot_be_written_is_one_line(registry, tmp_path):
    (tmp_path / "file").write_text("")
    reporter = Reporter(tmp_path / "file" / "log.jsonl", registry, quiet=True)
    with pytest.raises(GvbsmError, match=r"log\.jsonl: can't be written") as caught:
        reporter.tell(EVENTS[0])
    assert "\n" not in str(caught.value)


def test_no_bars_where_the_output_is_no_terminal(registry, capsys):
    with Reporter(None, registry) as reporter:
        for step in range(5):
            reporter.progress("work", step + 1, 5)
        reporter.say("hello [red]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "hello [red]\n"


def test_a_finished_bar_disappears(registry):
    reporter = Reporter(None, registry)
    reporter._progress.disable = False
    for step in range(3):
        reporter.progress("work", step + 1, 3)
        assert len(reporter._progress.tasks) == (step < 2)
    reporter.progress("more", 1, 4)
    reporter.progress("other", 2, 4)
    assert [task.description for task in reporter._progress.tasks] == ["more", "other"]
