"""The loop: `svi.step` until the steps, the ELBO or the user say stop, and which parameters to report."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer import ELBO, SVI
from pyro.optim.lr_scheduler import PyroLRScheduler

from pyrovi._typing import Guide, Model, Tensors
from pyrovi.minibatch import Batched
from pyrovi.objective import KLWeight
from pyrovi.preflight import Problem
from pyrovi.progress import Progress
from pyrovi.result import Status
from pyrovi.stopping import MIN_WINDOW, Plateau, looks, plateau

__all__ = ["Callback", "Outcome", "Step", "optimise"]


class Step(NamedTuple):
    """What a callback is told after a step."""

    number: int
    """From 1."""
    elbo: float
    """This step's estimate, in nats, of all the data."""
    parameters: Callable[[], Tensors]
    """Call it for the constrained parameters as they stand; that costs a copy."""


Callback = Callable[[Step], object]


class Outcome(NamedTuple):
    """How the loop ended: the ELBO by step, the unconstrained values to report, and over how many iterates they are a mean."""

    elbo: NDArray[np.float64]
    status: Status
    advice: str
    values: Tensors
    averaged: int


NOT_FINITE = r"Encountered (NaN|\+?-?inf)"
"""How Pyro's warning of a loss that is not finite begins; the fit's status says it better."""


class _NotFinite(Exception):
    """The loss of a step is NaN or infinite; raised before the optimiser has seen its gradient."""


def _checked(objective: ELBO) -> Callable[..., float]:
    """`loss_and_grads`, but a loss that is not finite raises before its gradient is used."""

    def loss_and_grads(model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        loss: float = objective.loss_and_grads(model, guide, *args, **kwargs)  # type: ignore[attr-defined]
        if not math.isfinite(loss):
            raise _NotFinite
        return loss

    return loss_and_grads


class _Average:
    """The mean of the parameters over the steps since the last `reset`."""

    def __init__(self, leaves: Mapping[str, torch.Tensor]) -> None:
        self._names, self._leaves = list(leaves), list(leaves.values())
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self._sums = [torch.zeros_like(leaf, requires_grad=False) for leaf in self._leaves]

    @torch.no_grad()
    def update(self) -> None:
        if self._leaves:
            torch._foreach_add_(self._sums, self._leaves)
        self.count += 1

    def mean(self) -> Tensors:
        return {name: total / self.count for name, total in zip(self._names, self._sums, strict=True)}


def optimise(
    problem: Problem,
    objective: ELBO,
    kl: KLWeight | None,
    optim: pyro.optim.PyroOptim,
    steps: int,
    stop: str | None,
    seed: int,
    progress: Progress,
    callbacks: list[Callback],
) -> Outcome:
    """The loop. Between events (a look at the ELBO, a refresh of the bar) it does what a bare `svi.step` loop does."""
    batched = problem.batched()
    model, guide = (problem.model, problem.guide) if batched is None else (batched.model, batched.guide)
    if kl is not None:
        model, guide = kl(model), kl(guide)
    feed = _feed(problem, batched, seed)
    svi = SVI(model, guide, optim, loss=objective.loss, loss_and_grads=_checked(objective))  # type: ignore[attr-defined]
    decay = optim.step if isinstance(optim, PyroLRScheduler) else None
    parameters = problem.parameters
    average = _Average(parameters.leaves)
    elbo = np.empty(steps)
    look_at = looks(steps)
    first_average = 0 if stop == "auto" or len(look_at) == 1 else look_at[-2]
    annealed = kl.annealing if kl is not None else 0  # until then the objective itself moves
    window, last_good = 0, parameters.values()
    judged: Plateau | None = None
    status, advice, done = Status.step_limit, "", 0
    given: dict[str, Any] = {}
    try:
        with warnings.catch_warnings(), progress:
            warnings.filterwarnings("ignore", message=NOT_FINITE)
            for step in range(1, steps + 1):
                if kl is not None:
                    kl.at(step)
                given = next(feed)
                elbo[step - 1] = -svi.step(**given)
                done = step
                if decay is not None:
                    decay()
                if step > first_average:
                    average.update()
                if callbacks:
                    told = Step(step, float(elbo[step - 1]), lambda: parameters.constrained(parameters.values()))
                    if any([callback(told) is True for callback in callbacks]):
                        status, advice = Status.interrupted, f"A callback ended the fit at step {step:,} of {steps:,}."
                        break
                if step >= progress.due:
                    progress.show(step, elbo)
                if step == look_at[0]:
                    judged = plateau(elbo[window:step], problem.structure.dimension)
                    if step == steps or (stop == "auto" and judged.reached and window >= annealed):
                        break
                    look_at.pop(0)
                    window, last_good = step, parameters.values()
                    average.reset()
            progress.show(done, elbo)
    except KeyboardInterrupt:
        if not done:
            raise
        status, advice = Status.interrupted, f"Stopped by hand after {done:,} of {steps:,} steps; this is the fit so far."
    except (_NotFinite, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        status, advice = Status.diverged, _why_diverged(model, guide, given, done, error)
    except Exception as error:
        if done:
            error.add_note(f"raised after {done:,} steps of pyrovi.fit")
        raise

    elbo = elbo[:done]
    values, averaged = parameters.values(), 0
    if status is Status.diverged:
        if not all(torch.isfinite(v).all() for v in (*values.values(), *parameters.constrained(values).values())):
            values = last_good
    elif status is Status.step_limit and judged is not None:
        status = Status.converged if judged.reached else status
        if decay is None and average.count >= MIN_WINDOW:
            mean = average.mean()
            with suppress(KeyboardInterrupt):  # too late to interrupt: the last iterate it is
                last_scores, mean_scores = (_scores(svi, problem, batched, seed, v) for v in (values, mean))
                if _prefers_mean(last_scores, mean_scores):
                    values, averaged = mean, average.count
        advice = _advice(status, judged, steps, done)
    return Outcome(elbo, status, advice, values, averaged)


SCORED = 20
"""Evaluations of the ELBO that choose between the last iterate and the mean; both see the same draws and batches, so few do."""


def _scores(svi: SVI, problem: Problem, batched: Batched | None, seed: int, values: Tensors) -> NDArray[np.float64]:
    """The ELBO at given parameters, over draws and batches that depend on the seed alone, shape `(SCORED,)`."""
    problem.parameters.assign(values)
    pyro.set_rng_seed(seed)
    feed, out = _feed(problem, batched, seed), np.full(SCORED, -np.inf)
    # A mean of iterates may lie where the model cannot be run; that must not cost the fit.
    with suppress(torch.linalg.LinAlgError), warnings.catch_warnings():  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", message=NOT_FINITE)
        for i in range(SCORED):
            out[i] = -svi.evaluate_loss(**next(feed))
    return out


def _prefers_mean(last: NDArray[np.float64], mean: NDArray[np.float64]) -> bool:
    """Whether the mean of the iterates is to be reported: unless the last iterate leads it by more than two standard errors."""
    if not (np.isfinite(last).all() and np.isfinite(mean).all()):
        return bool(np.isfinite(mean).all())
    lead = last - mean
    return not lead.mean() > 2 * lead.std(ddof=1) / math.sqrt(len(lead))


def _advice(status: Status, judged: Plateau, steps: int, done: int) -> str:
    if status is Status.converged:
        early = f"after {done:,} of {steps:,} steps" if done < steps else f"within its {steps:,} steps"
        return (
            f"The ELBO stopped rising {early}: {judged}. That says nothing of how near q is to the "
            "posterior: compare it with an exact one or NUTS where you can."
        )
    if not math.isfinite(judged.se):
        return f"{done:,} steps are too few to tell whether the ELBO still rises; {2 * MIN_WINDOW} are the least."
    if judged.gain > 2 * judged.se:
        return f"The ELBO was still rising when the steps ran out ({judged}); run more steps."
    if judged.gain < -2 * judged.se:
        return f"The ELBO was falling when the steps ran out ({judged}); lower lr, or let a schedule do it."
    return f"The ELBO is too noisy to tell whether it still rises ({judged}); use more particles, more steps or a lower lr."


def _why_diverged(model: Model, guide: Guide, data: Mapping[str, Any], done: int, error: Exception) -> str:
    """Name the sites whose log_prob is not finite, at the parameters where it happened."""
    culprits: list[str] = []
    try:
        with poutine.block(), torch.no_grad():
            guide_trace = poutine.trace(guide).get_trace(**data)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(**data)
            for trace in (guide_trace, model_trace):
                trace.compute_log_prob()
                culprits += [
                    name
                    for name, node in trace.nodes.items()
                    if node["type"] == "sample" and not math.isfinite(float(node["log_prob_sum"]))
                ]
    except Exception as again:  # the diagnosis must not hide the disease
        culprits = []
        error = again
    what = f"log_prob of {', '.join(map(repr, dict.fromkeys(culprits)))}" if culprits else "the loss"
    why = f" ({type(error).__name__}: {str(error).splitlines()[0]})" if str(error) else ""
    return (
        f"At step {done + 1:,} {what} was not finite{why}. The parameters are the last finite ones. Lower lr, set "
        "clip_norm, use more particles, or constrain the parameters that ran away."
    )


def _feed(problem: Problem, batched: Batched | None, seed: int) -> Iterator[dict[str, Any]]:
    """What model and guide are called with, step by step; the batch, where there is one, is set on the way."""
    if batched is None:
        while True:
            yield problem.seen()
    assert problem.batches is not None
    for rows in problem.batches.epochs(torch.Generator().manual_seed(seed), problem.device):
        batched.take(rows)
        yield {}
