"""`method="auto"`: a fit without settings, which says how far it is to be trusted."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import torch

from pyrovi._isolation import isolated
from pyrovi._typing import Data, Model, Tensors
from pyrovi.agreement import against_weighted, columns
from pyrovi.centering import dependent
from pyrovi.density import Density, recorded
from pyrovi.enumeration import prepared
from pyrovi.errors import ModelError, first_line
from pyrovi.estimate import Estimate
from pyrovi.guides.coordinates import NARROW, AutoCoordinates
from pyrovi.ladder import Found, search
from pyrovi.preflight import Problem, prepare
from pyrovi.progress import Stages
from pyrovi.proposals import Proposal
from pyrovi.restarts import prior_rows
from pyrovi.result import Fit, Status
from pyrovi.sample import Sample
from pyrovi.verdict import Evidence, Level, Verdict, judge

__all__ = ["NotAutomatic", "fit_auto"]

MOST_LATENTS = 1_000
"""A covariance of so many latents is estimated from eight times as many gradients a step, and its triangles take a second each."""

FULL = 100
"""Latents up to which SVI is given a full covariance."""

COMPARED = 10_000
"""Draws over which q and its weighted draws are compared."""

RUNGS = {
    "gaussian": "a Gaussian with full covariance",
    "skewed": "a skewed Gaussian with full covariance",
    "student": "Student-t's matched to weighted draws",
    "tempered": "draws of a Gaussian moved to the posterior by degrees",
}


MOST_WORK = 5e6
"""Numbers that one evaluation of the density computes at most: the search takes some twenty thousand evaluations."""

BATCH = 1_000


class NotAutomatic(Exception):
    """Why a model cannot be fitted so; it is fitted by SVI instead, with the settings that it holds."""

    def __init__(self, why: str, **settings: Any) -> None:
        super().__init__(why)
        self.settings = settings


def fit_auto(
    model: Model,
    data: Data | None,
    *,
    seed: int,
    dtype: torch.dtype | None,
    device: torch.device,
    progress: bool | None,
    versions: dict[str, str],
) -> Fit:
    """What `pyrovi.fit` does with method='auto'.

    Raises:
        NotAutomatic: The model cannot be fitted so.
        DataError, ModelError: It cannot be fitted at all.
    """
    began = time.perf_counter()
    # A model may hold tensors of torch's default dtype, which do not mix with float64.
    dtypes = [dtype] if dtype is not None else list(dict.fromkeys([torch.float64, torch.get_default_dtype()]))
    for dtype in dtypes:
        assert dtype is not None
        with isolated(seed, dtype, device, validate=True), Stages(progress) as tell:
            try:
                problem = prepared(
                    model,
                    "whitened",
                    data,
                    dtype=dtype,
                    device=device,
                    guide_options={"start": False, "family": "normal", "init_scale": NARROW},
                )
                _suits(problem)
                with pyro.validation_enabled(False):
                    found = _searched(problem, seed, tell)
            except ModelError:
                if dtype is dtypes[-1]:
                    raise
                continue
            verdict = _verdict(found)
            sample = None if verdict.level is Level.trust else _sample(found, problem)
            guide, options, values = _guide(found, problem)
            break
    assert dtype is not None
    with isolated(seed, dtype, device, validate=True):
        problem = prepare(problem.model, guide, problem.data, dtype=dtype, device=device, guide_options=options)
        values = {f"{problem.guide._pyro_name}.{n}": value.to(dtype) for n, value in values.items()}  # type: ignore[attr-defined]
    settings = {
        "method": "auto",
        "guide": guide,
        "guide_options": options,
        "rung": found.best.rung,
        "tried": [p.rung for p in found.tried],
        "centered": list(found.centering),
        "objective": "trace_elbo",
        "kl_weight": 1.0,
        "batch_size": None,
        "batch_plate": None,
        "batch_data": None,
        "vectorized": problem.vectorize,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
    }
    return Fit(
        parameters=problem.parameters.constrained(values),
        unconstrained=values,
        elbo=np.array([[p.ratio[np.isfinite(p.ratio)].mean() for p in found.tried]]),
        status=Status.converged,
        advice=_advice(found, verdict),
        settings=settings,
        versions=versions,
        seconds=time.perf_counter() - began,
        seed=seed,
        problem=problem,
        verdict=verdict,
        sample=sample,
    )


def _suits(problem: Problem) -> None:
    own = [name for name in problem.parameters.leaves if not name.startswith(f"{problem.guide._pyro_name}.")]  # type: ignore[attr-defined]
    if own:
        raise NotAutomatic(f"the model has a parameter of its own, {own[0]!r}")
    if problem.structure.dimension > MOST_LATENTS:
        raise NotAutomatic(f"the model has {problem.structure.dimension:,} latent scalars, more than {MOST_LATENTS:,}")


def _searched(problem: Problem, seed: int, tell: Callable[[str], None]) -> Found:
    guide: AutoCoordinates = problem.guide  # type: ignore[assignment]
    make = functools.partial(recorded, problem, math.inf)
    try:
        plain = make()
    except ModelError as error:
        raise NotAutomatic(first_line(error)) from error
    if plain.work > MOST_WORK:
        raise NotAutomatic(
            "the data are too many to be looked at whole some twenty thousand times",
            guide="multivariate_normal" if plain.dimension <= FULL else "normal",
            batch_size=BATCH,
        )
    start = guide._init_loc().double()
    sites = dependent(problem.model, problem.data, plain.parts, guide._init_loc())
    rows = torch.from_numpy(prior_rows(problem, plain)).clone()
    rng = torch.Generator().manual_seed(seed)

    def prior(density: Density) -> torch.Tensor:
        """Prior draws in its coordinates: those of sites seen from their priors are standard Normal, about."""
        z = rows.clone()
        for part in density.parts:
            if density.centered(part.name):
                z[:, part.start : part.stop] = torch.randn(len(z), part.stop - part.start, generator=rng, dtype=z.dtype)
        return z

    return search(make, sites, start, prior, seed=seed, tell=tell)


def _guide(found: Found, problem: Problem) -> tuple[str, dict[str, Any], Tensors]:
    """The guide that q is, by name, options and parameters."""
    p = found.best
    options: dict[str, Any] = {"centered": list(found.centering), "together": problem.vectorize}
    held: Tensors = {}
    for i, site in enumerate(found.centering.values()):
        held |= {f"precision_{i}": site.precision, f"estimate_{i}": site.estimate}
    if p.rung == "student":
        return "student", {"components": len(p.parameters["logits"]), **options}, p.parameters | held
    skew = "skew" in p.parameters
    return (
        "whitened",
        {"family": "multivariate_normal", "skew": skew, "start": False, "init_scale": NARROW, **options},
        p.parameters | held,
    )


def _sample(found: Found, problem: Problem) -> Sample:
    p = found.best
    z, weights = (p.z, p.weights.weights) if p.moved_z is None else (p.moved_z, None)
    shapes = {name: site.shape for name, site in problem.structure.latent.items()}
    latents = {n: v.reshape(len(z), *shapes[n]).to(problem.dtype) for n, v in found.density.sites(z).items()}
    return Sample(latents, "importance-resampled" if weights is not None else "tempered", weights)


def _verdict(found: Found) -> Verdict:
    """What the search's own draws say: the same evidence as `check`'s, without more draws."""
    p = found.best
    w, n, kept = p.weights, len(p.ratio), np.isfinite(p.ratio)
    share = float(kept.mean())
    elbo = Estimate(float(p.ratio.mean()), float(p.ratio.std() / math.sqrt(n))) if share == 1 else Estimate(-math.inf, 0.0)
    evidence = Evidence(
        guide="auto",
        converged=True,
        draws=n,
        finite=share,
        khat=w.khat,
        khat_se=w.khat_se,
        ess=w.ess,
        elbo=elbo,
        restarts=found.restarts.found,
        rhat=found.restarts.rhat,
        rhat_worst=found.restarts.rhat_worst,
        missed=found.restarts.missed,
        missed_where=found.restarts.where,
        switched=found.restarts.switched,
        untested="" if found.restarts.found else "no restart found a Gaussian with a finite ELBO",
        kept=True,
    )
    if p.settled is not None:
        evidence = replace(evidence, shift=p.settled.shift, still=p.settled.still and not p.contradicted)
    if p.moved_z is not None:
        assert p.settled is not None
        by = _moved_evidence(p) if p.moved is not None else None
        evidence = replace(evidence, log_evidence=by or Estimate(w.log_mean, math.sqrt(max(0.0, 1 / max(w.ess, 1.0) - 1 / n))))
        return judge(replace(evidence, moved=len(p.moved_z), moved_rhat=p.settled.rhat, moved_evidence=by))
    if w.ess:
        log_evidence = Estimate(w.log_mean, math.sqrt(max(0.0, 1 / w.ess - 1 / n)))
        gap = np.square(w.weights - 1 / n - (p.ratio - p.ratio.mean()) / n).sum() if share == 1 else math.inf
        kl = Estimate(log_evidence.value - elbo.value, math.sqrt(float(gap)))
        evidence = replace(evidence, log_evidence=log_evidence, kl=kl)
    if w.ess and p.rung != "student":  # which is made to be weighted
        few = slice(0, COMPARED)
        part = w.weights[few] / w.weights[few].sum() if w.weights[few].sum() > 0 else np.full(len(w.weights[few]), 1 / COMPARED)
        labels, x = columns({name: value.numpy() for name, value in found.density.sites(p.z[few]).items()})
        agreement = against_weighted(labels, x, part)._asdict()
        evidence = replace(evidence, **agreement)
    return judge(evidence)


def _moved_evidence(p: Proposal) -> Estimate:
    assert p.moved is not None
    return Estimate(p.moved.log_evidence, p.moved.log_evidence_se)


def _advice(found: Found, verdict: Verdict) -> str:
    """What was tried, and what came of it."""
    tried = " → ".join(
        f"{p.rung} (k-hat {p.weights.khat:.2f}, {p.weights.ess:,.0f} effective of {p.weights.draws:,})" for p in found.tried
    )
    seen = f" {', '.join(map(repr, found.centering))} seen from the prior." if found.centering else ""
    return f"Level {verdict.level}, on the rung {found.best.rung!r}, {RUNGS[found.best.rung]}. Tried: {tried}.{seen}"
