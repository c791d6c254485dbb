"""`Fit`: what a fit leaves behind. Frozen; the other verbs take one."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi._isolation import isolated
from pyrovi._typing import Data, Path, Tensors
from pyrovi.draws import Draws, draw, given, latents_alone, predict, prior
from pyrovi.enumeration import FACTOR
from pyrovi.errors import PyroviError, SettingsError
from pyrovi.estimate import Estimate
from pyrovi.preflight import Problem
from pyrovi.sample import Sample

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.linear_response import LinearResponse
    from pyrovi.plots import FitPlots
    from pyrovi.verdict import Verdict

__all__ = ["Estimate", "Fit", "Status"]


AFFORDABLE_SCALARS = 200_000_000
"""Scalars of all sites times draws that are drawn unasked."""


class Status(StrEnum):
    """How a fit ended.

    Example:
        >>> import pyrovi
        >>> pyrovi.recipe("normal_mean").fit(steps=20).status
        <Status.step_limit: 'step_limit'>
    """

    converged = "converged"
    step_limit = "step_limit"
    diverged = "diverged"
    interrupted = "interrupted"


@dataclass(frozen=True, repr=False)
class Fit:
    """A fitted guide.

    Attributes:
        parameters: The guide's and model's parameters, constrained, by Pyro's names.
        unconstrained: The same as the optimiser sees them.
        elbo: The estimate at every step, shape `(restarts, steps)`, in nats, of all the data; NaN from where a restart diverged.
        status: `converged`, `step_limit`, `diverged` or `interrupted`.
        advice: Why, in numbers, and what to do next.
        settings: What the fit was run with, plain values.
        versions: Of Python and the packages that matter.
        seconds: Wall time, preflight included.
        seed: The seed that gives this fit again.
        recipe: The recipe's name, if it was run from one.
        verdict: What `check` said of it, where that was kept, as in a fit without settings.
        sample: Draws that stand for the posterior in place of q's, where the verdict recommends them; `posterior` and all that
            is made from it then use these, and `draws`, `estimate_elbo` and `check` still q's.

    Example:
        >>> import pyro, pyro.distributions as dist, pyrovi
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> fit = pyrovi.fit(model, "normal", {"x": [1.0, 2.0, 3.0]}, lr=0.05, steps=2_000)
        >>> fit.posterior(100)["w"].shape, fit.predictive(100)["x"].shape
        (torch.Size([100]), torch.Size([100, 3]))
        >>> fit.summary().index.to_list()
        ['w']
    """

    parameters: Tensors
    unconstrained: Tensors
    elbo: NDArray[np.float64]
    status: Status
    advice: str
    settings: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    seed: int
    recipe: str | None = None
    problem: Problem | None = field(default=None, repr=False)
    stored: Any = field(default=None, repr=False)
    verdict: Verdict | None = field(default=None, repr=False)
    sample: Sample | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        latents = (", ".join(self.problem.structure.latent) or "no latents") if self.problem else "loaded without its model"
        steps = self.elbo.shape[-1]
        if self.settings.get("method") == "auto":
            level = f"{self.verdict.level}, " if self.verdict is not None else ""
            return f"Fit(without settings; {latents}; {level}rung {self.settings['rung']}; {self.seconds:.1f} s; seed {self.seed})"
        if self.settings.get("method") == "deterministic":
            family, elbo = self.settings["guide_options"]["family"], f", ELBO {self.elbo[0, -1]:,.2f}" if steps else ""
            return f"Fit({family} guide; {latents}; {self.status} after {steps:,} evaluations{elbo}; seed {self.seed})"
        elbo = f", ELBO {self.best_elbo[-100:].mean():,.2f} over the last {min(steps, 100)}" if steps else ""
        return f"Fit({self.settings['guide']} guide; {latents}; {self.status} after {steps:,} steps{elbo}; seed {self.seed})"

    def _repr_html_(self) -> str:
        from pyrovi.display import of_fit

        return of_fit(self)

    @property
    def plot(self) -> FitPlots:
        """The figures of this fit: `fit.plot.elbo()`, `posterior`, `forest`, `pair`, `khat`, `predictive`, `loo`, `density`."""
        from pyrovi.plots import FitPlots

        return FitPlots(self)

    @property
    def best_elbo(self) -> NDArray[np.float64]:
        """The row of `elbo` of the restart that this fit is."""
        return self.elbo[self.settings.get("best_restart", 0)]

    @property
    def point_estimate(self) -> bool:
        """Whether q is a point, or there are no latents: an estimate without a spread."""
        if self.problem is not None:
            return self.problem.point_estimate
        return bool(self.stored.attrs.get("point_estimate", False))

    def draws(self, n: int = 1_000, *, seed: int | None = None, pointwise: bool = False) -> Draws:
        """Draws from q with their log densities under q and p, and if `pointwise` the log likelihood of every datum.

        Args:
            n: The number of draws; 1,000 puts a Monte Carlo error of 3% of an sd on a mean.
            seed: The fit's own seed when None, so that the same call gives the same draws.
            pointwise: Whether to keep `n` times the data.
        """
        with self.loaded(n, seed) as problem:
            return draw(problem, n, pointwise=pointwise)

    def recommended(self, n: int = 1_000, *, seed: int | None = None, pointwise: bool = False) -> Draws:
        """The same of the draws that the verdict recommends: those of `sample`, resampled by their weights, or else q's.

        The `log_q` of draws from `sample` is NaN: as they stand, no guide has drawn them.
        """
        with self.loaded(n, seed) as problem:
            return self.recommend(problem, n, seed, pointwise=pointwise)

    def recommend(self, problem: Problem, n: int, seed: int | None, *, pointwise: bool = False) -> Draws:
        """`recommended` inside `loaded`, for what goes on to draw there."""
        if self.sample is None:
            return draw(problem, n, pointwise=pointwise)
        return given(problem, self.sample.take(n, self.seed if seed is None else seed), pointwise=pointwise)

    def posterior(self, n: int = 1_000, *, seed: int | None = None) -> Tensors:
        """Draws of the latent and deterministic sites, those that the verdict recommends: by name, a `(n, *site_shape)` tensor."""
        with self.loaded(n, seed) as problem:
            kept = self.sample.take(n, self.seed if seed is None else seed) if self.sample is not None else None
            found = latents_alone(problem, n, kept)
            return found if found is not None else self.recommend(problem, n, seed).posterior

    def posterior_arrays(self, n: int = 1_000, *, seed: int | None = None) -> dict[str, NDArray[np.float64]]:
        """The same as float64 NumPy arrays; a fit loaded without its model gives the draws stored with it, whatever `n`."""
        if self.problem is None:
            from pyrovi.export import posterior_arrays

            return posterior_arrays(self.stored)
        return {name: value.double().cpu().numpy() for name, value in self.posterior(n, seed=seed).items()}

    def predictive(
        self, n: int = 1_000, *, data: Data | None = None, redraw: Sequence[str] = (), seed: int | None = None
    ) -> Tensors:
        """Draws of the observed sites given the fitted latents: by name, a `(n, *site_shape)` tensor.

        Args:
            n: The number of draws.
            data: New data by argument name, over the old: predictors of new cases, say. Outcomes not given are passed
                to the model as None.
            redraw: Latent sites to draw from the model given the rest, instead of from q: those of new cases, as in a
                random effect of groups that were not in the data.
            seed: The fit's own seed when None.

        Raises:
            DataError: The model cannot be run on the new data, or they change a latent's shape that is not in `redraw`.
        """
        if data is not None and self.problem is not None and self.problem.transform is not None:
            return self.on(data).predictive(n, redraw=redraw, seed=seed)  # which transforms them
        with self.loaded(n, seed) as problem:
            if FACTOR in problem.structure.sites:
                raise PyroviError(
                    "the model's discrete latents were summed out, and its outcomes with them: draw these from the model itself, "
                    "given fit.posterior()"
                )
            return predict(problem, n, self.recommend(problem, n, seed).posterior, data, redraw)

    def prior(self, n: int = 1_000, *, seed: int | None = None) -> tuple[Tensors, Tensors]:
        """Draws of the model alone: latent and deterministic sites, and observed sites."""
        with self.loaded(n, seed) as problem:
            return prior(problem, n)

    def estimate_elbo(self, n: int | None = None, *, seed: int | None = None) -> Estimate:
        """The ELBO of the fitted guide on all data, in nats, from `n` fresh draws; 10,000 when None, fewer of a large model."""
        n = self._affordable(10_000) if n is None else n
        values = self.draws(n, seed=seed).elbo
        return Estimate(values.mean().item(), values.std().item() / math.sqrt(n))

    def estimate_bound(self, k: int = 50, *, seed: int | None = None) -> Estimate:
        """The importance-weighted bound on log p(data) with k weights, in nats: above the ELBO, and towards log p(data) as k grows.

        Where each datum has its own latents, as in an amortised model, it has its own weights; elsewhere k weights serve for all
        the data, and the bound is the ELBO's best draw unless q is close to the posterior.

        Args:
            k: The number of weights.
            seed: The fit's own seed when None.

        References:
            Importance weighted autoencoders (Burda, Grosse & Salakhutdinov, 2016) | https://arxiv.org/abs/1509.00519
        """
        from pyrovi.evidence import importance_bound

        if self.point_estimate:
            raise PyroviError("the fit is a point estimate: q has no density, and so no bound")
        with self.loaded(k, seed) as problem:
            values, errors = importance_bound(problem, k)
        return Estimate(values.sum().item(), errors.square().sum().sqrt().item())

    def log_predictive(self, n: int = 1_000, *, seed: int | None = None) -> Tensors:
        """The log posterior predictive density of every datum, by observed site: log of the mean likelihood of `n` draws, in nats.

        Of new data it is `fit.on(new).log_predictive()`, the test log likelihood of the literature.

        Raises:
            PyroviError: A latent belongs to a datum. Drawn from a q that has seen the datum, it would score itself; see
                `estimate_bound`.
        """
        if self.problem is not None and (local := sorted(self.problem.structure.local)):
            raise PyroviError(
                f"site {local[0]!r} belongs to a datum, and q has seen that datum: its score would not be predictive; use "
                "estimate_bound"
            )
        scores = self.recommended(n, seed=seed, pointwise=True).log_likelihood
        return {name: torch.logsumexp(value.double(), 0) - math.log(n) for name, value in scores.items()}

    def on(self, data: Data) -> Fit:
        """This fit with other data, a test set for instance, for draws, scores, bounds and exports: nothing is fitted again.

        Args:
            data: By argument name, over the old. The guide is run on them: factors that it computes from the data follow, its
                other factors stay as they are.

        Raises:
            DataError, ModelError: The model cannot be run on them.
            GuideError: The guide has factors for the old data only, as an autoguide has for latents that belong to a datum.
        """
        from pyrovi.preflight import on

        with self.loaded() as _:
            assert self.problem is not None
            return replace(self, problem=on(self.problem, data))

    def linear_response(self) -> LinearResponse:
        """Posterior covariances that allow for correlations which q does not have: of a fit by `method="deterministic"`.

        Where the log joint is tilted by a small multiple t of a function f of the latents, the optimum of the ELBO moves; the
        derivative at t = 0 of the mean of another, g, under q is their covariance by linear response, J_f H⁻¹ J_gᵀ, with H the
        curvature of −ELBO at the optimum and J the derivative of a mean under q by q's parameters. Of the posterior itself that
        derivative is the covariance exactly; of a Gaussian posterior that of mean-field q is too, however wrong its own variances.
        It corrects q's spread, not its location.

        Returns:
            By site, `sd` and `covariance` of the latents' own values, and `unconstrained_sd` and `unconstrained_covariance`; a
            covariance has the site's axes twice.

        Raises:
            PyroviError: The fit is not one by `method="deterministic"`, or was loaded without its model.

        References:
            Covariances, robustness, and variational Bayes (Giordano, Broderick & Jordan, 2018) | https://jmlr.org/papers/v19/17-670.html
        """
        from pyrovi.linear_response import linear_response

        return linear_response(self)

    def check(self, exact: Any = None, **options: Any) -> Verdict:
        """Whether to trust this fit, and why: `pyrovi.check`, whose arguments these are."""
        from pyrovi._check import check

        return check(self, exact, **options)

    def importance_resample(self, n: int = 1_000, *, seed: int | None = None) -> Tensors:
        """Draws of all sites from the posterior as importance weights mend q: by name, a `(n, *site_shape)` tensor, unweighted.

        Five times as many draws from q, 50,000 at least, are weighted by p/q, Pareto smoothed, and drawn again so that each comes
        about as often as its weight says. It is what `check`'s level `reweight` asks for.

        Args:
            n: The number of draws. With fewer effective ones some come several times, which a warning says.
            seed: The fit's own seed when None.

        Raises:
            PyroviError: k-hat is above its threshold, so that weights cannot mend q, or q is a point. Where it may be, a warning.
        """
        from pyrovi._resample import importance_resample

        return importance_resample(self, n, seed)

    def to_arviz(
        self,
        draws: int | None = None,
        *,
        seed: int | None = None,
        dims: Mapping[str, list[str]] | None = None,
        coords: Mapping[str, Any] | None = None,
        pointwise: bool | None = None,
    ) -> Any:
        """What ArviZ's functions take: `InferenceData` for ArviZ 0.x, an xarray `DataTree` for 1.x.

        Groups: posterior, unconstrained_posterior, log_likelihood, log_prior, sample_stats (`lp` = log p(data, latents)
        and `log_q`), posterior_predictive, prior, prior_predictive, observed_data, constant_data and optimization.

        Args:
            draws: The number of draws, written as one chain; 1,000 when None, fewer of a large model.
            seed: The fit's own seed when None.
            dims: Variable name to the names of its axes; plates name theirs where this does not.
            coords: Axis name to its labels.
            pointwise: Whether to include the groups that hold a number for every draw and datum: log_likelihood,
                posterior_predictive, prior_predictive, and prior with it. When None, unless they hold more than 50 million each.
        """
        from pyrovi.export import to_arviz

        if self.problem is None and self.stored is not None:
            return self.stored
        return to_arviz(
            self, self._affordable(1_000) if draws is None else draws, seed=seed, dims=dims, coords=coords, pointwise=pointwise
        )

    def summary(self, draws: int | None = None, *, seed: int | None = None, **options: Any) -> pd.DataFrame:
        """`az.summary` of the posterior: mean, sd and interval, and the Monte Carlo error of the mean, that of weights included.

        R-hat and ESS are left out: those of independent draws say nothing of how good the approximation is. A `verdict` that the
        fit has is in the table's `attrs`.

        Args:
            draws: The number of draws; 1,000 when None, fewer of a large model.
            seed: The fit's own seed when None.
            options: For `az.summary`, as in `var_names` or `round_to`.
        """
        from pyrovi.export import posterior_alone, summary

        if self.problem is None:
            data = self.to_arviz()
        else:
            data = posterior_alone(self, self._affordable(1_000) if draws is None else draws, seed=seed)
        effective = self.sample.effective if self.sample is not None else math.inf
        table = summary(data, point_estimate=self.point_estimate, effective=effective, **options)
        if self.verdict is not None:
            table.attrs["verdict"] = self.verdict.to_dict()
        return table

    def save(self, folder: Path, *, overwrite: bool = False, draws: int | None = None) -> None:
        """Write a run folder: `fit.json`, `parameters.safetensors`, `data.safetensors` and `posterior.nc`.

        It is written beside its final place and moved there whole, so that a failure leaves nothing half-written. `draws` is as
        for `to_arviz`.

        Raises:
            RunFolderError: The folder exists and `overwrite` is False, or cannot be written.
        """
        from pyrovi.runs import save

        save(self, folder, overwrite=overwrite, draws=draws)

    def _affordable(self, most: int) -> int:
        """As many draws as take some seconds, 20 at least: one of a large model costs what a thousand of a small one do."""
        if self.problem is None:
            return most
        scalars = sum(site.shape.numel() for site in self.problem.structure.sites.values())
        return min(most, max(20, AFFORDABLE_SCALARS // max(1, scalars)))

    @contextmanager
    def loaded(self, n: int = 1, seed: int | None = None) -> Iterator[Problem]:
        """A clean room with this fit's parameters in Pyro's store, where its model and guide can be run."""
        if not (isinstance(n, numbers.Integral) and n >= 1):
            raise SettingsError(f"the number of draws must be a whole number of at least 1; got {n!r}")
        if seed is not None and not (isinstance(seed, int) and seed >= 0):
            raise SettingsError(f"seed must be a whole number of at least 0; got {seed!r}")
        if self.problem is None:
            raise PyroviError(
                "this fit was loaded without its model; give it to pyrovi.load(folder, model=…, guide=…) to draw from it"
            )
        # Another stream than the fit's own: fresh draws must not be those that the optimiser saw.
        stream = int(np.random.SeedSequence([self.seed if seed is None else seed, 1]).generate_state(1)[0])
        with isolated(stream, self.problem.dtype, self.problem.device), self.problem.parameters.loaded(self.unconstrained):
            yield self.problem.settled()
