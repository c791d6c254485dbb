"""A fit's steps by Pyro's SVI, as it is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro.infer import ELBO, SVI
from pyro.optim.lr_scheduler import PyroLRScheduler

from pyrovi._typing import Guide, Model, Tensors
from pyrovi.minibatch import Batched
from pyrovi.objective import KLWeight
from pyrovi.preflight import Problem
from pyrovi.task import SCORED, watched

__all__ = ["Plain"]

NOT_FINITE = r"Encountered (NaN|\+?-?inf)"
"""How Pyro's warning of a loss that is not finite begins; the fit's status says it better."""


def _feed(problem: Problem, batched: Batched | None, seed: int) -> Iterator[dict[str, Any]]:
    """What model and guide are called with, step by step; the batch, where there is one, is set on the way."""
    if batched is None:
        while True:
            yield problem.seen()
    assert problem.batches is not None
    for rows in problem.batches.epochs(torch.Generator().manual_seed(seed), problem.device):
        batched.take(rows)
        yield {}


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


class Plain:
    """`svi.step` of Pyro's, for one fit."""

    averaged: int
    done: int
    died: list[bool]

    name: str = "pyro"
    fits: int = 1

    def __init__(self, problem: Problem, objective: ELBO, kl: KLWeight | None, optim: pyro.optim.PyroOptim, seed: int) -> None:
        self._problem, self._kl, self._seed = problem, kl, seed
        self._batched = problem.batched()
        model, guide = (problem.model, problem.guide) if self._batched is None else (self._batched.model, self._batched.guide)
        self._model: Model = kl(model) if kl is not None else model
        self._guide: Guide = kl(guide) if kl is not None else guide
        self._svi = SVI(self._model, self._guide, optim, loss=objective.loss, loss_and_grads=_checked(objective))  # type: ignore[attr-defined]
        self._decay = optim.step if isinstance(optim, PyroLRScheduler) else None
        self._feed = _feed(problem, self._batched, seed)
        self._given: dict[str, Any] = {}
        self._leaves = list(problem.parameters.leaves.values())
        for leaf in self._leaves:
            leaf.grad = None  # a fit before this one may have ended between its gradient and its step
        self._objective, self._optim, self._factor = objective, optim, 1.0
        self._watched = [torch.as_tensor(chosen) for chosen in watched([leaf.numel() for leaf in self._leaves])]
        self.done, self.died = 0, [False]
        self.restart_average()

    def run(self, elbo: NDArray[np.float64]) -> None:
        (out,) = elbo
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=NOT_FINITE)
            for step in range(len(out)):
                if self._kl is not None:
                    self._kl.at(self.done + 1)
                self._given = next(self._feed)
                try:
                    out[step] = -self._svi.step(**self._given)
                except _NotFinite:
                    self.died = [True]
                    return
                self.done += 1
                if self._decay is not None:
                    self._decay()
                self._add_to_average()

    @torch.no_grad()
    def _add_to_average(self) -> None:
        if self._leaves:
            torch._foreach_add_(self._sums, self._leaves)
        self.averaged += 1

    def restart_average(self) -> None:
        self.averaged = 0
        self._sums = [torch.zeros_like(leaf, requires_grad=False) for leaf in self._leaves]

    def rate(self, factor: float) -> None:
        for optimizer in self._optim.optim_objs.values():
            for group in optimizer.param_groups:
                group["lr"] *= factor / self._factor
        self._factor = factor

    def sums(self) -> torch.Tensor:
        return torch.cat([total.reshape(-1) for total in self._sums])[None] if self._sums else torch.zeros(1, 0)

    def watched(self) -> NDArray[np.float64]:
        parts = [total.reshape(-1).cpu()[chosen] for total, chosen in zip(self._sums, self._watched, strict=True)]
        return torch.cat(parts).double().numpy()[None] if parts else np.zeros((1, 0))

    def named(self, flat: torch.Tensor) -> list[Tensors]:
        leaves = self._problem.parameters.leaves
        parts = flat[0].split([leaf.numel() for leaf in leaves.values()])
        return [{name: part.reshape(leaf.shape).clone() for (name, leaf), part in zip(leaves.items(), parts, strict=True)}]

    def values(self) -> list[Tensors]:
        return [self._problem.parameters.values()]

    def means(self) -> list[Tensors]:
        return [{n: total / self.averaged for n, total in zip(self._problem.parameters.leaves, self._sums, strict=True)}]

    def scores(self, values: Sequence[Tensors]) -> NDArray[np.float64]:
        self._problem.parameters.assign(values[0])
        pyro.set_rng_seed(self._seed)
        given, out = _feed(self._problem, self._batched, self._seed), np.full((1, SCORED), -np.inf)
        # A mean of iterates may lie where the model cannot be run; that must not cost the fit.
        with suppress(torch.linalg.LinAlgError), warnings.catch_warnings():  # type: ignore[attr-defined]
            warnings.filterwarnings("ignore", message=NOT_FINITE)
            for i in range(SCORED):
                out[0, i] = -self._svi.evaluate_loss(**next(given))
        return out

    def pulls(self, points: torch.Tensor, draws: int) -> NDArray[np.float64]:
        parameters, towards = self._problem.parameters, (points - points[:4].mean(0)).double()[:, 0]
        values, out = [self.named(point)[0] for point in points], np.full((1, draws, len(points), len(points)), np.nan)
        seed = self._seed + self.done
        before, state, feed = parameters.values(), pyro.util.get_rng_state(), _feed(self._problem, self._batched, seed)
        try:
            with suppress(torch.linalg.LinAlgError), warnings.catch_warnings():  # type: ignore[attr-defined]
                warnings.filterwarnings("ignore", message=NOT_FINITE)
                for i in range(draws):
                    given = next(feed)
                    for k, value in enumerate(values):
                        parameters.assign(value)
                        pyro.set_rng_seed((seed + i) % 2**32)
                        out[0, i, k] = (towards @ self._gradient(given)).cpu().numpy()
        finally:
            parameters.assign(before)
            pyro.util.set_rng_state(state)
        return out

    def _gradient(self, given: dict[str, Any]) -> torch.Tensor:
        for leaf in self._leaves:
            leaf.grad = None
        self._objective.loss_and_grads(self._model, self._guide, **given)  # type: ignore[attr-defined]
        parts = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self._leaves]
        for leaf in self._leaves:
            leaf.grad = None
        return torch.cat([part.reshape(-1) for part in parts]).double()

    def stand(self, fit: int) -> tuple[Any, Any, dict[str, Any]]:
        return self._model, self._guide, self._given
