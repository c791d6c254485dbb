"""`compare`: q beside the exact posterior, another fit, or anything that ArviZ reads, in one table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi import _arviz
from pyrovi._exact import ExactPosterior
from pyrovi._typing import Tensors
from pyrovi.chains import convergence, effective_sizes
from pyrovi.errors import PyroviError, SettingsError
from pyrovi.export import posterior_arrays
from pyrovi.result import Estimate, Fit

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare"]

QUANTILES = {"5%": 0.05, "50%": 0.5, "95%": 0.95}

Sample = dict[str, NDArray[np.float64]]


def compare(
    fit: Fit | Any,
    other: ExactPosterior | Fit | Any,
    *,
    draws: int = 10_000,
    seed: int | None = None,
    force: bool = False,
) -> pd.DataFrame:
    """Set a fit beside a reference, a row for each scalar of each variable that both have.

    Of a fit it is the draws that `Fit.posterior` gives, which may be others than q's; the ELBO and the KL divergence are q's.

    Args:
        fit: A `Fit`, or any ArviZ container with a posterior group.
        other: The reference: an `ExactPosterior`, as of a recipe or from `exact`; the container that `nuts` gives, or any other of
            ArviZ's; or another `Fit`.
        draws: Draws from a `Fit`; 10,000 put a Monte Carlo error of 0.01 sd on a mean and 0.7% on an sd.
        seed: For those draws; each fit's own when None.
        force: Whether to take Markov chains that have not converged for a reference all the same.

    Returns:
        A DataFrame with the columns `mean`, `mean_ref`; `error`, the difference of the means in units of the reference's sd; `sd`,
        `sd_ref`, `sd_ratio`; `wasserstein`, the 1-Wasserstein distance in reference sds; `5%`, `50%`, `95%` and the same with
        `_ref`; and `error_se` and `sd_ratio_se`, the Monte Carlo errors of `error` and `sd_ratio`, from the number of draws and the
        effective number of the reference's: less than two of them are noise. Of an exact reference the `_ref` columns are exact.
        Its `attrs` hold `elbo` (not of a point estimate). For an exact reference they hold `log_evidence` and `kl`: KL(q‖p) = log
        evidence − ELBO, in nats, with its standard error. For another fit they hold `elbo_ref`; where the two are of one model and
        its data, `elbo_ref` − `elbo` is by how much KL(q‖p) of the first is the larger.

    Raises:
        PyroviError: The two have no variable in common, one has another shape in the reference, or the reference's chains have an
            R-hat above 1.01, an effective size below 400 or divergences.

    Example:
        >>> import pyro, pyro.distributions as dist, pyrovi
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> data = {"x": [1.0, 2.0, 3.0]}
        >>> fit = pyrovi.fit(model, "normal", data, lr=0.05, steps=2_000)
        >>> table = pyrovi.compare(fit, pyrovi.exact(model, data))
        >>> bool(table.loc["w", "error"] < 0.1), bool(0.9 < table.loc["w", "sd_ratio"] < 1.1)
        (True, True)
    """
    from pyrovi.comparison import Comparison

    drawn = fit.draws(draws, seed=seed) if isinstance(fit, Fit) and fit.problem is not None else None
    own = drawn is not None and fit.sample is None  # else the fit answers with other draws than q's
    sample = _arrays(drawn.posterior) if drawn is not None and own else _sample(fit, draws, seed)
    exact = isinstance(other, ExactPosterior)
    reference = other.marginals if isinstance(other, ExactPosterior) else _sample(other, draws, seed)
    sizes = {} if isinstance(other, (ExactPosterior, Fit)) else _sizes(other, force)
    worth, worth_ref = _worth(fit), _worth(other)
    common = [name for name in sample if name in reference]
    if not common:
        raise PyroviError(
            f"nothing to compare: the fit has {', '.join(sample) or 'no variable'}, the reference {', '.join(reference)}"
        )
    rows: dict[str, dict[str, float]] = {}
    for name in common:
        q = _columns(sample[name])
        ref = _exact(reference[name], q.shape[0]) if exact else _sampled(reference[name], sizes.get(name), worth_ref)
        shape = sample[name].shape[1:]
        if ref["shape"] != shape:
            raise PyroviError(f"{name!r} has shape {shape} in the fit and {ref['shape']} in the reference")
        for i, index in enumerate(np.ndindex(shape)):
            label = f"{name}[{', '.join(map(str, index))}]" if shape else name
            rows[label] = _row(q[:, i], min(len(q), worth), {key: value[..., i] for key, value in ref.items() if key != "shape"})
    table = Comparison.from_dict(rows, orient="index")
    if isinstance(fit, Fit) and fit.point_estimate:
        return table  # a point has no density, and so no ELBO
    if drawn is not None:
        table.attrs.update(_evidence(drawn.elbo.numpy(), other))
    elif isinstance(fit, Fit):
        stats = _arviz.group(fit.stored, "sample_stats")
        elbos = np.ravel(stats["lp"] - stats["log_q"])
        if np.isfinite(elbos).all():  # they are q's own draws
            table.attrs.update(_evidence(elbos, other))
    if isinstance(other, Fit) and other.problem is not None and not other.point_estimate and "elbo" in table.attrs:
        table.attrs["elbo_ref"] = _evidence(other.draws(draws, seed=seed).elbo.numpy(), None)["elbo"]
    return table


def _worth(source: Any) -> float:
    """How many independent draws a fit's draws are worth at most: weighted ones, taken many times, not more than their own."""
    if not isinstance(source, Fit) or source.sample is None:
        return math.inf
    weights = source.sample.weights
    return float(len(source.sample)) if weights is None else float(1 / np.square(weights).sum())


def _sizes(reference: Any, force: bool) -> dict[str, NDArray[np.float64]]:
    """The effective numbers of draws in a container, which must be fit to judge by where they are Markov chains."""
    found = convergence(reference)
    if found is not None and found.trouble and not force:
        raise PyroviError(
            f"the reference's chains are not fit to judge by: {found.trouble}; run more draws or another parametrisation, or pass "
            "force=True to compare all the same"
        )
    return effective_sizes(reference)


def _sample(source: Any, draws: int, seed: int | None) -> Sample:
    """A posterior sample, the draws along the first axis."""
    if isinstance(source, Fit):
        return source.posterior_arrays(draws, seed=seed)
    try:
        return posterior_arrays(source)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"compare takes fits, exact posteriors and ArviZ containers with a posterior group; got {type(source).__name__}"
        ) from error


def _arrays(tensors: Tensors) -> Sample:
    return {name: value.double().cpu().numpy() for name, value in tensors.items()}


def _columns(sample: NDArray[np.float64]) -> NDArray[np.float64]:
    return sample.reshape(len(sample), -1)


def _exact(marginal: Any, n: int) -> dict[str, Any]:
    mean = np.asarray(marginal.mean())
    flat: Mapping[str, Any] = {
        "mean": mean,
        "sd": marginal.std(),
        **{name: marginal.ppf(p) for name, p in QUANTILES.items()},
    }
    p = ((np.arange(n) + 0.5) / n).reshape(-1, *(1,) * mean.ndim)
    return {
        "shape": mean.shape,
        **{key: np.asarray(value, dtype=float).reshape(-1) for key, value in flat.items()},
        "sorted": np.asarray(marginal.ppf(p)).reshape(n, -1),
    }


def _sampled(sample: NDArray[np.float64], size: NDArray[np.float64] | None, worth: float) -> dict[str, Any]:
    flat = _columns(sample)
    return {
        "shape": sample.shape[1:],
        "mean": flat.mean(0),
        "sd": flat.std(0, ddof=1),
        **{name: np.quantile(flat, p, axis=0) for name, p in QUANTILES.items()},
        "sorted": np.sort(flat, axis=0),
        "size": np.full(flat.shape[1], min(len(flat), worth)) if size is None else size.reshape(-1),
    }


def _row(q: NDArray[np.float64], size: float, ref: Mapping[str, Any]) -> dict[str, float]:
    from scipy.stats import wasserstein_distance

    mean, sd, unit = q.mean(), q.std(ddof=1), float(ref["sd"])
    with np.errstate(divide="ignore", invalid="ignore"):
        # Of a mean it is sd/√n, of an sd about sd √((kurtosis − 1)/4n); an exact reference has none.
        noise = [(sd / unit) ** 2 / size, _sd_noise(q) / size]
        if "size" in ref:
            noise = [noise[0] + 1 / ref["size"], noise[1] + _sd_noise(ref["sorted"]) / ref["size"]]
        row = {
            "mean": mean,
            "mean_ref": ref["mean"],
            "error": (mean - ref["mean"]) / unit,
            "sd": sd,
            "sd_ref": unit,
            "sd_ratio": sd / unit,
            "wasserstein": wasserstein_distance(q, ref["sorted"]) / unit,
        }
        for name, p in QUANTILES.items():
            row[name], row[f"{name}_ref"] = np.quantile(q, p), ref[name]
        row |= {"error_se": math.sqrt(noise[0]), "sd_ratio_se": sd / unit * math.sqrt(noise[1])}
    return {key: float(value) for key, value in row.items()}


def _sd_noise(x: NDArray[np.float64]) -> float:
    """The variance of log sd of one draw's worth of a sample: a quarter of its kurtosis less one."""
    centred = x - x.mean()
    return float(np.mean(centred**4) / np.mean(centred**2) ** 2 - 1) / 4


def _evidence(elbos: NDArray[np.float64], other: Any) -> dict[str, Any]:
    """What an ELBO estimate a draw says, and with an exact reference the KL divergence."""
    elbo = Estimate(float(elbos.mean()), float(elbos.std(ddof=1) / math.sqrt(elbos.size)))
    if not isinstance(other, ExactPosterior):
        return {"elbo": elbo}
    return {
        "elbo": elbo,
        "log_evidence": float(other.log_evidence),
        "kl": Estimate(float(other.log_evidence) - elbo.value, elbo.se),
    }
