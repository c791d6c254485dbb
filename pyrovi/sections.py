"""What the report of one fit has to say, section by section."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi import _arviz, export, plots
from pyrovi._check import check
from pyrovi._compare import compare
from pyrovi._exact import ExactPosterior
from pyrovi._loo import Loo, loo
from pyrovi.errors import PyroviError
from pyrovi.page import ROWS, attempt, table
from pyrovi.plots.diagnostics import called
from pyrovi.result import Fit, Status
from pyrovi.svg import drawing
from pyrovi.verdict import Verdict

if TYPE_CHECKING:
    from pyrovi._calibrate import Calibration

__all__ = ["COMPARED", "MEANING", "affordable", "call", "data_of", "draws_at_most", "leave_one_out", "sections", "verdict_of"]

COMPARED = {"mean": ",", "mean_ref": ",", "error": "+z.3f", "sd": ",", "sd_ref": ",", "sd_ratio": ".3f"}
"""The comparison's columns on the page; `,` is four significant digits."""

COMPARE_DRAWS = 10_000

CHECK_DRAWS = 12_500
"""Of the check against an exact posterior, which is made unasked."""

NUMBERS, LEAST = 20_000_000, 100
"""Numbers that model and guide compute for a section: some seconds; and draws below which it would show nothing."""

LEAVE_OUT = 2_000
"""Data that are left out one by one unasked: about a second a thousand."""

SITES = 3
"""Observed sites that are checked."""

MEANING = {
    "trust": "Use it as it is.",
    "reweight": "Use the weighted draws.",
    "enrich": "Do not use it: fit a richer guide.",
    "sample": "Do not use it: run NUTS.",
}
"""By level, what to do with the fit."""


def sections(
    fit: Fit,
    *,
    exact: ExactPosterior | None = None,
    reference: Any | None = None,
    calibration: Calibration | None = None,
    left_out: Loo | None = None,
    checked: bool = False,
    draws: int = 1_000,
) -> dict[str, Any]:
    """What the template of one fit asks for; the arguments are those of `report`."""
    values = fit.posterior_arrays(draws_at_most(fit, draws))
    spread = bool(values) and not fit.point_estimate
    beside = exact if exact is not None else reference
    none = "" if spread else "The fit is a point, or has no latent variable: there is no spread to show."
    kept = _first(values)
    return {
        "fit": fit,
        "steps": fit.elbo.shape[-1],
        "drawn": called(fit),
        "variables": {name: value.shape[1:] for name, value in values.items()},
        "draws": max(map(len, values.values()), default=0),
        "point": fit.point_estimate,
        "meaning": MEANING,
        "verdict": verdict_of(fit, exact, checked),
        "exact": exact,
        "comparison": _comparison(fit, exact, values) if exact is not None and values else None,
        "referred": attempt(lambda: _comparison(fit, reference, values)) if reference is not None and exact is None else None,
        "densities": attempt(lambda: _densities(values, beside), none),
        "forest": attempt(lambda: _forest({called(fit): values}, beside), none),
        "summary": _summary(fit, {name: values[name] for name in kept}) if kept else None,
        "not_summarised": [name for name in values if name not in kept],
        "elbo": attempt(lambda: _elbo(fit, exact), "" if fit.elbo.size else "No step was completed."),
        "weights": attempt(lambda: _weights(fit), none or affordable(fit, 25)),
        "predictions": attempt(lambda: _predictions(fit), affordable(fit, LEAST)),
        "loo": attempt(lambda: _loo(fit, left_out), none or ("" if left_out else affordable(fit, LEAST))),
        "calibration": attempt(lambda: _calibration(calibration)) if calibration is not None else None,
        "call": call(fit),
        "shown_settings": {**{k: v for k, v in fit.settings.items() if k != "phases"}, "seed": fit.seed},
    }


def verdict_of(fit: Fit, exact: ExactPosterior | None, checked: bool) -> Verdict | dict[str, str]:
    """The verdict that the fit has; or else what `check` says where that is quick or asked for; or else why there is none."""
    if fit.verdict is not None:
        return fit.verdict
    if fit.problem is None:
        return {
            "why": "The run was stored without a verdict: give pyrovi.load its model, or call pyrovi check RUN, and report again."
        }
    if not fit.problem.structure.latent:
        return {"why": "There is no latent variable: nothing is approximated, and so there is nothing to check."}
    if not (checked or exact is not None or fit.point_estimate):
        what = "it diverged" if fit.status is Status.diverged else "how far q is from the posterior was not measured"
        return {"why": f"Not checked: {what}. fit.check() measures it, and check=True puts its verdict on this page."}
    found: Verdict | dict[str, str] = attempt(
        lambda: check(replace(fit), exact, max_draws=None if checked else CHECK_DRAWS)  # a copy: a page leaves its fit as it was
    )
    return found


def affordable(fit: Fit, least: int) -> str:
    """Why the model is too large to be run some hundred times unasked; nothing where it is not."""
    if fit.problem is None or _budget(fit, 10_000) >= least:
        return ""
    return f"Left out: one run of the model computes {_scalars(fit):,} numbers, and this takes {least:,} runs at least."


def _scalars(fit: Fit) -> int:
    assert fit.problem is not None
    return max(1, sum(site.shape.numel() for site in fit.problem.structure.sites.values()))


def _budget(fit: Fit, most: int) -> int:
    """Draws at which the model can be run in some seconds."""
    if fit.problem is None:
        return most
    return min(most, NUMBERS // _scalars(fit), most if fit.problem.vectorize else 500)


def draws_at_most(fit: Fit, draws: int) -> int:
    """As many, or fewer where every draw takes a run of a large model, for sites that it computes."""
    if fit.problem is None or not (fit.problem.batches is not None or fit.problem.structure.of_kind("deterministic")):
        return draws
    return min(draws, max(LEAST, _budget(fit, draws)))


def data_of(fit: Fit) -> dict[str, int]:
    """By observed site, how many numbers it has."""
    if fit.problem is not None:
        return {name: site.shape.numel() for name, site in fit.problem.structure.observed.items()}
    if "observed_data" not in _arviz.groups(fit.stored):
        return {}
    return {str(name): int(np.size(value)) for name, value in _arviz.group(fit.stored, "observed_data").data_vars.items()}


def _first(values: Mapping[str, NDArray[np.float64]]) -> list[str]:
    """The variables that fit in a table, in the model's order."""
    names, rows = [], 0
    for name, value in values.items():
        if rows + value[0].size <= ROWS:
            names.append(name)
            rows += value[0].size
    return names


def _summary(fit: Fit, values: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """What `fit.summary()` has, from draws at hand: a container of the whole fit holds as many numbers as draws times data."""
    if fit.problem is None:
        return table(export.summary(fit.stored, point_estimate=fit.point_estimate, var_names=list(values)), {})
    posterior = export.dataset({name: value[None] for name, value in values.items()}, {}, {})
    effective = fit.sample.effective if fit.sample is not None else math.inf
    held = _arviz.container({"posterior": posterior}, {})
    return table(export.summary(held, point_estimate=fit.point_estimate, effective=effective), {})


def _comparison(fit: Fit, other: Any, values: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    found = compare(fit, other, draws=COMPARE_DRAWS)
    error = found["error"].abs().fillna(math.inf)
    stored = max(map(len, values.values()))
    return {
        **{name: found.attrs.get(name) for name in ("kl", "log_evidence", "elbo")},  # a point has none
        "draws": COMPARE_DRAWS if fit.problem is not None else stored,
        "worst": error.idxmax(),
        "error": error.max(),
        "error_se": found["error_se"].to_numpy()[int(error.to_numpy().argmax())],
        "ratios": (found["sd_ratio"].min(), found["sd_ratio"].max()),
        "rows": len(found),
        "table": table(found[["mean", "mean_ref", "error"] if fit.point_estimate else list(COMPARED)], COMPARED),
    }


def _densities(values: Mapping[str, NDArray[np.float64]], beside: Any | None) -> Any:
    what = "" if beside is None else ", with the exact density" if isinstance(beside, ExactPosterior) else ", with the reference's"
    return drawing(
        "posterior",
        "Marginal posteriors",
        f"Histograms of draws, a panel a scalar{what} over each. The numbers are in the summary.",
        lambda: plots.posterior(values, beside),
    )


def _forest(drawn: Mapping[str, Mapping[str, NDArray[np.float64]]], beside: Any | None) -> Any:
    what = "" if beside is None else ", and the same of the reference"
    return drawing(
        "intervals",
        "Forest plot",
        f"A row a scalar: its median, its central 50% and 90%{what}. The numbers are in the summary.",
        lambda: plots.forest(drawn, beside),
    )


def _elbo(fit: Fit, exact: ExactPosterior | None) -> dict[str, Any]:
    import pandas as pd

    elbo, settings = fit.best_elbo, fit.settings
    if settings.get("method") == "auto":
        rungs = list(zip(settings["tried"], (float(x) for x in elbo), strict=True))
        said = "The ELBO on every rung: " + ", ".join(f"{name} {value:,.2f} nats" for name, value in rungs) + "."
        listed = pd.DataFrame({"rung": [name for name, _ in rungs], "ELBO": [x for _, x in rungs]}, index=range(1, len(rungs) + 1))
        return {"figure": drawing("elbo", "ELBO by rung", said, lambda: plots.elbo(fit, exact)), "rungs": table(listed, {})}
    n = len(elbo)
    ends = float(elbo[0]), float(elbo[-100:].mean())
    said = f"The ELBO by step: {ends[0]:,.2f} nats at step 1, {ends[1]:,.2f} on average over the last {min(n, 100)} of {n:,} steps."
    phases = None
    if settings.get("phases"):
        frame = pd.DataFrame(settings["phases"]).astype(float)
        frame.index = pd.RangeIndex(1, len(frame) + 1)
        frame = frame.rename(columns={"last": "last step", "r_hat": "R-hat", "mc_error": "MC error, nats", "gap": "gap, nats"})
        phases = table(
            frame[["rate", "last step", "averaged", "R-hat", "MC error, nats", "gap, nats"]],
            {"last step": ",.0f", "averaged": ",.0f", "rate": "g"},
        )
    figure = drawing("elbo", "ELBO by step", said, lambda: plots.elbo(fit, None if fit.point_estimate else exact))
    return {"figure": figure, "rungs": None, "phases": phases, "said": said}


def _weights(fit: Fit) -> Any:
    n = _budget(fit, 10_000)
    said = (
        "On the left the log weights log p − log q of draws from q; on the right the share of draws whose weight is at least so "
        "large, and the generalized Pareto that is fitted to the largest. Where every datum has weights of its own, k-hat by datum."
    )
    return drawing("weights", "Importance weights of draws from q", said, lambda: plots.khat(fit, draws=n))


def _predictions(fit: Fit) -> list[dict[str, Any]]:
    sizes = data_of(fit)
    if not sizes:
        raise PyroviError("the model has no observed site, so there are no data to check against")
    n = max(LEAST, _budget(fit, 1_000))
    return [
        {
            "site": site,
            "figure": drawing(
                f"predictive-{i}",
                f"Posterior predictive check of {site}",
                "On the left the data in black, by value, and bands that hold the central 50% and 90% of simulated data sets; on "
                "the right, where there is one, every datum against the median of its predictions.",
                lambda site=site: plots.predictive(fit, site, draws=n if fit.problem is not None else None),  # type: ignore[misc]
            ),
        }
        for i, site in enumerate(list(sizes)[:SITES])
    ]


def leave_one_out(fit: Fit, site: str | None = None) -> Loo:
    """`loo`, unless the data are too many to be left out unasked."""
    sizes = data_of(fit)
    if not sizes:
        raise PyroviError("the model has no observed site, and so no datum to leave out")
    site = site or next(iter(sizes))
    if site in sizes and sizes[site] > LEAVE_OUT:
        raise PyroviError(
            f"leaving out each of {sizes[site]:,} data takes a while and is not done unasked; pass loo=pyrovi.loo(fit) to show it"
        )
    return loo(fit, site=site, draws=max(LEAST, _budget(fit, 4_000)))


def _loo(fit: Fit, given: Loo | None) -> dict[str, Any]:
    sizes = data_of(fit)
    found = given or leave_one_out(fit)
    bad = int((found.pareto_k > found.good_k).sum())
    said = (
        f"k-hat and expected log predictive density of {found.pareto_k.size:,} data: {bad:,} have a k-hat above {found.good_k:.2f}."
    )
    return {
        "loo": found,
        "bad": bad,
        "n": found.pareto_k.size,
        "site": next(iter(sizes)) if given is None and len(sizes) > 1 else None,
        "figure": drawing("loo", "Leave-one-out by datum", said, lambda: plots.loo(found)),
    }


def _calibration(found: Calibration) -> dict[str, Any]:
    scalars = found.table()
    bad = int((~scalars["within"]).sum())
    said = f"By scalar, the ECDF of the true value's rank less that of uniform ranks: {bad:,} of {len(scalars):,} leave their band."
    figure = drawing("calibration", "Simulation-based calibration", said, lambda: plots.calibration(found))
    return {"found": found, "bad": bad, "table": table(scalars, {"z_mean": "+.3f", "z_sd": ".3f"}), "figure": figure}


LEFT_OUT = ("progress", "callbacks", "folder", "data", "model", "guide", "engine", "seed")
"""Arguments of `fit` that a call which gives the same fit again has elsewhere, or need not have."""


def call(fit: Fit) -> str:
    """The call that gives the same fit again, with what differs from the defaults."""
    settings = fit.settings
    if fit.recipe is None and settings.get("method") == "auto":
        return f"fit = pyrovi.fit(model, data=data, seed={fit.seed})"
    said = {"seed": repr(fit.seed)}
    method = settings.get("method", "svi")
    for name, default in (_defaults() | _own(fit.recipe)).items():
        if name in settings and settings[name] != default and not (name == "guide_options" and not settings[name]):
            said[name] = _argument(name, settings[name])
    if settings.get("engine") == "pyro" and method == "svi":
        said["engine"] = repr("pyro")  # whose stream of random numbers is its own; the others agree
    if method == "deterministic":
        family = settings["guide_options"]["family"]
        said = {"method": repr(method), **{k: v for k, v in said.items() if k in ("steps", "seed", "dtype", "device")}}
        guide: str = repr(family)
    else:
        said["method"] = repr(method)
        guide = "guide" if settings["guide"] not in _named() else repr(settings["guide"])
    options = ", ".join(f"{name}={value}" for name, value in sorted(said.items()))
    if fit.recipe is not None:
        start = f"pyrovi.recipe({fit.recipe!r}).fit(" + ("" if guide == "guide" else f"guide={guide}, ")
        return f"fit = {start}{options})"
    return f"fit = pyrovi.fit(model, {guide}, data, {options})"


def _own(recipe: str | None) -> dict[str, Any]:
    """A recipe's own settings, which need not be said."""
    from pyrovi.catalog import recipes

    own = dict(recipes[recipe].settings) if recipe is not None and recipe in recipes else {}
    return {name: value for name, value in own.items() if name not in LEFT_OUT}


def _argument(name: str, value: Any) -> str:
    """A setting as it is written; what is a function of the user's stands by its name."""
    return str(value) if name == "transform" else repr(value)


@functools.cache
def _defaults() -> dict[str, Any]:
    from pyrovi._fit import fit

    found = inspect.signature(fit).parameters
    resolved = {"dtype": "float32", "schedule": "constant"}  # what None becomes
    return {name: p.default for name, p in found.items() if name not in (*LEFT_OUT, "method")} | resolved


def _named() -> set[str]:
    from pyrovi.guides.auto import GUIDES

    return set(GUIDES)
