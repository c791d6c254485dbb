"""From draws to ArviZ's groups: which array goes where, what its axes are called, what stands in the attributes."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.distributions import biject_to, constraints

from pyrovi import _arviz
from pyrovi._typing import Tensors
from pyrovi.draws import observed, predict, prior
from pyrovi.errors import SettingsError, first_line
from pyrovi.preflight import Problem
from pyrovi.structure import Site

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from pyrovi.result import Fit

__all__ = ["dataset", "posterior_alone", "posterior_arrays", "summary", "to_arviz"]

SUMMARY = ["mean", "sd", "5%", "95%", "mcse_mean"]

SAMPLE_DIMS = ("chain", "draw")

POINTWISE_SCALARS = 50_000_000
"""The largest group with a number for every draw and datum that is made unasked: 200 MB in float32."""


def to_arviz(
    fit: Fit,
    draws: int,
    *,
    seed: int | None = None,
    dims: Mapping[str, list[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    pointwise: bool | None = None,
) -> Any:
    """The whole of a fit as an ArviZ container; see `Fit.to_arviz`."""
    axes = _Axes(dict(dims or {}), dict(coords or {}))
    with fit.loaded(draws, seed) as problem:
        if pointwise is None:
            pointwise = draws * sum(site.shape.numel() for site in problem.structure.observed.values()) <= POINTWISE_SCALARS
        drawn = fit.recommend(problem, draws, seed, pointwise=pointwise)
        predictive = predict(problem, draws, drawn.posterior, None) if pointwise else {}
        prior_draws, prior_predictive = _prior(problem, draws) if pointwise else ({}, {})
        outcomes = observed(problem)
    structure = problem.structure

    def sampled(values: Tensors, *, event: bool = True) -> xr.Dataset:
        sites = {name: structure.sites[name] for name in values}
        return dataset(
            {name: value.cpu().numpy()[None] for name, value in values.items()},
            {name: axes.of(site, event=event) for name, site in sites.items()},
            axes.coords,
        )

    groups = {}
    if structure.latent or drawn.posterior:
        groups["posterior"] = sampled(drawn.posterior)
        if unconstrained := _unconstrained(drawn.posterior, structure.latent):
            named = {}
            for name, value in unconstrained.items():  # a simplex, say, has another shape there
                same = value.shape == drawn.posterior[name].shape
                named[name] = axes.of(structure.sites[name]) if same else axes.plates_of(structure.sites[name])
            arrays = {name: value.cpu().numpy()[None] for name, value in unconstrained.items()}
            groups["unconstrained_posterior"] = dataset(arrays, named, axes.coords)
    stats = {"lp": drawn.log_p} if fit.sample is not None else {"lp": drawn.log_p, "log_q": drawn.log_q}
    groups["sample_stats"] = dataset({name: value.numpy()[None] for name, value in stats.items()}, {}, {})
    for name, tensors in (("log_prior", drawn.log_prior), ("log_likelihood", drawn.log_likelihood)):
        if tensors:
            groups[name] = sampled(tensors, event=False)
    for name, tensors in (("posterior_predictive", predictive), ("prior", prior_draws), ("prior_predictive", prior_predictive)):
        if tensors:
            groups[name] = sampled(tensors)
    if outcomes:
        values = {n: v.cpu().numpy() for n, v in outcomes.items()}
        groups["observed_data"] = dataset(values, {n: axes.of(structure.sites[n]) for n in values}, axes.coords, ())
    constant = {
        name: np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
        for name, value in problem.data.items()
        if not any(value is outcome for outcome in problem.outcomes) and value is not None
    }
    if constant:
        groups["constant_data"] = dataset(
            constant, {n: axes.of_data(n, v, structure.plates) for n, v in constant.items()}, axes.coords, ()
        )
    optimization = {"elbo": fit.elbo}
    if "restart_elbo" in fit.settings:
        optimization["final_elbo"] = np.array(fit.settings["restart_elbo"])
    groups["optimization"] = dataset(
        optimization,
        {"elbo": ["restart", "step"], "final_elbo": ["restart"]},
        {"step": np.arange(1, fit.elbo.shape[1] + 1)},
        (),
    )
    axes.check()

    attrs = {
        **_library_attrs(),
        "guide": str(fit.settings["guide"]),
        "status": str(fit.status),
        "seed": fit.seed,
        "point_estimate": int(problem.point_estimate),
    }
    if fit.recipe:
        attrs["recipe"] = fit.recipe
    if fit.sample is not None:
        attrs["draws"] = fit.sample.how
    if fit.verdict is not None:
        attrs |= {"verdict": str(fit.verdict.level), "verdict_text": fit.verdict.text}
        if fit.verdict.evidence.khat is not None:
            attrs["khat"] = float(fit.verdict.evidence.khat)
    for name, ds in groups.items():
        ds.attrs = {**attrs, **({"sample_dims": list(SAMPLE_DIMS)} if _arviz.ARVIZ_1 and "draw" in ds.dims else {})}
        if name == "posterior" and problem.point_estimate:
            ds.attrs["note"] = "a point estimate, repeated: its spread says nothing"
    return _arviz.container(groups, attrs)


def dataset(
    arrays: Mapping[str, Any], dims: Mapping[str, list[str]], coords: Mapping[str, Any], sample_dims: tuple[str, ...] = SAMPLE_DIMS
) -> xr.Dataset:
    """Arrays as a Dataset whose every axis has a name and a coordinate; axes without a name become `NAME_dim_0`, …

    A slash, which Pyro's scopes put into names and netCDF allows in none, becomes a dot.
    """
    import xarray as xr

    variables = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        names = [*sample_dims, *dims.get(name, [])]
        names += [f"{name}_dim_{i}" for i in range(array.ndim - len(names))]
        variables[name.replace("/", ".")] = xr.DataArray(array, dims=[n.replace("/", ".") for n in names])
    out = xr.Dataset(variables)
    unlabelled = {str(d): size for d, size in out.sizes.items() if d not in out.variables}
    return out.assign_coords({d: coords[d] if d in coords else np.arange(size) for d, size in unlabelled.items()})


class _Axes:
    """Names for the axes of sites: the user's where given, else the plates', else `NAME_dim_i`."""

    def __init__(self, dims: dict[str, list[str]], coords: dict[str, Any]) -> None:
        self._dims, self.coords = dims, coords
        self._sizes: dict[str, int] = {}
        self._seen: set[str] = set()

    def of(self, site: Site, *, event: bool = True) -> list[str]:
        axes, owners = site.axes()
        batch = len(site.batch_shape)
        names = [owner or "" for axis, owner in zip(axes, owners, strict=True) if event or axis < batch]
        sizes = [site.shape[axis] for axis in axes if event or axis < batch]
        return self._named(site.name, names, sizes, len(axes))

    def plates_of(self, site: Site) -> list[str]:
        """For a value whose event has another shape than the site's, as a simplex's unconstrained one."""
        return [owner for owner in site.axes()[1] if owner]

    def of_data(self, name: str, value: np.ndarray[Any, Any], plates: Mapping[str, Any]) -> list[str]:
        """The axes of an argument: a plate's name where exactly one plate has that length."""

        def plate(size: int) -> str:
            fits = [p.name for p in plates.values() if p.size == size and p.name != name]
            return fits[0] if len(fits) == 1 else ""

        names = [plate(size) for size in value.shape]
        names = [n if names.count(n) == 1 else "" for n in names]
        return self._named(name, names, list(value.shape), value.ndim)

    def _named(self, name: str, names: list[str], sizes: list[int], ndim: int) -> list[str]:
        if name in self._dims:
            self._seen.add(name)
            given = self._dims[name]
            if len(given) != ndim:
                raise SettingsError(f"dims names {len(given)} axes for {name!r}, which has {ndim}")
            names = list(given[: len(names)])
        counter = iter(range(len(names)))
        named = [n or f"{name}_dim_{next(counter)}" for n in names]
        for n, size in zip(named, sizes, strict=True):
            if n in self.coords and len(self.coords[n]) != size:
                raise SettingsError(f"coords has {len(self.coords[n])} labels for {n!r}, which has length {size}")
        return named

    def check(self) -> None:
        unused = set(self._dims) - self._seen
        if unused:
            raise SettingsError(f"dims names {sorted(unused)[0]!r}, which is neither a site nor data of this fit")


def summary(data: Any, *, point_estimate: bool = False, effective: float = math.inf, **options: Any) -> pd.DataFrame:
    """`az.summary` of a container's posterior, with the columns that mean something for independent draws.

    The draws may themselves be taken from so many `effective` ones, whose Monte Carlo error no number of them removes.
    """
    if "posterior" not in _arviz.groups(data):  # no latents: ArviZ would take another group
        import pandas as pd

        return pd.DataFrame(columns=SUMMARY, dtype=float)
    table = _arviz.summary(data, **options)
    if point_estimate:
        return table[["mean"]].rename(columns={"mean": "point estimate"})
    draws = _arviz.group(data, "posterior").sizes["draw"]
    table["mcse_mean"] = table["sd"].astype(float) * math.sqrt(1 / draws + 1 / effective)
    return table


def posterior_alone(fit: Fit, draws: int, *, seed: int | None = None) -> Any:
    """The container's posterior group and no other, for which the model need not be scored."""
    with fit.loaded(draws, seed) as problem:
        sites = problem.structure.sites
    values, axes = fit.posterior(draws, seed=seed), _Axes({}, {})
    arrays = {name: value.cpu().numpy()[None] for name, value in values.items()}
    named = {name: axes.of(sites[name]) for name in values}
    return _arviz.container({"posterior": dataset(arrays, named, {})} if arrays else {}, {})


def _prior(problem: Problem, draws: int) -> tuple[Tensors, Tensors]:
    """Prior draws, unless the model cannot be run at some of them: a covariance that is not positive definite, say."""
    try:
        return prior(problem, draws)
    except (RuntimeError, ValueError) as error:
        warnings.warn(f"the prior groups are left out: at a prior draw the model raised {first_line(error)}", stacklevel=4)
        return {}, {}


def posterior_arrays(data: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A container's posterior, chains one after the other: by variable, a `(draws, *shape)` array."""
    if "posterior" not in _arviz.groups(data):
        return {}
    stacked = _arviz.group(data, "posterior").stack(__sample__=("chain", "draw")).transpose("__sample__", ...)
    return {str(name): np.asarray(value, dtype=float) for name, value in stacked.data_vars.items()}


def _unconstrained(posterior: Tensors, latent: Mapping[str, Site]) -> Tensors:
    """The latents that live on less than the real line, on it."""
    out = {}
    for name, site in latent.items():
        support = site.support
        base = support.base_constraint if isinstance(support, constraints.independent) else support
        if base is constraints.real or getattr(support, "is_discrete", False) or base is constraints.real_vector:
            continue
        try:
            out[name] = biject_to(support).inv(posterior[name])
        except NotImplementedError:
            continue
    return out


def _library_attrs() -> dict[str, Any]:
    version = importlib.metadata.version("pyrovi")
    return {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "creation_library": "pyrovi",
        "creation_library_version": version,
        "creation_library_language": "Python",
        "inference_library": "pyro-ppl",
        "inference_library_version": importlib.metadata.version("pyro-ppl"),
    }
