"""What the shell offers on TAB: recipes, models and guides in files, the names of settings."""

from __future__ import annotations

import ast
import glob
from collections.abc import Callable, Iterable
from pathlib import Path

from pyrovi.catalog import recipes
from pyrovi.guides.auto import GUIDES

__all__ = ["guides", "names", "runs", "targets"]

MOST_FILES = 100
"""Files that are looked into for models."""

Completion = Callable[[str], list[str]]


def names(known: Iterable[str]) -> Completion:
    """Of a setting that takes one of some names."""
    listed = sorted(known)
    return lambda incomplete: [name for name in listed if name.startswith(incomplete)]


def targets(incomplete: str) -> list[str]:
    """Recipes, and `FILE.py:MODEL` for every model of every file beside what is typed so far."""
    file = incomplete.partition(":")[0]
    start = file.removesuffix(".py") if ":" in incomplete else file
    paths = sorted(glob.glob(f"{glob.escape(start)}*.py"))[:MOST_FILES]
    models = [f"{path}:{name}" for path in paths for name in _models(Path(path))]
    return [*(name for name in sorted(recipes) if name.startswith(incomplete)), *(m for m in models if m.startswith(incomplete))]


def guides(incomplete: str) -> list[str]:
    """Guides by name."""
    return names(GUIDES)(incomplete)


def runs(incomplete: str) -> list[str]:
    """Run folders, in `runs` too."""
    found = glob.glob(f"{glob.escape(incomplete)}*/fit.json") + glob.glob(f"{glob.escape(incomplete)}*/*/fit.json")
    return sorted(str(Path(path).parent) for path in found)


def _models(path: Path) -> list[str]:
    """The functions of a file that sample; the file is read, not run."""
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return []
    return [f.name for f in body if isinstance(f, ast.FunctionDef) and any(map(_samples, ast.walk(f)))]


def _samples(node: ast.AST) -> bool:
    called = node.func if isinstance(node, ast.Call) else None
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return name == "sample"
