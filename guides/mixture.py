"""A mixture of Gaussians as q: `guide="mixture"` for any model with continuous latents.

    z ~ Σ_k π_k Normal(loc_k, diag(scale_k²)), in unconstrained space

Gradients run through the draws, the choice of component included (pathwise, not score-function): Pyro's `MixtureOfDiagNormals` has
them from two dimensions on, and in one the implicit gradient −(∂F/∂φ)/f of the distribution function F is exact.

References:
        Implicit reparameterization gradients (Figurnov, Mohamed & Mnih, 2018) | https://arxiv.org/abs/1805.08498
        Pathwise derivatives for multivariate distributions (Jankowiak & Karaletsos, 2019) | https://arxiv.org/abs/1806.01856
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoContinuous, init_to_feasible
from pyro.nn import PyroParam

from pyrovi.errors import GuideError

__all__ = ["AutoMixture", "MixtureOfNormals"]


MOST_LATENTS = 200
"""The density of a Gaussian in so many dimensions still lies within float64's range, tails included."""


class AutoMixture(AutoContinuous):  # type: ignore[misc]
    """A mixture of Gaussians with diagonal covariances over all latents together.

    Args:
        model: A Pyro model.
        components: How many; each costs about as much as a mean-field guide.
        init_loc_fn: Pyro's; where the components' mean starts.
        spread: How far from that mean the components start, in the scale of unconstrained space: far enough apart to find
            different modes, near enough to meet in one.
        init_scale: The scale they start with.
    """

    locs: torch.nn.Parameter
    scales: Any
    logits: torch.nn.Parameter

    def __init__(
        self,
        model: Callable[..., Any],
        components: int = 2,
        *,
        init_loc_fn: Callable[..., Any] = init_to_feasible,
        spread: float = 1.0,
        init_scale: float = 1.0,
    ) -> None:
        if not (isinstance(components, numbers.Integral) and components >= 1):
            raise GuideError(f"components must be a whole number of at least 1; got {components!r}")
        if not (spread > 0 and init_scale > 0):
            raise GuideError(f"spread and init_scale must be above 0; got {spread!r} and {init_scale!r}")
        self._components: int = int(components)
        self._spread: float = spread
        self._init_scale: float = init_scale
        super().__init__(model, init_loc_fn=init_loc_fn)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        if self.latent_dim > MOST_LATENTS:
            raise GuideError(
                f"the model has {self.latent_dim:,} latent scalars; the gradient through a mixture's draws holds up to "
                f"{MOST_LATENTS}: use guide='low_rank' or 'normal'"
            )
        centre = self._init_loc()
        # Evenly spaced along each axis, in an order of its own for each, so that no two start alike.
        places = torch.linspace(-1.0, 1.0, self._components) if self._components > 1 else torch.zeros(1)
        order = torch.rand(self.latent_dim, self._components).argsort(-1)
        self.locs = torch.nn.Parameter(centre + self._spread * places[order].T)
        self.scales = PyroParam(torch.full_like(self.locs, self._init_scale), constraint=constraints.softplus_positive)
        self.logits = torch.nn.Parameter(torch.zeros(self._components))

    def get_posterior(self, *args: Any, **kwargs: Any) -> dist.TorchDistribution:
        family = MixtureOfNormals if self.latent_dim == 1 else _MixtureOfDiagNormals
        return family(self.locs, self.scales, self.logits)


class _MixtureOfDiagNormals(dist.MixtureOfDiagNormals):  # type: ignore[misc]
    """Pyro's, drawn in float64: its gradient divides by the density, which float32 cannot hold past a few dozen dimensions."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return super().expand(batch_shape, self._get_checked_instance(_MixtureOfDiagNormals, _instance))

    def rsample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        exact = dist.MixtureOfDiagNormals(self.locs.double(), self.coord_scale.double(), self.component_logits.double())
        z: torch.Tensor = exact.rsample(sample_shape)
        return z.to(self.locs.dtype)


class MixtureOfNormals(dist.TorchDistribution):  # type: ignore[misc]
    """A mixture of Normals on the line, as a distribution of vectors of length one, with implicit gradients.

    Args:
        locs: Shape `(K, 1)`.
        scales: Shape `(K, 1)`.
        logits: Shape `(K,)`.
    """

    locs: torch.Tensor
    scales: torch.Tensor
    logits: torch.Tensor

    has_rsample = True
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "locs": constraints.real,
        "scales": constraints.positive,
        "logits": constraints.real,
    }
    support: Any = constraints.real_vector

    def __init__(
        self, locs: torch.Tensor, scales: torch.Tensor, logits: torch.Tensor, batch_shape: torch.Size | None = None
    ) -> None:
        self.locs, self.scales, self.logits = locs, scales, logits
        super().__init__(batch_shape or torch.Size(), torch.Size([1]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixtureOfNormals:
        return MixtureOfNormals(self.locs, self.scales, self.logits, torch.Size(batch_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)[:-1]
        with torch.no_grad():
            k = torch.multinomial(self.logits.softmax(0), max(1, shape.numel()), replacement=True).reshape(shape)
            z = self.locs[k] + self.scales[k] * torch.randn(*shape, 1, dtype=self.locs.dtype, device=self.locs.device)
            density = self.log_prob(z).exp()
            standard = (z - self.locs[:, 0]) / self.scales[:, 0]
            # Of the two tails the smaller: the difference of the other from 1 is lost in rounding.
            upper = (self.logits.softmax(0) * torch.special.ndtr(standard)).sum(-1) > 0.5
        standard = (z - self.locs[:, 0]) / self.scales[:, 0]
        below, above = torch.special.ndtr(standard), torch.special.ndtr(-standard)
        tail = (self.logits.softmax(0) * torch.where(upper[..., None], -above, below)).sum(-1)
        # The value is z; the gradient is that of the z at which F keeps its value.
        return z - ((tail - tail.detach()) / density)[..., None]

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        standard = (value - self.locs[:, 0]) / self.scales[:, 0]
        each = -0.5 * standard**2 - self.scales[:, 0].log() - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(self.logits.log_softmax(0) + each, -1)
