"""Tensor files: safetensors with a schema version, a digest of the contents and their provenance.

Written to a temporary name, flushed to the disk, then renamed, so that a file with its final name is whole.
Reading verifies the digest. Nothing read here can run code.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvbsm_registry.errors import GvbsmError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
TEMPORARY = re.compile(r"\..+\.(\d+)-([0-9a-f]{8})-[0-9a-f]{8}\.tmp")
ABANDONED_AFTER = 24 * 3600
LOADED = time.time()


@dataclass(frozen=True)
class Artifact:
    """What a file holds: `kind` (what it is), `key` (the digest of what it was made from), tensors, and
    `meta`: JSON values, among them `provenance`."""

    kind: str
    key: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def canonical(value: object) -> str:
    """Return JSON text that is equal for equal values (keys sorted, no spaces)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)


def digest(value: object) -> str:
    """Return the SHA-256 hex digest of a JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def write(path: Path, artifact: Artifact) -> None:
    """Write `artifact` to `path` atomically.

    Raises GvbsmError, leaving what was at `path` untouched, if the disk is full or not writable.
    """
    from safetensors.torch import save_file

    tensors = _separate(artifact.tensors)
    header = {
        "schema": str(SCHEMA),
        "kind": artifact.kind,
        "key": artifact.key,
        "meta": canonical(artifact.meta),
    }
    header["digest"] = _content_digest(header, tensors)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=header)
        _order_header(temporary)


def _order_header(path: Path) -> None:
    """Sort the metadata, which safetensors writes in random order: equal artifacts are equal files."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


class replacing:
    """A context that yields a temporary path beside `path`, then flushes and renames it to `path`.

    Raises GvbsmError for every error of the file system; the temporary file is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}-{_machine()}-{secrets.token_hex(4)}.tmp")

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return self.temporary

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                _flush(self.temporary)
                os.replace(self.temporary, self.path)
        except OSError as failure:
            error = failure
        # Some file systems can't flush a folder or remove a file never made; `path` is whole anyway.
        with contextlib.suppress(OSError):
            if error is None:
                _flush(self.path.parent)
            else:
                self.temporary.unlink(missing_ok=True)
        if error is not None and (isinstance(error, OSError) or type(error).__name__ == "SafetensorError"):
            raise _unwritable(self.path, error) from error


@cache
def _machine() -> str:
    """Return 8 hex digits that stand for this machine and, in a container, for its own process numbers."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return hashlib.sha256(f"{platform.node()} {numbering}".encode()).hexdigest()[:8]


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in `folder` itself.

    A file whose process lives is kept, and so is one of another machine (that shares the folder) unless it
    is a day old; what can't be removed stays.
    """
    for path in folder.glob(".*.tmp"):
        match = TEMPORARY.fullmatch(path.name)
        with contextlib.suppress(OSError):
            if match is not None and _abandoned(path, int(match[1]), match[2]):
                path.unlink(missing_ok=True)


def _abandoned(path: Path, process: int, machine: str) -> bool:
    made = path.stat().st_mtime
    if machine != _machine():
        return time.time() - made > ABANDONED_AFTER
    if process == os.getpid():  # the number of a dead process may have come to this one
        return made < LOADED
    try:
        os.kill(process, 0)
    except PermissionError:
        return False
    except (ProcessLookupError, OverflowError):
        return True
    return False


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; raises GvbsmError if it can't be written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_new_text(path: Path, text: str) -> bool:
    """Write a text file atomically where there is none; of several processes at once, one does.

    Returns whether it was written. Raises GvbsmError if it can't be.
    """
    whole = replacing(path).temporary
    write_text(whole, text)
    try:
        os.link(whole, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            return file.write(text) == len(text)
        return False
    finally:
        whole.unlink(missing_ok=True)
    return True


def read(path: Path, kind: str | None = None) -> Artifact:
    """Read and verify the artifact at `path`.

    Raises GvbsmError if it is missing, truncated, altered, of a later schema or not of `kind`.
    """
    while True:
        stamp = _stamp(path)
        try:
            header, tensors = _verified(path)
            break
        except GvbsmError:
            # Header and tensors are read in turn: another process may have replaced the file between.
            if _stamp(path) == stamp:
                raise
    if kind is not None and header["kind"] != kind:
        raise GvbsmError(f"{path}: is a {header['kind']!r} file where a {kind!r} file is needed")
    return Artifact(header["kind"], header["key"], tensors, json.loads(header["meta"]))


def peek(path: Path) -> dict[str, str]:
    """Return the header of the artifact at `path` (schema, kind, key, meta, digest) without its tensors.

    Raises GvbsmError if there is none, or of a later schema.
    """
    from safetensors import SafetensorError, safe_open

    if path.exists() and not path.is_file():  # a pipe, whose opening waits for ever
        raise _broken(path, "is no regular file")
    try:
        # As numpy: torch's way maps the whole file, and opens it twice, which a writer can come between.
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
    except FileNotFoundError as error:
        raise GvbsmError(f"{path}: no such file; run the stage that makes it") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise _broken(path, str(error)) from error
    if not {"schema", "kind", "key", "meta", "digest"} <= set(header):
        raise GvbsmError(f"{path}: was not written by gvbsm (its metadata lacks schema, kind, key or digest)")
    if header["schema"] != str(SCHEMA):
        raise GvbsmError(
            f"{path}: has schema {header['schema']}, this gvbsm reads schema {SCHEMA}; "
            "install the gvbsm that wrote it"
        )
    try:
        if not isinstance(json.loads(header["meta"]), dict):
            raise ValueError("its meta is not a table")
    except (ValueError, RecursionError) as error:
        raise _broken(path, str(error)) from error
    return header


def _verified(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = peek(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise _broken(path, str(error)) from error
    if header["digest"] != _content_digest(header, tensors):
        raise _broken(path, "its contents do not have the digest that it was written with")
    return header, tensors


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, none sharing memory with another: safetensors refuses those that do."""
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if storage in storages else plain
        storages.add(storage)
    return separate


def _content_digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    import torch

    made = hashlib.sha256(canonical({k: v for k, v in header.items() if k != "digest"}).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        made.update(canonical([name, str(tensor.dtype), list(tensor.shape)]).encode())
        made.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _broken(path: Path, why: str) -> GvbsmError:
    return GvbsmError(f"{path}: truncated or altered ({why}); delete the file and run again to make it anew")


def _unwritable(path: Path, error: BaseException) -> GvbsmError:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    remedy = "free some space there" if full else "check the folder and its permissions"
    return GvbsmError(f"{path}: can't be written ({error}); {remedy} and run again: finished work is kept")
