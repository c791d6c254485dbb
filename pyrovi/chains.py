"""Whether Markov chains can serve as a reference: r-hat, effective sizes and divergences, by ArviZ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrovi import _arviz

__all__ = ["Convergence", "convergence", "effective_sizes"]

LARGEST_R_HAT, LEAST_ESS = 1.01, 400
"""Vehtari et al.'s, for four chains: past them quantiles and their errors are not to be relied on."""


@dataclass(frozen=True)
class Convergence:
    """The worst over all variables.

    Attributes:
        r_hat: The rank-normalised R-hat.
        ess_bulk: The effective number of draws for means.
        ess_tail: The same for the 5% and 95% quantiles.
        divergences: Trajectories that left the typical set by an error of integration; the posterior near there is not sampled.
        worst: The variable of the largest r-hat, and those of the least sizes.

    References:
        Rank-normalization, folding, and localization: an improved R-hat (Vehtari et al., 2021) | https://arxiv.org/abs/1903.08008
    """

    r_hat: float
    ess_bulk: float
    ess_tail: float
    divergences: int
    worst: tuple[str, str, str]

    @property
    def trouble(self) -> str | None:
        """What is wrong, in numbers; None where the draws can be relied on."""
        found = []
        if not self.worst[0]:
            found.append("one chain only, which has no r-hat")
        elif not self.r_hat <= LARGEST_R_HAT:
            found.append(f"r-hat {self.r_hat:.3f} of {self.worst[0]!r}, above {LARGEST_R_HAT}")
        for name, size, where in (("bulk", self.ess_bulk, self.worst[1]), ("tail", self.ess_tail, self.worst[2])):
            if not size >= LEAST_ESS:
                found.append(f"{name} ESS {size:.0f} of {where!r}, below {LEAST_ESS}")
        if self.divergences:
            found.append(f"{self.divergences:,} divergence{'s' if self.divergences > 1 else ''}")
        return ", ".join(found) or None


def convergence(data: Any) -> Convergence | None:
    """Of the chains in an ArviZ container; None where there are no Markov chains: one chain, and no word of divergences."""
    posterior = _arviz.group(data, "posterior")
    stats = _arviz.group(data, "sample_stats") if "sample_stats" in _arviz.groups(data) else {}
    if "diverging" not in stats and posterior.sizes["chain"] == 1:
        return None
    az, figures, worst = _arviz.arviz(), [], []
    for figure, lowest in (
        (az.rhat(posterior) if posterior.sizes["chain"] > 1 else None, False),
        (az.ess(posterior, method="bulk"), True),
        (az.ess(posterior, method="tail", prob=(0.05, 0.95)), True),
    ):
        by_name = {
            str(name): _extreme(np.asarray(values), lowest)
            for name, values in (figure.data_vars.items() if figure is not None else ())
        }
        known = {name: value for name, value in by_name.items() if value is not None}  # a constant has none
        name = (min if lowest else max)(known, key=lambda n: known[n]) if known else ""
        figures.append(known.get(name, float("nan")))
        worst.append(name)
    diverging = int(np.asarray(stats["diverging"]).sum()) if "diverging" in stats else 0
    return Convergence(figures[0], figures[1], figures[2], diverging, (worst[0], worst[1], worst[2]))


def effective_sizes(data: Any) -> dict[str, NDArray[np.float64]]:
    """By variable, the effective number of draws for the mean of each element; the number itself of a single chain.

    One chain is taken for independent draws, as those of a fit are.
    """
    posterior = _arviz.group(data, "posterior")
    if convergence(data) is None:
        return {str(n): np.full(v.shape[2:], posterior.sizes["draw"], dtype=float) for n, v in posterior.data_vars.items()}
    sizes = _arviz.arviz().ess(posterior, method="mean")
    return {str(name): np.asarray(values, dtype=float) for name, values in sizes.data_vars.items()}


def _extreme(values: NDArray[np.float64], lowest: bool) -> float | None:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    return float(finite.min() if lowest else finite.max())
