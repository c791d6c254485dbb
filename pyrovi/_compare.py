"""`compare`: q beside the exact posterior, another fit, or anything that ArviZ reads, in one table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi import _arviz
from pyrovi.errors import PyroviError, SettingsError
from pyrovi.exact import ExactPosterior
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
        `elbo` and, for an exact reference, `log_evidence` and `kl`: KL(q‖p) = log evidence − ELBO, in nats, with its
        standard error, estimated from the same draws.

    Raises:
        PyroviError: The two have no variable in common, or one has another shape in the reference.
    """
    import pandas as pd

    sample = _sample(fit, draws, seed)
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
    table.attrs.update(_evidence(fit, other, draws, seed))
    return table


def _sample(source: Any, draws: int, seed: int | None) -> Sample:
    """A posterior sample, the draws along the first axis."""
    if isinstance(source, Fit) and source.problem is not None:
        return {name: value.double().cpu().numpy() for name, value in source.posterior(draws, seed=seed).items()}
    data = source.stored if isinstance(source, Fit) else source
    try:
        posterior = _arviz.group(data, "posterior")
        stacked = posterior.stack(__sample__=("chain", "draw")).transpose("__sample__", ...)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"compare takes fits, exact posteriors and ArviZ containers with a posterior group; got {type(source).__name__}"
        ) from error
    return {str(name): np.asarray(value, dtype=float) for name, value in stacked.data_vars.items()}


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


def _evidence(fit: Any, other: Any, draws: int, seed: int | None) -> dict[str, Any]:
    if not isinstance(fit, Fit):
        return {}
    if fit.problem is None:
        stats = _arviz.group(fit.stored, "sample_stats")
        values = np.ravel(stats["lp"] - stats["log_q"])
        elbo = Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(values.size)))
    else:
        elbo = fit.estimate_elbo(draws, seed=seed)
    if not isinstance(other, ExactPosterior):
        return {"elbo": elbo}
    return {
        "elbo": elbo,
        "log_evidence": float(other.log_evidence),
        "kl": Estimate(float(other.log_evidence) - elbo.value, elbo.se),
    }
