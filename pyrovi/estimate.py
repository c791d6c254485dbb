"""A number by Monte Carlo, with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate and its standard error.

    Example:
        >>> import pyrovi
        >>> print(pyrovi.Estimate(-136.8074, 0.0012))
        -136.8074 ± 0.0012
    """

    value: float
    se: float

    def __str__(self) -> str:
        digits = max(0, 1 - math.floor(math.log10(self.se))) if 0 < self.se < math.inf else 3
        return f"{self.value:,.{digits}f} ± {self.se:,.{digits}f}"
