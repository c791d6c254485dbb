"""Mixtures of multivariate Student-t's: proposals for importance sampling, wider in the tails than what they are matched to.

References:
    Adaptive importance sampling in general mixture classes (Cappé et al., 2008) | https://doi.org/10.1007/s11222-008-9059-x
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import init_to_feasible

from pyrovi._typing import Tensors
from pyrovi.errors import GuideError
from pyrovi.guides.coordinates import NARROW, AutoCoordinates

__all__ = ["AutoStudent", "Student", "matched"]


class Student(NamedTuple):
    """A mixture of K multivariate Student-t's in d dimensions."""

    logits: torch.Tensor
    """`(K,)`,"""
    locs: torch.Tensor
    """`(K, d)`,"""
    scales: torch.Tensor
    """lower triangular, `(K, d, d)`,"""
    df: torch.Tensor
    """and the degrees of freedom, a number for all."""

    def distribution(self) -> dist.TorchDistribution:
        parts = dist.MultivariateStudentT(self.df.expand(len(self.logits)), self.locs, self.scales, validate_args=False)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits, validate_args=False), parts, validate_args=False)

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        """Of each component at each row of `z`, weights included: `(n, K)`; torch's own solves a triangle for every row anew."""
        d, df = z.shape[1], self.df
        constant = torch.lgamma((df + d) / 2) - torch.lgamma(df / 2) - d / 2 * (df * math.pi).log()
        each = []
        for loc, scale in zip(self.locs, self.scales, strict=True):
            squares = torch.linalg.solve_triangular(scale, (z - loc).mT, upper=False).square().sum(0)
            each.append(constant - scale.diagonal().log().sum() - (df + d) / 2 * torch.log1p(squares / df))
        return torch.stack(each, 1) + torch.log_softmax(self.logits, 0)

    def draw(self, n: int, seed: int) -> torch.Tensor:
        """Draws, `(n, d)`, of every component as many as its weight says."""
        rng = np.random.default_rng(seed)
        points = np.searchsorted(np.cumsum(torch.softmax(self.logits, 0).numpy()), (np.arange(n) + rng.uniform()) / n)
        k = torch.from_numpy(np.minimum(points, len(self.logits) - 1))
        d = self.locs.shape[1]
        e = torch.from_numpy(rng.standard_normal((n, d))).clone()
        wide = torch.from_numpy(np.sqrt(float(self.df) / rng.chisquare(float(self.df), n))).clone()
        z = torch.empty(n, d, dtype=torch.float64)
        for component in range(len(self.logits)):
            mine = k == component
            z[mine] = self.locs[component] + (e[mine] * wide[mine, None]) @ self.scales[component].mT
        return z


def matched(z: torch.Tensor, weights: torch.Tensor, df: float, before: Student | None = None) -> Student:
    """One step of expectation maximisation from weighted draws, with the responsibilities of the mixture they were drawn from.

    Args:
        z: Draws, `(n, d)`.
        weights: Theirs, summing to 1.
        df: Degrees of freedom of the result.
        before: The mixture; one component when None.
    """
    shares = weights[:, None] if before is None else weights[:, None] * _responsibilities(before, z)
    logits, locs, scales = [], [], []
    for k in range(shares.shape[1]):
        share = shares[:, k] / shares[:, k].sum().clamp_min(1e-300)
        effective = 1 / max(float(share.square().sum()), 1e-300)
        d = z.shape[1]
        if not d + 2 <= effective <= len(z) and before is not None:
            loc, scale = before.locs[k], before.scales[k]
        else:
            loc = share @ z
            away = z - loc
            sds = (share @ away.square()).sqrt().clamp_min(1e-300)
            correlation = (away / sds).mT @ (away / sds * share[:, None])
            shrink = min(0.9, d / effective)  # so many draws know no more of d² correlations
            correlation = (1 - shrink) * correlation + shrink * torch.eye(d, dtype=z.dtype)
            scale = sds[:, None] * torch.linalg.cholesky(correlation)
        logits.append(shares[:, k].sum().clamp_min(1e-6).log())
        locs.append(loc)
        scales.append(scale)
    return Student(torch.stack(logits), torch.stack(locs), torch.stack(scales), torch.tensor(df, dtype=z.dtype))


def _responsibilities(q: Student, z: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q.log_density(z), 1)


class AutoStudent(AutoCoordinates):
    """A mixture of Student-t's over all latents together, held as it is: what adaptive importance sampling ends with.

    Args:
        model: A Pyro model.
        components: How many.
        centered: As for `AutoCoordinates`,
        together: likewise,
        init_loc_fn: and likewise.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        components: int = 1,
        *,
        centered: Sequence[str] = (),
        together: bool = True,
        init_loc_fn: Callable[..., Any] = init_to_feasible,
    ) -> None:
        if not (isinstance(components, numbers.Integral) and components >= 1):
            raise GuideError(f"components must be a whole number of at least 1; got {components!r}")
        self._components: int = int(components)
        super().__init__(model, centered=centered, together=together, init_loc_fn=init_loc_fn)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        d, k = self.latent_dim, self._components
        start = {"logits": torch.zeros(k), "locs": self._init_loc().expand(k, d), "scales": NARROW * torch.eye(d).expand(k, d, d)}
        for name, value in {**start, "df": torch.tensor(30.0)}.items():
            setattr(self, name, torch.nn.Parameter(value.clone()))

    def values(self) -> Tensors:
        return {name: getattr(self, name).detach() for name in Student._fields}

    def coordinates(self) -> dist.TorchDistribution:
        return Student(**self.values()).distribution()
