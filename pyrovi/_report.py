"""`report`: one HTML page about a fit, or about several side by side, whole in itself."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi._exact import ExactPosterior
from pyrovi._loo import Loo
from pyrovi._typing import Path
from pyrovi.errors import RunFolderError, SettingsError
from pyrovi.page import render
from pyrovi.result import Fit
from pyrovi.sections import sections

if TYPE_CHECKING:
    from pyrovi._calibrate import Calibration

__all__ = ["report"]


def report(
    fit: Fit | Mapping[str, Fit] | Sequence[Fit],
    path: Path,
    *,
    exact: ExactPosterior | None = None,
    reference: Any | None = None,
    calibration: Calibration | None = None,
    loo: Loo | None = None,
    check: bool = False,
    draws: int = 1_000,
    overwrite: bool = True,
) -> FilePath:
    """Write a page about a fit: verdict and evidence, the exact posterior beside it, figures, and how to have it again.

    The page makes no request. Its only script sorts tables, and it reads as well without; figures are inline SVG. It reads well on
    a dark screen and on paper. Written beside its final place and moved there whole, so that a failure leaves an older page as it
    was. A section that cannot be computed says why in a sentence.

    Given several fits, of one model and its data, the page sets them side by side: levels, ELBO, k-hat, leave-one-out, time, and
    means and sds by variable.

    Args:
        fit: The fit. One loaded without its model is reported from its stored draws. For several, a mapping from names to fits, or
            a sequence, which is named by recipe or guide.
        path: The file to write; folders on the way are made.
        exact: The exact posterior to hold q against; a point estimate is held against its means only.
        reference: What to hold q against where there is no exact posterior: the container that `pyrovi.nuts` gives, or any other
            that ArviZ reads.
        calibration: By `pyrovi.calibrate`, to show too; of one fit.
        loo: By `pyrovi.loo`, to show; computed when None, if the data are at most 2,000; of one fit.
        check: Whether a fit without a verdict is given one by `pyrovi.check`, which takes from seconds to minutes. With `exact` it
            has one in any case, by that.
        draws: Draws for the figures and the summary; 1,000 put a Monte Carlo error of 3% of an sd on a mean. The
            comparison takes 10,000 of its own, or all that are stored.
        overwrite: Whether a file that is there is replaced: a page can be made again from its fit.

    Returns:
        The path.

    Raises:
        RunFolderError: The file exists and `overwrite` is False, or cannot be written.
        SettingsError: There is no fit, or what is given for one is not a `Fit`.
        PyroviError: The fit and `exact` have no variable in common, or one of another shape.

    Example:
        >>> import tempfile, pyrovi
        >>> fit = pyrovi.recipe("normal_mean").fit(steps=300)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pyrovi.report(fit, f"{folder}/report.html").name
        'report.html'
    """
    fits = _named(fit)
    target = FilePath(path)
    if not overwrite and target.exists():
        raise RunFolderError(f"report {target} exists already; name another, or pass overwrite=True")
    if len(fits) > 1 and (calibration is not None or loo is not None):
        raise SettingsError("calibration and loo belong to one fit; a page of several takes neither")
    with np.errstate(all="ignore"):  # a diverged fit overflows; its page shows inf and nan as they are
        if len(fits) > 1:
            from pyrovi.side_by_side import side_by_side

            content = side_by_side(fits, exact=exact, reference=reference, checked=check, draws=draws)
            page = render("comparison.html", **content)
        else:
            content = sections(
                next(iter(fits.values())),
                exact=exact,
                reference=reference,
                calibration=calibration,
                left_out=loo,
                checked=check,
                draws=draws,
            )
            folder = _run_of(next(iter(fits.values())), target.parent)
            page = render("report.html", **content, folder=folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            draft = FilePath(folder) / "page"
            draft.write_text(page, encoding="utf-8")
            os.replace(draft, target)
    except OSError as error:
        raise RunFolderError(f"report {target} could not be written: {error.strerror or error}") from error
    return target


def _named(given: Any) -> dict[str, Fit]:
    """Fits by name."""
    if isinstance(given, Fit):
        return {"fit": given}
    if not isinstance(given, Mapping | Sequence) or isinstance(given, str) or not given:
        raise SettingsError(f"report takes a Fit, or several by name, as in {{'mean-field': fit}}; got {given!r:.60}")
    if not isinstance(given, Mapping):
        if not all(isinstance(one, Fit) for one in given):
            raise SettingsError("report takes fits; load a run folder first, by pyrovi.load")
        names = [_name(one) for one in given]
        again = {name for name in names if names.count(name) > 1}
        given = {f"{name} ({i})" if name in again else name: one for i, (name, one) in enumerate(zip(names, given, strict=True), 1)}
    if odd := [name for name, one in given.items() if not isinstance(one, Fit)]:
        raise SettingsError(f"{odd[0]!r} is not a Fit; load a run folder first, by pyrovi.load")
    return {str(name): one for name, one in given.items()}


def _name(fit: Fit) -> str:
    if fit.settings.get("method") == "auto":
        return "without settings"
    if fit.settings.get("method") == "deterministic":
        return f"{fit.settings['guide_options']['family']}, deterministic"
    return str(fit.settings["guide"])


def _run_of(fit: Fit, folder: FilePath) -> str | None:
    """The name of the page's folder where that is the fit's run: a page is read on other machines, and beside other runs."""
    try:
        kept = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = (kept.get("seed"), kept.get("seconds")) == (fit.seed, fit.seconds)
    return folder.resolve().name if same else None
