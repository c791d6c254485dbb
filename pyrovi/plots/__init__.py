"""Figures of a fit, as matplotlib `Figure`s.

They are made without pyplot, so that no figure stays open and no setting changes. Save one with `.savefig(path)`; a notebook shows
one as the last line of a cell, after `%matplotlib inline`. Where a function takes arrays, NumPy's and tensors will do alike.
"""

from pyrovi.plots.accessor import FitPlots
from pyrovi.plots.calibration import calibration
from pyrovi.plots.diagnostics import posterior
from pyrovi.plots.forest import forest
from pyrovi.plots.pairs import pair
from pyrovi.plots.pictures import images, latent_grid, latent_scatter, reconstructions
from pyrovi.plots.predictions import bands, forecast, quantile_bands
from pyrovi.plots.predictive import predictive
from pyrovi.plots.style import FITTED, REFERENCE
from pyrovi.plots.targets import density
from pyrovi.plots.trace import POINTS, elbo
from pyrovi.plots.weights import khat, loo

__all__ = [
    "FITTED",
    "FitPlots",
    "POINTS",
    "REFERENCE",
    "bands",
    "calibration",
    "density",
    "elbo",
    "forecast",
    "forest",
    "images",
    "khat",
    "latent_grid",
    "latent_scatter",
    "loo",
    "pair",
    "posterior",
    "predictive",
    "quantile_bands",
    "reconstructions",
]
