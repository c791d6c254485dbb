"""pyrovi: variational inference on Pyro in one call.

`fit` fits a model by SVI and gives a `Fit`; `compare` sets it beside the exact posterior; `report` writes a page about it.
"""

from pyrovi import data
from pyrovi._compare import compare
from pyrovi._exact import ExactPosterior
from pyrovi._fit import fit
from pyrovi._fit_many import fit_many
from pyrovi._report import report
from pyrovi.catalog import Recipe, recipe, recipes
from pyrovi.errors import DataError, GuideError, ModelError, PyroviError, RunFolderError, SettingsError
from pyrovi.fits import Fits
from pyrovi.result import Estimate, Fit, Status
from pyrovi.runs import load
from pyrovi.svi import Step

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "Estimate",
    "ExactPosterior",
    "Fit",
    "Fits",
    "GuideError",
    "ModelError",
    "PyroviError",
    "Recipe",
    "RunFolderError",
    "SettingsError",
    "Status",
    "Step",
    "compare",
    "data",
    "fit",
    "fit_many",
    "load",
    "recipe",
    "recipes",
    "report",
]
