"""Opens run folders that exist, to look at them or hand them on."""

from __future__ import annotations

from pathlib import Path

from gvbsm import pipeline
from gvbsm.recipe import loading
from gvbsm.runtime.reporting import Reporter
from gvbsm.runtime.workspace import Workspace, open_store
from gvbsm_registry import Executor, GvbsmError, Initializer, Registry


def open_run(
    folder: Path, registry: Registry, store: str | Path | None = None, device: str = "auto"
) -> Workspace:
    """Return the workspace of a run folder, to read with; nothing is run and nothing logged.

    Raises GvbsmError if it is not a run folder, or its recipe or data can't be opened.
    """
    loaded = loading.load(pipeline.reopen(folder), registry)
    place, remote = open_store(store)
    reporter = Reporter(None, registry, quiet=True)
    runner = registry.create(Executor, "local")
    where = pipeline.choose_device(device)
    return Workspace(loaded, registry, folder, place, where, reporter, runner, remote)


def importing(folder: Path, registry: Registry) -> list[tuple[str, object]]:
    """Return the settings by which a run takes the images of `folder` as its distilled set.

    Raises GvbsmError if there are no images of equal number for each class.
    """
    if not folder.is_dir():
        raise GvbsmError(f"{folder}: no such folder; give the folder that holds the class folders")
    initializer = registry.create(Initializer, {"use": "folder", "root": str(folder.expanduser().absolute())})
    ipc = initializer.per_class()
    if ipc is None:
        raise GvbsmError("the initializer 'folder' does not say how many images a class has; use another")
    return [
        ("synthesis.initializer", initializer.to_recipe()),
        ("synthesis.iterations", 0),
        ("synthesis.ipc", ipc),
    ]
