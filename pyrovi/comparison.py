"""The table that `compare` gives: a DataFrame that shows a notebook its distances first."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

__all__ = ["Comparison"]


class Comparison(pd.DataFrame):
    """A DataFrame; what is made of it, by `.round(3)` or `[["mean", "sd"]]`, is a plain one.

    The module is imported when the first comparison is made: pandas takes as long as torch.
    """

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    def _repr_html_(self) -> str:
        from pyrovi.display import of_comparison

        return of_comparison(self)
