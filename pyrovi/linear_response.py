"""Posterior covariances from the curvature of a deterministic ELBO at its optimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pyrovi._typing import Tensors
from pyrovi.density import recorded
from pyrovi.deterministic import stream
from pyrovi.errors import PyroviError
from pyrovi.fixed_draws import Objective, solve
from pyrovi.guides.gaussian import place
from pyrovi.pathfinder import standard_draws

if TYPE_CHECKING:
    from pyrovi.result import Fit

__all__ = ["LinearResponse", "linear_response"]


@dataclass(frozen=True)
class LinearResponse:
    """Posterior sds and covariances by linear response, by site; covariances have the site's axes twice."""

    sd: Tensors
    covariance: Tensors
    unconstrained_sd: Tensors
    unconstrained_covariance: Tensors


def linear_response(fit: Fit) -> LinearResponse:
    """See `Fit.linear_response`."""
    if fit.settings.get("method") != "deterministic":
        raise PyroviError(
            "linear response wants the optimum itself, where an SVI fit only wanders about it: fit with method='deterministic'"
        )
    with fit.loaded() as problem:
        density = recorded(problem)
        prefix = f"{problem.guide._pyro_name}."  # type: ignore[attr-defined]
        p = {name.removeprefix(prefix): value.double() for name, value in fit.unconstrained.items()}
        e = standard_draws(fit.settings["particles"], density.dimension, stream(fit.seed, 0)).to(p["loc"])
        objective = Objective(density, p, e)
        _, gradient = objective(objective.start)
        if float(gradient.abs().max()) > 0.01 + 10 * fit.settings["gradient_norm"]:
            raise PyroviError(
                "q is not at its optimum for these data, so there is no linear response: fit them, by the same method"
            )
        v = objective.start.clone().requires_grad_()
        u, _ = place(objective.parameters(v), e)
        sites = density.sites(u)
        means = torch.cat([u.mean(0), *(value.mean(0).flatten() for value in sites.values())])
        rows = torch.stack([torch.autograd.grad(mean, v, retain_graph=True)[0] for mean in means])
        at = objective.start
        if len(at) <= 200 + 4 * len(rows):
            hessian = torch.stack([objective.product(at, unit) for unit in torch.eye(len(at)).to(at)])
            answers = torch.linalg.solve((hessian + hessian.mT) / 2, rows.mT).mT
        else:
            answers = torch.stack([solve(lambda p: objective.product(at, p), row, 1e-5, 10 * len(at))[0] for row in rows])
        covariance = (rows @ answers.mT).detach()
    out: dict[str, Tensors] = {field: {} for field in ("sd", "covariance", "unconstrained_sd", "unconstrained_covariance")}
    begin = density.dimension
    for part in density.parts:
        site = problem.structure.latent[part.name]
        shape = torch.Size(site.shape[i] for i in site.axes()[0])
        for field, start, stop, axes in (
            ("unconstrained_", part.start, part.stop, part.shape),
            ("", begin, begin + shape.numel(), shape),
        ):
            block = covariance[start:stop, start:stop]
            out[f"{field}sd"][part.name] = block.diagonal().sqrt().reshape(axes)
            out[f"{field}covariance"][part.name] = block.reshape((*axes, *axes))
        begin += shape.numel()
    return LinearResponse(**out)
