"""Normalizing flows as q: `guide="flow"` for any model with continuous latents; the flows are zuko's.

    z = loc + scale · T(ε), ε ~ Normal(0, 1), in unconstrained space

T is autoregressive in the direction in which one pass draws and scores (an inverse autoregressive flow).

References:
        Improved variational inference with inverse autoregressive flow (Kingma et al., 2016) | https://arxiv.org/abs/1606.04934
        Neural spline flows (Durkan et al., 2019) | https://arxiv.org/abs/1906.04032
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoContinuous, init_to_feasible
from pyro.nn import PyroParam

from pyrovi.errors import GuideError, nearest

__all__ = ["FLOWS", "AutoFlow"]

FLOWS = {"neural_spline": "NSF", "masked_autoregressive": "MAF"}
"""Our names for zuko's. A neural spline bends each coordinate freely; a masked autoregressive flow shifts and scales it by a
function of the others, which in one dimension is a Gaussian again."""


class AutoFlow(AutoContinuous):  # type: ignore[misc]
    """A normalizing flow over all latents together.

    Args:
        model: A Pyro model.
        flow: `"neural_spline"` or `"masked_autoregressive"`.
        transforms: The depth: how many layers, each with the coordinates in the other order.
        widths: The widths of the hidden layers of each transform's network.
        init_loc_fn: Pyro's; where q starts.
        init_scale: Of the whole at the start.
    """

    flow: Any
    loc: torch.nn.Parameter
    scale: Any

    def __init__(
        self,
        model: Callable[..., Any],
        flow: str = "neural_spline",
        *,
        transforms: int = 3,
        widths: Sequence[int] = (64, 64),
        init_loc_fn: Callable[..., Any] = init_to_feasible,
        init_scale: float = 1.0,
    ) -> None:
        if flow not in FLOWS:
            raise GuideError(f"unknown flow {flow!r}; {nearest(flow, FLOWS)}")
        if not init_scale > 0:
            raise GuideError(f"init_scale must be above 0; got {init_scale!r}")
        if not (isinstance(transforms, numbers.Integral) and transforms >= 1):
            raise GuideError(f"transforms must be a whole number of at least 1; got {transforms!r}")
        self._kind: str = flow
        self._transforms: int = int(transforms)
        self._widths: tuple[int, ...] = tuple(map(int, widths))
        self._init_scale: float = init_scale
        super().__init__(model, init_loc_fn=init_loc_fn)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        import zuko  # type: ignore[import-untyped]  # here, because only this guide wants it

        super()._setup_prototype(*args, **kwargs)
        made = getattr(zuko.flows, FLOWS[self._kind])(self.latent_dim, transforms=self._transforms, hidden_features=self._widths)
        self.flow = zuko.lazy.Flow(made.transform.inv, made.base)
        self.loc = torch.nn.Parameter(self._init_loc())
        self.scale = PyroParam(torch.full_like(self.loc, self._init_scale), constraint=constraints.softplus_positive)

    def get_posterior(self, *args: Any, **kwargs: Any) -> dist.TorchDistribution:
        return _Flow(self.flow(), self.loc, self.scale)


class _Flow(dist.TorchDistribution):  # type: ignore[misc]
    """A flow, moved and scaled. It keeps the log density of its own last draw; inverting T for it would cost d passes."""

    has_rsample = True
    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector

    def __init__(self, flow: Any, loc: torch.Tensor, scale: torch.Tensor, batch_shape: torch.Size = torch.Size()) -> None:  # noqa: B008
        self._flow, self._loc, self._scale = flow, loc, scale
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        super().__init__(batch_shape, loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Flow:
        return _Flow(self._flow, self._loc, self._scale, torch.Size(batch_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008
        u, log_prob = self._flow.rsample_and_log_prob(self._extended_shape(sample_shape)[:-1])
        z = self._loc + self._scale * u
        self._last = z, log_prob - self._scale.log().sum()
        return z

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._last is not None and value is self._last[0]:
            return self._last[1]
        log_prob: torch.Tensor = self._flow.log_prob((value - self._loc) / self._scale) - self._scale.log().sum()
        return log_prob
