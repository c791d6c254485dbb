"""pyrovi: variational inference on Pyro in one call.

`fit` fits a model by SVI and gives a `Fit`; `compare` sets it beside the exact posterior; `report` writes a page about it.
"""

from pyrovi import _quiet, data  # noqa: F401
from pyrovi._calibrate import Calibration, calibrate
from pyrovi._check import check
from pyrovi._compare import compare
from pyrovi._exact import ExactPosterior, exact
from pyrovi._fit import fit
from pyrovi._fit_many import fit_many
from pyrovi._loo import Loo, loo
from pyrovi._model_graph import ModelGraph, model_graph
from pyrovi._nuts import nuts
from pyrovi._report import report
from pyrovi.catalog import Recipe, recipe, recipes
from pyrovi.errors import DataError, GuideError, ModelError, PyroviError, RunFolderError, SettingsError
from pyrovi.estimate import Estimate
from pyrovi.fits import Fits
from pyrovi.result import Fit, Status
from pyrovi.runs import load
from pyrovi.svi import Step
from pyrovi.verdict import Evidence, Level, Verdict

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "DataError",
    "Estimate",
    "Evidence",
    "ExactPosterior",
    "Fit",
    "Fits",
    "GuideError",
    "Level",
    "Loo",
    "ModelError",
    "ModelGraph",
    "PyroviError",
    "Recipe",
    "RunFolderError",
    "SettingsError",
    "Status",
    "Step",
    "Verdict",
    "calibrate",
    "check",
    "compare",
    "data",
    "exact",
    "fit",
    "fit_many",
    "load",
    "loo",
    "model_graph",
    "nuts",
    "recipe",
    "recipes",
    "report",
]
