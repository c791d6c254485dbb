"""Exact posteriors, where mathematics gives one: `ExactPosterior`, and `exact`, which finds it in a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi._typing import Data, Model

if TYPE_CHECKING:
    from pyrovi.density import Density
    from pyrovi.preflight import Problem

__all__ = ["ExactPosterior", "exact", "settled_problem"]

Arrays = dict[str, NDArray[np.float64]]

PRIOR_DRAWS = 16
"""Points at which a closed form is proven beside those about the posterior."""


@dataclass(frozen=True)
class ExactPosterior:
    """A posterior in closed form.

    Attributes:
        marginals: By site, a frozen SciPy distribution of the site's shape: `.mean()`, `.std()`, `.ppf(p)`, `.pdf(x)`
            of every element. SciPy's are in float64 and have quantiles, which torch's Gamma and Student have not.
        log_evidence: log p(data), in nats.
        predictive: By observed site, the posterior predictive of one more observation, as a frozen SciPy distribution.
        covariance: By site, the `(d, d)` posterior covariance, where the site's elements are correlated.
        cross_covariance: By two sites, the `(d1, d2)` covariance of their elements, where they are correlated.
        joint: A function `(n, generator) -> {site: (n, *shape)}` that draws from the joint posterior; where None, the
            elements are independent and their marginals are the joint.
    """

    marginals: Mapping[str, Any]
    log_evidence: float
    predictive: Mapping[str, Any] = field(default_factory=dict)
    covariance: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    cross_covariance: Mapping[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)
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


def exact(model: Model, data: Data | None = None) -> ExactPosterior:
    """The exact posterior of a conjugate model.

    It is found from what the log joint is as a function of the latents, however the model is written: latents that are jointly
    Gaussian (unknown means, regressions and random walks with known scales, hierarchies with known variances); these with an
    unknown variance or precision in common (an InverseGamma or Gamma latent with which every scale grows or falls); positive
    latents whose posterior is Gamma or inverse Gamma; probabilities whose posterior is Beta or Dirichlet; and any number of these
    side by side. Before it is returned, log joint − log posterior is evaluated at some 50 points, about the posterior, far from it
    and drawn from the prior. It must be the same at all, to 1e-6 nats, and is the log evidence.

    Args:
        model: A Pyro program, as for `fit`.
        data: What it is called with, as for `fit`; floating data are taken as float64.

    Returns:
        Its marginals are frozen SciPy distributions of the sites' shapes.

    Raises:
        ModelError: The posterior has no such form; the message names the site and the reason. Also where the model has parameters
            of its own (`pyro.param`), to be learned, or subsamples.
        DataError: The data are not what the model takes.

    References:
        Bayesian Data Analysis, chapters 2, 3 and 14 (Gelman et al., 3rd edition, 2013)

    Example:
        >>> import pyro, pyro.distributions as dist, pyrovi
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     with pyro.plate("throws", len(heads)):
        ...         pyro.sample("heads", dist.Bernoulli(p), obs=heads)
        >>> round(float(pyrovi.exact(coin, {"heads": [1, 0, 1, 1]}).marginals["p"].mean()), 4)
        0.6667
    """
    import pyro
    import torch

    from pyrovi._isolation import isolated
    from pyrovi.closed_form import to_exact
    from pyrovi.conjugate import NoClosedForm, find
    from pyrovi.density import recorded
    from pyrovi.errors import ModelError, first_line
    from pyrovi.nonconjugate import why_not

    with isolated(0, torch.float64, validate=True):
        problem = settled_problem(model, data)
        with pyro.validation_enabled(False), torch.no_grad():
            try:
                density = recorded(problem)
            except ModelError as error:
                raise ModelError(f"no closed form can be looked for: {str(error).split(';')[0]}") from error
            try:
                form = find(density, _from_prior(problem, density))
            except NoClosedForm as error:
                reason = why_not(problem.model, problem.data, density, error)
                raise ModelError(f"the posterior has no closed form that pyrovi knows: {reason}") from None
            except RuntimeError as error:  # a derivative that torch has not
                raise ModelError(f"the model's log joint cannot be differentiated twice: {first_line(error)}") from error
    return to_exact(form, density.parts, problem.structure)


def settled_problem(model: Model, data: Data | None) -> Problem:
    """A model whose latents alone are unknown, on its data, checked, in float64; inside `isolated`."""
    import torch
    from pyro.infer.autoguide import AutoDelta
    from pyro.infer.autoguide.initialization import InitMessenger

    from pyrovi.arguments import check_arguments, columns_taken
    from pyrovi.errors import ModelError
    from pyrovi.inputs import clone, to_tensors
    from pyrovi.preflight import prepare
    from pyrovi.structure import Structure
    from pyrovi.tracing import feasible, run

    device = torch.device("cpu")
    data, _ = columns_taken(model, data)
    tensors = to_tensors(data, torch.float64, device)
    check_arguments(model, tensors)
    model, _ = clone(model, None, torch.float64, device)
    trace = run(InitMessenger(feasible)(model), tensors, ModelError)
    structure = Structure.of(trace)
    learned = [name for name, node in trace.nodes.items() if node["type"] == "param"]
    discrete = [name for name, site in structure.latent.items() if getattr(site.support, "is_discrete", False)]
    partial = [p.name for p in structure.plates.values() if p.subsample_size < p.size]
    if learned:
        raise ModelError(f"the model has a parameter {learned[0]!r}, to be learned: it has a posterior only once that is given")
    if partial:
        raise ModelError(f"the model subsamples plate {partial[0]!r}, so its log joint is a random number; write the plate plainly")
    if discrete:
        raise ModelError(f"site {discrete[0]!r} is discrete, and its values cannot be summed over here; sum them out in the model")
    if not structure.latent:
        raise ModelError("the model has no latent site, and so no posterior")
    guide = AutoDelta(model, init_loc_fn=feasible)  # a vague prior has no median that can be scored
    return prepare(model, guide, data, dtype=torch.float64, device=device)


def _from_prior(problem: Problem, density: Density) -> NDArray[np.float64] | None:
    """Draws of the latents from the model, as rows of the flat vector; None where it cannot be drawn from."""
    import torch
    from pyro import poutine

    rows = []
    try:
        for _ in range(PRIOR_DRAWS):
            trace = poutine.trace(problem.model).get_trace(**problem.data)
            rows.append(torch.cat([part.transform.inv(trace.nodes[part.name]["value"]).reshape(-1) for part in density.parts]))
    except (RuntimeError, ValueError, NotImplementedError):  # an improper prior, say
        return None
    return torch.stack(rows).double().numpy()
