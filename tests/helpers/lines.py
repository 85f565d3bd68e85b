"""Counts a class's lines of code: what is left without docstrings, imports, comments and blank lines."""

from __future__ import annotations

import ast
from pathlib import Path


def lines_of_code(path: Path) -> dict[str, tuple[str, int]]:
    """Return class name → (first base, lines of code) of the classes in a module."""
    text = path.read_text(encoding="utf-8")
    rows = text.splitlines()
    found = {}
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ClassDef):
            continue
        ignored: set[int] = set()
        for inner in ast.walk(node):
            is_docstring = isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant)
            if is_docstring or isinstance(inner, ast.Import | ast.ImportFrom):
                ignored.update(range(inner.lineno, (inner.end_lineno or inner.lineno) + 1))
        numbers = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        code = [
            n for n in numbers if n not in ignored and rows[n - 1].strip() and rows[n - 1].strip()[0] != "#"
        ]
        found[node.name] = ast.unparse(node.bases[0]), len(code)
    return found
