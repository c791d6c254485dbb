"""`Fit.importance_resample`: draws from q, weighted towards the posterior and drawn again, so that they need no weights."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyrovi._typing import Tensors
from pyrovi.errors import PyroviError
from pyrovi.importance import resample, weigh

if TYPE_CHECKING:
    from pyrovi.result import Fit

__all__ = ["importance_resample"]

OVERSAMPLED, FEWEST = 5, 50_000
"""Draws from q for each that is wanted, and draws at least: k-hat's standard error is then 0.06."""


def importance_resample(fit: Fit, n: int, seed: int | None) -> Tensors:
    """The draws; see `Fit.importance_resample`."""
    if fit.point_estimate:
        raise PyroviError("the fit is a point estimate: q has no density, and so no importance weights")
    if fit.sample is not None:
        return fit.posterior(n, seed=seed)
    drawn = fit.draws(max(n, fit._affordable(max(OVERSAMPLED * n, FEWEST))), seed=seed)
    weights = weigh(drawn.elbo.numpy())
    found = (
        f"k-hat {weights.khat:.2f} ± {weights.khat_se:.2f}, the threshold for {weights.draws:,} draws is {weights.threshold:.2f}"
    )
    if not weights.khat < weights.threshold:
        raise PyroviError(
            f"weights cannot mend q: {found}; the draws would be a few of q's over and over. Use a richer guide, as in "
            "guide='auto', or pyrovi.nuts"
        )
    if not weights.good:
        warnings.warn(f"whether weights can mend q is not known: {found}", stacklevel=3)
    elif weights.ess < n:
        warnings.warn(f"{n:,} draws are wanted and {weights.ess:,.0f} are effective, so that some come several times", stacklevel=3)
    rng = np.random.default_rng(np.random.SeedSequence([fit.seed if seed is None else seed, 2]))
    index = torch.from_numpy(resample(weights, n, rng))
    return {name: value.index_select(0, index.to(value.device)) for name, value in drawn.posterior.items()}
