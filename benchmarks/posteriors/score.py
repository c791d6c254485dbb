"""Draws beside a reference: how far off, and whether that is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from posteriors import Reference

MEAN, SD = 0.1, 0.1
"""What is right: every mean within 0.1 reference sds, every sd within 10%."""


class Score(NamedTuple):
    """The largest |error of a mean| in reference sds, the smallest and largest ratio of sds, and where they are."""

    error: float
    low: float
    high: float
    worst: str

    @property
    def right(self) -> bool:
        return self.error < MEAN and self.low > 1 - SD and self.high < 1 + SD


def score(draws: Mapping[str, np.ndarray], reference: Mapping[str, Reference]) -> Score:
    """Of draws by site, shape (n, …); entries that are constant under the reference are left out.

    Raises:
        KeyError: A site of the reference has no draws.
    """
    found = []
    for name, exact in reference.items():
        x = np.asarray(draws[name], float)
        moves = exact.sd > 0
        with np.errstate(all="ignore"):  # what a peer gives may overflow
            error = (np.abs(x.mean(0) - exact.mean) / np.where(moves, exact.sd, 1))[moves]
            ratio = (x.std(0) / np.where(moves, exact.sd, 1))[moves]
        error, ratio = np.nan_to_num(error, nan=np.inf), np.nan_to_num(ratio, nan=np.inf)
        off = np.maximum(error / MEAN, np.abs(ratio - 1) / SD)
        found.append((off.max(), error.max(), ratio.min(), ratio.max(), name))
    return Score(max(f[1] for f in found), min(f[2] for f in found), max(f[3] for f in found), max(found)[4])
