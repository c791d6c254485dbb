"""`pyrovi new`: a starting file with a model, a guide and data, which runs as it is."""

from __future__ import annotations

import importlib.machinery
import keyword
import sys
from importlib.resources import files
from pathlib import Path

from pyrovi.errors import SettingsError

__all__ = ["write_start"]


def write_start(name: str, folder: str | Path = ".") -> tuple[Path, Path]:
    """Write NAME.py, with a model, a guide and a `load` of the data, and NAME.csv, the data.

    Args:
        name: A Python name, so that the file can be imported; a `.py` at its end is dropped.
        folder: Where to; it has to exist.

    Returns:
        The two files.

    Raises:
        SettingsError: The name is no Python name, or is that of a module which the file would hide from every import beside it;
            or one of the files exists already.
        OSError: The folder cannot be written to.
    """
    name = name.removesuffix(".py")
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
        raise SettingsError(f"{name!r} cannot name a Python file; use letters, digits and underscores, as in my_model")
    if _hides(name, Path(folder)):
        raise SettingsError(f"a file {name}.py would hide the Python module {name!r} from the programs beside it; use another name")
    program, table = Path(folder, f"{name}.py"), Path(folder, f"{name}.csv")
    for path in (program, table):
        if path.exists():
            raise SettingsError(f"{str(path)!r} exists already; use another name, or move it away")
    templates = files("pyrovi") / "templates"
    program.write_text((templates / "start.py.txt").read_text(encoding="utf-8").replace("NAME", name), encoding="utf-8")
    table.write_text((templates / "start.csv").read_text(encoding="utf-8"), encoding="utf-8")
    return program, table


def _hides(name: str, folder: Path) -> bool:
    """Whether Python has a module of this name, apart from what lies in the folder."""
    if name in sys.stdlib_module_names or name == "pyrovi":
        return True
    elsewhere = [entry for entry in sys.path if entry and Path(entry).resolve() != folder.resolve()]
    found = importlib.machinery.PathFinder.find_spec(name, elsewhere)
    return found is not None and found.loader is not None  # a folder without __init__.py has none, and is no module of anybody's
