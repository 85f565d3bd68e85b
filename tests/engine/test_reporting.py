"""What a run tells its log, its listeners and the terminal."""

from __future__ import annotations

import json
import pickle
import sys
import types
from importlib import metadata

import pytest

from gvbsm.runtime import reporting
from gvbsm.runtime.reporting import MessageReporter, Reporter
from gvbsm_registry import GvbsmError, StageFinished, StageStarted, Step, discover, hookimpl

EVENTS = [
    StageStarted("synthesize", 2, 1),
    Step("synthesize", "batch-0000", 3, 10, {"total": 1.5}, {"backbone": "convnet"}),
    StageFinished("synthesize", 2.5, {"batch-0000": {"seconds": 1.0}}),
]


def plugin(name: str, **hooks: object) -> metadata.EntryPoint:
    """The entry point of a plugin that has these hooks, marked here unless they are already."""
    module = types.ModuleType(name)
    for hook, function in hooks.items():
        setattr(module, hook, function if hasattr(function, "gvbsm_impl") else hookimpl(function))
    sys.modules[name] = module
    return metadata.EntryPoint(name, name, "gvbsm")


def listening(name: str, **hooks: object):
    """A registry with one plugin that has these hooks."""
    return discover([plugin(name, **hooks)])


def test_events_go_to_the_log_one_a_line(registry, tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    for _ in range(2):  # a second run adds to it
        with Reporter(path, registry, quiet=True) as reporter:
            for event in EVENTS:
                reporter.emit(event)
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
        reporter.emit(event)
    assert heard == EVENTS


def test_a_listener_that_fails_is_named_once_and_stops_nothing(tmp_path):
    calls = []

    def gvbsm_step(event):
        calls.append(event)
        raise RuntimeError("no network")

    reporter = Reporter(tmp_path / "log.jsonl", listening("toy_failing", gvbsm_step=gvbsm_step), quiet=True)
    with pytest.warns(UserWarning, match=r"toy_failing.*gvbsm_step.*no network"):
        reporter.emit(EVENTS[1])
    reporter.emit(EVENTS[1])
    assert len(calls) == 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_listener_without_arguments_is_called(recwarn):
    calls = []

    def gvbsm_step():
        calls.append("step")

    reporter = Reporter(None, listening("toy_brief", gvbsm_step=gvbsm_step), quiet=True)
    reporter.emit(EVENTS[1])
    reporter.emit(EVENTS[1])
    assert calls == ["step", "step"]
    assert not recwarn


def recorder(calls, name, fails=False):
    """A listener to steps that notes its name."""

    def gvbsm_step(event):
        calls.append(name)
        if fails:
            raise RuntimeError(f"{name} is broken")

    return gvbsm_step


def wrapper(calls, fails=""):
    """A listener to steps that wraps the others, and fails before or after them."""

    @hookimpl(wrapper=True)
    def gvbsm_step():
        calls.append("before")
        if fails == "before":
            raise RuntimeError("too early")
        yield
        calls.append("after")
        if fails == "after":
            raise RuntimeError("too late")

    return gvbsm_step


def test_listeners_are_called_in_pluggys_order_inside_wrappers():
    calls = []
    points = [
        plugin("toy_a", gvbsm_step=hookimpl(recorder(calls, "first"), tryfirst=True)),
        plugin("toy_b", gvbsm_step=wrapper(calls)),
        plugin("toy_c", gvbsm_step=recorder(calls, "between")),
        plugin("toy_d", gvbsm_step=hookimpl(recorder(calls, "last"), trylast=True)),
    ]
    Reporter(None, discover(points), quiet=True).emit(EVENTS[1])
    assert calls == ["before", "first", "between", "last", "after"]


def test_others_hear_each_event_once_when_a_listener_fails():
    calls = []
    points = [
        plugin("toy_a", gvbsm_step=recorder(calls, "a"), gvbsm_stage_started=recorder(calls, "a starts")),
        plugin(
            "toy_b",
            gvbsm_step=recorder(calls, "b", fails=True),
            gvbsm_stage_started=recorder(calls, "b starts"),
        ),
        plugin("toy_c", gvbsm_step=recorder(calls, "c", fails=True)),
        plugin("toy_d", gvbsm_step=recorder(calls, "d")),
    ]
    reporter = Reporter(None, discover(points), quiet=True)
    with pytest.warns(UserWarning, match="toy_") as caught:
        reporter.emit(EVENTS[1])
    assert calls == ["d", "c", "b", "a"]
    said = [str(warning.message).split(":", 1)[1] for warning in caught]
    assert said == [
        f"toy_{name} failed to take gvbsm_step (RuntimeError: {name} is broken); it hears no more of this run"
        for name in ("c", "b")
    ]
    calls.clear()
    reporter.emit(EVENTS[1])
    reporter.emit(EVENTS[0])
    assert calls == ["d", "a", "a starts"]


@pytest.mark.parametrize("fails", ["before", "after"])
def test_a_wrapper_that_fails_is_muted_and_named(fails):
    calls = []
    points = [
        plugin("toy_a", gvbsm_step=recorder(calls, "a")),
        plugin("toy_w", gvbsm_step=wrapper(calls, fails)),
    ]
    reporter = Reporter(None, discover(points), quiet=True)
    with pytest.warns(UserWarning, match="toy_w failed to take gvbsm_step .RuntimeError: too") as caught:
        reporter.emit(EVENTS[1])
    assert len(caught) == 1
    assert calls.count("a") <= 1
    calls.clear()
    reporter.emit(EVENTS[1])
    assert calls == ["a"]


def test_a_wrapper_is_not_blamed_for_what_it_wraps():
    calls = []
    points = [
        plugin("toy_a", gvbsm_step=recorder(calls, "a", fails=True)),
        plugin("toy_w", gvbsm_step=wrapper(calls)),
    ]
    reporter = Reporter(None, discover(points), quiet=True)
    with pytest.warns(UserWarning, match="toy_a failed"):
        reporter.emit(EVENTS[1])
    calls.clear()
    reporter.emit(EVENTS[1])
    assert calls == ["before", "after"]


def test_what_a_worker_reports_arrives(registry, tmp_path, capsys, monkeypatch):
    clock = iter([0.0, 0.1, 0.6, 0.7])
    messages = []
    worker = MessageReporter(messages.append)
    worker.emit(EVENTS[1])
    worker.print("hello")
    monkeypatch.setattr(reporting.time, "monotonic", lambda: next(clock))
    for done in (1, 2, 3, 4):
        worker.progress("work", done, 4)
    assert [arguments[1] for method, arguments in messages if method == "progress"] == [1, 3, 4]
    monkeypatch.undo()
    reporter = Reporter(tmp_path / "log.jsonl", registry, quiet=True)
    for message in pickle.loads(pickle.dumps(messages)):
        reporter.receive(message)
    assert json.loads((tmp_path / "log.jsonl").read_text())["values"] == {"total": 1.5}
    assert capsys.readouterr().err == "hello\n"


def test_a_log_that_cannot_be_written_is_one_line(registry, tmp_path):
    (tmp_path / "file").write_text("")
    reporter = Reporter(tmp_path / "file" / "log.jsonl", registry, quiet=True)
    with pytest.raises(GvbsmError, match=r"log\.jsonl: can't be written") as caught:
        reporter.emit(EVENTS[0])
    assert "\n" not in str(caught.value)


def test_no_bars_where_the_output_is_no_terminal(registry, capsys):
    with Reporter(None, registry) as reporter:
        for step in range(5):
            reporter.progress("work", step + 1, 5)
        reporter.print("hello [red]")
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
