"""`fit`, the one way in: SVI with `Trace_ELBO`, from data to a `Fit`."""

from __future__ import annotations

import importlib.metadata
import math
import numbers
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro
import pyro.optim
import torch
from pyro.infer import ELBO
from pyro.infer.autoguide import AutoGuide

from pyrovi._auto import NotAutomatic, fit_auto
from pyrovi._isolation import isolated
from pyrovi._typing import Data, Guide, Model, Path, Table, Transform
from pyrovi.arguments import columns_taken
from pyrovi.deterministic import SVI_ONLY, fit_deterministic
from pyrovi.engine import ENGINES
from pyrovi.errors import GuideError, ModelError, SettingsError, nearest
from pyrovi.fits import Fits
from pyrovi.inputs import as_dtype, to_tensors
from pyrovi.objective import KLWeight, check_objective, make_objective
from pyrovi.optim import make_optimizer, rate_factor
from pyrovi.preflight import Problem, check_outcomes, prepare
from pyrovi.result import Fit
from pyrovi.runs import check_folder
from pyrovi.starts import find_starts
from pyrovi.svi import Callback, run_fits
from pyrovi.task import Task

__all__ = ["fit", "run"]


METHODS = ("auto", "svi", "deterministic")

PLAIN = (bool, int, float, str, tuple, list)


def fit(
    model: Model,
    guide: str | type[AutoGuide] | Guide = "auto",
    data: Data | None = None,
    *,
    method: str = "auto",
    steps: int | None = None,
    epochs: int | None = None,
    particles: int = 1,
    objective: str | Callable[..., ELBO] = "trace_elbo",
    gradient: str = "total",
    kl_weight: float = 1.0,
    kl_annealing: int | None = None,
    optimizer: str | pyro.optim.PyroOptim | Callable[..., torch.optim.Optimizer] = "adam",
    lr: float | None = None,
    schedule: str | Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    batch_size: int | Mapping[str, int] | None = None,
    batch_data: Sequence[str] | None = None,
    transform: Transform | None = None,
    guide_options: Mapping[str, Any] | None = None,
    stop: str | None = "auto",
    engine: str = "auto",
    restarts: int = 1,
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
    So a fit without a schedule that runs to its end reports the mean of the (unconstrained) iterates since half-way, unless
    the last one has a clearly higher ELBO on the same draws, as where the fit is still on its way.
    `settings["averaged_steps"]` is the number of iterates, 0 for the last.

    Args:
        model: A Pyro program: a function, `PyroModule` or `nn.Module`.
        guide: A name (`"normal"`, `"multivariate_normal"`, `"low_rank"`, `"structured"`, `"mixture"`, `"flow"`,
            `"whitened"`, `"delta"`, `"laplace"`: `pyrovi.guides.auto`), an autoguide's class or instance, or a program that
            samples the model's latent sites. `"auto"` leaves it to the method; for SVI it is `"normal"`.
        data: Argument name to NumPy array, tensor, DataFrame or xarray array, passed to model and guide by keyword. A
            guide may take fewer. Plain Python values are passed as they are. Or a DataFrame: the model's arguments are taken from
            its columns, and `settings["columns_left_out"]` names the others.
        method: `"auto"` is SVI where a guide, or any of the settings of SVI below, is given. Where none is, it needs no settings:
            it finds coordinates, a Gaussian in them, and where weights say that this is not enough, Student-t's, or draws moved to
            the posterior by degrees; it gives the draws that the weights recommend, with a verdict (`docs/auto.md`).
            `"deterministic"`: a Gaussian (`"normal"`, `"low_rank"`, `"multivariate_normal"`, with
            `guide_options={"skew": True}` a skewed one) at the optimum of the ELBO over fixed draws, found by L-BFGS and Newton. It
            takes `particles`, the number of those draws, chosen for you when 1, `steps`, the most evaluations, 2,000 when None, and
            of the settings below `guide_options`, `engine`, `seed`, `dtype` (float64 when None), `device`, `progress` and `folder`.
            See `docs/deterministic.md`.
        steps: The largest number of steps. When neither it nor `epochs` is given 50,000, most of which `stop="auto"` saves; 10,000
            where nothing ends the fit before, with `stop=None` or a schedule.
        epochs: The same as passes over the data, each `ceil(n / batch_size)` steps.
        particles: Draws a step for the ELBO's gradient; run as one vectorised batch where model and guide allow. For
            `importance_weighted` and `renyi` it is k, the number of weights.
        objective: `"trace_elbo"`; `"mean_field"`, the same with KL(q‖prior) in closed form where there is one;
            `"importance_weighted"` or `"renyi"`, bounds over `particles` weights; or a class of `pyro.infer.ELBO`. See
            `pyrovi.objective`.
        gradient: `"total"`, the objective's own; `"sticking_the_landing"`, for the ELBO, without the score of the guide's draws,
            so that it is still at the exact posterior; `"doubly_reparameterized"`, for importance weights, whose noise does not
            drown the gradient as their number grows. All have the same mean; see `pyrovi.gradients`.
        kl_weight: A weight on the KL part. With another than 1 the answer is not the posterior but that of the likelihood to
            the power 1/kl_weight; `Fit.elbo` then holds the weighted objective, `Fit.estimate_elbo` the ELBO itself.
        kl_annealing: Steps over which that weight rises linearly from 0; a start without the prior keeps an amortised
            guide from ignoring its data.
        optimizer: A name (`"adam"`, `"clipped_adam"`, `"sgd"`, …: `pyrovi.optim.OPTIMIZERS`), a class of `torch.optim`,
            or an instance of `pyro.optim`.
        lr: The learning rate; 0.01 when None, a rate that suits Adam on unconstrained parameters of order one.
        schedule: `"constant"` (default), `"cosine"`, `"warmup_cosine"` (a linear rise over the first tenth, then cosine),
            `"exponential"` (to 1%), `"linear"`, or a function from the step to the factor on `lr`.
        clip_norm: The largest norm of one parameter's gradient; None for no limit.
        batch_size: Rows a step, for a model written plainly (`pyro.plate("data", len(x))` around `obs=x`) or with
            Pyro's own subsampling. `{"plate": 100}` names the plate where there are several.
        batch_data: The data that have a row a datum, where that is not all that are as long as the plate.
        transform: From the data of a step, tensors by argument name, to what model and guide see, under the same names:
            augmentation, or a fresh binarisation of grey pixels. A fit draws and scores on one such view of its data.
        guide_options: What the named guide takes: `init_scale` for `"normal"`, `rank` for `"low_rank"`, `components` for
            `"mixture"`, `transforms` for `"flow"`.
        stop: `"auto"` halves the rate whenever the mean of the iterates is known well enough at the present one, and ends the fit
            where another halving would not be worth its steps (`pyrovi.phases`; `settings["phases"]` says what it found); with a
            schedule it does nothing. None runs every step at the rate given.
        engine: What takes the steps. `"pyro"`: `svi.step`. `"traced"`: the step recorded once as tensor operations and interpreted,
            three times as fast on a small model. `"compiled"`: the same as machine code, a thousand times as fast on a small
            model, after some seconds of compilation that later fits, and processes, of the same shape save. `"auto"`: the last
            where it pays, the second but for the shortest fits, the first where the step cannot be recorded;
            `settings["engine"]` says which, `settings["engine_reason"]` why not a faster one. See `pyrovi.engine`.
        restarts: Independent fits from other starts and random numbers, seeds `seed`, `seed + 1`, …, of which the best is returned
            and all are recorded (`Fit.elbo`, the `optimization` group, `advice`). A named guide starts where each unconstrained
            latent is uniform on (-2, 2), but for the first; a guide of your own, and networks, wherever their code says. The
            recorded step takes all at once, for a fraction of their price one by one.
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
    given = locals()
    if isinstance(guide, (Mapping, Table)):
        raise GuideError(f"the second argument is the guide, and got {type(guide).__name__}; pass the data by name, as data=…")
    given["data"], left_out = columns_taken(model, data)
    method = given["method"] = _method(given)
    if method == "auto":
        result = _automatic(given)
    else:
        result = _deterministic(**given) if method == "deterministic" else run(**given).best()
    if left_out:
        result = replace(result, settings={**result.settings, "columns_left_out": left_out})
    if folder is not None:
        result.save(folder)
    return result


def _method(given: Mapping[str, Any]) -> str:
    """The method that is meant: "auto" where neither a guide is named nor anything that only SVI takes."""
    method = given["method"]
    if method not in METHODS:
        raise SettingsError(f"unknown method {method!r}; {nearest(str(method), METHODS)}")
    if method != "auto":
        return str(method)
    ours = {**SVI_ONLY, "guide": "auto", "steps": None, "particles": 1, "guide_options": None, "engine": "auto"}
    return "auto" if all(given[name] is default or given[name] == default for name, default in ours.items()) else "svi"


def _automatic(given: dict[str, Any]) -> Fit:
    """The fit of `method="auto"`, by SVI where there is no other way."""
    seed, dtype, folder = given["seed"], given["dtype"], given["folder"]
    if not isinstance(seed, numbers.Integral) or not 0 <= int(seed) < 2**32:
        raise SettingsError(f"seed must be a whole number from 0 to 2**32 - 1; got {seed!r}")
    if folder is not None:
        check_folder(folder)
    try:
        return fit_auto(
            given["model"],
            given["data"],
            seed=int(seed),
            dtype=as_dtype(dtype) if dtype is not None else None,
            device=_device(given["device"]),
            progress=given["progress"],
            versions=installed(),
        )
    except NotAutomatic as why:
        try:
            fit = run(**given | {"method": "svi"} | why.settings).best()
        except (SettingsError, ModelError):
            if not why.settings:
                raise
            fit = run(**given | {"method": "svi"}).best()  # whose batches cannot be taken
        settings = ", ".join(f"{name}={fit.settings[name]!r}" for name in ("guide", "batch_size") if fit.settings[name])
        return replace(fit, advice=f"Fitted by SVI ({settings}), because {why}. {fit.advice}", verdict=fit.check())


def run(
    *,
    model: Model,
    guide: Any,
    data: Data | None,
    method: str,
    steps: int | None,
    epochs: int | None,
    particles: int,
    objective: str | Callable[..., ELBO],
    gradient: str,
    kl_weight: float,
    kl_annealing: int | None,
    optimizer: str | pyro.optim.PyroOptim | Callable[..., torch.optim.Optimizer],
    lr: float | None,
    schedule: str | Callable[[int], float] | None,
    clip_norm: float | None,
    batch_size: int | Mapping[str, int] | None,
    batch_data: Sequence[str] | None,
    transform: Transform | None,
    guide_options: Mapping[str, Any] | None,
    stop: str | None,
    engine: str,
    restarts: int,
    seed: int,
    dtype: str | torch.dtype | None,
    device: str | torch.device,
    progress: bool | None,
    callbacks: Callback | Sequence[Callback],
    folder: Path | None,
    over: Mapping[str, Any] | None = None,
) -> Fits:
    """All fits of one call, of `fit` or of `fit_many`: the same problem from several starts, or on several data sets."""
    began = time.perf_counter()
    steps, epochs = _count("steps", steps), _count("epochs", epochs)
    particles, restarts, chosen = _count("particles", particles) or 1, _count("restarts", restarts) or 1, _as_list(callbacks)
    if engine not in ENGINES:
        raise SettingsError(f"unknown engine {engine!r}; {nearest(engine, ENGINES)}")
    if stop not in ("auto", None):
        raise SettingsError(f"stop must be 'auto' or None; got {stop!r}")
    fits = len(next(iter(over.values()))) if over else restarts
    if not isinstance(seed, numbers.Integral) or not 0 <= seed <= 2**32 - fits:
        raise SettingsError(f"seed must be a whole number from 0 to 2**32 - {fits}; got {seed!r}")
    seed = int(seed)
    dtype, device = as_dtype(dtype), _device(device)
    if folder is not None:
        check_folder(folder)

    with isolated(seed, dtype, device, validate=True):
        make_optimizer(optimizer, lr, schedule, clip_norm, steps or 1)  # a bad one raises before the model is run
        objective_name = check_objective(objective, particles, gradient)
        kl = _kl(kl_weight, _count("kl_annealing", kl_annealing))
        stacked = to_tensors(over, dtype, device)
        problem = prepare(
            model,
            guide,
            {**(data or {}), **{name: rows[0] for name, rows in stacked.items()}} if stacked else data,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            batch_data=(batch_data,) if isinstance(batch_data, str) else tuple(batch_data) if batch_data is not None else None,
            transform=transform,
            guide_options=guide_options,
        )
        stacked = {name: rows.to(problem.data[name].dtype) for name, rows in stacked.items()}
        check_outcomes(problem, stacked)
        elbo = make_objective(objective, problem, particles, gradient)
        rule_ends_it = stop == "auto" and schedule in (None, "constant") and not isinstance(optimizer, pyro.optim.PyroOptim)
        steps = _steps(steps, epochs, problem, 50_000 if rule_ends_it else 10_000)
        if kl is not None and kl.annealing >= steps:
            raise SettingsError(
                f"kl_annealing={kl.annealing} leaves no step of {steps} at the full weight; let it end before the fit does"
            )
        if kl is not None and problem.guide_name == "laplace":
            raise SettingsError("guide='laplace' takes the curvature of the log joint itself; drop kl_weight and kl_annealing")
        _, optim_settings = make_optimizer(optimizer, lr, schedule, clip_norm, steps)
        start = problem.parameters.values()
        try:
            with pyro.validation_enabled(False):
                seeds = [seed + r for r in range(fits)]
                task = Task(
                    problem,
                    elbo,
                    kl,
                    optimizer,
                    optim_settings,
                    lambda: make_optimizer(optimizer, lr, schedule, clip_norm, steps)[0],
                    rate_factor(schedule, steps),
                    steps,
                    seeds,
                    find_starts(problem, guide, guide_options, seeds, stacked),
                    stacked,
                )
                outcomes, name, why = run_fits(task, engine, stop=stop, progress=progress, callbacks=chosen)
            if why and engine in ("traced", "compiled"):
                instead = "svi.step" if name == "pyro" else "the interpreter"
                warnings.warn(f"engine={engine!r} cannot run this fit; {instead} ran it instead: {why}", stacklevel=3)
            result = Fits(
                problem,
                outcomes,
                settings={
                    "method": "svi",
                    "guide": problem.guide_name,
                    "guide_options": {k: v for k, v in (guide_options or {}).items() if isinstance(v, PLAIN)},
                    "objective": objective_name,
                    "gradient": gradient,
                    "kl_weight": float(kl_weight),
                    "kl_annealing": kl_annealing,
                    **optim_settings,
                    "steps": steps,
                    "epochs": epochs,
                    "particles": particles,
                    "vectorized": problem.vectorize,
                    "batch_size": problem.batches.batch_size if problem.batches else None,
                    "batch_plate": problem.batches.plate if problem.batches else None,
                    "batch_data": list(problem.batches.sliced) if problem.batches else None,
                    "transform": getattr(transform, "__name__", type(transform).__name__) if transform is not None else None,
                    "stop": stop,
                    "engine": name,
                    "engine_reason": why,
                    "restarts": restarts,
                    "dtype": str(dtype).removeprefix("torch."),
                    "device": str(device),
                },
                versions=installed(),
                seconds=time.perf_counter() - began,
                seeds=seeds,
                stacked=stacked,
            )
        finally:
            problem.parameters.give_back(start)
    return result


def _deterministic(
    *,
    model: Model,
    guide: Any,
    data: Data | None,
    steps: int | None,
    particles: int,
    guide_options: Mapping[str, Any] | None,
    seed: int,
    dtype: str | torch.dtype | None,
    device: str | torch.device,
    engine: str,
    progress: bool | None,
    folder: Path | None,
    **others: Any,
) -> Fit:
    """The one fit of `method="deterministic"`."""
    if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
        raise SettingsError(f"seed must be a whole number from 0 to 2**32 - 1; got {seed!r}")
    if folder is not None:
        check_folder(folder)
    return fit_deterministic(
        model,
        guide,
        data,
        steps=_count("steps", steps),
        particles=_count("particles", particles) or 1,
        guide_options=guide_options,
        seed=int(seed),
        dtype=as_dtype(dtype) if dtype is not None else None,
        device=_device(device),
        progress=progress,
        versions=installed(),
        engine=engine,
        others=others,
    )


def _steps(steps: int | None, epochs: int | None, problem: Problem, most: int) -> int:
    if epochs is None:
        return steps or most
    if steps is not None:
        raise SettingsError(f"steps={steps} and epochs={epochs} both say how long to run; give one")
    return epochs * (problem.batches.steps_per_epoch if problem.batches else 1)


def _count(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise SettingsError(f"{name} must be a whole number of at least 1; got {value!r}")
    return int(value)


def _kl(weight: float, annealing: int | None) -> KLWeight | None:
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not 0 < weight < math.inf:
        raise SettingsError(f"kl_weight must be a number above 0; got {weight!r}")
    return KLWeight(float(weight), annealing or 0) if weight != 1 or annealing else None


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device {str(device)!r} is not available here; use 'cpu'") from error
    return found


def _as_list(callbacks: Any) -> list[Callback]:
    chosen = [callbacks] if callable(callbacks) else list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
    for callback in chosen:
        if not callable(callback):
            raise SettingsError(f"callbacks must be functions of a Step; got {type(callback).__name__}")
    return chosen


def installed() -> dict[str, str]:
    """The versions of Python, pyrovi and what it rests on."""
    names = ("pyrovi", "pyro-ppl", "torch", "numpy", "arviz")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
        "platform": sys.platform,
    }
