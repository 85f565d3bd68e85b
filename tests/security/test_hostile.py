"""Files and arguments made to do harm: each is refused in one line, or is harmless."""

from __future__ import annotations

import contextlib
import html.parser
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRun
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gvbsm import pipeline, report
from gvbsm.recipe import loading
from gvbsm.recipe.schema import Recipe
from gvbsm.recipe.text import parse_component, parse_value
from gvbsm_registry import Artifact, GvbsmError, Registry
from gvbsm_registry.artifacts import canonical, peek, read, write

BOUNDED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(GvbsmError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def safetensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def one(offsets: list[int], shape: list[int], kind: str = "F32") -> dict[str, Any]:
    return {"a": {"dtype": kind, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({}, length=2**63),
        safetensors({}, length=2**40),
        safetensors(b"[" * 100_000),
        safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        safetensors(one([0, 2**40], [2**38]), bytes(16)),
        safetensors(one([-4, 0], [1]), bytes(16)),
        safetensors(one([8, 4], [1]), bytes(16)),
        safetensors(one([0, 4], [2**31, 2**31, 4]), bytes(4)),
        safetensors(
            {**one([0, 8], [2]), "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)
        ),
        safetensors(one([0, 4], [1], "OBJECT"), bytes(4)),
        safetensors({"__metadata__": {"schema": 1}}),
        safetensors({"__metadata__": ["schema"]}),
        safetensors({"__metadata__": {"schema": "1", "kind": "x", "key": "k", "meta": "{", "digest": "0"}}),
        safetensors({"../../x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
    ],
)
def test_a_hostile_safetensors_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert str(path) in refused(lambda: read(path))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_metadata_that_is_no_json_but_has_the_right_digest(tmp_path: Path) -> None:
    """Whoever writes a file can give it any digest: what the digest covers is checked all the same."""
    import hashlib

    header = {"schema": "1", "kind": "images", "key": "k", "meta": "{" * 9}
    made = hashlib.sha256(canonical(header).encode()).hexdigest()
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors({"__metadata__": {**header, "digest": made}}))
    assert str(path) in refused(lambda: read(path))


@BOUNDED
@given(st.binary(max_size=400))
def test_any_bytes_are_refused_as_an_artifact(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    refused(lambda: read(path))
    refused(lambda: peek(path))


@BOUNDED
@given(st.data())
def test_an_altered_artifact_is_refused_or_equal(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.safetensors"
    good = Artifact("images", "k", {"a": torch.arange(6.0), "b": torch.ones(2, 2)}, {"classes": ["x"]})
    write(path, good)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "drop", "insert", "copy"])):
            case "flip":
                content[at] = data.draw(st.integers(0, 255))
            case "drop":
                del content[at : at + data.draw(st.integers(1, 40))]
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=40))
            case _:
                content[at:at] = content[: data.draw(st.integers(1, 40))]
        if not content:
            break
    path.write_bytes(content)
    with contextlib.suppress(GvbsmError):
        found = read(path)
        assert (found.kind, found.key, found.meta) == (good.kind, good.key, good.meta)
        assert all(torch.equal(found.tensors[name], good.tensors[name]) for name in good.tensors)


KEYS = st.sampled_from(
    ["data", "backbones", "synthesis", "relabel", "use", "matchers", "ipc", "codec", "seed", "name", "keep"]
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | KEYS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@BOUNDED
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_tables_make_a_recipe_or_one_line(registry: Registry, tables: dict[str, Any]) -> None:
    with contextlib.suppress(GvbsmError):
        assert isinstance(loading.make(tables, registry, where="x"), Recipe)


@BOUNDED
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_text_is_a_recipe_or_one_line(registry: Registry, tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(GvbsmError):
        loading.load(path, registry)


@BOUNDED
@given(st.text(max_size=30), st.text(max_size=60))
def test_any_setting_changes_tables_or_is_one_line(key: str, text: str) -> None:
    tables: dict[str, Any] = {"data": "digits", "synthesis": {"matchers": ["bn"], "ipc": 1}}
    with contextlib.suppress(GvbsmError):
        loading.override(tables, key, parse_value(text))
    with contextlib.suppress(GvbsmError):
        parse_component(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("__class__", "x"),
        ("__class__.__init__.__globals__", "x"),
        ("synthesis.__dict__", "x"),
        ("data.use", "os.system"),
        ("data.use", "../../digits"),
        ("data.model_config", "x"),
        ("synthesis.matchers.0.__module__", "os"),
        ("backbones", [{"use": "timm/../../../x"}]),
        ("backbones", [{"use": "torchvision/__import__"}]),
        ("backbones", [{"use": "torchvision/get_model"}]),
        ("relabel.codec", {"use": "topk", "k": "__import__('os')"}),
    ],
)
def test_a_setting_reaches_options_and_nothing_else(registry: Registry, key: str, value: Any) -> None:
    """The names of families are looked up when the backbone is built."""

    def attempt() -> None:
        tables: dict[str, Any] = {"data": "digits", "synthesis": {"matchers": ["bn"]}}
        loading.override(tables, key, value)
        for backbone in loading.make(tables, registry, where="x").backbones:
            backbone.build(10, 32, 3)

    refused(attempt)


def test_a_value_is_a_value_whatever_it_spells() -> None:
    assert parse_value("1\n[data]\nuse = 'x'") in (1, "1\n[data]\nuse = 'x'")
    assert parse_value("$(touch x)") == "$(touch x)"
    assert parse_value("__import__('os')") == "__import__('os')"


class Markup(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_class_names_like_markup_stay_text(make_run: MakeRun) -> None:
    names = ["<img src=x onerror=alert(1)>", '"><script>alert(2)</script>', "[red]{{7*7}}<iframe>"]
    run = make_run(("data", {"use": "toy_data", "names": names}))
    run.until("evaluation")
    (run.out / "recipe.toml").write_text(run.recipe.toml(), encoding="utf-8")
    path = run.out / "report.html"
    report.write([pipeline.report_inputs(run.opened)], path)
    text = path.read_text(encoding="utf-8")
    page = Markup()
    page.feed(text)
    assert "iframe" not in page.tags
    assert "onerror" not in page.attributes
    assert "<script>alert" not in text
    assert "7*7" in text
    assert "&lt;iframe&gt;" in text
