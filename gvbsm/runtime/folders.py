"""Folders that a run writes to: checked before any work, and a run folder claimed for one recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from gvbsm.recipe import loading
from gvbsm.recipe.schema import Recipe
from gvbsm_registry import GvbsmError, Registry
from gvbsm_registry.artifacts import TEMPORARY, write_new_text

RECIPE = "recipe.toml"
LOG = "log.jsonl"


def check_path(given: str | Path, flag: str) -> Path:
    """Return a path that a user names by `flag`, with `~` expanded.

    Raises GvbsmError if it can't be looked at, or if its name is not UTF-8, which recipes and records could
    not hold.
    """
    try:
        path = Path(given).expanduser()
        str(path).encode()
        _nearest(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise _unusable(given, flag, error) from error
    return path


def check_folder(given: str | Path, flag: str) -> Path:
    """Return a folder that a user names by `flag`, with `~` expanded: hours before it is written to.

    Raises GvbsmError as `check_path` does, and if it, or what is to hold it, is not a folder.
    """
    folder = check_path(given, flag)
    if not (place := _nearest(folder)).is_dir():
        raise GvbsmError(f"{flag} {folder}: {place} is not a folder; give another {flag}")
    return folder


def check_writable(folder: Path, flag: str) -> None:
    """Raise GvbsmError unless a file can be made in a folder, or where it is to be: one is, and removed."""
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            pass
    except OSError as error:
        raise GvbsmError(
            f"{flag} {folder}: can't be written ({error.strerror}); check its permissions, or give "
            f"another {flag}"
        ) from error


def _nearest(folder: Path) -> Path:
    """Return a folder or, if there is none, the nearest that is to hold it and is there."""
    return next(place for place in (folder, *folder.absolute().parents) if _there(place))


def _there(place: Path) -> bool:
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _unusable(given: str | Path, flag: str, error: Exception) -> GvbsmError:
    if isinstance(error, UnicodeError):
        why = "its name is not UTF-8"
    else:
        why = getattr(error, "strerror", None) or str(error)
    shown = str(given).encode("utf-8", "backslashreplace").decode()
    return GvbsmError(f"{flag} {shown[:200]!r}: {why}; give another {flag}")


def is_claimed(folder: Path, recipe: Recipe, registry: Registry) -> bool:
    """Tell whether `folder` is the run folder of `recipe` already; False if it can become that.

    Raises GvbsmError if it is the folder of another recipe, naming the keys that differ (those that no result
    depends on may), or if it holds files but no run.
    """
    path = folder / RECIPE
    if not path.exists():
        check_free(folder)
        return False
    _check_no_links(folder)
    theirs = loading.load(path, registry)
    differ = _differences(theirs.result_tables(), recipe.result_tables())
    if differ:
        raise GvbsmError(
            f"{folder}: holds a run of another recipe (its recipe.toml differs in {', '.join(differ)}); give "
            "another --out, or change its recipe.toml and run single stages on it"
        )
    return True


def _check_no_links(folder: Path) -> None:
    """Raise GvbsmError if a folder of a run is a link: what is written there would lie elsewhere."""
    for pattern in ("*", "units/*", "baselines/*"):
        for path in folder.glob(pattern):
            if path.is_symlink() and path.is_dir():
                raise GvbsmError(
                    f"{path}: is a link out of the run folder; put the folder there, or make --out a link"
                )


def claim(folder: Path, recipe: Recipe, registry: Registry) -> None:
    """Make `folder` the run folder of `recipe`; of two runs at once, one does.

    Raises GvbsmError as `is_claimed` does.
    """
    check_writable(folder, "--out")
    if not is_claimed(folder, recipe, registry) and not write_new_text(folder / RECIPE, recipe.toml()):
        is_claimed(folder, recipe, registry)


def check_free(folder: Path) -> None:
    """Raise GvbsmError if a folder that holds no run holds anything of anybody else."""
    _refuse(folder, [path.name for path in _entries(folder) if path.name != LOG])


def check_sweep_folder(folder: Path, files: Collection[str]) -> None:
    """Raise GvbsmError unless a folder is free, or holds a sweep: run folders and its own `files` alone."""
    runs = [path for path in _entries(folder) if (path / RECIPE).is_file() or _is_free(path)]
    ours = {path.name for path in runs} | (set(files) if runs else set())
    _refuse(folder, [path.name for path in _entries(folder) if path.name not in ours])


def _is_free(folder: Path) -> bool:
    """Tell whether a folder is one in which a run was about to begin."""
    return folder.is_dir() and all(path.name == LOG for path in _entries(folder))


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, if it is there, without temporary files of killed runs."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in there if not TEMPORARY.fullmatch(path.name)]


def _refuse(folder: Path, theirs: Sequence[str]) -> None:
    if theirs:
        raise GvbsmError(
            f"--out {folder}: holds other files than a run's ({', '.join(theirs[:3])}"
            f"{', …' if len(theirs) > 3 else ''}), which could be overwritten; give a folder that does not "
            "exist, or an empty one"
        )


def _differences(ours: dict[str, Any], theirs: dict[str, Any], above: str = "") -> list[str]:
    """Return the dotted keys in which two recipes' tables differ."""
    differ = []
    for key in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(key), theirs.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            differ += _differences(one, other, f"{above}{key}.")
        elif one != other:
            differ.append(above + key)
    return differ
