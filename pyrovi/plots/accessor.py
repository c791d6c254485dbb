"""`fit.plot`: every figure of a fit, under one name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyrovi.plots.diagnostics import posterior
from pyrovi.plots.forest import forest
from pyrovi.plots.pairs import pair
from pyrovi.plots.predictive import predictive
from pyrovi.plots.targets import Target, density
from pyrovi.plots.trace import elbo
from pyrovi.plots.weights import khat, loo
from pyrovi.result import Fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FitPlots"]


@dataclass(frozen=True)
class FitPlots:
    """The figures of a fit. Every method returns a matplotlib `Figure`, which a notebook shows and `.savefig(path)` writes.

    Attributes:
        fit: The fit.

    Example:
        >>> import pyrovi
        >>> fit = pyrovi.recipe("normal_mean").fit(steps=300)
        >>> figures = fit.plot.elbo(), fit.plot.posterior(), fit.plot.predictive()
        >>> [type(figure).__name__ for figure in figures]
        ['Figure', 'Figure', 'Figure']
    """

    fit: Fit

    def __call__(self, exact: Any | None = None) -> Figure:
        """The one figure to begin with: intervals of the posterior, or of a fit without a spread its ELBO.

        Args:
            exact: An exact posterior, or a reference as `pyrovi.nuts` gives it, to draw beside.
        """
        return self.elbo() if self.fit.point_estimate else self.forest(exact=exact)

    def elbo(self, exact: Any | None = None) -> Figure:
        """The ELBO by step, with the phases of `stop="auto"`; of a fit without settings by rung: `pyrovi.plots.elbo`."""
        return elbo(self.fit, exact)

    def posterior(self, var_names: Sequence[str] | str | None = None, *, exact: Any | None = None, **options: Any) -> Figure:
        """Histograms of the posterior, and the exact densities over them: `pyrovi.plots.posterior`."""
        return posterior(self.fit, exact, _listed(var_names), **options)

    def forest(self, var_names: Sequence[str] | str | None = None, *, exact: Any | None = None, **options: Any) -> Figure:
        """Intervals of the posterior, a row a scalar: `pyrovi.plots.forest`."""
        return forest(self.fit, exact, _listed(var_names), **options)

    def pair(self, var_names: Sequence[str] | str | None = None, **options: Any) -> Figure:
        """Draws of every pair of scalars: `pyrovi.plots.pair`."""
        return pair(self.fit, _listed(var_names), **options)

    def khat(self, **options: Any) -> Figure:
        """Importance weights and their tail, or k-hat by datum: `pyrovi.plots.khat`."""
        return khat(self.fit, **options)

    def predictive(self, site: str | None = None, **options: Any) -> Figure:
        """The posterior predictive check: `pyrovi.plots.predictive`."""
        return predictive(self.fit, site, **options)

    def loo(self, **options: Any) -> Figure:
        """k-hat and expected log predictive density by datum: `pyrovi.loo`, whose options these are, and `pyrovi.plots.loo`."""
        from pyrovi._loo import loo as leave_one_out

        return loo(leave_one_out(self.fit, **options))

    def density(self, log_density: Target, **options: Any) -> Figure:
        """Draws against the density that they are to look like, in one dimension or two: `pyrovi.plots.density`."""
        return density(self.fit, log_density, **options)


def _listed(names: Sequence[str] | str | None) -> Sequence[str] | None:
    """One name as a list of it."""
    return [names] if isinstance(names, str) else names
