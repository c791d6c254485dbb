"""The progress bar: step, ELBO with its standard error, rate and time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Progress", "Stages"]

REFRESH_SECONDS = 0.2
WINDOW = 100


class Progress:
    """A bar that looks at the clock only when the next step is `due`, so that a step of a millisecond costs nothing more."""

    def __init__(self, steps: int, show: bool | None) -> None:
        wanted = sys.stderr.isatty() or _in_notebook() if show is None else show
        self._steps, self._wanted = steps, wanted
        self._bar: Any = None
        self._began = 0.0
        self.due: float = 1 if wanted else float("inf")

    def __enter__(self) -> Progress:
        self._began = time.perf_counter()
        if self._wanted:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=self._steps, desc="fit", unit="step", dynamic_ncols=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, step: int, elbo: NDArray[np.floating]) -> None:
        """Move the bar to `step` and quote the mean of the last 100 ELBO estimates."""
        if self._bar is None:
            return
        recent = elbo[max(0, step - WINDOW) : step]
        if len(recent) > 1:
            se = recent.std(ddof=1) / len(recent) ** 0.5
            self._bar.set_postfix_str(f"ELBO {recent.mean():,.2f} ± {se:.2g}", refresh=False)
        self._bar.update(step - self._bar.n)
        a_step = (time.perf_counter() - self._began) / step
        self.due = step + max(1, int(REFRESH_SECONDS / a_step))


class Stages:
    """What is being done, where there is no telling how much is left: a line with the stage and the time so far."""

    def __init__(self, show: bool | None) -> None:
        self._wanted = sys.stderr.isatty() or _in_notebook() if show is None else show
        self._bar: Any = None

    def __enter__(self) -> Stages:
        if self._wanted:
            from tqdm.auto import tqdm

            self._bar = tqdm(bar_format="fit: {desc} [{elapsed}]", desc="checks")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, stage: str) -> None:
        if self._bar is not None:
            self._bar.set_description_str(stage)


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None
