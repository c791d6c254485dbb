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

__all__ = ["SCORED", "WATCHED", "Engine", "Task", "watched"]

SCORED = 20
"""Evaluations of the ELBO that choose between the last iterate and the mean; both see the same draws and batches, so few do."""

WATCHED = 1_000
"""The most parameters of a fit whose movement is followed scalar by scalar."""


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

    def rate(self, factor: float) -> None:
        """From the next step on the learning rate is that of the schedule times this."""

    def restart_average(self) -> None: ...

    def values(self) -> list[Tensors]:
        """Every fit's unconstrained parameters, copied."""

    def means(self) -> list[Tensors]:
        """Their means over the iterates since the last `restart_average`."""

    def sums(self) -> torch.Tensor:
        """The sums of the same, as one vector a fit, shape `(fits, P)`."""

    def watched(self) -> NDArray[np.float64]:
        """Those of the parameters that `watched` names, shape `(fits, up to WATCHED)`."""

    def named(self, flat: torch.Tensor) -> list[Tensors]:
        """Vectors of shape `(fits, P)` by the parameters' names."""

    def pulls(self, points: torch.Tensor, draws: int) -> NDArray[np.float64]:
        """How the loss's gradients at some points pull towards each of them, from the mean of the first four, or of all if fewer.

        Args:
            points: Shape `(K, fits, P)`.
            draws: Evaluations, on the same draws and batches at every point, others at every step.

        Returns:
            Gradient at point i times (point j less that mean), shape `(fits, draws, K, K)`; NaN where the loss has none.
        """

    def scores(self, values: Sequence[Tensors]) -> NDArray[np.float64]:
        """The ELBO at these parameters over `SCORED` draws that depend on the seed alone, shape `(fits, SCORED)`."""

    def stand(self, fit: int) -> tuple[Any, Any, dict[str, Any]]:
        """Model, guide and their arguments as they were at the last step, to find out what went wrong in it."""


def watched(sizes: Sequence[int]) -> list[NDArray[np.intp]]:
    """Which elements of each parameter are followed: all of few, else of each as many, as far as they go, evenly spread.

    >>> [list(map(int, elements)) for elements in watched([2, 3])]
    [[0, 1], [0, 1, 2]]
    """
    shares, left = [0] * len(sizes), WATCHED
    for i in sorted(range(len(sizes)), key=sizes.__getitem__):
        rest = sum(1 for share in shares if share == 0)
        shares[i] = min(sizes[i], max(1, left // rest)) if left else 0
        left -= shares[i]
    return [np.linspace(0, size - 1, share).round().astype(np.intp) for size, share in zip(sizes, shares, strict=True)]
