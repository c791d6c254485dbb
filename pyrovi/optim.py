"""Optimisers by name, class or instance, with a schedule and gradient clipping, as Pyro's `SVI` takes them."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

import pyro.optim
import torch
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.dct_adam import DCTAdam
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch.optim.lr_scheduler import LambdaLR

from pyrovi.errors import SettingsError, nearest

__all__ = ["OPTIMIZERS", "SCHEDULES", "make_optimizer", "rate_factor"]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "clipped_adam": ClippedAdam,
    "dct_adam": DCTAdam,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "sgd": torch.optim.SGD,
}

WARM_UP = 0.1
"""The share of the steps over which `warmup_cosine` rises. Of 10,000 steps it is the 1,000 that Adam's mean of squared gradients
looks back; before it has them, steps are about as long as the rate, however noisy the gradient."""


def _warmup_cosine(done: float) -> float:
    if done < WARM_UP:
        return 0.01 + 0.99 * done / WARM_UP  # a first step of length nothing would be wasted
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "exponential": lambda done: 0.01**done,
    "linear": lambda done: 1 - done,
    "warmup_cosine": _warmup_cosine,
}
"""The factor on the learning rate when a share `done` (0 to 1) of the steps is behind."""

DEFAULT_LR = 0.01


def make_optimizer(
    optimizer: str | pyro.optim.PyroOptim | Callable[..., torch.optim.Optimizer],
    lr: float | None,
    schedule: str | Callable[[int], float] | None,
    clip_norm: float | None,
    steps: int,
) -> tuple[pyro.optim.PyroOptim, dict[str, Any]]:
    """Build the optimiser that `pyro.infer.SVI` drives, and the settings that describe it.

    Args:
        optimizer: A name in `OPTIMIZERS`, a class of `torch.optim` (or a `functools.partial` of one, for its other
            options), or an instance of `pyro.optim.PyroOptim`, which keeps its own rate, schedule and clipping.
        lr: The learning rate; 0.01 when None.
        schedule: A name in `SCHEDULES`, or a function from the step (from 0) to the factor on `lr`.
        clip_norm: The largest norm of one parameter's gradient.
        steps: The number of steps that a named schedule spans.
    """
    for setting, value in (("lr", lr), ("clip_norm", clip_norm)):
        if value is not None and not (isinstance(value, numbers.Real) and 0 < value < math.inf):
            raise SettingsError(f"{setting} must be a positive number; got {value!r}")

    if isinstance(optimizer, pyro.optim.PyroOptim):
        if not (lr is None and schedule is None and clip_norm is None):
            raise SettingsError(
                f"lr, schedule and clip_norm belong to the {type(optimizer).__name__} instance given as optimizer; set them there, "
                "or name the optimizer ('adam') and set them here"
            )
        fresh = copy.copy(optimizer)  # the caller's own keeps no state of this fit
        fresh.optim_objs, fresh.grad_clip = {}, {}
        return fresh, {"optimizer": type(optimizer).__name__, "lr": None, "schedule": None, "clip_norm": None}

    build, name = _constructor(optimizer)
    rate = DEFAULT_LR if lr is None else float(lr)
    settings = {"optimizer": name, "lr": rate, "schedule": schedule or "constant", "clip_norm": clip_norm}
    clip = {"clip_norm": clip_norm} if clip_norm else None
    if schedule is None or schedule == "constant":
        return pyro.optim.PyroOptim(build, {"lr": rate}, clip), settings
    factor = rate_factor(schedule, steps)
    _check_schedule(build)
    if not isinstance(schedule, str):
        settings["schedule"] = getattr(schedule, "__name__", "function")
    wrapped = {"optimizer": build, "optim_args": {"lr": rate}, "lr_lambda": factor}
    return PyroLRScheduler(LambdaLR, wrapped, clip), settings


def _constructor(optimizer: object) -> tuple[Callable[..., torch.optim.Optimizer], str]:
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise SettingsError(f"unknown optimizer {optimizer!r}; {nearest(optimizer, OPTIMIZERS)}")
        return OPTIMIZERS[optimizer], optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        raise SettingsError(
            f"optimizer is an instance of torch.optim.{type(optimizer).__name__}, bound to its own parameters; pass the class, or "
            "functools.partial of it for its options"
        )
    cls = optimizer.func if isinstance(optimizer, functools.partial) else optimizer
    if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer):
        options = optimizer.keywords if isinstance(optimizer, functools.partial) else {}
        return optimizer, f"{cls.__name__}({', '.join(f'{k}={v!r}' for k, v in options.items())})" if options else cls.__name__  # type: ignore[return-value]
    if callable(optimizer):  # pyro.optim.Adam and its kind are functions that want a dictionary of options
        name = getattr(optimizer, "__name__", "function")
        raise SettingsError(
            f"optimizer={name} is a function; call it first, as in pyro.optim.{name}({{'lr': 0.01}}), or pass its name"
        )
    raise SettingsError(f"optimizer must be a name, a torch.optim class or a pyro.optim instance; got {type(optimizer).__name__}")


def _check_schedule(build: Callable[..., torch.optim.Optimizer]) -> None:
    """Raise where a schedule would do nothing, or undo what the optimiser does itself."""
    cls = build.func if isinstance(build, functools.partial) else build
    options = build.keywords if isinstance(build, functools.partial) else {}
    if cls is torch.optim.Rprop:
        raise SettingsError("Rprop takes lr for its first step only and finds its own rates after it; drop schedule")
    if cls is ClippedAdam and options.get("lrd", 1.0) != 1:
        raise SettingsError("schedule and ClippedAdam's lrd would both set the rate; give one of them")


def rate_factor(schedule: str | Callable[[int], float] | None, steps: int) -> Callable[[int], float]:
    """The factor on the learning rate by step, counted from 0.

    Args:
        schedule: A name in `SCHEDULES`, a function from the step to the factor, or None for `"constant"`.
        steps: The number of steps that a named schedule spans.
    """
    if schedule is None:
        schedule = "constant"
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise SettingsError(f"unknown schedule {schedule!r}; {nearest(schedule, SCHEDULES)}")
        shape = SCHEDULES[schedule]
        return lambda step: shape(min(step / steps, 1.0))
    if callable(schedule):
        return schedule
    raise SettingsError(f"schedule must be a name or a function of the step; got {type(schedule).__name__}")
