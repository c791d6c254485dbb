"""Regression on a table of the user's own: a CSV file or a DataFrame, checked and standardised."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrovi.errors import DataError, nearest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Scaling", "Table", "table"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """What a table was standardised by: (value - mean) / sd, a column at a time.

    Attributes:
        features: The d names of the predictors.
        mean: `(d,)`.
        sd: `(d,)`.
        outcome: The outcome's name.
        outcome_mean: In the outcome's unit.
        outcome_sd: In the outcome's unit. A log density of the outcome is that of the standardised one less `log(outcome_sd)`.
    """

    features: list[str]
    mean: Array
    sd: Array
    outcome: str
    outcome_mean: float
    outcome_sd: float

    def transform(self, rows: Any) -> Array:
        """New rows `(m, d)`, a DataFrame with these features among its columns or an array, as the predictors were standardised."""
        if hasattr(rows, "columns"):
            values = _numbers(rows, self.features)
        else:
            values = np.asarray(rows, dtype=float)
            if values.ndim != 2 or values.shape[1] != len(self.features):
                raise DataError(f"new rows need shape (m, {len(self.features)}), a column a feature; got {values.shape}")
        return (values - self.mean) / self.sd

    def restore(self, y: Any) -> Any:
        """Standardised outcomes or predictions of them, an array or tensor of any shape, in the outcome's unit."""
        return y * self.outcome_sd + self.outcome_mean

    def restore_sd(self, sd: Any) -> Any:
        """Standard deviations of standardised outcomes in the outcome's unit."""
        return sd * self.outcome_sd


class Table(NamedTuple):
    """`X`: `(n, d)` predictors. `y`: `(n,)` outcomes. `features`: the d names. `scaling`: how they were standardised."""

    X: Array
    y: Array
    features: list[str]
    scaling: Scaling


def table(
    source: str | os.PathLike[str] | pd.DataFrame,
    outcome: str,
    features: Sequence[str] | None = None,
    *,
    standardised: bool = True,
) -> Table:
    """Predictors and an outcome from a table with a row a case.

    Args:
        source: A CSV file whose first line names the columns, or a DataFrame.
        outcome: The column to predict.
        features: The columns to predict it from, in this order; all others when None.
        standardised: Give predictors and outcome mean 0 and sd 1, which the priors of the regression recipes are made for.
            Otherwise they are as they come, and `scaling` has means 0 and sds 1.

    Raises:
        DataError: No such file or column, a value is missing or not a number, a column does not vary, or there are fewer than
            two rows.

    >>> import pandas as pd
    >>> rooms = pd.DataFrame({"area": [20.0, 30.0, 40.0], "rent": [400, 500, 600]})
    >>> X, y, features, scaling = table(rooms, outcome="rent")
    >>> scaling.restore(y).round().tolist(), scaling.transform([[30.0]]).tolist()
    ([400.0, 500.0, 600.0], [[0.0]])
    """
    frame = _frame(source)
    if outcome not in frame.columns:
        raise DataError(f"the table has no column {outcome!r}; {nearest(str(outcome), map(str, frame.columns))}")
    chosen = [c for c in frame.columns if c != outcome] if features is None else list(features)
    if isinstance(features, str) or not chosen:
        raise DataError(
            f"features must be a list of columns, at least one of them; got {features if features is not None else chosen!r}"
        )
    if outcome in chosen:
        raise DataError(f"column {outcome!r} is the outcome and among the features; drop it from features=")
    X, y = _numbers(frame, chosen), _numbers(frame, [outcome])[:, 0]
    if len(y) < 2:
        raise DataError(f"the table has {len(y)} rows; a regression needs two at the least")
    names = [str(name) for name in chosen]
    scaling = Scaling(names, np.zeros(len(names)), np.ones(len(names)), str(outcome), 0.0, 1.0)
    if standardised:
        for name, column in zip([*names, str(outcome)], [*X.T, y], strict=True):
            if np.ptp(column) == 0:
                raise DataError(f"column {name!r} has the same value in every row, so it cannot be standardised; drop it")
        scaling = Scaling(names, X.mean(0), X.std(0), str(outcome), float(y.mean()), float(y.std()))
    return Table((X - scaling.mean) / scaling.sd, (y - scaling.outcome_mean) / scaling.outcome_sd, names, scaling)


def _frame(source: Any) -> pd.DataFrame:
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        frame = source
    elif isinstance(source, str | os.PathLike):
        if not Path(source).is_file():
            raise DataError(f"there is no data file {os.fspath(source)!r}")
        try:
            frame = pd.read_csv(source, skipinitialspace=True)
        except (OSError, ValueError) as error:  # pandas' own are ValueErrors
            reason = str(error).splitlines()[0]
            raise DataError(
                f"data file {os.fspath(source)!r} is not a table with a line a row ({reason}); write it as CSV"
            ) from error
    else:
        raise DataError(f"source must be a CSV file or a DataFrame; got {type(source).__name__}")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"the table has two columns named {twice[0]!r}; rename one")
    return frame


def _numbers(frame: pd.DataFrame, columns: Sequence[Any]) -> Array:
    """The columns as an `(n, d)` array of finite numbers."""
    for name in columns:
        if name not in frame.columns:
            raise DataError(f"the table has no column {name!r}; {nearest(str(name), map(str, frame.columns))}")
        column = frame[name]
        missing = column.isna().to_numpy()
        if missing.any():
            raise DataError(
                f"column {name!r} has {missing.sum()} missing value{'s' if missing.sum() > 1 else ''}, the first in row "
                f"{missing.argmax() + 1}; drop those rows, impute them, or leave the column out"
            )
        if getattr(column.dtype, "kind", "O") not in "biuf":
            raise DataError(
                f"column {name!r} holds {column.dtype} values such as {column.iloc[0]!r}, not numbers; encode or leave it out"
            )
    values: Array = frame[list(columns)].to_numpy(dtype=float)
    infinite = ~np.isfinite(values).all(0)
    if infinite.any():
        raise DataError(f"column {columns[int(infinite.argmax())]!r} has infinite values; drop those rows")
    return values
