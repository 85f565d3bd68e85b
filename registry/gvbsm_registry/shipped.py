"""The recipe files that plugins ship: what they are called, and what is wrong with one."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path


def named(recipes: Iterable[str | Path]) -> Iterator[tuple[str, Path]]:
    """Yield (name, file): a file by its file name, those of a folder by their paths below it."""
    for given in recipes:
        path = Path(given)
        if path.is_dir():
            for file in sorted(path.rglob("*.toml")):
                yield file.relative_to(path).with_suffix("").as_posix(), file
        else:
            yield path.stem, path


def problems(path: Path) -> list[str]:
    """Return in a line what is wrong with a recipe file, if anything is."""
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return [f"recipe {path}: can't be read ({error.strerror}); install the plugin again"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        return [f"recipe {path}: is not TOML ({error}); ask its author to correct it"]
    return []
