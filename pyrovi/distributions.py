"""Distributions that the recipes need and Pyro lacks, and a constraint that lets guides work in the data's own units."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import Normal, TorchDistribution
from torch.distributions import biject_to, constraints, register_kl, transform_to
from torch.distributions.transforms import AffineTransform, Transform

__all__ = ["MarkovNormal", "Scaled", "natural_scale"]


class Scaled(constraints.Constraint):
    """Real numbers that an optimiser, or a guide by name, sees as (value − center) / unit.

    Adam takes steps of its learning rate whatever the scale of what it learns: a level of 900 ± 60 is to it 0 ± 1 here.
    """

    center: torch.Tensor | float
    unit: torch.Tensor | float

    def __init__(self, center: torch.Tensor | float, unit: torch.Tensor | float) -> None:
        self.center, self.unit = center, unit
        super().__init__()

    def check(self, value: torch.Tensor) -> Any:
        return value == value  # NaN is not a number


def _affine(constraint: Scaled) -> Transform:
    return AffineTransform(constraint.center, constraint.unit)


biject_to.register(Scaled, _affine)
transform_to.register(Scaled, _affine)


def natural_scale(y: torch.Tensor, observed: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a series is and how far it moves from one time to the next: what `Scaled` wants to know of it.

    Args:
        y: The series, shape `(T,)`.
        observed: Which of its values are there, shape `(T,)`; all when None.

    Returns:
        `center`: y, a missing value replaced by the one before it, shape `(T,)`. `unit`: the root mean square of the steps between
        the values that are there, over √2, as it is for noise of sd 1; 1 where there is no step other than 0.
    """
    seen = y if observed is None else y[observed]
    unit = (seen.diff().square().mean() / 2).sqrt() if len(seen) > 1 else y.new_zeros(())
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    if observed is None:
        return y, unit
    there = torch.where(observed, torch.arange(len(y), device=y.device), -1)
    first = int(observed.long().argmax())
    return y[there.cummax(0).values.clamp(min=first)], unit


class MarkovNormal(TorchDistribution):
    """A Gaussian Markov chain as one vector of T values.

        x_1 ~ Normal(loc_1, scale_1)
        x_t ~ Normal(loc_t + coupling_t (x_{t−1} − loc_{t−1}), scale_t), t = 2..T

    Every Gaussian whose precision is tridiagonal is one of these. A draw takes about log2(T) vector operations, a log density one.

    Args:
        loc: The means, shape `(…, T)`.
        scale: The innovations' sds, shape `(…, T)`.
        coupling: Shape `(…, T − 1)`; 1 throughout, a random walk, when None.
        center: Shape `()` or `(T,)`; with `unit`, the scale on which guides by name work: see `Scaled`.
        unit: Shape `()` or `(T,)`.
        validate_args: As of every distribution.

    Example:
        >>> MarkovNormal(torch.zeros(3), torch.ones(3)).variance
        tensor([1., 2., 3.])
    """

    loc: torch.Tensor
    scale: torch.Tensor
    center: torch.Tensor | float
    unit: torch.Tensor | float

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    has_rsample = True

    def __init__(
        self,
        loc: torch.Tensor,
        scale: torch.Tensor,
        coupling: torch.Tensor | None = None,
        *,
        center: torch.Tensor | float = 0.0,
        unit: torch.Tensor | float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.coupling = coupling
        self.center, self.unit = center, unit
        batch = self.loc.shape[:-1]
        if coupling is not None:
            batch = torch.broadcast_shapes(batch, coupling.shape[:-1])
        super().__init__(batch, self.loc.shape[-1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        return constraints.independent(Scaled(self.center, self.unit), 1)

    @property
    def mean(self) -> torch.Tensor:
        return self.loc.expand(self.shape())

    @property
    def variance(self) -> torch.Tensor:
        return self._accumulate(self.scale.square(), squared=True).expand(self.shape())

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        noise = torch.randn(self.shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self._accumulate(self.scale * noise)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        deviation = value - self.loc
        before = deviation[..., :-1] if self.coupling is None else self.coupling * deviation[..., :-1]
        innovation = torch.cat([deviation[..., :1].expand(*before.shape[:-1], 1), deviation[..., 1:] - before], -1)
        return Normal(0.0, self.scale, validate_args=False).log_prob(innovation).sum(-1)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> MarkovNormal:
        new = self._get_checked_instance(MarkovNormal, _instance)
        shape = torch.Size(batch_shape) + self.event_shape
        new.loc, new.scale, new.coupling = self.loc.expand(shape), self.scale.expand(shape), self.coupling
        new.center, new.unit = self.center, self.unit
        super(MarkovNormal, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _accumulate(self, innovation: torch.Tensor, *, squared: bool = False) -> torch.Tensor:
        """Solve x_t = coupling_t x_{t−1} + innovation_t for all t at once, by doubling the stretch that is solved."""
        if self.coupling is None:
            return innovation.cumsum(-1)
        a = torch.nn.functional.pad(self.coupling.square() if squared else self.coupling, (1, 0))
        x, stretch, length = innovation, 1, self.event_shape[0]
        while stretch < length:
            x = torch.cat([x[..., :stretch], x[..., stretch:] + a[..., stretch:] * x[..., :-stretch]], -1)
            a = torch.cat([a[..., :stretch], a[..., stretch:] * a[..., :-stretch]], -1)
            stretch *= 2
        return x


def _kl(q: MarkovNormal, p: MarkovNormal) -> torch.Tensor:
    """KL(q‖p) = Σ_t log(scale'/scale) + E[innovation'²] / (2 scale'²) − ½, the primed ones p's, the expectation under q."""
    own = q.loc.new_ones(()) if q.coupling is None else q.coupling
    other = q.loc.new_ones(()) if p.coupling is None else p.coupling
    apart = q.loc - p.loc
    mean = torch.cat([apart[..., :1], apart[..., 1:] - other * apart[..., :-1]], -1)
    carried = torch.nn.functional.pad((own - other).square() * q.variance[..., :-1], (1, 0))
    square = q.scale.square() + carried + mean.square()
    return ((p.scale / q.scale).log() + square / (2 * p.scale.square()) - 0.5).sum(-1)


register_kl(MarkovNormal, MarkovNormal)(_kl)
