"""What the contract asks of a plugin module as a whole."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

from gvbsm_registry.discovery import GROUP, Registry, discover
from gvbsm_registry.testing.requirements import fail

HEAVY = ("torch", "torchvision", "timm", "numpy", "sklearn")


def check_plugin(module: str) -> Registry:
    """Check that a module, such as "gvbsm_gram", loads as a plugin without a problem and cheaply.

    Returns a registry of it alone. Raises ConformanceError if it can't be loaded, misspells a hook, adds
    something that is not a component, or imports torch or the like when it is loaded.
    """
    point = metadata.EntryPoint(module.replace(".", "-"), module, GROUP)
    registry = discover([point])
    if problems := registry.problems():
        fail("; ".join(problems))
    code = f"import sys, importlib; importlib.import_module({module!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"{module}: can't be imported by itself: {done.stderr.strip().splitlines()[-1]}")
    heavy = [name for name in HEAVY if name in done.stdout.split()]
    if heavy:
        fail(f"{module}: imports {', '.join(heavy)} when it is loaded; import inside methods instead")
    return registry
