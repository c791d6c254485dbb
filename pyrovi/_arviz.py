"""The only place that knows which line of ArviZ is installed: 0.x with InferenceData, or 1.x with xarray's DataTree."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ARVIZ_1", "arviz", "container", "elpd_data", "groups", "group", "psis", "read", "summary", "write"]

ARVIZ_1 = int(importlib.metadata.version("arviz").split(".")[0]) >= 1


def arviz() -> ModuleType:
    """ArviZ, imported when first needed: it takes as long as Pyro."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 announces 1.0 at import
        import arviz as az
    return az


def container(datasets: Mapping[str, Any], attrs: Mapping[str, Any]) -> Any:
    """Datasets by group as ArviZ's functions take them."""
    if ARVIZ_1:
        import xarray as xr

        tree = xr.DataTree.from_dict(dict(datasets))
        tree.attrs = dict(attrs)
        return tree
    return arviz().InferenceData(**datasets, attrs=dict(attrs))


def groups(data: Any) -> list[str]:
    """The names of a container's groups."""
    return list(data.children) if hasattr(data, "children") else list(data.groups())


def group(data: Any, name: str) -> Any:
    """One group as a Dataset."""
    found = data[name]
    return found.to_dataset() if hasattr(found, "to_dataset") and hasattr(found, "children") else found


def write(data: Any, path: str) -> None:
    data.to_netcdf(path, engine="h5netcdf")


def read(path: str) -> Any:
    """A container from a netCDF file of either line, read into memory."""
    if ARVIZ_1:
        import xarray as xr

        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load()
    data = arviz().InferenceData.from_netcdf(path, engine="h5netcdf")
    data.load()
    return data


def summary(data: Any, **options: Any) -> pd.DataFrame:
    """`az.summary` with the columns mean, sd, 5% and 95% (equal tails), the same on both lines."""
    options = {"round_to": "none", **options, "kind": "stats"}
    if ARVIZ_1:
        table = arviz().summary(data, ci_prob=0.9, ci_kind="eti", **options)
        return table.rename(columns={"eti90_lb": "5%", "eti90_ub": "95%"})
    quantiles = {"5%": lambda x: np.quantile(x, 0.05), "95%": lambda x: np.quantile(x, 0.95)}
    return arviz().summary(data, stat_funcs=quantiles, **options)[["mean", "sd", "5%", "95%"]]


def psis(log_ratio: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """Pareto smoothed importance sampling: normalised log weights and the shape k-hat, given log p - log q of 25 draws or more."""
    ratio = np.ravel(log_ratio).astype(np.float64)
    with np.errstate(all="ignore"):  # the fit of the tail tries shapes that overflow
        if ARVIZ_1:
            from arviz_stats.base import array_stats

            log_weights, k = array_stats.psislw(-ratio)  # 1.x takes the negated log ratio
        else:
            log_weights, k = arviz().psislw(ratio)
    log_weights = np.asarray(log_weights)
    return log_weights - np.logaddexp.reduce(log_weights), float(k)


def elpd_data(figures: Mapping[str, Any], pointwise: NDArray[np.float64], pareto_k: NDArray[np.float64]) -> Any:
    """What `az.loo` returns, as `az.compare` takes it; `figures` are its scalars by the names of 1.x, in nats."""
    import xarray as xr

    dims = [f"datum_dim_{i}" for i in range(pointwise.ndim)]
    arrays = {"elpd_i": xr.DataArray(pointwise, dims=dims), "pareto_k": xr.DataArray(pareto_k, dims=dims)}
    if ARVIZ_1:
        import arviz_stats

        # The class of leave-one-out's own came after 1.0, where the kind is an argument.
        made = getattr(arviz_stats, "ELPDDataLOO", None)
        return made(**figures, **arrays, scale="log") if made else arviz_stats.ELPDData("loo", **figures, **arrays, scale="log")
    names = {"elpd": "elpd_loo", "p": "p_loo", "elpd_i": "loo_i"}
    values = {names.get(key, key): value for key, value in {**figures, **arrays, "scale": "log"}.items()}
    from arviz.stats.stats_utils import ELPDData

    return ELPDData(data=list(values.values()), index=list(values))
