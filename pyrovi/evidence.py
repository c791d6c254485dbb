"""How large log p(data) is at least: importance-weighted bounds with many weights, a block of data at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide

from pyrovi._typing import Tensors
from pyrovi.batching import find_batches
from pyrovi.draws import CHUNK_SCALARS, draw
from pyrovi.errors import PyroviError
from pyrovi.objective import ImportanceWeighted
from pyrovi.preflight import Problem
from pyrovi.structure import Site

__all__ = ["Local", "importance_bound", "local_weights"]

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
    values, errors = [], []
    for log_w, _ in _blocks(problem, plate, k):
        value, error = _log_mean(log_w, k)
        values.append(value)
        errors.append(error)
    return torch.cat(values), torch.cat(errors)


class Local(NamedTuple):
    """Draws of latents that belong to a datum, of some data, each with its own weights."""

    log_weights: torch.Tensor
    """log p − log q by draw and datum, `(k, rows)`, in float64."""
    latents: torch.Tensor
    """`(k, rows, scalars a datum)`, in float64."""
    labels: list[str]
    """Of these scalars, the datum left open."""
    of: int
    """How many data there are in all."""


@torch.no_grad()
def local_weights(problem: Problem, k: int, most: int) -> Local | None:
    """Importance weights by datum, of `most` data at most, evenly spread; None where the data do not have their own.

    Args:
        problem: What was fitted, inside `isolated` with the fit's parameters loaded.
        k: Draws a datum.
        most: Data.
    """
    plate = None if problem.batches is not None and problem.batches.pad_to is not None else _local_plate(problem)
    if plate is None:
        return None
    size = problem.structure.plates[plate].size
    chosen = torch.linspace(0, size - 1, min(most, size), dtype=torch.float64).round().long().unique()
    sites, log_w, latents = problem.structure.latent, [], []
    labels = [
        f"{name}[{', '.join(map(str, ('i', *index)))}]" if index else f"{name}[i]"
        for name, site in sites.items()
        for index in np.ndindex(tuple(n for i, n in enumerate(site.shape) if i != _axis(site, plate)))
    ]
    for weights, values in _blocks(problem, plate, k, chosen):
        log_w.append(weights)
        parts = []
        for name, site in sites.items():
            x = values[name].reshape(k, *(weights.shape[1] if i == _axis(site, plate) else n for i, n in enumerate(site.shape)))
            parts.append(x.movedim(1 + _axis(site, plate), 1).reshape(k, weights.shape[1], -1))
        latents.append(torch.cat(parts, 2).double())
    return Local(torch.cat(log_w, 1), torch.cat(latents, 1), labels, size)


def _axis(site: Site, plate: str) -> int:
    """Where the plate is among the axes of a site's value."""
    return next(len(site.batch_shape) + p.dim for p in site.plates if p.name == plate and p.dim is not None)


def _blocks(problem: Problem, plate: str, k: int, chosen: torch.Tensor | None = None) -> Iterator[tuple[torch.Tensor, Tensors]]:
    """Log weights by draw and datum, `(k, rows)`, and the latents, a block of data at a time; of the chosen data where given."""
    size = problem.structure.plates[plate].size
    scalars = max(1, sum(site.shape.numel() for site in problem.structure.sites.values()) // size)
    wanted = size if chosen is None else len(chosen)
    together = min(k, AT_ONCE if chosen is None else max(AT_ONCE, CHUNK_SCALARS // (scalars * wanted))) if problem.vectorize else 1
    rows = max(1, min(wanted, CHUNK_SCALARS // (scalars * together)))
    given = problem.batches.sliced if problem.batches is not None else None
    batches = (
        find_batches(problem.model, problem.guide, problem.data, problem.structure, plate, rows, given) if rows < size else None
    )
    batched = replace(problem, batches=batches).batched(estimate_full=False)
    model: Any = problem.model if batched is None else batched.model
    guide: Any = problem.guide if batched is None else batched.guide
    data = problem.data if batched is None else {}
    if batches is None:
        blocks: Iterable[torch.Tensor] = (torch.arange(0),)
    else:
        blocks = batches.blocks(problem.device) if chosen is None else chosen.to(problem.device).split(rows)
    for block in blocks:
        if batched is not None:
            batched.take(block)
        weights: list[torch.Tensor] = []
        values: dict[str, list[torch.Tensor]] = {name: [] for name in problem.structure.latent}
        for done in range(0, k, together):
            now = min(together, k - done)
            elbo = ImportanceWeighted(num_particles=now, vectorize_particles=now > 1, max_plate_nesting=problem.nesting)
            for traces in elbo._get_traces(model, guide, (), data):
                log_w = elbo.log_weights(*traces)[0].flatten(1).double()
                weights.append(log_w)
                if chosen is not None:
                    for name, kept in values.items():
                        kept.append(traces[0].nodes[name]["value"].detach().reshape(len(log_w), -1))
        yield torch.cat(weights), {name: torch.cat(kept) for name, kept in values.items() if kept}


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
