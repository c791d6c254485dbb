"""When has a fit converged? Phases at a fixed learning rate, each until the mean of its iterates is known, then half the rate.

In a phase the parameters travel, and then wander about a point that lies off the optimum by about the rate. The rule looks at the
last half, or more, of the phase, cut into four, and asks three things:

- Are they still on their way? Split R-hat compares the four parts' means with the scatter of block means within them. A steady
  drift has 4.6; noise has less than 2 once the window is some twenty correlation times long. Where it is larger, as without noise
  it always is, the rule asks what the movement is worth: the nats of ELBO that going on in its direction would gain, by the slope
  and curvature along it. A fit is on its way until either is small.
- Is their mean known? The Monte Carlo error of the mean, in nats of ELBO: ½ tr(H Σ), with H the curvature and Σ the means'
  covariance, both read off the gradients at the four parts' means under the same draws. So no scale of a parameter is asked for.
- Is a lower rate worth its steps? From phase to phase the mean moves by half its remaining offset; what that movement is worth, a
  symmetrised gap D'HD that is the symmetrised KL of the two phases' q where the family holds the posterior, foretells the gain of
  the next halving. The rule stops where the gain over the tolerance is less than the next phase's steps over those done.

The tolerance is 0.005 nats a latent scalar, the price of a mean that is off by a tenth of a posterior sd, and at least 0.01.

References:
    A framework for improving the reliability of black-box variational inference (Welandawe, Andersen, Vehtari & Huggins, 2024)
    | https://arxiv.org/abs/2203.15945
    Robust, accurate stochastic optimization for variational inference (Dhaka, Catalina, Andersen, Magnusson, Huggins & Vehtari,
    2020) | https://arxiv.org/abs/2009.00666
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi.stopping import plateau
from pyrovi.task import Engine

__all__ = ["Phase", "Phases", "r_hat"]

PARTS = 4
"""Means that a window is compared by."""

BLOCKS = 16
"""Block means of a part."""

FIRST = 8
"""Steps of a block at first; so the first look is at 512 steps."""

SMALL = 2.0
"""An R-hat below which what is seen is noise. Iterates that have not yet come to rest drift by their signal and scatter by their
noise: to stay below, the signal must be less than 1.7/√steps of the noise, and what is left to gain then is at most 1.5/steps nats
in each direction. The R-hat of the iterates themselves, not of block means, would be lower."""

SLIGHT = 0.5
"""The share of the tolerance that a clear movement may be worth: by its own direction alone it is underrated."""

MONTE_CARLO = 0.25
"""The share of the tolerance that the mean's Monte Carlo error may take."""

SHARE = 0.2
"""The most gradients that one look may ask for, as a share of the steps that it looks at."""

BEYOND = 3.0
"""How many times its noise alone the gap between two phases' means must be to say anything of the rate."""

LOWER = 0.5
"""The factor on the rate from phase to phase."""


@dataclass(frozen=True)
class Phase:
    """What a phase came to.

    Attributes:
        rate: Its learning rate, as a factor on the first.
        first: The step before its first.
        last: Its last step.
        averaged: The iterates of its window, the last ones.
        r_hat: The largest of any parameter, over the window.
        mc_error: What the Monte Carlo error of the window's mean costs, in nats of ELBO.
        moving: At most that many nats would be gained by going on in the direction of the window's movement; NaN where R-hat is
            small.
        gap: The symmetrised gap between this phase's mean and the last one's, in nats, their Monte Carlo error included; NaN in the
            first.
    """

    rate: float
    first: int
    last: int
    averaged: int
    r_hat: float
    mc_error: float
    moving: float
    gap: float


class _Piece(NamedTuple):
    """A stretch of a phase."""

    steps: int
    sums: torch.Tensor
    """Of all parameters, shape `(fits, P)`."""
    blocks: NDArray[np.float64]
    """Block means of the watched parameters, shape `(BLOCKS, fits, watched)`."""


def r_hat(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Split R-hat of block means, shape `(parts, blocks, …)`, by the last axes; 1 where nothing moves.

    References:
        Bayesian data analysis, third edition (Gelman et al., 2013), section 11.4 | https://sites.stat.columbia.edu/gelman/book/
    """
    count = blocks.shape[1]
    within = blocks.var(axis=1, ddof=1).mean(0)
    between = blocks.mean(1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = (count - 1) / count + between / within
    return np.where(between == 0, 1.0, np.sqrt(squared))


def tolerance(dimension: int) -> float:
    """How many nats the rule counts as one step's worth of accuracy: 0.005 a latent scalar, at least 0.01."""
    return max(0.01, 0.005 * dimension)


class Phases:
    """The rule at work: it is told of an engine's steps, lowers its rate, and says when all of its fits have converged.

    `next` is the step at which it wants to be called.
    """

    next: int
    converged: bool

    def __init__(self, engine: Engine, dimension: int, begin: int = 0) -> None:
        """For an engine's fits of a model with `dimension` latent scalars; until step `begin` the objective itself moves."""
        self._engine, self._tolerance, self._begin = engine, tolerance(dimension), begin
        self._block, self._rate = FIRST, 1.0
        self.phases: list[list[Phase]] = []
        """By phase that has ended, by fit."""
        self.converged = False
        self._mean: torch.Tensor | None = None
        self._averaged = 0
        self._ended = np.zeros(engine.fits, dtype=bool)
        self._start_phase(begin)
        self.next = begin or self._block

    def _start_phase(self, at: int) -> None:
        self._first, self._pieces, self._means = at, list[_Piece](), list[NDArray[np.float64]]()
        self._settled = np.zeros(self._engine.fits, dtype=bool)
        self._seen: Any = 0.0
        self._ask_from = 0
        self._last: list[Phase] | None = None
        self.next = at + self._block

    def take(self, elbo: NDArray[np.float64]) -> bool:
        """Look, at step `next`, and name the next one; True where every fit has converged.

        Args:
            elbo: The estimates so far, shape `(fits, steps)`.
        """
        engine = self._engine
        if engine.done == self._begin:
            engine.restart_average()
            self.next = self._begin + self._block
            return False
        sums = engine.watched()
        self._means.append((sums - self._seen) / self._block)
        self._seen = sums
        self.next += self._block
        if len(self._means) < BLOCKS:
            return False
        self._pieces.append(_Piece(BLOCKS * self._block, engine.sums(), np.stack(self._means)))
        self._means, self._seen = [], 0.0
        engine.restart_average()
        if len(self._pieces) < PARTS:
            return False
        over = self._look(elbo, fully=len(self._pieces) == 2 * PARTS or self._last is None)
        if len(self._pieces) == 2 * PARTS:
            self._pieces = [_joined(*pair) for pair in zip(self._pieces[::2], self._pieces[1::2], strict=True)]
            self._block *= 2
            self.next = engine.done + self._block
        return over

    def mean(self) -> tuple[torch.Tensor, int] | None:
        """The mean of this phase's last iterates, or of the last phase's where this one is too young, shape `(fits, P)`."""
        window = self._pieces[-PARTS:]
        if len(window) < PARTS and self._mean is not None:
            return self._mean, self._averaged
        count = sum(piece.steps for piece in window)
        return (_mean(window), count) if window else None

    def record(self, fit: int) -> list[dict[str, Any]]:
        """The phases that have ended, and the last look of the one that has not, as plain values."""
        own = [phase[fit] for phase in self.phases] + ([self._last[fit]] if self._last is not None else [])
        return [{k: v if isinstance(v, int) or math.isfinite(v) else None for k, v in asdict(phase).items()} for phase in own]

    def why(self, fit: int) -> str:
        """How it stands with a fit, in numbers."""
        done = [phase[fit] for phase in self.phases] + ([self._last[fit]] if self._last is not None else [])
        if not done:
            return f"the first look is after {self._begin + PARTS * BLOCKS * FIRST} steps"
        last = done[-1]
        parts = [f"R-hat of the parameters {last.r_hat:.2f} over the last {last.averaged:,} steps (small below {SMALL})"]
        if math.isfinite(last.moving):
            parts.append(f"at most {last.moving:.2g} nats to gain by going on as they went")
        if math.isfinite(last.mc_error):
            parts.append(f"Monte Carlo error of their mean {last.mc_error:.2g} nats")
        if math.isfinite(last.gap):
            parts.append(f"{0.5 * last.gap:.2g} nats between the last two phases' means")
        return f"{'; '.join(parts)}; tolerance {self._tolerance:.2g} nats"

    def _look(self, elbo: NDArray[np.float64], fully: bool) -> bool:
        """Judge the last four pieces; a phase ends when each of its fits has been found settled once."""
        engine, window = self._engine, self._pieces[-PARTS:]
        steps = sum(piece.steps for piece in window)
        found = r_hat(np.stack([piece.blocks for piece in window]))
        worst = found.max(-1) if found.shape[-1] else np.ones(engine.fits)
        flat, died = worst < SMALL, np.array(engine.died)
        wanting = ~died & ~self._settled
        unknown = np.full(engine.fits, np.nan)
        if engine.done < self._ask_from or not (fully or flat[wanting].any()):
            if self._last is None:
                self._note(window, worst, unknown, unknown, unknown)
            return False
        points = [piece.sums / piece.steps for piece in window]
        if self._mean is not None:
            points.append(self._mean)
        pulls = engine.pulls(torch.stack(points), draws := max(5, min(20, steps // 400)))
        mc_error, mc_se = _monte_carlo(pulls)
        # Where the same seed does not give the same draws, as of a Gamma, that is noisy: more of them, if they cost little.
        more = draws * float(np.nanmax((mc_se / (0.1 * self._tolerance))[wanting] ** 2))
        if draws < more <= steps * SHARE / len(points):
            pulls = engine.pulls(torch.stack(points), math.ceil(more))
            mc_error, mc_se = _monte_carlo(pulls)
        moving = _worth(pulls, 0, PARTS - 1)
        known = np.abs(mc_error) + 2 * mc_se <= MONTE_CARLO * self._tolerance
        rising = np.array([_rises(row[engine.done - steps : engine.done], self._tolerance) for row in elbo])
        self._settled |= known & (flat | (moving <= SLIGHT * self._tolerance)) & ~rising
        gap = unknown
        if self._mean is not None:
            gap = (pulls[..., PARTS, PARTS] - pulls[..., :PARTS, PARTS].mean(-1)).mean(-1)
        self._note(window, worst, mc_error, np.where(flat, np.nan, moving), gap)
        if (self._settled | died).all():
            return self._end_phase(window, died)
        if flat[wanting].all():  # its error falls with the steps: ask again when it will do
            short = float((np.abs(mc_error) + 2 * mc_se)[wanting].max() / (MONTE_CARLO * self._tolerance))
            if math.isfinite(short) and short > 1:
                self._ask_from = engine.done + int(steps * min(short - 1, 1.0))
        return False

    def _note(self, window: list[_Piece], *columns: NDArray[np.float64]) -> None:
        steps = sum(piece.steps for piece in window)
        self._last = [
            Phase(self._rate, self._first, self._engine.done, steps, *map(float, row)) for row in zip(*columns, strict=True)
        ]

    def _end_phase(self, window: list[_Piece], died: NDArray[np.bool_]) -> bool:
        engine, steps = self._engine, sum(piece.steps for piece in window)
        self._mean, self._averaged = _mean(window), steps
        before = self.phases[-1] if self.phases else None
        assert self._last is not None
        self.phases.append(self._last)
        if before is not None:
            now = self._last
            noise = np.array([2 * (a.mc_error + b.mc_error) for a, b in zip(now, before, strict=True)])
            gap = np.array([phase.gap for phase in now])
            offset = np.where(gap > BEYOND * noise, gap - noise, 0.0)
            # The offset falls with the rate: half the gap remains, of which the next halving takes three quarters.
            gain = 0.5 * (1 - LOWER**2) * offset
            self._ended |= ~(gain * (engine.done - self._begin) > self._tolerance * steps)
            if (self._ended | died).all():
                self._last, self.converged = None, True
                return True
        self._rate *= LOWER
        engine.rate(self._rate)
        self._block = max(FIRST, self._block // 2)
        self._start_phase(engine.done)
        return False


def _joined(a: _Piece, b: _Piece) -> _Piece:
    both = np.concatenate([a.blocks, b.blocks])
    return _Piece(a.steps + b.steps, a.sums + b.sums, (both[::2] + both[1::2]) / 2)


def _mean(pieces: list[_Piece]) -> torch.Tensor:
    total = pieces[0].sums.clone()
    for piece in pieces[1:]:
        total += piece.sums
    return total / sum(piece.steps for piece in pieces)


def _mean_se(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return values.mean(-1), values.std(-1, ddof=1) / math.sqrt(values.shape[-1])


def _monte_carlo(pulls: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """½ tr(H Σ) of the mean of four parts, by fit, and its standard error over the draws."""
    return _mean_se(np.einsum("fsii->fs", pulls[..., :PARTS, :PARTS]) / (2 * PARTS * (PARTS - 1)))


def _worth(pulls: NDArray[np.float64], start: int, end: int) -> NDArray[np.float64]:
    """What going on from point `start` through `end` can gain, by fit, in nats: ½ slope² / curvature.

    It is infinite where the loss does not curve upwards. Two standard errors of the slope are allowed for, so that noise does not
    pass for rest.
    """
    slope = pulls[..., end, end] - pulls[..., end, start]
    curvature = (slope - pulls[..., start, end] + pulls[..., start, start]).mean(-1)
    mean, se = _mean_se(slope)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = 0.5 * (np.abs(mean) + 2 * se) ** 2 / curvature
    return np.where(np.abs(slope).max(-1) == 0, 0.0, np.where((curvature > 0) & np.isfinite(gain), gain, np.inf))


def _rises(elbo: NDArray[np.float64], least: float) -> bool:
    """Whether the ELBO rises beyond doubt, and by more than `least` nats, from a window's first half to its second."""
    found = plateau(elbo, 1)
    return bool(found.gain > max(3 * found.se, least))
