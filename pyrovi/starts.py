"""Where the fits of one call start: the first where a single fit would, the others where their own random numbers put them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import init_to_uniform

from pyrovi._isolation import Parameters
from pyrovi._typing import Tensors
from pyrovi.guides.auto import GUIDES, make_guide
from pyrovi.preflight import Problem

__all__ = ["find_starts", "on_own_data"]


def find_starts(
    problem: Problem, guide: Any, options: Mapping[str, Any] | None, seeds: Sequence[int], stacked: Mapping[str, torch.Tensor]
) -> list[Tensors]:
    """Each fit's unconstrained parameters at its start, inside `isolated` with the first one's in the store.

    Args:
        problem: What is fitted.
        guide: As the user gave it.
        options: The guide's, likewise.
        seeds: Each fit's.
        stacked: Data of which each fit has its own row; the fits then start alike, but for what a guide computes from its data.
    """
    first = problem.parameters.values()
    if isinstance(problem.guide, AutoGuide) and stacked:
        return [first] * len(seeds)
    named = isinstance(guide, str) or (isinstance(guide, type) and issubclass(guide, AutoGuide))
    starts = [first]
    for fit, seed in enumerate(seeds[1:], 1):
        again = problem.guide
        if named:
            cls = GUIDES["normal" if guide == "auto" else guide] if isinstance(guide, str) else guide
            random = {"init_loc_fn": init_to_uniform} if "init_loc_fn" in inspect.signature(cls).parameters else {}
            again, _ = make_guide(guide, problem.model, {**random, **(options or {})})
        with pyro.get_param_store().scope():
            pyro.set_rng_seed(seeds[0] if stacked else seed)
            data = on_own_data(problem, stacked, fit).seen()
            trace = poutine.trace(again).get_trace(**data)
            poutine.trace(poutine.replay(problem.model, trace=trace)).get_trace(**data)
            starts.append(Parameters.registered().values())
    return starts


def on_own_data(problem: Problem, stacked: Mapping[str, torch.Tensor], fit: int) -> Problem:
    """The problem with one fit's own rows of the data."""
    return replace(problem, data={**problem.data, **{name: rows[fit] for name, rows in stacked.items()}}) if stacked else problem
