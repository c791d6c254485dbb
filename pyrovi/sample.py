"""Draws that stand for the posterior in a fit's place: weighted draws of q, or draws moved on from there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi._typing import Tensors
from pyrovi.importance import systematic

__all__ = ["Sample"]


@dataclass(frozen=True, eq=False)
class Sample:
    """Draws of the latents, and their weights.

    Attributes:
        latents: By site, `(n, *site_shape)`.
        how: What they are, in words: `"importance-resampled"` when taken, or `"tempered"`.
        weights: `(n,)`, summing to 1; None where all count alike.
    """

    latents: Tensors
    how: str
    weights: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.latents.values())))

    @property
    def effective(self) -> float:
        """How many independent draws these are worth."""
        return len(self) if self.weights is None else float(1 / np.square(self.weights).sum())

    def take(self, n: int, seed: int) -> Tensors:
        """`n` draws that need no weights: each comes as often as its weight says, several times where n asks for it."""
        rng = np.random.default_rng(seed)
        if self.weights is None and n <= len(self):
            index = rng.permutation(len(self))[:n]
        else:
            index = systematic(np.full(len(self), 1 / len(self)) if self.weights is None else self.weights, n, rng)
        return {name: value[torch.from_numpy(index).to(value.device)] for name, value in self.latents.items()}
