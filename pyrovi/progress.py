"""What a fit shows while it runs: one line, replaced in place, and gone when the fit has ended.

In a terminal it is kept by rich, in a notebook it is an output that is emptied in the end, without widgets; elsewhere, in a log
file say, it is a line now and then.
"""

from __future__ import annotations

import html
import sys
import time
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyrovi.estimate import Estimate

__all__ = ["Progress", "Stages", "sparkline"]

REFRESH_SECONDS = 0.2
WINDOW = 100
"""Steps whose mean ELBO is quoted."""

PATIENCE = 1.0
"""Seconds before a notebook shows anything: a quick fit then leaves no output, not even an empty one."""

LOG_SECONDS = 10.0
"""Between the lines of a log."""

RECENT = 3
"""Stages that are named."""

LEVELS = "▁▂▃▄▅▆▇█"
SPARKS = 10


class Progress:
    """Looks at the clock only when the next step is `due`, so that a step of a millisecond costs nothing more."""

    def __init__(self, steps: int, show: bool | None) -> None:
        """Of at most so many steps; `show` None is for whoever watches, in a terminal or a notebook."""
        self._steps = steps
        self._line = _line(show)
        self._began = 0.0
        self.due: float = float("inf") if self._line is None else 1

    def __enter__(self) -> Progress:
        self._began = time.perf_counter()
        if self._line is not None:
            self._line.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._line is not None:
            self._line.close()

    def show(self, step: int, elbo: NDArray[np.floating]) -> None:
        """Say where the fit is, with the mean of the last 100 ELBO estimates and the course of the last half.

        Args:
            step: Steps done.
            elbo: The estimate at every step, in nats, shape `(steps,)` or longer.
        """
        if self._line is None or step < 1:
            return
        seconds = max(time.perf_counter() - self._began, 1e-9)
        self._line.say(_told(step, self._steps, elbo[:step], seconds), step / self._steps)
        self.due = step + max(1, int(REFRESH_SECONDS * step / seconds))


class Stages:
    """What is being done, where there is no telling how much is left: the stages so far, and the time."""

    def __init__(self, show: bool | None) -> None:
        self._line = _line(show)
        self._began = 0.0
        self._stages: list[str] = []

    def __enter__(self) -> Stages:
        self._began = time.perf_counter()
        if self._line is not None:
            self._line.open(self._told)
            self("checks")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._line is not None:
            self._line.close()

    def __call__(self, stage: str) -> None:
        """Go on to a stage."""
        if self._line is not None:
            self._stages.append(stage)
            self._line.say(self._told(), None)

    def _told(self) -> str:
        return f"fit  {_clock(time.perf_counter() - self._began)}  {' → '.join(self._stages[-RECENT:])} …"


def sparkline(values: NDArray[np.floating], noise: float = 0.0) -> str:
    """The course of some values in ten characters at most; what is within the noise is level.

    >>> sparkline(np.arange(10.0))
    '▁▂▃▃▄▅▆▆▇█'
    >>> sparkline(np.array([1.0, 1.1, 0.9, 1.0]), noise=1.0)
    '████'
    """
    values = values[np.isfinite(values)]
    bins = min(SPARKS, len(values))
    if bins < 2:
        return ""
    size = len(values) // bins
    means = values[len(values) - bins * size :].reshape(bins, size).mean(1)
    top = len(LEVELS) - 1
    span = max(means.max() - means.min(), 2 * top * noise / size**0.5, 1e-12)
    return "".join(LEVELS[round(top - top * gap / span)] for gap in means.max() - means)


def _told(step: int, steps: int, elbo: NDArray[np.floating], seconds: float) -> str:
    """The line: what matters comes first, for a narrow terminal cuts it off at the right."""
    parts = [f"fit {step / steps:4.0%}"]
    recent = elbo[-WINDOW:]
    if len(recent) > 1:
        sd = float(recent.std(ddof=1))
        parts += [f"ELBO {Estimate(float(recent.mean()), sd / len(recent) ** 0.5)}", sparkline(elbo[step // 2 :], sd)]
    rate, left = step / seconds, (steps - step) * seconds / step
    parts += [f"{step:,}/{steps:,}", f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s", f"{_clock(left)} left"]
    return "  ".join(part for part in parts if part)


def _clock(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any.

    >>> _clock(65), _clock(3_725)
    ('1:05', '1:02:05')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Line(Protocol):
    """Where the line is shown."""

    def open(self, told: Any = None) -> None:
        """Begin; `told`, where given, is asked for the line again now and then."""

    def say(self, text: str, share: float | None) -> None:
        """Show the text; `share` is how much is done, None where that is not known."""

    def close(self) -> None:
        """Take it away."""


def _line(show: bool | None) -> _Line | None:
    watched = sys.stderr.isatty() or _in_notebook()
    if not (watched if show is None else show):
        return None
    return _Notebook() if _in_notebook() else _Terminal() if sys.stderr.isatty() else _Log()


class _Terminal:
    """The last line of a terminal, on the error stream; what the model prints goes above it."""

    def __init__(self) -> None:
        self._text = ""
        self._live: Any = None

    def open(self, told: Any = None) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(stderr=True, highlight=False)

        def line() -> Text:
            text = told() if told is not None else self._text
            if not _encodes(console.encoding):
                return Text(_ascii(text), no_wrap=True, overflow="crop")
            return Text(text if len(text) < console.width else _level(text), no_wrap=True, overflow="ellipsis")

        self._live = Live(
            console=console,
            get_renderable=line,
            transient=True,
            auto_refresh=told is not None,
            refresh_per_second=4,
            redirect_stdout=sys.stdout.isatty(),  # what goes into a pipe goes there
        )
        self._live.start()

    def say(self, text: str, share: float | None) -> None:
        self._text = text
        self._live.refresh()

    def close(self) -> None:
        self._live.stop()


class _Notebook:
    """An output of the cell that is replaced, and emptied in the end; needs no widgets."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._handle: Any = None

    def open(self, told: Any = None) -> None:
        self._began = time.perf_counter()

    def say(self, text: str, share: float | None) -> None:
        if self._handle is None and time.perf_counter() - self._began < PATIENCE:
            return
        done = "" if share is None else f' value="{share:.4f}"'
        bar = f'<progress{done} max="1" aria-label="fit" style="width: 10em; vertical-align: middle"></progress>'
        self._show({"text/plain": text, "text/html": f"{bar} <code>{html.escape(text)}</code>"})

    def close(self) -> None:
        if self._handle is not None:
            self._show({"text/plain": "", "text/html": ""})

    def _show(self, bundle: dict[str, str]) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


class _Log:
    """A line now and then, and the last."""

    def __init__(self) -> None:
        self._last = ""
        self._said = time.perf_counter()

    def open(self, told: Any = None) -> None:
        self._said = time.perf_counter()

    def say(self, text: str, share: float | None) -> None:
        self._last = text
        if time.perf_counter() - self._said > LOG_SECONDS:
            self._write()

    def close(self) -> None:
        if self._last:
            self._write()

    def _write(self) -> None:
        text = self._last if _encodes(sys.stderr.encoding) else _ascii(self._last)
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
        self._last, self._said = "", time.perf_counter()


def _encodes(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("-", "") in ("utf8", "utf16", "utf32")


def _level(text: str) -> str:
    """Without the sparkline, for terminals that cannot show one or are too narrow."""
    return "  ".join(part for part in text.translate({ord(level): None for level in LEVELS}).split("  ") if part)


def _ascii(text: str) -> str:
    return _level(text).translate({ord("±"): "+/-", ord("→"): ">", ord("…"): "..."})


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None
