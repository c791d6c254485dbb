"""Simulation-based calibration of a fit: is q, on data that the model itself makes, as wide as it should be, and in its place?

Parameters are drawn from the prior, outcomes simulated from them, and the guide is fitted to each. Where q is the posterior, the
true value's rank among draws of q is uniform. All fits run as one program.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi._fit import fit
from pyrovi._fit_many import ONE_FIT_ONLY, fit_many
from pyrovi._typing import Data, Guide, Model
from pyrovi.arguments import columns_taken
from pyrovi.errors import ModelError, PyroviError, SettingsError
from pyrovi.fits import Fits
from pyrovi.preflight import Problem
from pyrovi.ranks import NullECDF, asymmetry, shape_of
from pyrovi.result import Fit, Status

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Calibration", "calibrate"]

FEWEST = 20
"""Replicates below which no figure shows anything."""


@dataclass(frozen=True, repr=False)
class Calibration:
    """What a simulation-based calibration found.

    Attributes:
        ranks: By latent site, how many of the draws of q lie below the true value, shape `(replicates, *site_shape)`.
        scores: By latent site, the true value less q's mean, over q's sd, of the same shape.
        draws: Draws of q that a rank is among; it is from 0 to `draws`.
        prob: The probability with which calibrated ranks of all scalars together stay within their bands.
        ended: How many fits ended how; those that diverged have no ranks.
        seconds: Wall time of all: simulation, fits and ranks.
        one_fit_seconds: That of one fit, to the data given, by the same settings.
        settings: What the fits were run with.
    """

    ranks: Mapping[str, NDArray[np.intp]]
    scores: Mapping[str, NDArray[np.float64]]
    draws: int
    prob: float
    ended: Mapping[str, int]
    seconds: float
    one_fit_seconds: float
    settings: Mapping[str, Any]

    @property
    def replicates(self) -> int:
        """The data sets that have ranks."""
        return len(next(iter(self.ranks.values())))

    @property
    def passes(self) -> bool:
        """Whether the ECDF of every scalar's ranks lies within its band."""
        return bool(self.table()["within"].all())

    def table(self) -> pd.DataFrame:
        """A row a scalar.

        Columns: `within`, whether its ECDF lies within the band at every rank; `p_uniform`, how often calibrated ranks depart as
        far; `p_symmetric`, that of VSBC's asymmetry; `z_mean` and `z_sd` of (truth − q's mean) / q's sd, 0 and 1 where q is
        calibrated, so that `z_sd` 1.3 means sds too small by that factor; and `shape`, what the departure looks like.
        """
        import pandas as pd

        null, rows = self.null, {}
        for name, index, ranks, scores in self._scalars():
            p = null.p_value(ranks)
            within = p > 1 - null.prob
            rows[name + (f"[{', '.join(map(str, index))}]" if index else "")] = {
                "within": within,
                "p_uniform": p,
                "p_symmetric": asymmetry(ranks, self.draws),
                "z_mean": float(scores.mean()),
                "z_sd": float(scores.std(ddof=1)),
                "shape": "calibrated" if within else shape_of(ranks, self.draws),
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def null(self) -> NullECDF:
        """The band of one scalar: as many scalars as there are share the probability of leaving theirs."""
        count = sum(math.prod(ranks.shape[1:]) for ranks in self.ranks.values())
        return NullECDF.of(self.replicates, self.draws, self.prob ** (1 / count))

    def plot(self, var_names: Any = None, *, max_panels: int = 12) -> Figure:
        """The ECDF of the ranks less that of uniform ones, with its band; see `pyrovi.plots.calibration`."""
        from pyrovi.plots.calibration import calibration

        return calibration(self, var_names, max_panels=max_panels)

    def _scalars(self) -> list[tuple[str, tuple[int, ...], NDArray[np.intp], NDArray[np.float64]]]:
        return [
            (name, tuple(map(int, index)), ranks[(slice(None), *index)], self.scores[name][(slice(None), *index)])
            for name, ranks in self.ranks.items()
            for index in np.ndindex(ranks.shape[1:])
        ]

    def _repr_html_(self) -> str:
        from pyrovi.display import of_calibration

        return of_calibration(self)

    def __repr__(self) -> str:
        table = self.table()
        bad = table[~table["within"]]
        ended = ", ".join(f"{count} {status}" for status, count in self.ended.items())
        said = f"all {len(table)} scalars within" if bad.empty else f"{len(bad)} of {len(table)} scalars outside"
        lines = [
            f"Calibration({self.replicates} replicates, ranks among {self.draws} draws: {said} their simultaneous "
            f"{self.prob:.0%} bands; fits: {ended}; {self.seconds:.1f} s, one fit {self.one_fit_seconds:.1f} s)"
        ]
        lines += [f"  {name}: {row['shape']}; z sd {row['z_sd']:.2f}, z mean {row['z_mean']:+.2f}" for name, row in bad.iterrows()]
        return "\n".join(lines[:12] + ([f"  and {len(lines) - 12} more"] if len(lines) > 12 else []))


def calibrate(
    model: Model,
    guide: str | Guide = "normal",
    data: Data | None = None,
    *,
    replicates: int = 512,
    draws: int = 99,
    prob: float = 0.95,
    seed: int = 0,
    **settings: Any,
) -> Calibration:
    """Simulation-based calibration: fit the guide to data that the model makes, and rank the true parameters among draws of q.

    It judges the fit, guide and settings together, on data like those that the prior makes: an average over them, not a verdict on
    the data at hand. A rank that is too often at either end means q too narrow, one too often in the middle q too wide, one
    too often at one end q shifted.

    Args:
        model: As for `pyrovi.fit`; its priors must be proper, and its outcomes arguments of the model, observed as they are.
        guide: As for `pyrovi.fit`.
        data: As for `pyrovi.fit`. Predictors are kept, outcomes simulated in the shape of those given.
        replicates: Data sets; 512 show an sd that is 10% off.
        draws: Draws of q that ranks are among; 99 make a hundred ranks.
        prob: The probability with which a calibrated fit stays within the bands, at all ranks and for all scalars.
        seed: For everything random.
        settings: Those of `pyrovi.fit_many`. The fits run until the last has converged; `steps=…, schedule="cosine"` takes less.

    Returns:
        The ranks, and what they say. The latents that discrete draws leave tied have their ranks drawn among the ties.

    Raises:
        ModelError: An outcome is not an argument of the model as it is, or the prior simulates outcomes that are not finite.
        SettingsError: A setting is not one of `fit_many`'s, or out of range.
        PyroviError: The fit is a point estimate, or fewer than 20 fits did not diverge.

    References:
        Validating Bayesian inference algorithms with simulation-based calibration (Talts et al., 2018) | https://arxiv.org/abs/1804.06788
        Yes, but did it work?: evaluating variational inference (Yao, Vehtari, Simpson & Gelman, 2018) | https://arxiv.org/abs/1802.02538
        Graphical test for discrete uniformity and its applications in goodness of fit evaluation and multiple sample comparison
        (Säilynoja, Bürkner & Vehtari, 2022) | https://arxiv.org/abs/2103.10522

    Example:
        >>> import pyro, pyro.distributions as dist, pyrovi
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> found = pyrovi.calibrate(model, "normal", {"x": [1.0, 2.0, 3.0]}, replicates=64, lr=0.1, steps=500, schedule="cosine")
        >>> found.table().index.to_list()
        ['w']
    """
    for name, value, least in (("replicates", replicates, FEWEST), ("draws", draws, 9)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SettingsError(f"{name} must be a whole number of at least {least}; got {value!r}")
    if not (isinstance(prob, float) and 0.5 <= prob < 1):
        raise SettingsError(f"prob must be from 0.5 to below 1; got {prob!r}")
    for name in ("over", *ONE_FIT_ONLY):
        if name in settings:
            raise SettingsError(f"calibrate takes no setting {name!r}: it fits many data sets at once")
    if settings.get("transform") is not None:
        raise SettingsError("calibrate simulates what the model sees, which a transform would change again; drop transform")
    data, _ = columns_taken(model, data)
    one = fit(model, guide, data, method="svi", seed=seed, **settings)
    if one.point_estimate:
        raise PyroviError("the fit is a point estimate, or has no latent variable: its draws have no ranks")
    began = time.perf_counter()
    assert one.problem is not None
    outcomes = _outcomes(one.problem)
    latents, simulated = one.prior(replicates, seed=seed + replicates)
    over = _as_data(one.problem, outcomes, simulated, replicates)
    shared = {name: value for name, value in (data or {}).items() if name not in over}
    fits = fit_many(model, guide, shared, over=over, seed=seed, **settings)
    ranks, scores = _ranks(fits, {name: latents[name] for name in one.problem.structure.latent}, draws, seed)
    if not ranks or len(next(iter(ranks.values()))) < FEWEST:
        raise PyroviError(
            f"all but a few of the {replicates} fits diverged; lower lr, or look at fits of simulated data one by one"
        )
    return Calibration(
        ranks=ranks,
        scores=scores,
        draws=draws,
        prob=prob,
        ended={str(status): count for status, count in Counter(fits.status).items()},
        seconds=time.perf_counter() - began,
        one_fit_seconds=one.seconds,
        settings=fits.settings,
    )


def _outcomes(problem: Problem) -> dict[str, str]:
    """By observed site, the argument that holds its values."""
    found = {}
    for site, value in zip(problem.structure.observed, problem.outcomes, strict=True):
        names = [name for name, given in problem.data.items() if given is value]
        if not names:
            raise ModelError(
                f"site {site!r} observes a value that is not one of the model's arguments as it is, so simulated outcomes cannot "
                "take its place; pass what it observes as an argument of its own"
            )
        found[site] = names[0]
    return found


def _as_data(
    problem: Problem, outcomes: Mapping[str, str], simulated: Mapping[str, torch.Tensor], replicates: int
) -> dict[str, torch.Tensor]:
    over = {}
    for site, name in outcomes.items():
        rows = simulated[site].reshape(replicates, *problem.data[name].shape)
        bad = int((~torch.isfinite(rows).reshape(replicates, -1).all(1)).sum())
        if bad:
            raise ModelError(
                f"the prior simulates values of {site!r} that are not finite in {bad} of {replicates} data sets; narrow the priors"
            )
        over[name] = rows
    return over


def _ranks(
    fits: Fits, truth: Mapping[str, torch.Tensor], draws: int, seed: int
) -> tuple[dict[str, NDArray[np.intp]], dict[str, NDArray[np.float64]]]:
    """Ranks and z-scores by site, of the fits that did not diverge."""
    rng = np.random.default_rng(seed)
    ranks: dict[str, list[NDArray[np.intp]]] = {name: [] for name in truth}
    scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in truth}
    for i, status in enumerate(fits.status):
        if status is Status.diverged:
            continue
        one: Fit = fits[i]
        q = one.posterior(draws)
        for name, values in truth.items():
            drawn, true = q[name].double().numpy(), values[i].double().numpy()
            below, tied = (drawn < true).sum(0), (drawn == true).sum(0)
            ranks[name].append(below + rng.integers(0, tied + 1))
            with np.errstate(divide="ignore", invalid="ignore"):
                scores[name].append((true - drawn.mean(0)) / drawn.std(0, ddof=1))
    return {n: np.stack(v) for n, v in ranks.items() if v}, {n: np.stack(v) for n, v in scores.items() if v}
