"""How large log p(data) is at least: importance-weighted bounds with many weights, a block of data at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide

from pyrovi.batching import find_batches
from pyrovi.draws import CHUNK_SCALARS, draw
from pyrovi.errors import PyroviError
from pyrovi.objective import ImportanceWeighted
from pyrovi.preflight import Problem

__all__ = ["importance_bound"]

AT_ONCE = 64
"""Weights a datum that are computed together; more only means fewer data at a time."""


@torch.no_grad()
def importance_bound(problem: Problem, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log of the mean of k weights p/q and its standard error: by datum where each has its own latents, else of all the data.

    Returns:
        Two tensors in float64 and nats: the bounds, whose sum bounds log p(data) from below in expectation, and their standard
        errors by the delta method, which means little where a few weights carry the sum.
    """
    if problem.batches is not None and problem.batches.pad_to is not None:
        raise PyroviError(
            f"the model subsamples plate {problem.batches.plate!r} itself; write the plate plainly to have a bound on all the data"
        )
    plate = _local_plate(problem)
    if plate is None:
        return _log_mean(draw(problem, k).elbo[:, None], k)
    size = problem.structure.plates[plate].size
    scalars = max(1, sum(site.shape.numel() for site in problem.structure.sites.values()) // size)
    together = min(k, AT_ONCE) if problem.vectorize else 1
    rows = max(1, min(size, CHUNK_SCALARS // (scalars * together)))
    given = problem.batches.sliced if problem.batches is not None else None
    batches = (
        find_batches(problem.model, problem.guide, problem.data, problem.structure, plate, rows, given) if rows < size else None
    )
    batched = replace(problem, batches=batches).batched(estimate_full=False)
    model: Any = problem.model if batched is None else batched.model
    guide: Any = problem.guide if batched is None else batched.guide
    data = problem.data if batched is None else {}
    values, errors = [], []
    for block in batches.blocks(problem.device) if batches is not None else (torch.arange(0),):
        if batched is not None:
            batched.take(block)
        parts = []
        for done in range(0, k, together):
            now = min(together, k - done)
            elbo = ImportanceWeighted(num_particles=now, vectorize_particles=now > 1, max_plate_nesting=problem.nesting)
            parts += [elbo.log_weights(*traces)[0].flatten(1).double() for traces in elbo._get_traces(model, guide, (), data)]
        value, error = _log_mean(torch.cat(parts), k)
        values.append(value)
        errors.append(error)
    return torch.cat(values), torch.cat(errors)


def _log_mean(log_w: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    bound = torch.logsumexp(log_w, 0) - math.log(k)
    relative = (log_w - bound).exp()
    return bound, relative.std(0) / math.sqrt(k) if k > 1 else torch.full_like(bound, math.nan)


def _local_plate(problem: Problem) -> str | None:
    """The plate that every site of the model lies in, where a handwritten guide can be run on a part of it."""
    if isinstance(problem.guide, AutoGuide):
        return None
    sites = [site for site in problem.structure.sites.values() if site.kind != "deterministic"]
    shared = [
        name for name, p in problem.structure.plates.items() if p.dim is not None and all(site.inside(name) for site in sites)
    ]
    guide = poutine.trace(problem.guide).get_trace(**problem.data)
    inside = [any(f.name in shared for f in guide.nodes[name]["cond_indep_stack"]) for name in problem.structure.latent]
    return shared[0] if shared and all(inside) else None
