"""Exact posteriors, where mathematics gives one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ExactPosterior"]

Arrays = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class ExactPosterior:
    """A posterior in closed form.

    Attributes:
        marginals: By site, a frozen SciPy distribution of the site's shape: `.mean()`, `.std()`, `.ppf(p)`, `.pdf(x)`
            of every element. SciPy's are in float64 and have quantiles, which torch's Gamma and Student have not.
        log_evidence: log p(data), in nats.
        predictive: By observed site, the posterior predictive of one more observation, as a frozen SciPy distribution.
        covariance: By site, the `(d, d)` posterior covariance, where the site's elements are correlated.
        joint: A function `(n, generator) -> {site: (n, *shape)}` that draws from the joint posterior; where None, the
            elements are independent and their marginals are the joint.
    """

    marginals: Mapping[str, Any]
    log_evidence: float
    predictive: Mapping[str, Any] = field(default_factory=dict)
    covariance: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    joint: Callable[[int, np.random.Generator], Arrays] | None = field(default=None, repr=False)

    def mean(self) -> Arrays:
        return {name: np.asarray(d.mean()) for name, d in self.marginals.items()}

    def sd(self) -> Arrays:
        return {name: np.asarray(d.std()) for name, d in self.marginals.items()}

    def quantile(self, p: float) -> Arrays:
        return {name: np.asarray(d.ppf(p)) for name, d in self.marginals.items()}

    def draws(self, n: int = 1_000, *, seed: int = 0) -> Arrays:
        """Independent draws from the joint posterior: by site, an `(n, *shape)` array."""
        rng = np.random.default_rng(seed)
        if self.joint is not None:
            return self.joint(n, rng)
        return {name: np.asarray(d.rvs(size=(n, *np.shape(d.mean())), random_state=rng)) for name, d in self.marginals.items()}
