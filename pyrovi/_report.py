"""`report`: one HTML page about a fit, whole in itself."""

from __future__ import annotations

import io
import math
import os
import re
import shlex
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovi import _arviz, export, plots
from pyrovi._compare import compare
from pyrovi._exact import ExactPosterior
from pyrovi._typing import Path
from pyrovi.errors import RunFolderError
from pyrovi.result import Fit

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["report"]

COMPARED = {"mean": ",", "mean_ref": ",", "error": "+z.3f", "sd": ",", "sd_ref": ",", "sd_ratio": ".3f"}
"""The comparison's columns on the page; `,` is four significant digits."""

COMPARE_DRAWS = 10_000
ROWS = 2_000
"""Rows of a table, about 200 bytes each: more would be slow to open and are read from the Fit anyway."""


def report(fit: Fit, path: Path, *, exact: ExactPosterior | None = None, draws: int = 1_000, overwrite: bool = True) -> FilePath:
    """Write a page about a fit: its status, how far it is from the exact posterior, figures, summary and settings.

    The page makes no request and runs no script: figures are inline SVG. It reads well on a dark screen and on paper.
    Written beside its final place and moved there whole, so that a failure leaves an older page as it was.

    Args:
        fit: The fit. One loaded without its model is reported from its stored draws.
        path: The file to write; folders on the way are made.
        exact: The exact posterior to hold q against; a point estimate is held against its means only.
        draws: Draws for the figures and the summary; 1,000 put a Monte Carlo error of 3% of an sd on a mean. The
            comparison takes 10,000 of its own, or all that are stored.
        overwrite: Whether a file that is there is replaced: a page can be made again from its fit.

    Returns:
        The path.

    Raises:
        RunFolderError: The file exists and `overwrite` is False, or cannot be written.
        PyroviError: The fit and `exact` have no variable in common, or one of another shape.
    """
    target = FilePath(path)
    if not overwrite and target.exists():
        raise RunFolderError(f"report {target} exists already; name another, or pass overwrite=True")
    with np.errstate(all="ignore"):  # a diverged fit overflows; its page shows inf and nan as they are
        page = _page(fit, target, exact, draws)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            draft = FilePath(folder) / "page"
            draft.write_text(page, encoding="utf-8")
            os.replace(draft, target)
    except OSError as error:
        raise RunFolderError(f"report {target} could not be written: {error.strerror or error}") from error
    return target


def _page(fit: Fit, target: FilePath, exact: ExactPosterior | None, draws: int) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    point, values = fit.point_estimate, fit.posterior_arrays(draws)
    draws = max(map(len, values.values()), default=0)
    names, stepped = _first(values), fit.settings.get("method") != "auto"
    run = target.parent / "fit.json"
    environment = Environment(
        loader=PackageLoader("pyrovi"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"repr": repr, "quote": shlex.quote}
    environment.filters["counted"] = lambda n, noun: f"{n:,} {noun}{'' if n == 1 else 's'}"
    return environment.get_template("report.html").render(
        fit=fit,
        steps=fit.elbo.shape[-1],
        variables={name: value.shape[1:] for name, value in values.items()},
        draws=draws,
        point=point,
        comparison=_comparison(fit, exact, point, draws) if exact is not None and values else None,
        ends=(fit.best_elbo[0], fit.best_elbo[-100:].mean()) if fit.elbo.size else None,
        trace=_svg("elbo", lambda: plots.elbo(fit, None if point else exact)) if fit.elbo.size and stepped else None,
        densities=_svg("posterior", lambda: plots.posterior(fit, exact, draws=draws)) if values and not point else None,
        exact=exact,
        summary=_summary(fit, {name: values[name] for name in names}, point) if names else None,
        not_summarised=[name for name in values if name not in names],
        folder=str(target.parent) if run.is_file() else None,
    )


def _first(values: Mapping[str, NDArray[np.float64]]) -> list[str]:
    """The variables that fit in a table, in the model's order."""
    names, rows = [], 0
    for name, value in values.items():
        if rows + value[0].size <= ROWS:
            names.append(name)
            rows += value[0].size
    return names


def _summary(fit: Fit, values: Mapping[str, NDArray[np.float64]], point: bool) -> dict[str, Any]:
    """What `fit.summary()` has, from draws at hand: a container of the whole fit holds as many numbers as draws times data."""
    if fit.problem is None:
        return _table(export.summary(fit.stored, point_estimate=point, var_names=list(values)), {})
    posterior = export.dataset({name: value[None] for name, value in values.items()}, {}, {})
    return _table(export.summary(_arviz.container({"posterior": posterior}, {}), point_estimate=point), {})


def _comparison(fit: Fit, exact: ExactPosterior, point: bool, stored: int) -> dict[str, Any]:
    table = compare(fit, exact, draws=COMPARE_DRAWS)
    error = table["error"].abs().fillna(math.inf)
    return {
        **{name: table.attrs.get(name) for name in ("kl", "log_evidence", "elbo")},  # a point has none
        "draws": COMPARE_DRAWS if fit.problem is not None else stored,
        "worst": error.idxmax(),
        "error": error.max(),
        "ratios": (table["sd_ratio"].min(), table["sd_ratio"].max()),
        "rows": len(table),
        "table": _table(table[["mean", "mean_ref", "error"] if point else list(COMPARED)].head(ROWS), COMPARED),
    }


def _table(frame: pd.DataFrame, formats: Mapping[str, str]) -> dict[str, Any]:
    cells = zip(*([_number(value, formats.get(str(name), ",")) for value in frame[name]] for name in frame), strict=True)
    return {"columns": list(frame), "rows": list(zip(frame.index, cells, strict=True))}


def _number(value: float, form: str = ",") -> str:
    value = float(value)
    if form != "," or not math.isfinite(value) or value == 0:
        return f"{value:{form}}"
    size = math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, 3 - size)}f}" if -4 <= size < 7 else f"{value:.3e}"


def _svg(name: str, make: Callable[[], Figure]) -> dict[str, Any]:
    """A figure as SVG for use inside a page: its colours are the page's, its text is text, and nothing in it has an address."""
    import matplotlib
    import matplotlib.style
    from markupsafe import Markup

    # The salt makes the ids in a figure the same in every run, and other than those of the page's other figure.
    ours = {"svg.fonttype": "none", "svg.hashsalt": name, "axes.facecolor": "none"}
    buffer = io.StringIO()
    with matplotlib.style.context(["default", ours]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has a font for it
        figure = make()
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # "axes_1" stands in every figure; nothing refers to it
    for colour, role in (("#000000", "--ink"), (plots.FITTED, "--fitted"), (plots.REFERENCE, "--reference")):
        svg = svg.replace(f": {colour}", f": var({role})")
    return {"svg": Markup(svg), "note": figure.get_supxlabel()}
