"""The report: self-contained, escaped, and drawn whole by a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import time
import warnings
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes

from gvbsm import pipeline, report
from gvbsm.recipe import loading
from gvbsm.report import figures
from gvbsm.report.gather import RunFacts, gather
from gvbsm.report.sections import _losses, similarity, term_colours
from gvbsm.results.finished import FinishedRun
from gvbsm.runtime.reporting import Reporter
from gvbsm.stages.plan import Plan
from gvbsm_registry import GvbsmError

NAMES = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "cost $5_{a}^$ & more")


class Page(HTMLParser):
    """Collects tags, headings and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture(scope="module")
def finished(
    toy_tables: dict[str, Any], registry: Any, shared_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> pipeline.Run:
    """A finished toy run whose classes are named like markup."""
    tables = toy_tables
    tables["data"] = {"use": "toy_data", "names": list(NAMES)}
    for key in ("distilled_hard", "without_augmentation", "full_baseline"):
        tables["evaluation"][key] = True
    tables["evaluation"]["seeds"] = [0, 1]
    out = tmp_path_factory.mktemp("report") / "run <b>1</b>"
    made = loading.make(tables, registry, where="toy")
    reporter = Reporter(out / "log.jsonl", registry, quiet=True)
    run = pipeline.open_recipe(made, registry, out, shared_store, "cpu", reporter)
    pipeline.run_stages(run)
    (out / "recipe.toml").write_text(made.toml())
    report.after_run(pipeline.report_inputs(run), reporter.print)
    return run


@pytest.fixture(scope="module")
def text(finished: pipeline.Run) -> str:
    return (finished.folder / "report.html").read_text(encoding="utf-8")


def test_everything_is_in_it(text: str) -> None:
    page = Page(text)
    pictures = page.all("img")
    assert sum("webp" in str(p["src"]) for p in pictures) == 2 * len(NAMES)
    # accuracy, losses of 2 backbones, similarity, t-SNE, 2 statistics of 2 backbones, confusion
    assert sum("svg" in str(p["src"]) for p in pictures) == 1 + 2 + 1 + 1 + 4 + 1
    assert len(page.all("h1")) == 1
    assert [a["id"] for a in page.all("h2")] == [
        "accuracy",
        "images",
        "losses",
        "similarity",
        "neighbours",
        "layers",
        "confusion",
        "cost",
        "recipe",
    ]
    for wanted in ("hard, without augmentation", "DD-Ranking", "[synthesis]", "iterations = 6", "synthesis"):
        assert wanted in text
    assert len(text) < 3_000_000


def test_it_is_sound_for_a_screen_reader(text: str) -> None:
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en"
    assert all(len(str(picture["alt"])) > 15 for picture in page.all("img"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    targets = {a["id"] for _, a in page.tags if "id" in a}
    assert all(str(link["href"])[1:] in targets for link in page.all("a"))
    assert all(box.get("tabindex") == "0" for box in page.all("div") if box.get("class") == "scroll")


def test_it_needs_nothing_from_elsewhere(text: str) -> None:
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "data"):
            assert str(attributes.get(name) or "#").startswith(("data:", "#")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in text
    assert "url(" not in text


def test_markup_in_names_is_text_everywhere(text: str, finished: pipeline.Run) -> None:
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "<b>1</b>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    for picture in Page(text).all("img"):
        kind, _, content = str(picture["src"]).partition(",")
        if "svg" in kind:
            root = xml.fromstring(base64.b64decode(content))
            assert not [part for part in root.iter() if part.tag.endswith(("script", "foreignObject"))]
            links = [v for part in root.iter() for k, v in part.attrib.items() if k.endswith("href")]
            assert all(link.startswith(("#", "data:")) for link in links)
    card = (finished.folder / "README.md").read_text(encoding="utf-8")
    assert "<script" not in card
    assert "<img" not in card


def test_it_is_made_again_only_for_other_results(finished: pipeline.Run) -> None:
    path = finished.folder / "report.html"
    before = path.stat().st_mtime_ns
    report.after_run(pipeline.report_inputs(finished), finished.context.reporter.print)
    assert path.stat().st_mtime_ns == before
    results = finished.folder / "results.json"
    kept = results.read_text()
    results.write_text(kept + " ")
    report.after_run(pipeline.report_inputs(finished), finished.context.reporter.print)
    results.write_text(kept)
    assert path.stat().st_mtime_ns != before


def test_a_failure_is_one_line(finished: pipeline.Run, monkeypatch: Any, capsys: Any) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr(report, "write", broken)
    monkeypatch.setattr(report, "stamp", lambda folders: "another")
    report.after_run(pipeline.report_inputs(finished), finished.context.reporter.print)
    (line,) = capsys.readouterr().err.splitlines()
    assert "RuntimeError: no fonts" in line
    assert "gvbsm report" in line


def test_what_is_missing_is_said(make_run: Any, tmp_path: Path) -> None:
    changes = [("synthesis.iterations", 0), ("synthesis.ipc", 1)]
    run = make_run(*changes).until("synthesis")
    (run.out / "recipe.toml").write_text(run.recipe.toml())
    elsewhere = make_run(*changes, store=tmp_path / "no store")
    started = time.process_time()
    report.write([pipeline.report_inputs(elsewhere.opened)] * 2, tmp_path / "both.html")
    assert time.process_time() - started < 20
    text = (tmp_path / "both.html").read_text()
    assert "not in the store" in text
    assert "Not evaluated yet" in text
    assert "no synthesis steps" in text
    assert "2 condensed sets side by side" in text


def test_malformed_results_are_one_line(finished: pipeline.Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished.folder, out)
    (out / "results.json").write_text('{"schema": 2, "records": [{"set": "distilled"}]}')
    inputs = replace(pipeline.report_inputs(finished), run=FinishedRun(out))
    with pytest.raises(GvbsmError, match=r"results\.json: does not hold results.*records\.0\.top1"):
        report.write([inputs], tmp_path / "report.html")


def test_a_damaged_backbone_is_told_as_damaged(finished: pipeline.Run, tmp_path: Path) -> None:
    inputs = pipeline.report_inputs(finished)
    store = tmp_path / "store"
    shutil.copytree(finished.plan.store, store)
    damaged, missing = (store / "backbones" / backbone.path.name for backbone in inputs.backbones)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    missing.unlink()
    plan = finished.plan
    elsewhere = replace(finished, plan=Plan(plan.recipe, plan.data, plan.registry, plan.out, store))
    report.write([pipeline.report_inputs(elsewhere)], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Backbone toy_net is damaged" in text
    assert "truncated or altered" in text
    assert "Backbone toy_net-2 is not in the store" in text


def test_files_that_are_no_results_are_not_counted(finished: pipeline.Run) -> None:
    folder = finished.folder / "units" / "synthesis"
    before = {stage: count for stage, _, count in gather(pipeline.report_inputs(finished)).stages}
    assert before["synthesis"] > sum(path.stat().st_size for path in folder.iterdir())
    left = folder / f"{'0' * 64}.last-good.safetensors"
    left.write_bytes(b"x" * 1000)
    try:
        after = {stage: count for stage, _, count in gather(pipeline.report_inputs(finished)).stages}
    finally:
        left.unlink()
    assert after == before


def facts(steps: list[dict[str, Any]]) -> RunFacts:
    return RunFacts("run", ("a",), [0], "", {}, [], [], steps, [], {}, [], None, [])


def step(backbone: str, number: int, **values: float) -> dict[str, Any]:
    return {"labels": {"backbone": backbone}, "step": number, "unit": "u", "values": values}


def test_a_term_has_one_colour_and_terms_of_one_matcher_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbones' terms differ; so do the runs': each term keeps its colour in all figures."""
    one = facts(
        [
            step("plain", 0, cross_entropy=2.0, bn=1.0, total=3.0),
            step("vit", 1, **{"cross_entropy": 2.0, "conv_patch-1": 1.0, "conv_patch-2": 3.0}),
        ]
    )
    other = facts([step("plain", 0, **{"conv_patch-2": 1.0, "tv": 1.0, "bn": 1.0, "learning_rate": 0.1})])
    colours = term_colours([one, other])
    assert list(colours) == ["cross_entropy", "bn", "conv_patch-1", "conv_patch-2", "tv"]
    assert len(set(colours.values())) == 5
    drawn: list[tuple[str, str]] = []
    plot = Axes.plot

    def record(self: Any, *args: Any, **options: Any) -> Any:
        drawn.append((options["label"], options["color"]))
        return plot(self, *args, **options)

    monkeypatch.setattr(Axes, "plot", record)
    for run in (one, other):
        _losses(run, colours)
    assert len(drawn) == 2 + 3 + 3
    assert {colours[name] == colour for name, colour in drawn} == {True}


def test_names_in_any_script_draw_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.bars([("日本 हिन्दी", "distilled", 50.0, 0.0)], "alt", "caption")


def test_similarity_is_the_mean_over_pairs() -> None:
    rows = torch.randn(5, 3, dtype=torch.float64)
    pairs = [
        float(torch.nn.functional.cosine_similarity(rows[i], rows[j], 0)) for i in range(5) for j in range(i)
    ]
    assert similarity(rows) == pytest.approx(sum(pairs) / len(pairs))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver", reason="the package selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no chromium (Debian: apt-get install chromium chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driven = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield driven
    driven.quit()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_draws_it(browser: Any, finished: pipeline.Run, text: str, width: int, theme: str) -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page = finished.folder / "report.html"
    browser.get_log("performance")
    browser.get(page.resolve().as_uri())
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [page.resolve().as_uri()]
    drawn = browser.execute_script(
        "return [...document.images].map(i => i.complete && i.naturalWidth > 0 && i.clientWidth > 0)"
    )
    assert drawn
    assert all(drawn)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    ink, paper = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    )
    assert contrast(ink, paper) > 7
    dark = luminance(paper) < 0.2
    assert dark == (theme == "dark")


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2 of "rgb(r, g, b)"."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
