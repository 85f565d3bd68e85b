"""Stores at URLs: objects before markers, verified on reading, harmless names."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gvbsm.runtime.remote_store import RemoteStore, is_url
from gvbsm_registry import GvbsmError

KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """A bucket of an S3 server on this machine, in memory; skips where s3fs or moto is not installed."""
    s3fs, server = pytest.importorskip("s3fs"), pytest.importorskip("moto.server")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
    running.stop()


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RemoteStore:
    if request.param == "s3":
        return RemoteStore(f"{request.getfixturevalue('bucket')}{tmp_path}/store")
    if request.param == "file":
        return RemoteStore(f"file://{tmp_path}/store")
    return RemoteStore(f"memory://{tmp_path}/store")


def made(folder: Path, content: bytes = b"tensors") -> Path:
    path = folder / "made.safetensors"
    path.write_bytes(content)
    return path


def system(store: RemoteStore) -> tuple[Any, str]:
    return store._opened


def test_what_is_pushed_is_pulled(store: RemoteStore, tmp_path: Path) -> None:
    assert not store.has("images", KEY)
    assert not store.pull("images", KEY, tmp_path / "x")
    store.push("images", KEY, made(tmp_path))
    again = pickle.loads(pickle.dumps(store))
    assert again.has("images", KEY)
    assert not again.has("labels", KEY)
    assert not again.has("images", OTHER)
    target = tmp_path / "deep" / "down" / "file.safetensors"
    assert again.pull("images", KEY, target)
    assert target.read_bytes() == b"tensors"


def test_an_object_without_a_marker_does_not_exist(store: RemoteStore, tmp_path: Path) -> None:
    files, root = system(store)
    store.push("images", KEY, made(tmp_path))
    files.rm(f"{root}/images/{KEY}.json")
    assert not store.pull("images", KEY, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_writer_that_dies_leaves_what_was_there(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.push("images", KEY, made(tmp_path, b"first"))
    files, _ = system(store)

    def dies(*arguments: object) -> None:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(files, "pipe_file", dies)
    with pytest.raises(GvbsmError, match="gone"):
        store.push("images", KEY, made(tmp_path, b"second"))
    assert store.pull("images", KEY, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"first"


@pytest.mark.parametrize("content", [b"tensor", b"tensorz", b""])
def test_an_altered_object_is_refused_and_nothing_is_left(
    store: RemoteStore, tmp_path: Path, content: bytes
) -> None:
    store.push("images", KEY, made(tmp_path))
    files, root = system(store)
    (name,) = [path for path in files.ls(f"{root}/images", detail=False) if path.endswith("safetensors")]
    files.pipe_file(name, content)
    with pytest.raises(GvbsmError, match="truncated or altered"):
        store.pull("images", KEY, tmp_path / "out" / "x")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_object_is_named(store: RemoteStore, tmp_path: Path) -> None:
    store.push("images", KEY, made(tmp_path))
    files, root = system(store)
    (name,) = [path for path in files.ls(f"{root}/images", detail=False) if path.endswith("safetensors")]
    files.rm(name)
    with pytest.raises(GvbsmError, match=KEY):
        store.pull("images", KEY, tmp_path / "x")


@pytest.mark.parametrize(
    "marker",
    [
        b"",
        b"[]",
        b"\xff\x00",
        json.dumps({"object": "../../etc/passwd", "size": 1, "sha256": ""}).encode(),
        json.dumps({"object": f"{OTHER}-{'0' * 16}.safetensors", "size": 1, "sha256": ""}).encode(),
        json.dumps({"object": f"{KEY}-{'0' * 16}.safetensors", "size": "1", "sha256": ""}).encode(),
        json.dumps({"object": 7, "size": 1, "sha256": ""}).encode(),
    ],
)
def test_a_hostile_marker_is_refused(store: RemoteStore, tmp_path: Path, marker: bytes) -> None:
    files, root = system(store)
    files.makedirs(f"{root}/images", exist_ok=True)
    files.pipe_file(f"{root}/images/{KEY}.json", marker)
    with pytest.raises(GvbsmError, match="marker"):
        store.pull("images", KEY, tmp_path / "x")
    with pytest.raises(GvbsmError, match="marker"):
        store.has("images", KEY)


@pytest.mark.parametrize("url", ["nosuch://x/y", "nosuch2://x"])
def test_a_url_that_nothing_opens_is_one_line(url: str, tmp_path: Path) -> None:
    with pytest.raises(GvbsmError) as error:
        RemoteStore(url).has("images", KEY)
    assert "\n" not in str(error.value)
    assert url in str(error.value)


def test_a_store_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with pytest.raises(GvbsmError, match="credentials"):
        RemoteStore(f"file://{blocked}/store").push("images", KEY, made(tmp_path))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://bucket/x", True),
        ("file:///x", True),
        ("memory:x", True),
        ("C:\\store", False),
        ("/store", False),
        ("store", False),
        ("./a:b", False),
        ("~/x", False),
    ],
)
def test_folders_are_told_from_urls(text: str, url: bool) -> None:
    assert is_url(text) is url
