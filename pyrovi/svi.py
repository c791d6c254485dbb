"""The loop: an engine takes steps until their number, the ELBO or the user say stop, and which parameters to report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.optim.lr_scheduler import PyroLRScheduler

from pyrovi._typing import Tensors
from pyrovi.engine import make_engine
from pyrovi.phases import Phases
from pyrovi.plain import Plain
from pyrovi.preflight import Problem
from pyrovi.progress import Progress
from pyrovi.result import Status
from pyrovi.starts import on_own_data
from pyrovi.stopping import MIN_WINDOW, Plateau, looks, plateau
from pyrovi.task import Engine, Task

__all__ = ["Callback", "Outcome", "Step", "optimise", "run_fits"]


class Step(NamedTuple):
    """What a callback is told after a step."""

    number: int
    """From 1."""
    elbo: float
    """This step's estimate, in nats, of all the data; of several fits the highest."""
    parameters: Callable[[], Tensors]
    """Call it for the constrained parameters as they stand; that costs a copy."""


Callback = Callable[[Step], object]


class Outcome(NamedTuple):
    """How a fit ended: its ELBO by step, the unconstrained values to report, and over how many iterates they are a mean."""

    elbo: NDArray[np.float64]
    status: Status
    advice: str
    values: Tensors
    averaged: int
    phases: Sequence[Mapping[str, Any]] = ()
    """What `pyrovi.phases` found, phase by phase, where it was asked."""


def run_fits(
    task: Task, kind: str, *, stop: str | None, progress: bool | None, callbacks: Sequence[Callback]
) -> tuple[list[Outcome], str, str]:
    """All fits of a task: at once where its step can be recorded, one after another where it cannot.

    Returns:
        Their outcomes, the engine's name, and why it is not the one asked for.
    """
    if kind == "auto" and callbacks:
        kind, why = "pyro", "a callback may change what the model does"
        engine = None
    else:
        engine, why = make_engine(kind, task)
    outcomes: list[Outcome] = []
    for fit, seed in enumerate(task.seeds):
        problem = task.problem if engine is not None else on_own_data(task.problem, task.stacked, fit)
        problem.parameters.assign(task.starts[fit])
        pyro.set_rng_seed(seed)  # so that the loop is the plain `svi.step` loop of this seed, draw for draw
        outcomes += optimise(
            problem,
            engine or Plain(problem, task.objective, task.kl, task.make_optimizer(), seed),
            task.steps,
            stop,
            annealed=task.kl.annealing if task.kl is not None else 0,
            decays=task.settings["schedule"] not in (None, "constant") or isinstance(task.optimizer, PyroLRScheduler),
            progress=Progress(task.steps, progress),
            callbacks=callbacks,
        )
        if engine is not None or outcomes[-1].status is Status.interrupted:
            break
    return outcomes, engine.name if engine is not None else Plain.name, why


def optimise(
    problem: Problem,
    engine: Engine,
    steps: int,
    stop: str | None,
    *,
    annealed: int = 0,
    decays: bool = False,
    progress: Progress,
    callbacks: Sequence[Callback] = (),
) -> list[Outcome]:
    """Let an engine take its steps; one outcome for every fit that it runs.

    Args:
        problem: What is fitted.
        engine: What takes the steps.
        steps: The largest number of them.
        stop: `"auto"` lowers the rate phase by phase and ends the run when every fit has converged; a schedule rules that out.
        annealed: Until that step the objective itself moves, and no fit counts as converged.
        decays: Whether a schedule lowers the rate: the last iterate is then the one to report.
        progress: The bar.
        callbacks: Called after every step.
    """
    elbo = np.empty((engine.fits, steps))  # most of which may never be touched
    rule = Phases(engine, problem.structure.dimension, annealed) if stop == "auto" and not decays else None
    late = looks(steps)[-2] if rule is None and len(looks(steps)) > 1 else 0
    last_good = engine.values()
    ended, trouble = "", None
    try:
        with progress:
            while engine.done < steps and not ended:
                if rule is None and engine.done == late:
                    engine.restart_average()
                    last_good = engine.values()
                beat = rule.next if rule is not None else late if engine.done < late else steps
                until = engine.done + 1 if callbacks else _next_event(engine.done, min(beat, steps), progress.due)
                elbo[:, engine.done : until] = np.nan
                engine.run(elbo[:, engine.done : until])
                step = engine.done
                if step < until or all(engine.died):
                    break
                if callbacks and _called(callbacks, step, elbo[:, step - 1], engine, problem):
                    ended = f"A callback ended the fit at step {step:,} of {steps:,}."
                    break
                if step >= progress.due:
                    progress.show(step, elbo[_best(elbo[:, step - 1])])
                if rule is not None and step == rule.next:
                    pieces = len(rule.phases)
                    if rule.take(elbo):
                        break
                    if len(rule.phases) > pieces:
                        last_good = engine.values()
            progress.show(engine.done, elbo[_best(elbo[:, max(0, engine.done - 1)])])
    except KeyboardInterrupt:
        if not engine.done:
            raise
        ended = f"Stopped by hand after {engine.done:,} of {steps:,} steps; this is the fit so far."
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        trouble = error
    except Exception as error:
        if engine.done:
            error.add_note(f"raised after {engine.done:,} steps of pyrovi.fit")
        raise

    values = engine.values()
    lost = [died or trouble is not None for died in engine.died]
    whole = not ended and not all(lost)
    means, averaged = (None, 0) if decays or not whole else _means(engine, rule)
    preferred = [False] * engine.fits
    if means is not None:
        with suppress(KeyboardInterrupt):  # too late to interrupt: the last iterate it is
            preferred = [_prefers_mean(*pair) for pair in zip(engine.scores(values), engine.scores(means), strict=True)]
    outcomes = []
    for fit, (last, died) in enumerate(zip(values, lost, strict=True)):
        row, used = elbo[fit, : engine.done], 0
        if died:
            row = row[: int(np.append(np.isfinite(row), False).argmin())]
            status, advice = Status.diverged, _why_diverged(problem, engine, fit, last, len(row), trouble)
            if not _finite(problem, last):
                last = last_good[fit]
        elif ended:
            status, advice = Status.interrupted, ended
        else:
            judged = plateau(row[late or len(row) // 2 :], problem.structure.dimension)
            settled = rule.converged if rule is not None else judged.reached
            status = Status.converged if settled else Status.step_limit
            if means is not None and preferred[fit]:
                last, used = means[fit], averaged
            advice = _advice(status, judged, steps, len(row), rule.why(fit) if rule is not None else "")
        outcomes.append(Outcome(row, status, advice, last, used, rule.record(fit) if rule is not None else ()))
    return outcomes


def _means(engine: Engine, rule: Phases | None) -> tuple[list[Tensors] | None, int]:
    """The means of every fit's last iterates, and of how many, where there are enough."""
    if rule is None:
        return (engine.means(), engine.averaged) if engine.averaged >= MIN_WINDOW else (None, 0)
    found = rule.mean()
    return (engine.named(found[0]), found[1]) if found is not None else (None, 0)


def _next_event(done: int, beat: int, due: float) -> int:
    """The step up to which an engine may run on its own."""
    return min(beat, max(done + 1, math.ceil(due))) if math.isfinite(due) else beat


def _called(callbacks: Sequence[Callback], step: int, elbo: NDArray[np.float64], engine: Engine, problem: Problem) -> bool:
    best = _best(elbo)
    told = Step(step, float(elbo[best]), lambda: problem.parameters.constrained(engine.values()[best]))
    return any([callback(told) is True for callback in callbacks])


def _best(elbo: NDArray[np.float64]) -> int:
    return int(np.where(np.isnan(elbo), -np.inf, elbo).argmax())


def _finite(problem: Problem, values: Tensors) -> bool:
    return all(torch.isfinite(v).all() for v in (*values.values(), *problem.parameters.constrained(values).values()))


def _prefers_mean(last: NDArray[np.float64], mean: NDArray[np.float64]) -> bool:
    """Whether the mean of the iterates is to be reported: unless the last iterate leads it by more than two standard errors."""
    if not (np.isfinite(last).all() and np.isfinite(mean).all()):
        return bool(np.isfinite(mean).all())
    lead = last - mean
    return not lead.mean() > 2 * lead.std(ddof=1) / math.sqrt(len(lead))


def _advice(status: Status, judged: Plateau, steps: int, done: int, found: str) -> str:
    """In numbers; `found` is what the phases' rule has to say."""
    if status is Status.converged:
        early = f"after {done:,} of {steps:,} steps" if done < steps else f"within its {steps:,} steps"
        return (
            f"The ELBO stopped rising {early}: {found or judged}. That says nothing of how near q is to the "
            "posterior: fit.check() measures it."
        )
    if not math.isfinite(judged.se):
        return f"{done:,} steps are too few to tell whether the ELBO still rises; {2 * MIN_WINDOW} are the least."
    if judged.gain > 2 * judged.se:
        return f"The ELBO was still rising when the steps ran out ({judged}); run more steps."
    if judged.gain < -2 * judged.se:
        return f"The ELBO was falling when the steps ran out ({judged}); lower lr, or let a schedule do it."
    if found:
        return f"Not known to have converged when the steps ran out: {found}. Run more steps, or raise lr or particles."
    return f"The ELBO is too noisy to tell whether it still rises ({judged}); use more particles, more steps or a lower lr."


def _why_diverged(problem: Problem, engine: Engine, fit: int, values: Tensors, done: int, error: Exception | None) -> str:
    """Name the sites whose log_prob is not finite, at the parameters where it happened."""
    culprits: list[str] = []
    try:
        problem.parameters.assign(values)
        model, guide, data = engine.stand(fit)
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
    why = f" ({type(error).__name__}: {str(error).splitlines()[0]})" if error is not None and str(error) else ""
    return (
        f"At step {done + 1:,} {what} was not finite{why}. The parameters are the last finite ones. Lower lr, set "
        "clip_norm, use more particles, or constrain the parameters that ran away."
    )
