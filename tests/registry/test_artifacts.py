"""Tensor files: what is written comes back, what is damaged is refused, what is interrupted is whole."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from gvbsm_registry import Artifact, GvbsmError
from gvbsm_registry.artifacts import canonical, digest, peek, read, write, write_text

DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = TEXT.filter(lambda name: name not in ("", "__metadata__"))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any bytes at all, so that NaN payloads and denormals are among the floats."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = int(torch.Size(shape).numel())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if dtype == torch.bool:
        return torch.randint(0, 2, (count,), generator=generator).to(torch.bool).reshape(shape)
    data = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape)


def same(one: Artifact, other: Artifact) -> bool:
    return (
        (one.kind, one.key, one.meta) == (other.kind, other.key, other.meta)
        and one.tensors.keys() == other.tensors.keys()
        and all(same_bits(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    )


def same_bits(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))


def example(fill: int = 0) -> Artifact:
    made = {
        "images": torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4) + fill,
        "labels": torch.tensor([fill]),
        "logits": torch.linspace(-1, 1, 10).half(),
    }
    meta = {"classes": ["cat", "naïve 猫"], "provenance": {"seed": fill}}
    return Artifact("distilled", "0123abcd", made, meta)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    parts=st.dictionaries(NAMES, tensors(), max_size=4),
    meta=st.dictionaries(TEXT, JSON, max_size=4),
    kind=TEXT,
)
def test_what_is_written_comes_back(
    tmp_path: Path, parts: dict[str, Tensor], meta: dict[str, object], kind: str
) -> None:
    path, artifact = tmp_path / "a.safetensors", Artifact(kind, "key", parts, meta)
    write(path, artifact)
    assert same(read(path, kind), artifact)


def test_any_layout_and_shared_memory_are_written_as_values(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    parts = {
        "full": base,
        "again": base,
        "transposed": base.T,
        "slice": base[1:3],
        "expanded": torch.ones(1).expand(5),
        "grad": torch.ones(2, requires_grad=True),
    }
    write(tmp_path / "a", Artifact("k", "x", parts, {}))
    back = read(tmp_path / "a").tensors
    assert all(torch.equal(back[name], tensor) for name, tensor in parts.items())
    back["full"].add_(1)  # a tensor that was read may be changed without changing the file
    assert torch.equal(read(tmp_path / "a").tensors["full"], base)


def test_folders_are_made_and_the_header_reads_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.safetensors"
    write(path, example())
    header = peek(path)
    assert (header["kind"], header["key"], header["schema"]) == ("distilled", "0123abcd", "1")
    assert json.loads(header["meta"])["classes"][1] == "naïve 猫"
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_equal_artifacts_make_equal_bytes(tmp_path: Path) -> None:
    one = example()
    other = Artifact(one.kind, one.key, dict(reversed(one.tensors.items())), dict(reversed(one.meta.items())))
    write(tmp_path / "a", one)
    write(tmp_path / "b", other)
    assert peek(tmp_path / "a") == peek(tmp_path / "b")


def test_canonical_text_and_digest_ignore_the_order_of_keys() -> None:
    assert canonical({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_truncation_at_every_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, example())
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(GvbsmError, match=r"a\.safetensors: .*") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_no_altered_byte_goes_unnoticed(tmp_path: Path) -> None:
    path, artifact = tmp_path / "a.safetensors", example()
    write(path, artifact)
    data, chosen = path.read_bytes(), random.Random(0)
    refused = 0
    for position in range(len(data)):
        for mask in (1 << chosen.randrange(8), chosen.randrange(1, 256)):
            altered = bytearray(data)
            altered[position] ^= mask
            path.write_bytes(altered)
            try:
                assert same(read(path), artifact), f"byte {position} ^ {mask} was taken for the truth"
            except GvbsmError:
                refused += 1
    # A blank between parts of the header may become another blank; nothing else may pass.
    assert refused >= 2 * len(data) - 16


def test_bytes_added_or_swapped_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, example())
    data = path.read_bytes()
    for altered in (data + b"\0", data + data, data[:-4] + data[-2:] + data[-4:-2]):
        path.write_bytes(altered)
        with pytest.raises(GvbsmError, match="truncated or altered"):
            read(path)


def test_every_type_name_in_a_header_is_refused_cleanly(tmp_path: Path) -> None:
    """Types that this torch does not know must not surface as some other error."""
    path = tmp_path / "a.safetensors"
    write(path, Artifact("k", "x", {"t": torch.zeros(8)}, {}))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    plain = data[8 : 8 + length].decode().rstrip()
    assert '"F32"' in plain
    for dtype in ("F64", "F16", "I32", "U32", "C64", "BF16", "F8_E8M0", "F4", "F6_E2M3", "U16", "zzz"):
        header = plain.replace('"F32"', f'"{dtype}"')
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data[-32:])
        with pytest.raises(GvbsmError, match="truncated or altered"):
            read(path)


def test_a_file_of_another_kind_schema_or_maker(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, example())
    with pytest.raises(GvbsmError, match=r"a\.safetensors: is a 'distilled' file where a 'weights' file is"):
        read(path, "weights")
    header = {**peek(path), "schema": "2"}
    save_file({"x": torch.zeros(1)}, path, metadata=header)
    with pytest.raises(GvbsmError, match="has schema 2, this gvbsm reads schema 1"):
        read(path)
    for metadata in (None, {"format": "pt"}):
        save_file({"x": torch.zeros(1)}, path, metadata=metadata)
        with pytest.raises(GvbsmError, match="was not written by gvbsm"):
            read(path)


@pytest.mark.parametrize("content", [b"", b"not a tensor file at all", b"\xff" * 64, b"\0" * 64, b"{}" * 99])
def test_a_file_that_is_no_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(GvbsmError, match="truncated or altered"):
        read(path)


def test_a_missing_file_a_folder_and_a_file_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(GvbsmError, match="no such file; run the stage that makes it"):
        read(tmp_path / "none.safetensors")
    with pytest.raises(GvbsmError, match=str(tmp_path)):
        read(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(GvbsmError, match="file/a"):
        read(tmp_path / "file" / "a")


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.target),)


def test_reading_runs_no_code(tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps(_Bomb(target)))
    with pytest.raises(GvbsmError):
        read(path)
    torch.save({"x": _Bomb(target)}, path)
    with pytest.raises(GvbsmError):
        read(path)
    assert not target.exists()


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(GvbsmError, match=r"can't be written .* check the folder") as caught:
        write(tmp_path / "file" / "a", example())
    assert "\n" not in str(caught.value)


def test_a_folder_at_the_final_name_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    with pytest.raises(GvbsmError, match="can't be written"):
        write(path, example())
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_disk_that_fills_up_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write(path, example(1))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GvbsmError, match=r"can't be written .*No space left.*free some space there"):
        write(path, example(2))
    with pytest.raises(GvbsmError, match="free some space there"):
        write_text(tmp_path / "recipe.toml", "x = 1\n")
    monkeypatch.undo()
    assert same(read(path), example(1))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_write_cut_short_by_the_system_keeps_the_old_file(tmp_path: Path) -> None:
    """A real limit on file size: the write itself fails half-way, as on a full disk."""
    path = tmp_path / "a.safetensors"
    write(path, example(1))
    code = """
        import resource, signal, sys, pathlib, torch
        from gvbsm_registry import Artifact, GvbsmError
        from gvbsm_registry.artifacts import write, write_text
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        path = pathlib.Path(sys.argv[1])
        for attempt in (lambda: write(path, Artifact("k", "x", {"t": torch.zeros(100000)}, {})),
                        lambda: write_text(path, "x" * 100000)):
            try:
                attempt()
            except GvbsmError as error:
                print(error)
    """
    done = script(code, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("can't be written") == 2
    assert same(read(path), example(1))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    from gvbsm_registry.artifacts import replacing

    write_text(tmp_path / "a", "old")

    def interrupted() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half of the ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a": "old"}


WRITER = """
    import sys, pathlib, torch
    from gvbsm_registry import Artifact
    from gvbsm_registry.artifacts import write
    path, first, step = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    fill = first
    while True:
        tensors = {"a": torch.full((50000,), fill), "b": torch.full((fill % 7,), fill)}
        write(path, Artifact("k", str(fill), tensors, {"fill": fill}))
        fill += step
"""


def script(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(code, *arguments), capture_output=True, text=True, timeout=120, check=False)


def command(code: str, *arguments: object) -> list[str]:
    lines = code.splitlines()
    plain = "\n".join(line[len(lines[1]) - len(lines[1].lstrip()) :] for line in lines[1:])
    return [sys.executable, "-c", plain, *map(str, arguments)]


@contextmanager
def writers(path: Path, *starts: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    running = [subprocess.Popen(command(WRITER, path, start, len(starts))) for start in starts]
    try:
        deadline = time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < deadline, "the writer wrote nothing"
            time.sleep(0.01)
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def whole(path: Path) -> int:
    artifact = read(path)
    fill = artifact.meta["fill"]
    assert artifact.key == str(fill)
    assert torch.equal(artifact.tensors["a"], torch.full((50000,), fill))
    assert torch.equal(artifact.tensors["b"], torch.full((fill % 7,), fill))
    return int(fill)


@pytest.mark.parametrize("pause", [0.0137, 0.151])
def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path, pause: float) -> None:
    path = tmp_path / "a.safetensors"
    with writers(path, 1) as (process,):
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert whole(path) >= 1
        # What else lies there is hidden and does not pass for an artifact.
        assert all(file.name.startswith(".") for file in tmp_path.iterdir() if file != path)
        write(path, example())
        assert same(read(path), example())


def test_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with writers(path, 1, 2):
        end = time.monotonic() + 0.7
        seen: set[int] = set()
        while time.monotonic() < end or len(seen) < 3:
            seen.add(whole(path))
    assert whole(path)


def test_equal_artifacts_are_equal_files(tmp_path: Path) -> None:
    meta = {"text": 'a "quoted" \\ line\n\u00e9\u4e2d', "number": 1.5, "classes": ["<b>", "x"]}
    made = set()
    for number in range(8):
        tensors = {"b": torch.arange(5), "a": torch.ones(2, 3)}
        write(tmp_path / f"{number}", Artifact("images", "k", tensors, meta))
        made.add((tmp_path / f"{number}").read_bytes())
    assert len(made) == 1
    assert read(tmp_path / "0").meta == meta
