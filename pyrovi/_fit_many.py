"""`fit_many`: one model on many data sets at once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyrovi._fit import fit, run
from pyrovi._typing import Data, Guide, Model
from pyrovi.arguments import columns_taken
from pyrovi.errors import DataError, SettingsError, nearest
from pyrovi.fits import Fits

__all__ = ["fit_many"]

ONE_FIT_ONLY = ("restarts", "folder", "callbacks", "method")


def fit_many(model: Model, guide: str | Guide = "auto", data: Data | None = None, *, over: Data, **settings: Any) -> Fits:
    """Fit one model to many data sets of one shape, as one program where its step can be recorded.

    For simulation-based calibration `over` holds simulated outcomes, for a bootstrap resampled rows, for a grid of hyperparameters
    the values of arguments that the model takes as data. Fit i has the seed `seed + i`.

    Args:
        model: As for `pyrovi.fit`.
        guide: As for `pyrovi.fit`.
        data: What all data sets share.
        over: Argument name to array whose first axis counts the data sets: `(R, n)` for outcomes of shape `(n,)`, `(R,)` for a
            number.
        settings: Those of `pyrovi.fit`, but for `restarts`, `callbacks`, `folder` and `method`. With `stop="auto"` the fits go on
            until the last has converged.

    Returns:
        A sequence of R fits: `fits[i]` is a `Fit` like any other, `fits.parameters` holds the parameters of all.

    Raises:
        DataError: The arrays of `over` have no first axis of one length, or are among `data` too.
        SettingsError: A setting is not one of `fit`'s; otherwise as for `fit`.

    Example:
        >>> import pyro, pyro.distributions as dist, pyrovi
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> fits = pyrovi.fit_many(model, "normal", over={"x": [[1.0, 2.0], [3.0, 4.0]]}, steps=1_000, lr=0.05)
        >>> fits.elbo.shape[0], fits.parameters["AutoNormal.locs.w"].shape
        (2, torch.Size([2]))
    """
    takes = {name: p for name, p in inspect.signature(fit).parameters.items() if name not in ("model", "guide", "data")}
    for name in settings:
        if name not in takes or name in ONE_FIT_ONLY:
            known = [setting for setting in takes if setting not in ONE_FIT_ONLY]
            raise SettingsError(f"fit_many takes no setting {name!r}; {nearest(name, known)}")
    if not isinstance(over, Mapping) or not over:
        raise DataError("over must map argument names to arrays with a row a data set, as in over={'y': simulated}")
    over = {name: np.asarray(rows) if isinstance(rows, (list, tuple)) else rows for name, rows in over.items()}
    lengths = {name: np.shape(rows)[0] if np.ndim(rows) else 0 for name, rows in over.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        raise DataError(f"the arrays of over need a first axis of one length, a row a data set; theirs are {lengths}")
    data, _ = columns_taken(model, data, over)
    both = [name for name in over if name in (data or {})]
    if both:
        raise DataError(f"data and over both have {both[0]!r}; give it in one of them")
    chosen = {**{name: p.default for name, p in takes.items()}, **settings, "method": "svi"}
    return run(model=model, guide=guide, data=data, over=over, **chosen)
