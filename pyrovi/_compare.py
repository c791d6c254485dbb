"""`compare`: q beside the exact posterior, another fit, or anything that ArviZ reads, in one table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi import _arviz
from pyrovi._exact import ExactPosterior
from pyrovi.errors import PyroviError, SettingsError
from pyrovi.export import posterior_arrays
from pyrovi.result import Estimate, Fit

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare"]

QUANTILES = {"5%": 0.05, "50%": 0.5, "95%": 0.95}

Sample = dict[str, NDArray[np.float64]]


def compare(fit: Fit | Any, other: ExactPosterior | Fit | Any, *, draws: int = 10_000, seed: int | None = None) -> pd.DataFrame:
    """Set a fit beside a reference, a row for each scalar of each variable that both have.

    Args:
        fit: A `Fit`, or any ArviZ container with a posterior group.
        other: The reference: an `ExactPosterior`, another `Fit`, or any ArviZ container, of NUTS draws for instance.
        draws: Draws from a `Fit`; 10,000 put a Monte Carlo error of 0.01 sd on a mean and 0.7% on an sd.
        seed: For those draws; each fit's own when None.

    Returns:
        A DataFrame with the columns `mean`, `mean_ref`; `error`, the difference of the means in units of the
        reference's sd; `sd`, `sd_ref`, `sd_ratio`; `5%`, `50%`, `95%` and the same with `_ref`; and `wasserstein`, the
        1-Wasserstein distance in reference sds. Of an exact reference the `_ref` columns are exact. Its `attrs` hold
        `elbo` (not of a point estimate) and, for an exact reference, `log_evidence` and `kl`: KL(q‖p) = log evidence −
        ELBO, in nats, with its standard error, estimated from the same draws.

    Raises:
        PyroviError: The two have no variable in common, or one has another shape in the reference.
    """
    import pandas as pd

    drawn = fit.draws(draws, seed=seed) if isinstance(fit, Fit) and fit.problem is not None else None
    sample = {n: v.double().cpu().numpy() for n, v in drawn.posterior.items()} if drawn is not None else _sample(fit, draws, seed)
    reference = other.marginals if isinstance(other, ExactPosterior) else _sample(other, draws, seed)
    common = [name for name in sample if name in reference]
    if not common:
        raise PyroviError(
            f"nothing to compare: the fit has {', '.join(sample) or 'no variable'}, the reference {', '.join(reference)}"
        )
    rows: dict[str, dict[str, float]] = {}
    for name in common:
        q = _columns(sample[name])
        ref = _exact(reference[name], q.shape[0]) if isinstance(other, ExactPosterior) else _sampled(reference[name])
        shape = sample[name].shape[1:]
        if ref["shape"] != shape:
            raise PyroviError(f"{name!r} has shape {shape} in the fit and {ref['shape']} in the reference")
        for i, index in enumerate(np.ndindex(shape)):
            label = f"{name}[{', '.join(map(str, index))}]" if shape else name
            rows[label] = _row(q[:, i], {key: value[..., i] for key, value in ref.items() if key != "shape"})
    table = pd.DataFrame.from_dict(rows, orient="index")
    if isinstance(fit, Fit) and fit.point_estimate:
        return table  # a point has no density, and so no ELBO
    if drawn is not None:
        table.attrs.update(_evidence(drawn.elbo.numpy(), other))
    elif isinstance(fit, Fit):
        stats = _arviz.group(fit.stored, "sample_stats")
        table.attrs.update(_evidence(np.ravel(stats["lp"] - stats["log_q"]), other))
    return table


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


def _sampled(sample: NDArray[np.float64]) -> dict[str, Any]:
    flat = _columns(sample)
    return {
        "shape": sample.shape[1:],
        "mean": flat.mean(0),
        "sd": flat.std(0, ddof=1),
        **{name: np.quantile(flat, p, axis=0) for name, p in QUANTILES.items()},
        "sorted": np.sort(flat, axis=0),
    }


def _row(q: NDArray[np.float64], ref: Mapping[str, Any]) -> dict[str, float]:
    from scipy.stats import wasserstein_distance

    mean, sd, unit = q.mean(), q.std(ddof=1), float(ref["sd"])
    with np.errstate(divide="ignore", invalid="ignore"):
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
    return {key: float(value) for key, value in row.items()}


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
