"""Discrete latents summed out of a model, so that what is left is continuous.

The result is a Pyro program with the model's continuous latents as its sites and the rest as one factor: log p(data, continuous),
all values of the discrete latents added up. Its observed sites are inside the factor, so that nothing can be predicted from it.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.util import site_is_subsample

from pyrovi._typing import Data, Model
from pyrovi.errors import DiscreteLatent, GuideError, ModelError, first_line
from pyrovi.inputs import clone
from pyrovi.preflight import Problem, prepare

__all__ = ["FACTOR", "SummedOut", "prepared"]

FACTOR = "summed_out"


class SummedOut:
    """A model without its discrete latents.

    Args:
        model: A Pyro model whose discrete latents have finitely many values each.
        nesting: How many batch dimensions its plates take.

    References:
        Functional tensors for probabilistic programming (Obermeyer et al., 2019) | https://arxiv.org/abs/1910.10775
    """

    def __init__(self, model: Model, nesting: int) -> None:
        self._enumerated = config_enumerate(model, "parallel")
        self._nesting = nesting
        self.__name__: str = getattr(model, "__name__", type(model).__name__)
        self.__wrapped__ = model  # whose arguments it takes

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Run it."""
        traced = poutine.trace(poutine.enum(self._enumerated, first_available_dim=-1 - self._nesting))
        seen: set[str] = set()  # outside of here, whose handlers may yet say that they are observed

        def hidden(site: Any) -> bool:
            inside = _inside(site)
            if not inside:
                seen.add(site["name"])
            return inside

        with poutine.block(hide_fn=hidden):
            trace = traced.get_trace(*args, **kwargs)
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or site_is_subsample(node):
                continue
            if name in seen and len(node["fn"].batch_shape) > self._nesting:
                raise ModelError(f"the prior of {name!r} depends on a discrete latent, which cannot be summed out then")
            if name not in seen and node["scale"] != 1:
                raise ModelError(f"site {name!r} is scaled, and discrete latents inside a scale cannot be summed out")
        trace.compute_log_prob()
        together = TraceEinsumEvaluator(trace, has_enumerable_sites=True, max_plate_nesting=self._nesting).log_prob(trace)
        own = sum(node["log_prob_sum"] for name, node in trace.nodes.items() if node["type"] == "sample" and name in seen)
        pyro.factor(FACTOR, together - own)


def _inside(site: Any) -> bool:
    """Whether a site is part of the factor."""
    if site["type"] != "sample" or site_is_subsample(site):
        return False
    return bool(site["is_observed"]) or bool(getattr(site["fn"].support, "is_discrete", False))


def prepared(model: Model, guide: Any, data: Data | None, *, dtype: torch.dtype, device: torch.device, **options: Any) -> Problem:
    """`preflight.prepare`, discrete latents summed out where there are some.

    Raises:
        ModelError: They cannot be.
    """
    try:
        return prepare(model, guide, data, dtype=dtype, device=device, **options)
    except DiscreteLatent as error:
        try:
            summed = SummedOut(clone(model, guide, dtype, device)[0], error.nesting)
            return prepare(summed, guide, error.data, dtype=dtype, device=device, **options)
        except (ModelError, GuideError) as why:
            raise ModelError(f"{str(error).split(', which')[0]} and cannot be summed out: {first_line(why)}") from why
