"""Figures of a fit, as matplotlib `Figure`s.

They are made without pyplot, so that no figure stays open and no setting changes. Save one with `.savefig(path)`; a notebook shows
one as the last line of a cell, after `%matplotlib inline`. Where a function takes arrays, NumPy's and tensors will do alike.
"""

from pyrovi.plots.calibration import calibration
from pyrovi.plots.diagnostics import POINTS, elbo, posterior
from pyrovi.plots.pictures import images, latent_grid, latent_scatter, reconstructions
from pyrovi.plots.predictions import bands, forecast, quantile_bands
from pyrovi.plots.style import FITTED, REFERENCE
from pyrovi.plots.targets import density

__all__ = [
    "FITTED",
    "POINTS",
    "REFERENCE",
    "bands",
    "calibration",
    "density",
    "elbo",
    "forecast",
    "images",
    "latent_grid",
    "latent_scatter",
    "posterior",
    "quantile_bands",
    "reconstructions",
]
