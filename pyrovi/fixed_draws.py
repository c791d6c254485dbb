"""The ELBO over fixed draws as an ordinary function of a Gaussian's parameters, and its minimisation.

    −ELBO(η) = −(1/M) Σ_m log p(u_m(η)) + log |det du_m/de|,   u_m(η) = the guide's map of the fixed standard Normal draw e_m

The model is met only through log p, its gradients and its Hessians' products at the M points; the rest is the guide's map.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi._typing import Tensors
from pyrovi.density import Density
from pyrovi.guides.gaussian import HELD, place, triangular

__all__ = ["GAIN", "Objective", "minimise", "recentred", "solve"]

GAIN = 1e-3
"""Nats a latent that a Newton step may yet gain at what is called an optimum: a mean that is t sds off costs t²/2, so 0.045 sd."""

STILL = 1e-6
"""Nats a latent: an iteration of L-BFGS that gains less ends it. Most fits are then nearer their optimum than they have to be."""


class Objective:
    """−ELBO over fixed draws, as a function of the guide's free parameters in one flat vector.

    Args:
        density: Of the model.
        parameters: The guide's, as `pyrovi.guides.gaussian.place` takes them; `loc` and `scale` are held, the others free.
        draws: Standard Normal, shape `(M, dimension)`.
        trace: Where to put the ELBO of every evaluation.
        left: How many evaluations, of values or of products with the Hessian, it may yet make.
    """

    density: Density
    draws: torch.Tensor
    trace: list[float]
    left: int
    held: Tensors
    shapes: dict[str, torch.Size]
    start: torch.Tensor
    best: tuple[float, torch.Tensor]

    def __init__(
        self, density: Density, parameters: Tensors, draws: torch.Tensor, trace: list[float] | None = None, left: int = sys.maxsize
    ) -> None:
        self.density, self.draws = density, draws
        self.trace, self.left = trace if trace is not None else [], left
        self.held = {name: parameters[name] for name in HELD}
        self.shapes = {name: value.shape for name, value in parameters.items() if name not in HELD}
        self.start = torch.cat([parameters[name].flatten() for name in self.shapes])
        self.best = (math.inf, self.start)
        self._curved: tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]] | None = None

    def parameters(self, v: torch.Tensor) -> Tensors:
        parts = v.split([shape.numel() for shape in self.shapes.values()])
        return self.held | {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def __call__(self, v: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The value in nats and its gradient; infinity, and zeros, where some draw has no density."""
        self._spend()
        v = v.detach().requires_grad_()
        u, log_det = place(self.parameters(v), self.draws)
        log_p, slope = self.density.gradient(u.detach())
        value = -float(log_p.mean() + log_det.detach().mean()) - entropy(self.density.dimension)
        (gradient,) = torch.autograd.grad(-(u * slope).sum() / len(u) - log_det.mean(), v)
        if not (math.isfinite(value) and torch.isfinite(gradient).all()):
            return math.inf, torch.zeros_like(gradient)
        self.trace.append(-value)
        self.best = min(self.best, (value, v.detach()), key=lambda pair: pair[0])
        return value, gradient

    def product(self, v: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
        """The Hessian at `v` times a vector."""
        self._spend()
        if self._curved is None or not torch.equal(self._curved[0], v):
            self._curved = v.detach().clone(), self._curvature(v)
        return self._curved[1](along)

    def _spend(self) -> None:
        if self.left <= 0:
            raise _Spent
        self.left -= 1

    def _curvature(self, v: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """u'ᵀ (log p)'' u' of every draw, and what u'' and the log determinant add."""
        v = v.detach().requires_grad_()
        u, log_det = place(self.parameters(v), self.draws)
        at = u.detach()
        _, slope = self.density.gradient(at)
        (gradient,) = torch.autograd.grad((u * slope).sum() / len(u) + log_det.mean(), v, create_graph=True)
        weight = torch.zeros_like(at, requires_grad=True)
        (pulled,) = torch.autograd.grad((u * weight).sum(), v, create_graph=True)  # linear in `weight`: its derivative there is u'

        def product(along: torch.Tensor) -> torch.Tensor:
            (moved,) = torch.autograd.grad(pulled @ along, weight, retain_graph=True)
            bent = self.density.curvature(at, moved).nan_to_num(0.0) / len(at)
            (out,) = torch.autograd.grad((u * bent).sum() + gradient @ along, v, retain_graph=True)
            return -out.nan_to_num(0.0)

        return product


class _Spent(Exception):
    """The evaluations have run out."""


def entropy(dimension: int) -> float:
    """Of the standard Normal, in nats."""
    return dimension / 2 * (1 + math.log(2 * math.pi))


def minimise(objective: Objective, v: torch.Tensor) -> tuple[torch.Tensor, float]:
    """L-BFGS, and trust-region Newton with Hessian-vector products where that alone does not get there.

    Returns:
        Where it ended, and the nats that a Newton step from there would yet gain, ½ gᵀH⁻¹g.
    """
    from scipy.optimize import minimize

    def tensor(x: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(np.array(x)).to(v)

    def value_and_gradient(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient = objective(tensor(x))
        return min(value, 1e300), gradient.cpu().numpy()

    def product(x: NDArray[np.float64], along: NDArray[np.float64]) -> NDArray[np.float64]:
        return objective.product(tensor(x), tensor(along)).cpu().numpy()

    def gain(x: NDArray[np.float64], gradient: NDArray[np.float64]) -> float:
        step, positive = solve(lambda p: objective.product(tensor(x), p), tensor(gradient), 0.1, 50)
        return 0.5 * float(step @ tensor(gradient)) if positive else math.inf

    enough, x, left = GAIN * objective.density.dimension, v.cpu().numpy(), math.inf
    try:
        with np.errstate(all="ignore"):
            still = STILL * objective.density.dimension / max(1.0, abs(objective(v)[0]))
            rounds: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
                ("L-BFGS-B", {"ftol": still, "gtol": 1e-3, "maxcor": 20, "maxiter": 10_000, "maxfun": 500}, {}),
                ("trust-ncg", {"gtol": 1e-4, "maxiter": 50, "max_trust_radius": 10.0}, {"hessp": product}),
            ]
            for method, options, more in rounds:
                out = minimize(value_and_gradient, x, jac=True, method=method, options=options, **more)
                x, left = out.x, gain(out.x, out.jac)
                if left <= enough:
                    break
    except (_Spent, ValueError):  # SciPy's, of numbers that have run away
        x = objective.best[1].cpu().numpy()
    return tensor(x), left


def solve(
    product: Callable[[torch.Tensor], torch.Tensor], b: torch.Tensor, tolerance: float, most: int
) -> tuple[torch.Tensor, bool]:
    """Solve H x = b by conjugate gradients, H given by its products; also whether H was positive wherever they went."""
    x, r = torch.zeros_like(b), b
    p, size = r, r @ r
    enough = tolerance**2 * float(size)
    for _ in range(most):
        if float(size) <= enough:
            break
        hp = product(p)
        bend = p @ hp
        flat = 1e-3 * float(p @ p)  # as along rotations of a low-rank factor, which change nothing
        if not float(bend) > 1e-3 * flat:
            return x, float(bend) > -flat
        step = size / bend
        x, r = x + step * p, r - step * hp
        p, size = r + (r @ r) / size * p, r @ r
    return x, True


def recentred(p: Tensors) -> Tensors:
    """The same Gaussian with its own location and scale as the coordinates, in which nothing is shifted or scaled."""
    scale = p["scale"]
    if scale.dim() == 1:
        new = {"loc": p["loc"] + scale * p["shift"], "scale": scale * p["log_scale"].exp()}
    else:
        new = {"loc": p["loc"] + scale @ p["shift"], "scale": scale @ triangular(p)}
    return p | new | {name: torch.zeros_like(p[name]) for name in ("shift", "log_scale", "lower") if name in p}
