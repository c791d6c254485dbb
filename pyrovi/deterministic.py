"""Deterministic variational inference: the ELBO over fixed draws, an ordinary function, taken to its optimum.

    maximise over η:  (1/M) Σ_m log p(u_m(η)) + log |det du_m/de|,   u_m(η) = the guide's map of the fixed standard Normal draw e_m

Because nothing is random the gradient can go to zero, curvature can be used, and what a finite M costs can be computed: the optimum
over other draws is a Newton step away. M grows until that step is small beside the posterior's sds.

References:
    Black box variational inference with a deterministic objective (Giordano, Ingram & Broderick, 2024) | https://arxiv.org/abs/2304.05527
    Sample average approximation for black-box variational inference (Burroni et al., 2024) | https://proceedings.mlr.press/v244/burroni24a.html
    Covariances, robustness, and variational Bayes (Giordano, Broderick & Jordan, 2018) | https://jmlr.org/papers/v19/17-670.html
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from pyrovi._isolation import isolated
from pyrovi._typing import Data, Model, Tensors
from pyrovi.density import PATIENCE, Density, recorded
from pyrovi.errors import GuideError, ModelError, SettingsError, first_line
from pyrovi.fixed_draws import GAIN, Objective, minimise, recentred, solve
from pyrovi.guides.gaussian import FAMILIES, AutoWhitened, initial, place, starts_full
from pyrovi.pathfinder import Start, pathfinder, standard_draws
from pyrovi.preflight import Problem, prepare
from pyrovi.progress import Progress
from pyrovi.result import Fit, Status

__all__ = ["fit_deterministic", "stream"]

SCRAMBLES = 6
"""Other sets of draws that the optimum's dependence on the draws is judged by."""

TOLERANCE = 0.1
"""The largest frequentist sd of the optimum: in posterior sds for a mean, relative for an sd. The paper asks for a half, of the
means; with scrambled Sobol draws a tenth of both costs little more."""

LARGEST = 2**16
"""Draws at most,"""

MOST_NUMBERS = 2**24
"""and draws times latents: 128 MB."""


def stream(seed: int, i: int) -> int:
    """The seed of the i-th set of draws."""
    return int(np.random.SeedSequence([seed, i]).generate_state(1)[0])


def frequentist_sd(objective: Objective, seed: int) -> tuple[float, NDArray[np.float64]]:
    """How far the optimum moves with the draws, by one Newton step on each of `SCRAMBLES` other sets.

    Returns:
        The largest sd over these sets of a latent's mean, in its sds, or of its log sd; and each set's ELBO at this optimum, which
        has not seen it.
    """
    v, d, draws = objective.start, objective.density.dimension, objective.draws
    elbo, moments = [], []
    for other in range(1, SCRAMBLES + 1):
        fresh = standard_draws(len(draws), d, stream(seed, other)).to(v)
        value, gradient = Objective(objective.density, objective.parameters(v), fresh)(v)
        step, _ = solve(lambda p: objective.product(v, p), gradient, 0.1, 30)
        u, _ = place(objective.parameters(v - step), draws)
        elbo.append(-value)
        moments.append(torch.stack([u.mean(0), u.std(0)]))
    means, sds = torch.stack(moments, 1)
    return float(max((means.std(0) / sds.mean(0)).max(), sds.log().std(0).max())), np.array(elbo)


class Found(NamedTuple):
    """What the search for the optimum came to."""

    parameters: Tensors
    trace: list[float]
    """The ELBO of every evaluation, in nats, on the draws of its time."""
    status: Status
    advice: str
    figures: dict[str, Any]
    """For the fit's settings."""


def optimum(
    density: Density,
    family: str,
    start: Start,
    *,
    rank: int,
    skew: bool,
    draws: int | None,
    steps: int,
    seed: int,
    trace: list[float],
) -> Found:
    """The best Gaussian of a family, over enough draws.

    Args:
        density: Of the model.
        family: One of `pyrovi.guides.gaussian.FAMILIES`.
        start: Where to begin.
        rank: Of the family `low_rank`.
        skew: Whether to add skewness and tails, once the Gaussian is there.
        draws: M; when None, it starts small and grows until the optimum stands still.
        steps: The most evaluations of the ELBO.
        seed: Of the draws.
        trace: Where to put the ELBO of every evaluation.
    """
    most = max(256, min(LARGEST, MOST_NUMBERS // density.dimension))
    m = draws or min(most, first_draws(family, density.dimension, rank, density.rows))
    parameters = initial(family, start.loc, start.scale, rank)
    reached = Reached(parameters, math.nan, math.inf, math.inf, steps)
    moves, fresh = math.inf, np.full(SCRAMBLES, -math.inf)
    try:
        for skewed in (False, True) if skew else (False,):
            if skewed:
                parameters |= {"skew": torch.zeros_like(start.loc), "tail": torch.zeros_like(start.loc)}
            while True:
                e = standard_draws(m, density.dimension, stream(seed, 0)).to(start.loc)
                reached = settle(density, narrowed(density, parameters, e), e, reached.left, trace)
                parameters = reached.parameters
                if (skew and not skewed) or reached.left <= 0:
                    break
                moves, fresh = frequentist_sd(Objective(density, parameters, e), seed)
                # What the fit has learned of its own draws: a mean off by t sds costs t²/2 nats, and so does a log sd off by t/√2.
                moves = max(moves, math.sqrt(max(0.0, 2 * (reached.elbo - fresh.mean()) / density.dimension)))
                if moves <= TOLERANCE or draws is not None or m >= most or reached.left <= 0:
                    break
                m = min(most, m * (2 if moves < 2 * TOLERANCE else 4 if moves < 3 * TOLERANCE else 8))
    except KeyboardInterrupt:
        if not trace:
            raise
        status, advice = Status.interrupted, f"Stopped by hand after {len(trace):,} evaluations; this is the last whole optimum."
    else:
        status, advice = verdict(reached, moves, m, steps, fresh, density.dimension)
    figures = {
        "particles": m,
        "evaluations": len(trace),
        "gradient_norm": reached.gradient,
        "gain": reached.gain,
        "frequentist_sd": moves,
        "fresh_elbo": float(fresh.mean()),
        "fresh_elbo_se": float(fresh.std(ddof=1) / math.sqrt(len(fresh))) if np.isfinite(fresh).all() else math.inf,
        "start_elbo": start.elbo,
    }
    return Found(parameters, trace, status, advice, figures)


def first_draws(family: str, dimension: int, rank: int, rows: int) -> int:
    """M to begin with: some two dozen a number that a latent's row of L holds, and no fewer than are as quick as one."""
    width = {"normal": 1, "low_rank": 1 + rank, "multivariate_normal": dimension}[family]
    return max(256, 2 * rows, 2 ** math.ceil(math.log2(24 * width)))


def narrowed(density: Density, parameters: Tensors, e: torch.Tensor) -> Tensors:
    """The parameters, with L made smaller until every draw has a density."""
    for _ in range(12):
        if bool(torch.isfinite(density.gradient(place(parameters, e)[0])[0]).all()):  # whose recording is wanted next
            return parameters
        parameters = parameters | {"log_scale": parameters["log_scale"] - 0.7}
    raise ModelError(
        "no Gaussian about the best starting point has a finite ELBO: some draws have no density however narrow it is; give the "
        "model's latents supports inside which it can be run"
    )


class Reached(NamedTuple):
    """Where a minimisation ended: recentred parameters; the ELBO there, its possible gain, its gradient; evaluations left."""

    parameters: Tensors
    elbo: float
    gain: float
    gradient: float
    left: int


def settle(density: Density, parameters: Tensors, e: torch.Tensor, left: int, trace: list[float]) -> Reached:
    """Minimise, and where that is not enough again in the coordinates of what was found."""
    for _ in range(3):
        objective = Objective(density, parameters, e, trace, left)
        v, gain = minimise(objective, objective.start)
        left, parameters = objective.left, recentred(objective.parameters(v))
        if gain <= GAIN * density.dimension or left <= 0:
            break
    objective = Objective(density, parameters, e, trace)
    value, gradient = objective(objective.start)
    return Reached(parameters, -value, gain, float(gradient.abs().max()), left)


def verdict(reached: Reached, moves: float, m: int, steps: int, fresh: NDArray[np.float64], dimension: int) -> tuple[Status, str]:
    """How the search ended, in numbers, and what to do next."""
    done = f"{steps - reached.left:,} evaluations"
    figures = f"a Newton step would gain {reached.gain:.1g} nats, other draws move it by {moves:.2g} sd, {m:,} draws, {done}"
    if not math.isfinite(reached.elbo):
        return Status.diverged, f"The ELBO has no optimum that can be found ({figures}): check that the model's priors are proper."
    if not reached.gain <= GAIN * dimension:
        what = (
            f"the {done} ran out; allow more steps"
            if reached.left <= 0
            else "it does not curve like one; the posterior may be improper. Try method='svi'"
        )
        return Status.step_limit, f"The ELBO is not at its optimum ({figures}): {what}."
    if not moves <= TOLERANCE:
        return Status.step_limit, (
            f"The optimum still depends on the draws ({figures}; the ELBO on fresh draws is {fresh.mean():,.2f}, on its own "
            f"{reached.elbo:,.2f}): use more particles, or a guide with fewer parameters."
        )
    return Status.converged, (
        f"At the optimum: {figures}. That says nothing of how near q is to the posterior: fit.check() measures it. "
        "linear_response() gives sds that allow for correlations."
    )


SVI_ONLY: dict[str, Any] = {
    "objective": "trace_elbo",
    "gradient": "total",
    "kl_weight": 1.0,
    "kl_annealing": None,
    "batch_size": None,
    "batch_data": None,
    "transform": None,
    "epochs": None,
    "optimizer": "adam",
    "lr": None,
    "schedule": None,
    "clip_norm": None,
    "stop": "auto",
    "restarts": 1,
    "callbacks": (),
}
"""What `fit` takes for method='svi' alone, with its defaults."""


PATIENCES = {"auto": PATIENCE, "traced": math.inf, "compiled": 0.0}
"""By engine: when recordings of the log density are compiled (`pyrovi.density`)."""


def fit_deterministic(
    model: Model,
    guide: Any,
    data: Data | None,
    *,
    steps: int | None,
    particles: int,
    guide_options: Mapping[str, Any] | None,
    seed: int,
    dtype: torch.dtype | None,
    device: torch.device,
    progress: bool | None,
    versions: dict[str, str],
    engine: str,
    others: Mapping[str, Any],
) -> Fit:
    """What `pyrovi.fit` does with method='deterministic'; `others` are its remaining settings, which must be as they come."""
    began = time.perf_counter()
    for name, value in others.items():
        if name in SVI_ONLY and value != SVI_ONLY[name]:
            raise SettingsError(
                f"{name} is for method='svi'; method='deterministic' maximises the ELBO of all the data over fixed draws, and "
                "takes guide, guide_options, particles, steps, seed, dtype and device"
            )
    if engine not in PATIENCES:
        raise SettingsError(
            f"engine={engine!r} is for method='svi'; method='deterministic' takes {', '.join(map(repr, PATIENCES))}"
        )
    family, options = _family(guide, guide_options)
    options |= {"family": family, "start": False}
    draws, steps = particles if particles > 1 else None, steps or 2_000
    found = None
    # A model may hold tensors of torch's default dtype, which do not mix with float64.
    dtypes = [dtype] if dtype is not None else list(dict.fromkeys([torch.float64, torch.get_default_dtype()]))
    for dtype in dtypes:
        with isolated(seed, dtype, device, validate=True), Progress(steps, progress) as bar:
            try:
                problem = _prepared(model, data, options, dtype, device)
                found = _found(problem, PATIENCES[engine], draws, steps, seed, _Shown(bar))
                break
            except ModelError:
                if dtype is dtypes[-1]:
                    raise
    assert found is not None
    assert dtype is not None
    guide_made: AutoWhitened = problem.guide  # type: ignore[assignment]
    values = {f"{guide_made._pyro_name}.{name}": value.to(dtype) for name, value in found.parameters.items()}
    rank = {"rank": guide_made.rank} if family == "low_rank" else {}
    return Fit(
        parameters=problem.parameters.constrained(values),
        unconstrained=values,
        elbo=np.array(found.trace)[None, :],
        status=found.status,
        advice=found.advice,
        settings={
            "method": "deterministic",
            "guide": "whitened",
            "guide_options": {"family": family, "skew": guide_made.skewed, **rank, "start": False},
            **{name: value for name, value in SVI_ONLY.items() if name not in ("optimizer", "stop", "callbacks")},
            "optimizer": "l-bfgs, trust-region newton",
            "engine": engine,
            "steps": steps,
            **found.figures,
            "vectorized": problem.vectorize,
            "batch_plate": None,
            "dtype": str(dtype).removeprefix("torch."),
            "device": str(device),
        },
        versions=versions,
        seconds=time.perf_counter() - began,
        seed=seed,
        problem=replace(problem, guide_name="whitened"),
    )


def _prepared(model: Model, data: Data | None, options: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Problem:
    """The model with the guide that is to be fitted."""
    try:
        problem = prepare(model, AutoWhitened, data, dtype=dtype, device=device, guide_options=options)
    except GuideError as error:
        raise GuideError(first_line(error)) from error.__cause__  # without what Pyro adds of the sites
    prefix = f"{problem.guide._pyro_name}."  # type: ignore[attr-defined]
    own = [name for name in problem.parameters.leaves if not name.startswith(prefix)]
    if own:
        raise ModelError(
            f"the model has a parameter of its own, {own[0]!r}, which method='deterministic' does not fit; give it a prior, or use "
            "method='svi'"
        )
    return problem


def _found(problem: Problem, patience: float, draws: int | None, steps: int, seed: int, trace: list[float]) -> Found:
    """Record, start, optimise."""
    guide: AutoWhitened = problem.guide  # type: ignore[assignment]
    with pyro.validation_enabled(False):
        density = recorded(problem, patience)
        start = pathfinder(density, guide._init_loc().double(), full=starts_full(guide.family, density.dimension), seed=seed)
        return optimum(
            density, guide.family, start, rank=guide.rank, skew=guide.skewed, draws=draws, steps=steps, seed=seed, trace=trace
        )


class _Shown(list[float]):
    """The ELBO by evaluation, shown as it grows."""

    def __init__(self, bar: Progress) -> None:
        super().__init__()
        self._bar = bar

    def append(self, elbo: float) -> None:
        super().append(elbo)
        if len(self) >= self._bar.due:
            self._bar.show(len(self), np.array(self))


def _family(guide: Any, guide_options: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The Gaussian family that a guide's name stands for, and its options."""
    if guide_options is not None and not isinstance(guide_options, Mapping):
        raise GuideError(f"guide_options must map names to values, as in {{'skew': True}}; got {type(guide_options).__name__}")
    options = dict(guide_options or {})
    if guide == "whitened":
        return options.pop("family", "multivariate_normal"), options
    family = "normal" if guide == "auto" else guide
    if not isinstance(family, str) or family not in FAMILIES:
        name = repr(guide) if isinstance(guide, str) else f"the guide {getattr(guide, '__name__', type(guide).__name__)!r}"
        raise GuideError(
            f"method='deterministic' fits Gaussians in unconstrained space, guide={', '.join(map(repr, FAMILIES))} or 'whitened'; "
            f"for {name} use method='svi'"
        )
    return family, options
