"""A store at a URL (s3://…, file:///…, memory://…) that workers without a shared disk have in common.

Artifacts are made and read on the local disk; the store holds a copy of each under its key. An object is
written first, then a marker that names it with its size and SHA-256: what has no marker does not exist, so a
writer that dies half-way leaves nothing that anyone reads. Objects are named by key and contents, so two
writers of one key can't mix.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from gvbsm_registry.artifacts import replacing
from gvbsm_registry.errors import GvbsmError

URL = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)
CHUNK = 2**22


def is_url(text: str) -> bool:
    """Tell whether `text` is a URL, not a folder (`C:` is a folder)."""
    return URL.match(text) is not None


class RemoteStore:
    """The store at `url`, any that fsspec opens. Picklable."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteStore, (self.url,)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system and the path of the store in it."""
        try:
            from fsspec.core import url_to_fs

            opened: tuple[Any, str] = url_to_fs(self.url)
            return opened
        except ImportError as error:
            raise GvbsmError(f"--store {self.url}: {error}; install it") from error
        except ValueError as error:
            raise GvbsmError(f"--store {self.url}: is not a URL that can be opened ({error})") from error

    def has(self, kind: str, key: str) -> bool:
        """Tell whether there is an artifact; raises GvbsmError if the store can't be reached."""
        return self._marker(kind, key) is not None

    def push(self, kind: str, key: str, path: Path) -> None:
        """Store the file at `path` as the artifact of that kind and key, unless an equal one is there.

        Raises GvbsmError if it can't be written.
        """
        size, made = _digest(path)
        wanted = {"object": f"{key}-{made[:16]}.safetensors", "size": size, "sha256": made}
        if self._marker(kind, key) == wanted:
            return
        system, root = self._opened
        with self._errors():
            system.makedirs(f"{root}/{kind}", exist_ok=True)
            system.put_file(str(path), f"{root}/{kind}/{wanted['object']}")
            system.pipe_file(f"{root}/{kind}/{key}.json", json.dumps(wanted).encode())

    def pull(self, kind: str, key: str, path: Path) -> bool:
        """Bring the artifact of that kind and key to `path`, atomically; return False if there is none.

        Raises GvbsmError if the store can't be reached, or holds another file than its marker says.
        """
        marker = self._marker(kind, key)
        if marker is None:
            return False
        system, root = self._opened
        place = f"{root}/{kind}/{marker['object']}"
        with replacing(path) as temporary:
            with self._errors(place):
                system.get_file(place, str(temporary))
            if (marker["size"], marker["sha256"]) != _digest(temporary):
                raise GvbsmError(
                    f"{self.url}/{kind}/{marker['object']}: truncated or altered (not what was stored); "
                    f"delete it and {key}.json beside it, and run again to make it anew"
                )
        return True

    def _marker(self, kind: str, key: str) -> dict[str, Any] | None:
        system, root = self._opened
        place = f"{root}/{kind}/{key}.json"
        with self._errors(place):
            try:
                text = system.cat_file(place)
            except FileNotFoundError:
                return None
        try:
            marker = json.loads(text)
            named = re.fullmatch(rf"{re.escape(key)}-[0-9a-f]{{16}}\.safetensors", marker["object"])
            if not (named and isinstance(marker["size"], int) and isinstance(marker["sha256"], str)):
                raise ValueError("it names no object of this key")
        except (ValueError, KeyError, TypeError) as error:
            raise GvbsmError(
                f"{self.url}/{kind}/{key}.json: is not a marker of a stored artifact ({error}); delete it "
                "and run again"
            ) from error
        return {name: marker[name] for name in ("object", "size", "sha256")}

    @contextmanager
    def _errors(self, place: str = "") -> Iterator[None]:
        """Turn whatever a file system raises into one line; only `FileNotFoundError` has a meaning."""
        try:
            yield
        except (GvbsmError, KeyboardInterrupt):
            raise
        except Exception as error:  # each file system has exceptions of its own
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise GvbsmError(
                f"--store {self.url}: {place or 'it'} can't be read or written ({why}); check the address, "
                "the credentials and the space there, and run again: finished work is kept"
            ) from error


def _digest(path: Path) -> tuple[int, str]:
    made, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            made.update(chunk)
            size += len(chunk)
    return size, made.hexdigest()
