"""`Fits`: what one call leaves that ran several fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi._isolation import isolated
from pyrovi._typing import Tensors
from pyrovi.errors import ModelError
from pyrovi.preflight import Problem, with_laplace
from pyrovi.result import Fit, Status
from pyrovi.starts import on_own_data
from pyrovi.stopping import MIN_WINDOW
from pyrovi.svi import Outcome

__all__ = ["Fits"]


class Fits(Sequence[Fit]):
    """Fits of one model, in the order of their data or seeds: `fits[i]` is a `Fit`, made when it is asked for.

    Attributes:
        elbo: The estimate at every step, shape `(fits, steps)`, in nats; NaN from where a fit ended.
        status: How each ended.
        seeds: Each one's seed.
        settings: What they were run with.
        seconds: Wall time of all together.
    """

    settings: dict[str, Any]
    seconds: float
    seeds: list[int]
    status: list[Status]

    def __init__(
        self,
        problem: Problem,
        outcomes: Sequence[Outcome],
        *,
        settings: dict[str, Any],
        versions: dict[str, str],
        seconds: float,
        seeds: Sequence[int],
        stacked: Mapping[str, torch.Tensor],
    ) -> None:
        self._problem, self._outcomes, self._versions, self._stacked = problem, list(outcomes), versions, stacked
        self.settings, self.seconds, self.seeds = settings, seconds, list(seeds)
        self.status = [outcome.status for outcome in outcomes]
        self.elbo: NDArray[np.float64] = np.full((len(outcomes), max(len(o.elbo) for o in outcomes)), np.nan)
        for row, outcome in zip(self.elbo, outcomes, strict=True):
            row[: len(outcome.elbo)] = outcome.elbo

    def __repr__(self) -> str:
        ended = ", ".join(f"{count} {status}" for status, count in Counter(self.status).items())
        return f"Fits({len(self)}: {ended}; {self.settings['guide']} guide; {self.seconds:.1f} s)"

    def __len__(self) -> int:
        return len(self._outcomes)

    @overload
    def __getitem__(self, i: int) -> Fit: ...
    @overload
    def __getitem__(self, i: slice) -> list[Fit]: ...
    def __getitem__(self, i: int | slice) -> Fit | list[Fit]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return self._fit(i, self.elbo[i : i + 1, : len(self._outcomes[i].elbo)], self._outcomes[i].advice, {})

    def __iter__(self) -> Iterator[Fit]:
        return (self[i] for i in range(len(self)))

    @property
    def parameters(self) -> Tensors:
        """The constrained parameters of all, by name, with the fits as first axis."""
        each = [self._problem.parameters.constrained(outcome.values) for outcome in self._outcomes]
        return {name: torch.stack([values[name] for values in each]) for name in each[0]}

    def best(self) -> Fit:
        """The fit with the highest ELBO over its last steps, with the traces of all, and in its advice how far they lie apart."""
        if len(self) == 1:
            return self[0]
        late = [outcome.elbo[-max(MIN_WINDOW, len(outcome.elbo) // 4) :] for outcome in self._outcomes]
        ends = np.array([row.mean() if len(row) else -np.inf for row in late])
        lost = np.array([status is Status.diverged for status in self.status])
        best = int(np.where(lost & ~lost.all(), -np.inf, ends).argmax())
        good = ends if lost.all() else ends[~lost]
        spread = (
            f"The best of {len(self)} restarts; over the last steps their ELBOs lie between {good.min():,.2f} and "
            f"{good.max():,.2f} nats (median {np.median(good):,.2f})" + (f"; {lost.sum()} diverged" if lost.any() else "")
        )
        more = {
            "best_restart": best,
            "restart_elbo": [float(end) for end in ends],
            "restart_status": [str(status) for status in self.status],
        }
        return self._fit(best, self.elbo, f"{spread}. {self._outcomes[best].advice}", more)

    def _fit(self, i: int, elbo: NDArray[np.float64], advice: str, more: Mapping[str, Any]) -> Fit:
        outcome, problem = self._outcomes[i], on_own_data(self._problem, self._stacked, i)
        seed = self.seeds[0] if more else self.seeds[i]
        with isolated(seed, problem.dtype, problem.device):
            try:
                if self._stacked:
                    problem = problem.traced()
                problem = with_laplace(problem, outcome.values)
            except ModelError as error:  # the mode is worth having all the same
                advice = f"{error} What you have is the mode alone. {advice}"
        return Fit(
            parameters=problem.parameters.constrained(outcome.values),
            unconstrained=outcome.values,
            elbo=elbo,
            status=outcome.status,
            advice=advice,
            settings={**self.settings, "averaged_steps": outcome.averaged, "phases": list(outcome.phases), **more},
            versions=self._versions,
            seconds=self.seconds,
            seed=seed,
            problem=problem,
        )
