"""What an engine is asked for, and what it answers to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro.infer import ELBO

from pyrovi._typing import Tensors
from pyrovi.objective import KLWeight
from pyrovi.preflight import Problem

__all__ = ["SCORED", "Engine", "Task"]

SCORED = 20
"""Evaluations of the ELBO that choose between the last iterate and the mean; both see the same draws and batches, so few do."""


@dataclass(frozen=True)
class Task:
    """What an engine is to run: one problem from several starts, or on several data sets.

    Attributes:
        problem: Checked; its parameters are in Pyro's store.
        objective: Of Pyro's kind.
        kl: The KL weight, where there is one.
        optimizer: As the user gave it.
        settings: Its name, rate, schedule and largest norm of a gradient.
        make_optimizer: A fresh one for `SVI`.
        factor: On the learning rate, by step from 0.
        steps: The largest number of steps.
        seeds: Each fit's.
        starts: Each fit's unconstrained parameters.
        stacked: Data, by name, of which each fit has its own row.
    """

    problem: Problem
    objective: ELBO
    kl: KLWeight | None
    optimizer: Any
    settings: Mapping[str, Any]
    make_optimizer: Callable[[], pyro.optim.PyroOptim]
    factor: Callable[[int], float]
    steps: int
    seeds: Sequence[int]
    starts: Sequence[Tensors]
    stacked: Mapping[str, torch.Tensor]


class Engine(Protocol):
    """Takes steps. Where many fits run at once their axis comes first."""

    name: str
    fits: int
    done: int
    """The steps taken."""
    averaged: int
    """The iterates since the last `restart_average`."""

    @property
    def died(self) -> list[bool]:
        """Which fits have met a loss that is not finite."""

    def run(self, elbo: NDArray[np.float64]) -> None:
        """Take as many steps as `elbo`, shape `(fits, steps)`, has columns, and fill it in.

        A fit whose loss is not finite stops there, its parameters as they were before that step, its ELBO NaN; so does the run,
        where there is no other fit.
        """

    def restart_average(self) -> None: ...

    def values(self) -> list[Tensors]:
        """Every fit's unconstrained parameters, copied."""

    def means(self) -> list[Tensors]:
        """Their means over the iterates since the last `restart_average`."""

    def scores(self, values: Sequence[Tensors]) -> NDArray[np.float64]:
        """The ELBO at these parameters over `SCORED` draws that depend on the seed alone, shape `(fits, SCORED)`."""

    def stand(self, fit: int) -> tuple[Any, Any, dict[str, Any]]:
        """Model, guide and their arguments as they were at the last step, to find out what went wrong in it."""
