"""What the command is pointed at: a recipe or a model in a file, its data and its arguments."""

from __future__ import annotations

import ast
import inspect
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import pyrovi
from pyrovi._typing import Data
from pyrovi.arguments import columns_taken
from pyrovi.errors import DataError, GuideError, ModelError, RunFolderError, SettingsError, nearest
from pyrovi.guides.auto import GUIDES
from pyrovi.runs import check_folder

__all__ = ["OWN", "Target", "aimed", "pairs", "read", "run_folder"]

OWN = "__model__"
"""What the user's file is called as a module: like `__main__`, a name that no other module has."""


def pairs(option: str, given: list[str]) -> dict[str, Any]:
    """NAME=VALUE, the values as Python writes them: numbers, None, True, 200,200 for a tuple; anything else is text."""
    pairs: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            raise SettingsError(f"{option} wants NAME=VALUE, as in {option} latent=20; got {text!r}")
        try:
            pairs[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pairs[name] = value
    return pairs


def _recipe_data(recipe: pyrovi.Recipe, data: Mapping[str, Any] | None, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """The recipe's own data or the user's, with arguments for the loader or the model; None for the recipe as it is."""
    if data is not None:
        return {**data, **arguments}
    loader = inspect.signature(recipe.load).parameters
    options = {name: value for name, value in arguments.items() if name in loader}
    rest = {name: value for name, value in arguments.items() if name not in loader}
    return {**recipe.load(**options), **rest} if arguments else None


class Target(NamedTuple):
    """What the command is pointed at."""

    name: str
    """For the run folder."""
    model: Any
    guide: Any
    data: dict[str, Any] | None
    recipe: pyrovi.Recipe | None = None
    left_out: Sequence[str] = ()
    """The columns of the data file that the model does not take."""

    def fit(self, **settings: Any) -> pyrovi.Fit:
        """Fit it, a recipe with its own settings where none are given."""
        if self.recipe is not None:
            fit = self.recipe.fit(self.data, self.guide, **settings)
        else:
            fit = pyrovi.fit(self.model, self.guide or "auto", self.data, **settings)
        return replace(fit, settings={**fit.settings, "columns_left_out": list(self.left_out)}) if self.left_out else fit

    def calibrate(self, **settings: Any) -> pyrovi.Calibration:
        """Calibrate the fits of it; where no guide is named, a recipe's own, or independent Normals."""
        if self.recipe is not None:
            data, own = self.recipe.load() if self.data is None else self.data, dict(self.recipe.settings)
            return pyrovi.calibrate(self.model, self.guide or self.recipe.guide, data, **{**own, **settings})
        return pyrovi.calibrate(self.model, self.guide or "normal", self.data, **settings)


def aimed(target: str, guide: str | None, data: Data | None, arguments: Mapping[str, Any]) -> Target:
    """What a target on the command line stands for: a recipe, or a model in a file."""
    file, colon, name = target.rpartition(":")
    if not colon and not target.endswith(".py"):
        recipe = pyrovi.recipe(target)
        taken, left_out = columns_taken(recipe.model, data, arguments)
        return Target(target, recipe.model, guide, _recipe_data(recipe, taken, arguments), recipe, left_out)
    path = Path(file if colon else target)
    if path.suffix != ".py" or not path.is_file():
        raise ModelError(f"there is no Python file {str(path)!r}; give FILE.py:MODEL, or a recipe that `pyrovi list` names")
    own = _import(path)
    functions = [key for key, value in own.items() if callable(value) and getattr(value, "__module__", None) == OWN]
    programs = [key for key in functions if key != "load"]
    if not colon:
        raise ModelError(f"say which model in {str(path)!r}, as in {path}:{programs[0] if programs else 'model'}")
    if name not in own:
        raise ModelError(f"{str(path)!r} has no model {name!r}; {nearest(name, programs)}")
    if guide is not None and guide not in {*own, *GUIDES, "auto"}:
        raise GuideError(f"{str(path)!r} has no guide {guide!r}, nor is that a known name; {nearest(guide, [*programs, *GUIDES])}")
    if data is None and "load" in functions and name != "load":
        data, arguments = _loaded(own["load"], path, arguments)
    chosen = own.get(guide, guide) if guide is not None else None
    taken, left_out = columns_taken(own[name], data, arguments)
    return Target(f"{path.stem}-{name}", own[name], chosen, {**(taken or {}), **arguments} or None, None, left_out)


def _loaded(load: Callable[..., Any], path: Path, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data of the file's own `load`, and the arguments that are left for the model."""
    taken = inspect.signature(load).parameters
    data = load(**{name: value for name, value in arguments.items() if name in taken})
    if not isinstance(data, Mapping):
        raise DataError(
            f"load() of {str(path)!r} gives {type(data).__name__}, not the model's arguments by name, as in {{'x': x}}; mend it, "
            "or pass --data"
        )
    return dict(data), {name: value for name, value in arguments.items() if name not in taken}


def _import(path: Path) -> dict[str, Any]:
    """What a Python file defines; it can import the files beside it, as when Python runs it."""
    module = ModuleType(OWN)
    module.__file__ = str(path)
    sys.modules[OWN] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.absolute().parent))
    exec(compile(path.read_bytes(), path, "exec"), vars(module))
    return vars(module)


def read(path: Path) -> Data:
    """The arrays of an .npz file by name, or the table of a .csv file; code is never run from it."""
    if path.suffix not in (".npz", ".csv"):
        raise DataError(f"data file {str(path)!r} is neither .npz nor .csv; write arrays with numpy.savez, or columns as .csv")
    if not path.is_file():
        raise DataError(f"there is no data file {str(path)!r}")
    cure = "its first line names the model's arguments, the others hold numbers"
    try:
        if path.suffix == ".csv":
            import pandas as pd

            return pd.read_csv(path, skipinitialspace=True)
        cure = "write it with numpy.savez from arrays of numbers; pickled objects are not read"
        if not zipfile.is_zipfile(path):  # numpy would take it for a pickle and say how to run that
            raise ValueError("it is not an archive")
        with np.load(path, allow_pickle=False) as arrays:
            # A scalar is a plain setting of the model, which may branch on it.
            return {name: value if value.ndim else value.item() for name, value in arrays.items()}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"data file {str(path)!r} cannot be read ({error}); {cure}") from error


def run_folder(name: str, out: Path | None, overwrite: bool) -> Path:
    """The run folder, known to be writable before the fit."""
    if out is None:
        if overwrite:
            raise SettingsError("--overwrite needs --out: without it the run takes a new folder")
        out, count = Path("runs", name), 1
        while out.exists():
            count += 1
            out = Path("runs", f"{name}-{count}")
    elif out.exists() and not overwrite:
        raise RunFolderError(f"run folder {str(out)!r} exists already; name another, or pass --overwrite")
    return check_folder(out, overwrite=overwrite)
