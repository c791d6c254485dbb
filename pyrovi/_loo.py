"""`loo`: leave-one-out cross-validation of a fit, corrected for q not being the posterior.

    log p(y_i | y_−i) ≈ log Σ_s w_is p(y_i | z_s),   w_is ∝ p(y, z_s) / (q(z_s) p(y_i | z_s)),   z_s ~ q

Plain PSIS-LOO takes q's draws for the posterior's and has w_is ∝ 1 / p(y_i | z_s) alone.

References:
    Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC (Vehtari, Gelman & Gabry, 2017) | https://arxiv.org/abs/1507.04544
    Bayesian leave-one-out cross-validation for large data (Magnusson et al., 2019) | https://proceedings.mlr.press/v97/magnusson19a.html
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrovi import _arviz
from pyrovi.errors import PyroviError, SettingsError, nearest
from pyrovi.importance import threshold, weigh
from pyrovi.result import Fit

__all__ = ["Loo", "loo"]

Array = NDArray[np.float64]

DRAWS = 4_000


@dataclass(frozen=True, eq=False, repr=False)
class Loo:
    """Expected log predictive density by leave-one-out, in nats; named as ArviZ names it, the same for both of its lines.

    Attributes:
        elpd: The sum over the data.
        se: Its standard error, √n times the sd over the data.
        p_loo: The effective number of parameters: what the data's own weight in the fit is worth.
        pointwise: By datum, of the outcome's shape.
        pareto_k: By datum, the k-hat of its weights, which include the correction for q.
        good_k: The threshold for so many draws.
        draws: From q.
    """

    elpd: float
    se: float
    p_loo: float
    pointwise: Array
    pareto_k: Array
    good_k: float
    draws: int

    @property
    def elpd_loo(self) -> float:
        """The name of `elpd` on ArviZ 0.x."""
        return self.elpd

    @property
    def warning(self) -> bool:
        """Whether some datum's k-hat is above the threshold."""
        return bool((self.pareto_k > self.good_k).any())

    def to_arviz(self) -> Any:
        """The same as ArviZ's `ELPDData`, which `az.compare({"poisson": pyrovi.loo(a).to_arviz(), …})` takes."""
        figures = {"elpd": self.elpd, "se": self.se, "p": self.p_loo, "n_samples": self.draws}
        figures |= {"n_data_points": self.pointwise.size, "warning": self.warning, "good_k": self.good_k}
        return _arviz.elpd_data(figures, self.pointwise, self.pareto_k)

    def __repr__(self) -> str:
        bad = int((self.pareto_k > self.good_k).sum())
        share = f"{bad:,} of {self.pareto_k.size:,} data have a k-hat above {self.good_k:.2f}"
        advice = (
            ": their share of the elpd is not to be relied on, and a fit without each of them would tell (pareto_k has which)"
            if bad
            else ""
        )
        return f"elpd_loo {self.elpd:,.2f} (se {self.se:,.2f}), p_loo {self.p_loo:.2f}, {self.draws:,} draws; {share}{advice}"


def loo(fit: Fit, *, site: str | None = None, draws: int | None = None, seed: int | None = None) -> Loo:
    """Leave-one-out cross-validation by Pareto smoothed importance sampling, from q to the posterior without the datum.

    Args:
        fit: The fit. One loaded without its model is scored by its stored draws; one that keeps draws in q's place (`Fit.sample`)
            by those, which need no correction.
        site: The observed site; needed where the model has several.
        draws: From q; 4,000 when None, fewer of a large model.
        seed: The fit's own when None.

    Raises:
        SettingsError: The site is not observed, or there are several and none is named.
        PyroviError: The fit is a point estimate, or was stored without pointwise log likelihoods.

    Example:
        >>> import pyrovi
        >>> fit = pyrovi.recipe("normal_mean").fit()
        >>> round(pyrovi.loo(fit).elpd)
        -134
    """
    if fit.point_estimate:
        raise PyroviError("the fit is a point estimate: q has no density, and leaving a datum out has nothing to reweight")
    likelihood, ratio = _scores(fit, draws, seed)
    name = _one(likelihood, site)
    scores = likelihood[name]
    shape, log_lik = scores.shape[1:], scores.reshape(len(scores), -1).astype(np.float64)
    pointwise, pareto_k = np.empty(log_lik.shape[1]), np.empty(log_lik.shape[1])
    for i, own in enumerate(log_lik.T):
        weights = weigh(ratio - own)
        pointwise[i], pareto_k[i] = np.logaddexp.reduce(weights.log_weights + own), weights.khat
    with_all = np.logaddexp.reduce(weigh(ratio).log_weights[:, None] + log_lik, axis=0)
    n = pointwise.size
    return Loo(
        elpd=float(pointwise.sum()),
        se=float(math.sqrt(n * pointwise.var())),
        p_loo=float((with_all - pointwise).sum()),
        pointwise=pointwise.reshape(shape),
        pareto_k=pareto_k.reshape(shape),
        good_k=threshold(len(ratio)),
        draws=len(ratio),
    )


def _scores(fit: Fit, draws: int | None, seed: int | None) -> tuple[dict[str, Any], Array]:
    """The log likelihood of every datum by draw, `(draws, *shape)` a site, and log p − log q."""
    if fit.problem is None and fit.stored is not None:
        if "log_likelihood" not in _arviz.groups(fit.stored):
            raise PyroviError(
                "the fit was stored without its pointwise log likelihoods; load it with its model: pyrovi.load(…, model=…)"
            )
        group, stats = _arviz.group(fit.stored, "log_likelihood"), _arviz.group(fit.stored, "sample_stats")
        ratio = np.ravel(stats["lp"] - stats["log_q"]) if "log_q" in stats else np.zeros(np.size(stats["lp"]))
        return {str(name): np.asarray(value)[0] for name, value in group.data_vars.items()}, ratio
    n = fit._affordable(DRAWS) if draws is None else draws
    if fit.sample is not None:  # the posterior's own, as far as is known
        drawn = fit.recommended(n, seed=seed, pointwise=True)
        ratio = np.zeros(n)
    else:
        drawn = fit.draws(n, seed=seed, pointwise=True)
        ratio = drawn.elbo.numpy()
    return {name: value.double().cpu().numpy() for name, value in drawn.log_likelihood.items()}, ratio


def _one(likelihood: dict[str, Any], site: str | None) -> str:
    if not likelihood:
        raise SettingsError("the model has no observed site, and so no datum to leave out")
    if site is None and len(likelihood) > 1:
        raise SettingsError(f"the model observes {', '.join(likelihood)}; say which site to leave data out of, as in site='NAME'")
    if site is not None and site not in likelihood:
        raise SettingsError(f"site {site!r} is not observed; {nearest(str(site), likelihood)}")
    return site or next(iter(likelihood))
