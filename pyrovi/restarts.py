"""The same answer again? Restarts of a fit that is to be judged: paths over its recorded density, or other fits.

What comes of them is a part of an `Evidence`, by the names of its fields.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from pyrovi._typing import Tensors
from pyrovi.agreement import columns
from pyrovi.density import Density, recorded
from pyrovi.draws import draw, prior
from pyrovi.errors import ModelError, PyroviError, first_line
from pyrovi.importance import Weights
from pyrovi.modes import look, spread
from pyrovi.preflight import Problem
from pyrovi.result import Fit, Status
from pyrovi.verdict import MEAN_TOLERANCE, Evidence

__all__ = ["RESTARTS", "UNRECORDED", "density_of", "prior_rows", "refitted", "restarted", "spread_of"]

Array = NDArray[np.float64]

RESTARTS = 12

MOST_LATENTS = 1_000
"""For restarts, whose cost grows with the square."""

MANY_LATENTS = 100
"""For restarts of a fit that cannot be trusted anyway."""

REFITS, AFFORDABLE_SECONDS = 3, 30.0
"""Where the density cannot be recorded: other fits, if the first took no longer."""

REFIT_DRAWS, FAR = 1_000, 3.0
"""Draws of each, and sds between means that are of different modes."""

STARTED = ("normal", "multivariate_normal", "low_rank", "structured")
"""The guides that start where they are told."""

UNRECORDED = "restarts take a model whose density can be recorded"


def density_of(problem: Problem) -> Density | str:
    """The model's log density as a function, or why there is none."""
    if problem.structure.dimension > MOST_LATENTS:
        return f"the model has {problem.structure.dimension:,} latent scalars, more than {MOST_LATENTS:,}"
    try:
        with pyro.validation_enabled(False):
            return recorded(problem)
    except ModelError as error:
        return f"{UNRECORDED}, and {first_line(error).split('; ')[0]}"


def restarted(
    problem: Problem, density: Density | str, latents: Tensors, weights: Weights, evidence: Evidence, restarts: int, seed: int
) -> dict[str, Any]:
    """Whether other modes are there."""
    if not restarts or isinstance(density, str):
        return {"untested": density if isinstance(density, str) else "restarts=0"}
    if density.dimension > MANY_LATENTS and evidence.weights_good is False:
        return {"untested": "q's weights cannot be used as it is"}
    u = _coordinates(problem, density, latents)
    inside = np.isfinite(u).all(1) & np.isfinite(weights.log_weights)
    w = np.where(inside, weights.weights, 0.0)
    if not w.sum() > 0:
        return {"untested": "no draw from q has a density under the model"}
    with pyro.validation_enabled(False):
        found = look(
            density,
            u[inside],
            w[inside] / w.sum(),
            max(weights.log_mean, evidence.elbo.value if evidence.elbo else -math.inf),
            prior_rows(problem, density),
            restarts=restarts,
            seed=seed,
        )
    if not found.found:
        return {"untested": "no restart found a Gaussian with a finite ELBO"}
    return {
        "restarts": found.found,
        "rhat": found.rhat,
        "rhat_worst": found.rhat_worst,
        "missed": found.missed,
        "missed_where": found.where,
        "switched": found.switched,
    }


def spread_of(problem: Problem, restarts: int, seed: int) -> dict[str, Any]:
    """Whether restarts give every datum's latents the Gaussian that q gives them."""
    density = density_of(problem)
    if not restarts or isinstance(density, str):
        return {"untested": density if isinstance(density, str) else "restarts=0"}
    u = _coordinates(problem, density, draw(problem, 1_000).posterior)
    if not np.isfinite(u).all():
        return {"untested": "some draws from q lie outside of the latents' supports"}
    with pyro.validation_enabled(False):
        found = spread(density, u, prior_rows(problem, density), restarts=restarts, seed=seed)
    told = {"rhat": found.rhat, "rhat_worst": found.rhat_worst}
    if found.where:
        return {**told, "untested": f"restarts disagree about {found.where}, and what share each has is not known"}
    return {**told, "restarts": found.found} if found.found else {"untested": "no restart found a Gaussian with a finite ELBO"}


def refitted(fit: Fit, evidence: Evidence, seed: int) -> dict[str, Any]:
    """Whether the same fit from other starts gives the same answer, for a model whose density is known only by running it."""
    from pyro.infer.autoguide import init_to_uniform

    from pyrovi._fit import fit as refit

    problem, guide = fit.problem, fit.settings.get("guide")
    known = ("steps", "particles", "lr", "optimizer", "objective", "batch_size")
    settings = {name: fit.settings[name] for name in known if fit.settings.get(name) is not None}
    if problem is None or guide not in STARTED or fit.settings.get("method", "svi") != "svi" or fit.seconds > AFFORDABLE_SECONDS:
        return {}
    options = {**(fit.settings.get("guide_options") or {}), "init_loc_fn": init_to_uniform}
    fits = [fit]
    for i in range(REFITS):
        with suppress(PyroviError):
            fits.append(
                refit(problem.model, guide, problem.data, seed=seed + 1 + i, guide_options=options, progress=False, **settings)
            )
    fits = [fits[0], *(other for other in fits[1:] if other.status is not Status.diverged)]
    if len(fits) == 1:
        return {}
    drawn = [other.draws(REFIT_DRAWS, seed=seed) for other in fits]
    labels = columns({name: value.cpu().numpy() for name, value in drawn[0].posterior.items()})[0]
    samples = [columns({name: value.cpu().numpy() for name, value in d.posterior.items()})[1] for d in drawn]
    mean, sd = np.stack([x.mean(0) for x in samples]), np.maximum(np.stack([x.std(0) for x in samples]), 1e-300)
    elbo = np.array([float(d.elbo.mean()) for d in drawn])
    weight = np.exp(elbo - np.nanmax(elbo))
    weight /= weight.sum()
    rhat = np.sqrt(1 + weight @ np.square(mean - weight @ mean) / (weight @ np.square(sd)))
    away = np.abs(mean[1:] - mean[0]) / sd[0]
    own = evidence.log_evidence.value if evidence.log_evidence is not None else elbo[0]
    share = np.exp(elbo[1:] - np.logaddexp(own, elbo[1:]))
    far = (away.max(1) > FAR) & (share * away.max(1) > MEAN_TOLERANCE)
    worst = int(rhat.argmax())
    found = {"restarts": len(fits) - 1, "rhat": float(rhat[worst]), "rhat_worst": labels[worst], "untested": ""}
    if not far.any():
        return found
    i = int(np.argmax(np.where(far, share, -1.0)))
    return {**found, "missed": float(share[i]), "missed_where": labels[int(away[i].argmax())]}


def _coordinates(problem: Problem, density: Density, values: dict[str, torch.Tensor]) -> Array:
    """Latents' values, `(n, *shape)` each, as rows of the density's coordinates."""
    rows = []
    for part in density.parts:
        site = problem.structure.latent[part.name]
        x = values[part.name].double()
        rows.append(part.transform.inv(x.reshape(len(x), *site.shape)).reshape(len(x), -1))
    return torch.cat(rows, 1).cpu().numpy()


def prior_rows(problem: Problem, density: Density) -> Array:
    """Prior draws in the density's coordinates; none where the model cannot be run forwards."""
    try:
        u = _coordinates(problem, density, {n: v for n, v in prior(problem, 16)[0].items() if n in problem.structure.latent})
    except (RuntimeError, ValueError, NotImplementedError):
        return np.zeros((0, density.dimension))
    return u[np.isfinite(u).all(1)]
