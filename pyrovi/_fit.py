"""`fit`, the one way in: SVI with `Trace_ELBO`, from data to a `Fit`."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.optim
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.optim.lr_scheduler import PyroLRScheduler

from pyrovi._isolation import Parameters, isolated
from pyrovi._typing import Data, Guide, Model, Path, Tensors
from pyrovi.errors import SettingsError
from pyrovi.inputs import as_dtype
from pyrovi.minibatch import Batched
from pyrovi.optim import make_optimizer
from pyrovi.preflight import Problem, prepare, with_laplace
from pyrovi.progress import Progress
from pyrovi.result import Fit, Status
from pyrovi.runs import check_folder
from pyrovi.stopping import MIN_WINDOW, Plateau, looks, plateau

__all__ = ["Step", "fit"]


class Step(NamedTuple):
    """What a callback is told after a step."""

    number: int
    """From 1."""
    elbo: float
    """This step's estimate, in nats, of all the data."""
    parameters: Callable[[], Tensors]
    """Call it for the constrained parameters as they stand; that costs a copy."""


Callback = Callable[[Step], object]


def fit(
    model: Model,
    guide: str | type[AutoGuide] | Guide = "auto",
    data: Data | None = None,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    particles: int = 1,
    optimizer: str | pyro.optim.PyroOptim | Callable[..., torch.optim.Optimizer] = "adam",
    lr: float | None = None,
    schedule: str | Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    batch_size: int | Mapping[str, int] | None = None,
    batch_data: Sequence[str] | None = None,
    stop: str | None = "auto",
    seed: int = 0,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    progress: bool | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    folder: Path | None = None,
) -> Fit:
    """Fit a guide to a model's posterior by stochastic variational inference.

    Underneath are `pyro.infer.SVI` and `Trace_ELBO`. Mistakes in model, guide, data and settings raise before the first
    step. Nothing is left behind: Pyro's parameter store, the random number generators, the settings and the modules
    passed in are as they were.

    At a constant rate the last iterate still wanders about the optimum, a posterior sd away in the documents' own settings.
    So a fit that runs to its end reports the mean of the (unconstrained) iterates since half-way, unless the last one has a
    clearly higher ELBO on the same draws, as where the fit is still on its way. `settings["averaged_steps"]` is the number
    of iterates, 0 for the last.

    Args:
        model: A Pyro program: a function, `PyroModule` or `nn.Module`.
        guide: A name (`"normal"`, `"multivariate_normal"`, `"low_rank"`, `"structured"`, `"delta"`, `"laplace"`), an
            autoguide's class or instance, or a program that samples the model's latent sites. `"auto"` is `"normal"`
            for now.
        data: Argument name to NumPy array, tensor, DataFrame or xarray array, passed to model and guide by keyword. A
            guide may take fewer. Plain Python values are passed as they are.
        steps: The largest number of steps; 10,000 when neither it nor `epochs` is given.
        epochs: The same as passes over the data, each `ceil(n / batch_size)` steps.
        particles: Draws a step for the ELBO's gradient; run as one vectorised batch where model and guide allow.
        optimizer: A name (`"adam"`, `"clipped_adam"`, `"sgd"`, …: `pyrovi.optim.OPTIMIZERS`), a class of `torch.optim`,
            or an instance of `pyro.optim`.
        lr: The learning rate; 0.01 when None, a rate that suits Adam on unconstrained parameters of order one.
        schedule: `"constant"` (default), `"cosine"`, `"exponential"` (to 1%), `"linear"`, or a function from the step
            to the factor on `lr`.
        clip_norm: The largest norm of one parameter's gradient; None for no limit.
        batch_size: Rows a step, for a model written plainly (`pyro.plate("data", len(x))` around `obs=x`) or with
            Pyro's own subsampling. `{"plate": 100}` names the plate where there are several.
        batch_data: The data that have a row a datum, where that is not all that are as long as the plate.
        stop: `"auto"` stops once the ELBO has stopped rising (`pyrovi.stopping`); None runs every step.
        seed: For everything random. The same seed gives the same fit, bit for bit.
        dtype: Floating data become this; torch's default when None.
        device: Where to run, as in `"cuda"`.
        progress: Whether to show a bar; when None, only in a terminal or a notebook.
        callbacks: Called after every step with a `Step`; one that returns True ends the fit.
        folder: A run folder to be written when the fit ends; it must not exist yet.

    Returns:
        The fit; `status` says how it ended and `advice` what to do next. Ctrl-C returns the fit so far, with status
        `interrupted`.

    Raises:
        DataError, ModelError, GuideError, SettingsError, RunFolderError: Before the first step; see `pyrovi.errors`.

    References:
        Automated variational inference in probabilistic programming (Wingate & Weber, 2013) | https://arxiv.org/abs/1301.1299
        Automatic differentiation variational inference (Kucukelbir et al., 2017) | https://arxiv.org/abs/1603.00788

    Example:
        >>> import pyro, pyro.distributions as dist, pyrovi
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> fit = pyrovi.fit(model, "normal", {"x": [1.0, 2.0, 3.0]}, lr=0.05, steps=2_000)
        >>> sorted(fit.posterior(1_000))
        ['w']
    """
    began = time.perf_counter()
    _check_counts(steps=steps, epochs=epochs, particles=particles)
    if stop not in ("auto", None):
        raise SettingsError(f"stop must be 'auto' or None; got {stop!r}")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise SettingsError(f"seed must be a whole number from 0 to 2**32 - 1; got {seed!r}")
    dtype, device = as_dtype(dtype), _device(device)
    if folder is not None:
        check_folder(folder)

    with isolated(seed, dtype, validate=True):
        make_optimizer(optimizer, lr, schedule, clip_norm, steps or 1)  # a bad one raises before the model is run
        problem = prepare(
            model,
            guide,
            data,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            batch_data=tuple(batch_data) if batch_data is not None else None,
        )
        steps = _steps(steps, epochs, problem)
        optim, optim_settings = make_optimizer(optimizer, lr, schedule, clip_norm, steps)
        start = problem.parameters.values()
        pyro.set_rng_seed(seed)  # so that the loop is the plain `svi.step` loop of this seed, draw for draw
        try:
            with pyro.validation_enabled(False):
                outcome = _optimise(problem, optim, steps, particles, stop, seed, Progress(steps, progress), _as_list(callbacks))
            result = Fit(
                parameters=problem.parameters.constrained(outcome.values),
                unconstrained=outcome.values,
                elbo=outcome.elbo[None, :],
                status=outcome.status,
                advice=outcome.advice,
                settings={
                    "guide": problem.guide_name,
                    **optim_settings,
                    "steps": steps,
                    "epochs": epochs,
                    "particles": particles,
                    "vectorized": problem.vectorize,
                    "batch_size": problem.batches.batch_size if problem.batches else None,
                    "stop": stop,
                    "averaged_steps": outcome.averaged,
                    "dtype": str(dtype).removeprefix("torch."),
                    "device": str(device),
                },
                versions=_versions(),
                seconds=time.perf_counter() - began,
                seed=seed,
                problem=with_laplace(problem, outcome.values),
            )
        finally:
            problem.parameters.give_back(start)
    if folder is not None:
        result.save(folder)
    return result


class _Outcome(NamedTuple):
    elbo: NDArray[np.float64]
    status: Status
    advice: str
    values: Tensors
    averaged: int


class _NotFinite(Exception):
    """The loss of a step is NaN or infinite; raised before the optimiser has seen its gradient."""


class _CheckedELBO(Trace_ELBO):
    def loss_and_grads(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        loss: float = super().loss_and_grads(model, guide, *args, **kwargs)
        if not math.isfinite(loss):
            raise _NotFinite
        return loss


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
        torch._foreach_add_(self._sums, self._leaves)
        self.count += 1

    def mean(self) -> Tensors:
        return {name: total / self.count for name, total in zip(self._names, self._sums, strict=True)}


def _optimise(
    problem: Problem,
    optim: pyro.optim.PyroOptim,
    steps: int,
    particles: int,
    stop: str | None,
    seed: int,
    progress: Progress,
    callbacks: list[Callback],
) -> _Outcome:
    """The loop. Between events (a look at the ELBO, a refresh of the bar) it does what a bare `svi.step` loop does."""
    loss = _CheckedELBO(
        num_particles=particles, vectorize_particles=problem.vectorize and particles > 1, max_plate_nesting=problem.nesting
    )
    batched = problem.batched()
    model, guide, data = (problem.model, problem.guide, problem.data) if batched is None else (batched.model, batched.guide, {})
    rows = _rows(problem, seed)
    svi = SVI(model, guide, optim, loss)
    decay = optim.step if isinstance(optim, PyroLRScheduler) else None
    parameters = problem.parameters
    average = _Average(parameters.leaves)
    elbo = np.empty(steps)
    look_at = looks(steps)
    first_average = 0 if stop == "auto" or len(look_at) == 1 else look_at[-2]
    window, last_good = 0, parameters.values()
    judged: Plateau | None = None
    status, advice, done = Status.step_limit, "", 0
    try:
        with warnings.catch_warnings(), progress:
            warnings.filterwarnings("ignore", message="Encountered (NaN|\\+?-?inf)")
            for step in range(1, steps + 1):
                if batched is not None:
                    batched.take(next(rows))
                elbo[step - 1] = -svi.step(**data)
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
                    if step == steps or (stop == "auto" and judged.reached):
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
        status, advice = Status.diverged, _why_diverged(problem, model, guide, data, done, error)
    except Exception as error:
        error.add_note(f"raised by the model or guide at step {done + 1:,} of pyrovi.fit")
        raise

    elbo = elbo[:done]
    values, averaged = parameters.values(), 0
    if status is Status.diverged:
        if not all(torch.isfinite(v).all() for v in values.values()):
            values = last_good
    elif status is Status.step_limit and judged is not None:
        status = Status.converged if judged.reached else status
        if average.count >= MIN_WINDOW:
            mean = average.mean()
            last_scores, mean_scores = (_scores(svi, parameters, data, batched, problem, seed, v) for v in (values, mean))
            lead = last_scores - mean_scores
            if not lead.mean() > 2 * lead.std(ddof=1) / math.sqrt(len(lead)):
                values, averaged = mean, average.count
        advice = _advice(status, judged, steps, done)
    return _Outcome(elbo, status, advice, values, averaged)


SCORED = 20
"""Evaluations of the ELBO that choose between the last iterate and the mean; both see the same draws and batches, so few do."""


def _scores(
    svi: SVI, parameters: Parameters, data: Mapping[str, Any], batched: Batched | None, problem: Problem, seed: int, values: Tensors
) -> NDArray[np.float64]:
    """The ELBO at given parameters, over draws and batches that depend on the seed alone, shape `(SCORED,)`."""
    parameters.assign(values)
    pyro.set_rng_seed(seed)
    rows, out = _rows(problem, seed), np.empty(SCORED)
    for i in range(SCORED):
        if batched is not None:
            batched.take(next(rows))
        out[i] = -svi.evaluate_loss(**data)
    return out


def _advice(status: Status, judged: Plateau, steps: int, done: int) -> str:
    if status is Status.converged:
        early = f"after {done:,} of {steps:,} steps" if done < steps else f"within its {steps:,} steps"
        return (
            f"The ELBO stopped rising {early}: {judged}. That says nothing of how near q is to the "
            "posterior: compare it with an exact one or NUTS where you can."
        )
    if not math.isfinite(judged.se):
        return f"{done:,} steps are too few to tell whether the ELBO still rises; {2 * MIN_WINDOW} are the least."
    if abs(judged.gain) > 2 * judged.se:
        moving = "still rising" if judged.gain > 0 else "falling: lower lr, or"
        return f"The ELBO was {moving} when the steps ran out ({judged}); run more steps."
    return f"The ELBO is too noisy to tell whether it still rises ({judged}); use more particles, more steps or a lower lr."


def _why_diverged(problem: Problem, model: Model, guide: Guide, data: Mapping[str, Any], done: int, error: Exception) -> str:
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


def _rows(problem: Problem, seed: int) -> Iterator[torch.Tensor]:
    if problem.batches is None:
        return iter(())
    return problem.batches.epochs(torch.Generator().manual_seed(seed), problem.device)


def _steps(steps: int | None, epochs: int | None, problem: Problem) -> int:
    if epochs is None:
        return steps or 10_000
    if steps is not None:
        raise SettingsError(f"steps={steps} and epochs={epochs} both say how long to run; give one")
    return epochs * (problem.batches.steps_per_epoch if problem.batches else 1)


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and not (isinstance(count, int) and not isinstance(count, bool) and count >= 1):
            raise SettingsError(f"{name} must be a whole number of at least 1; got {count!r}")


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device {str(device)!r} is not available here; use 'cpu'") from error
    return found


def _as_list(callbacks: Callback | Sequence[Callback]) -> list[Callback]:
    return [callbacks] if callable(callbacks) else list(callbacks)


def _versions() -> dict[str, str]:
    names = ("pyrovi", "pyro-ppl", "torch", "numpy", "arviz")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
        "platform": sys.platform,
    }
