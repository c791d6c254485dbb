"""Autoguides whose q lies over coordinates of the unconstrained latents, and not over these themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoContinuous, init_to_feasible

from pyrovi._typing import Tensors
from pyrovi.centering import Centering, Part, Placing, parts_of
from pyrovi.errors import GuideError, nearest

__all__ = ["NARROW", "AutoCoordinates"]

NARROW = 1e-3
"""The scale of a q that waits for its parameters: its draws are where the model can be run."""


class AutoCoordinates(AutoContinuous):  # type: ignore[misc]
    """A guide over coordinates z from which the unconstrained latents are computed; a subclass says how z is distributed.

    Args:
        model: A Pyro model.
        centered: Sites with a `Centering`: their coordinates are seen from their priors (`pyrovi.centering`).
        together: Whether the model can be run at many draws at once.
        init_loc_fn: Pyro's.
    """

    centered: tuple[str, ...]

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        centered: Sequence[str] = (),
        together: bool = True,
        init_loc_fn: Callable[..., Any] = init_to_feasible,
    ) -> None:
        self.centered, self._together = tuple(centered), together
        self._written = (model,)  # without Pyro's handler of starting points; in a tuple, for its parameters are not the guide's
        super().__init__(model, init_loc_fn=init_loc_fn)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._setup_prototype(*args, **kwargs)
        except RuntimeError as error:
            if "found no latent variables" not in str(error):
                raise
            raise GuideError(
                "the model has no latents for a Gaussian; fit its parameters by method='svi' and an empty guide"
            ) from None
        self._parts = parts_of(self.prototype_trace)
        shapes = {part.name: part.shape for part in self._parts}
        for i, name in enumerate(self.centered):
            if name not in shapes:
                raise GuideError(f"centered names {name!r}, which is not a latent site; {nearest(name, shapes)}")
            for what in ("precision", "estimate"):
                setattr(self, f"{what}_{i}", torch.nn.Parameter(torch.zeros(shapes[name])))

    def coordinates(self) -> dist.TorchDistribution:
        """The distribution of z."""
        raise NotImplementedError

    def centering(self) -> dict[str, Centering]:
        """What each centred site's coordinates are seen from."""
        return {
            name: Centering(getattr(self, f"precision_{i}").detach(), getattr(self, f"estimate_{i}").detach())
            for i, name in enumerate(self.centered)
        }

    def get_posterior(self, *args: Any, **kwargs: Any) -> dist.TorchDistribution:
        z = self.coordinates()
        if not self.centered:
            return z
        return dist.TransformedDistribution(
            z, [_Unconstrained(self._written[0], kwargs, self._parts, self.centering(), self._together, self._nesting())]
        )

    @torch.no_grad()
    def many(self, n: int, **data: Any) -> Tensors:
        """`n` draws of the latents at once, also where the model runs one at a time: by site, `(n, *site_shape)`."""
        u = self.get_posterior(**data).sample((n,))
        return {p.name: p.transform(u[:, p.start : p.stop].reshape(n, *p.shape)) for p in self._parts}

    def _nesting(self) -> int:
        frames = [frame for stack in self._cond_indep_stacks.values() for frame in stack]
        return max([0, *(-frame.dim for frame in frames if frame.dim is not None)])


class _Unconstrained(torch.distributions.transforms.Transform):
    """From z to the unconstrained latents, by a run of the model."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(
        self,
        model: Callable[..., Any],
        data: Mapping[str, Any],
        parts: tuple[Part, ...],
        centering: dict[str, Centering],
        together: bool,
        nesting: int,
    ) -> None:
        super().__init__(cache_size=1)
        self._model, self._data, self._parts, self._centering = model, data, parts, centering
        self._together, self._nesting = together, nesting

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x, inverse=False)[0]

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        return self._run(y, inverse=True)[0]

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._run(x, inverse=False)[1]

    def _run(self, x: torch.Tensor, inverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
        batch = x.shape[:-1]
        if batch.numel() > 1 and not self._together:
            rows = [self._run(row, inverse) for row in x.reshape(-1, x.shape[-1])]
            return torch.stack([y for y, _ in rows]).reshape(x.shape), torch.stack([d for _, d in rows]).reshape(batch)
        ones = (1,) * max(0, self._nesting + 1 - len(batch)) if batch else ()
        placing = Placing(self._parts, x.reshape(*batch, *ones, x.shape[-1]), self._centering, inverse=inverse)
        with poutine.block():
            placing(self._model)(**self._data)
        log_det = x.new_zeros(batch)
        for each in placing.log_det.values():
            log_det = log_det + each.reshape(*batch, -1).sum(-1)
        return torch.cat([placing.placed[part.name].reshape(*batch, -1) for part in self._parts], -1), log_det
