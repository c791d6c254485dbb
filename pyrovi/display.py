"""How results show themselves in a notebook: small pieces of HTML that take its colours and ask for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi._calibrate import Calibration
    from pyrovi.catalog import Recipe
    from pyrovi.result import Fit
    from pyrovi.verdict import Verdict

__all__ = ["of_calibration", "of_comparison", "of_fit", "of_recipe", "of_verdict"]

ROWS = 20
"""Of a table; a notebook has the whole in the DataFrame."""

COMPARED = {"mean": ",", "mean_ref": ",", "error": "+z.3f", "sd": ",", "sd_ref": ",", "sd_ratio": ".3f"}

# Of a border only: no text of these would stand out from white and from black enough.
COLOURS = {"trust": "#2a8a4a", "reweight": "#a86a00", "enrich": "#d0453b", "sample": "#d0453b"}

BOX = "padding:.4em .8em;border-left:.25em solid {};margin:.3em 0;max-width:60em"
CELL = "text-align:{};padding:.15em .7em"


def of_fit(fit: Fit) -> str:
    """What was fitted and how it went; the verdict where there is one."""
    from markupsafe import escape

    settings, steps = fit.settings, fit.elbo.shape[-1]
    rows: dict[str, Any] = {}
    if fit.problem is not None:
        shapes = {name: tuple(site.shape) for name, site in fit.problem.structure.latent.items()}
        rows["latents"] = ", ".join(name + (f" ({' × '.join(map(str, s))})" if s else "") for name, s in shapes.items()) or "none"
    else:
        rows["latents"] = "stored draws; the model was not given"
    if settings.get("method") == "auto":
        rows["guide"] = f"found without settings, rung {settings['rung']}"
    else:
        how = "evaluations" if settings.get("method") == "deterministic" else "steps"
        rows["guide"] = settings["guide"]
        rows["status"] = f"{str(fit.status).replace('_', ' ')} after {steps:,} {how}"
        if steps:
            rows["ELBO"] = f"{fit.best_elbo[-100:].mean():,.2f} nats over the last {min(steps, 100)}"
    rows["time"] = f"{fit.seconds:,.1f} s, seed {fit.seed}"
    said = of_verdict(fit.verdict, first_only=True) if fit.verdict is not None else ""
    if fit.verdict is None or str(fit.status) != "converged":
        said += f"<p style='max-width:60em'>{escape(fit.advice)}</p>"
    title = escape(f"Fit of {fit.recipe}" if fit.recipe else "Fit")
    return f"<div><strong>{title}</strong>{said}{_pairs(rows)}</div>"


def of_verdict(verdict: Verdict, *, first_only: bool = False) -> str:
    """The level, why, and the evidence as a list."""
    from markupsafe import escape

    first, *rest = verdict.text.splitlines()
    level = f"<strong>{escape(str(verdict.level))}</strong>"
    ends = [line for line in rest if line.startswith("Next: ")] if first_only else rest
    items = "".join(f"<li>{escape(line)}</li>" for line in ends)
    listed = f"<ul style='margin:.3em 0;padding-left:1.2em'>{items}</ul>" if items else ""
    return f"<div style='{BOX.format(COLOURS[verdict.level])}'>{level}: {escape(first)}{listed}</div>"


def of_recipe(recipe: Recipe) -> str:
    """What it is, and the two lines that run it."""
    from markupsafe import escape

    rows = {
        "model": recipe.title,
        "document": recipe.document,
        "exact answer": "yes" if recipe.exact is not None else "no",
        "settings": ", ".join(f"{name}={value!r}" for name, value in recipe.settings.items()),
        "fit it": f"pyrovi.recipe({recipe.name!r}).fit()",
    }
    return f"<div><strong>{escape(recipe.name)}</strong>{_pairs(rows)}</div>"


def of_calibration(found: Calibration) -> str:
    """What its text says, and the table by scalar."""
    from markupsafe import escape

    head = repr(found).splitlines()[0]
    return f"<div><p style='max-width:60em'>{escape(head)}</p>{_table(found.table(), {'z_mean': '+.3f', 'z_sd': '.3f'})}</div>"


def of_comparison(frame: pd.DataFrame) -> str:
    """The distances in a line, and the columns of a comparison that answer it; the frame has the rest."""
    from markupsafe import escape

    error = frame["error"].abs()
    lines = []
    if len(frame):
        worst = "" if error.isna().all() else f" ({error.idxmax()})"
        lines.append(
            f"Means are off by at most {error.max():.3f} reference sds{worst}; sds are {frame['sd_ratio'].min():.3f} to "
            f"{frame['sd_ratio'].max():.3f} times the reference's."
        )
    if "kl" in frame.attrs:
        lines.append(
            f"KL(q‖p) {frame.attrs['kl']} nats, log evidence {frame.attrs['log_evidence']:,.3f}, ELBO {frame.attrs['elbo']}."
        )
    elif "elbo" in frame.attrs:
        beside = f", the other's {frame.attrs['elbo_ref']}" if "elbo_ref" in frame.attrs else ""
        lines.append(f"ELBO {frame.attrs['elbo']} nats{beside}.")
    shown = [name for name in COMPARED if name in frame]
    more = len(frame.columns) - len(shown)
    said = "".join(f"<p style='margin:.2em 0;max-width:60em'>{escape(line)}</p>" for line in lines)
    rest = (
        f"<p style='opacity:.75'>and {more} more columns: {escape(', '.join(map(str, frame.columns.difference(shown))))}</p>"
        if more
        else ""
    )
    return f"<div>{said}{_table(frame[shown], COMPARED)}{rest}</div>"


def _pairs(rows: Mapping[str, Any]) -> str:
    from markupsafe import escape

    cells = "".join(
        f"<tr><th scope='row' style='{CELL.format('left')};font-weight:400;opacity:.75'>{escape(name)}</th>"
        f"<td style='{CELL.format('left')}'>{escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table style='background:none'><tbody>{cells}</tbody></table>"


def _table(frame: pd.DataFrame, formats: Mapping[str, str]) -> str:
    from markupsafe import escape

    from pyrovi.page import number

    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag} style='{CELL.format('right')}'>{cell}</{tag.split()[0]}>" for cell in cells)

    head = row([escape(name) for name in frame.columns], "th scope='col'")
    body = "".join(
        f"<tr><th scope='row' style='{CELL.format('left')}'>{escape(label)}</th>"
        + row([escape(number(value, formats.get(str(name), ","))) for name, value in zip(frame.columns, values, strict=True)], "td")
        + "</tr>"
        for label, values in zip(frame.index[:ROWS], frame.head(ROWS).itertuples(index=False, name=None), strict=True)
    )
    rest = f"<p style='opacity:.75'>the first {ROWS} of {len(frame):,} rows</p>" if len(frame) > ROWS else ""
    return f"<table style='background:none'><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"
