"""The command `pyrovi`: list the recipes, fit one or a model of your own, compare and report."""

from __future__ import annotations

import functools
import json
import math
import sys
import traceback
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

import pyrovi
from pyrovi._fit import METHODS
from pyrovi._new import write_start
from pyrovi._target import OWN, pairs, program, read
from pyrovi.engine import ENGINES
from pyrovi.errors import PyroviError, RunFolderError, SettingsError
from pyrovi.gradients import GRADIENTS
from pyrovi.guides.auto import GUIDES
from pyrovi.objective import OBJECTIVES
from pyrovi.optim import OPTIMIZERS, SCHEDULES
from pyrovi.restarts import RESTARTS
from pyrovi.runs import REPORT, check_folder, keep_verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["app", "main"]

WIDTH, ROWS = 80, 12
"""Of what is printed where there is no terminal to ask, and of a table."""
COMPARED = ["mean", "mean_ref", "error", "sd", "sd_ref", "sd_ratio"]
EXIT_CODES = {"diverged": 3, "interrupted": 130}
LEVEL_CODES = {"trust": 0, "reweight": 10, "enrich": 11, "sample": 12}


class _Commands(TyperGroup):
    """The commands; a user's mistake is told in a sentence, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `pyrovi list | head -1` is no mistake
            raise
        except (Exception, SystemExit) as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            typer.echo(f"error: {sentence}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_show_locals=False
)
tuning = functools.partial(typer.Option, rich_help_panel="Optimisation")
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as `pyrovi fit` leaves it.", show_default=False)]
Target = Annotated[str, typer.Argument(metavar="NAME|FILE.py:MODEL", help="A recipe, or a model in a file.", show_default=False)]


def main() -> None:
    """Run the command."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pyrovi {pyrovi.__version__}")
        raise typer.Exit


@app.callback(epilog="Example: [bold]pyrovi fit normal_mean[/bold]")
def _pyrovi(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Variational inference on Pyro: fit a model, compare it with the exact posterior, write a page about it."""


@app.command("list", epilog="Example: [bold]pyrovi list[/bold]")
def list_recipes(as_json: AsJson = False) -> None:
    """List the recipes: models of published documents with their guides, data and, where there is one, exact posterior."""
    columns = ("name", "title", "document", "guide", "exact")
    rows = [(r.name, r.title, r.document, _guide_name(r.guide), r.exact is not None) for r in pyrovi.recipes.values()]
    if as_json:
        _print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    table = Table(box=None)
    for column in columns:
        table.add_column(column, no_wrap=column == "name")
    for *words, exact in rows:
        table.add_row(*map(str, words), "yes" if exact else "no")
    _console().print(table)


@app.command(
    "fit",
    epilog="Examples: [bold]pyrovi fit gamma_poisson --out runs/zero[/bold]\n\n"
    "[bold]pyrovi fit coin.py:model --guide normal --data flips.csv --lr 0.05[/bold]",
)
def fit_target(
    target: Target,
    guide: Annotated[str | None, typer.Option(help=f"{', '.join(GUIDES)}, or a guide function of FILE.")] = None,
    data: Annotated[Path | None, typer.Option(help="The model's arguments: arrays of an .npz or columns of a .csv file.")] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="An argument of the recipe's data, or of the model, as in latent=20; repeat it for more."
        ),
    ] = None,
    guide_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What the named guide takes, as in components=3; repeat it for more."),
    ] = None,
    method: Annotated[str | None, tuning(help=f"{', '.join(METHODS)}.")] = None,
    objective: Annotated[str | None, tuning(help=f"{', '.join(OBJECTIVES)}.")] = None,
    gradient: Annotated[str | None, tuning(help=f"{', '.join(GRADIENTS)}.")] = None,
    kl_weight: Annotated[float | None, tuning(help="A weight on the KL part of the ELBO.")] = None,
    kl_annealing: Annotated[int | None, tuning(help="Steps over which that weight rises from 0.")] = None,
    steps: Annotated[int | None, tuning(help="The largest number of steps.")] = None,
    epochs: Annotated[int | None, tuning(help="The same as passes over the data.")] = None,
    particles: Annotated[int | None, tuning(help="Draws a step for the gradient.")] = None,
    lr: Annotated[float | None, tuning(help="The learning rate.")] = None,
    optimizer: Annotated[str | None, tuning(help=f"{', '.join(OPTIMIZERS)}.")] = None,
    schedule: Annotated[str | None, tuning(help=f"Of the learning rate: {', '.join(SCHEDULES)}.")] = None,
    batch_size: Annotated[int | None, tuning(help="Rows of the data a step.")] = None,
    engine: Annotated[str | None, tuning(help=f"What takes the steps: {', '.join(ENGINES)}.")] = None,
    restarts: Annotated[int | None, tuning(help="Independent fits, of which the best is kept.")] = None,
    seed: Annotated[int | None, tuning(help="The same seed gives the same fit.")] = None,
    dtype: Annotated[str | None, tuning(help="float32 or float64.")] = None,
    device: Annotated[str | None, tuning(help="Where to run, as in cuda.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME, or the next free one, when not given.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress; print the run folder only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit a recipe, or a model of your own, and leave a run folder.

    Ends with the comparison with the exact posterior where there is one, else with a summary.

    What is not given is the recipe's own, or else the default of pyrovi.fit.

    Ctrl-C keeps the fit so far. Exit codes: 0 done, 2 a mistake in the arguments, data or model, 3 diverged, 130 interrupted.
    """
    given = {
        "method": method, "objective": objective, "gradient": gradient, "kl_weight": kl_weight, "kl_annealing": kl_annealing,
        "steps": steps, "epochs": epochs, "particles": particles, "lr": lr, "optimizer": optimizer, "schedule": schedule,
        "batch_size": batch_size, "engine": engine, "restarts": restarts, "seed": seed, "dtype": dtype, "device": device,
    }  # fmt: skip
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if guide_option:
        settings["guide_options"] = pairs("--guide-option", guide_option)
    arguments = pairs("--arg", arg or [])
    with redirect_stdout(sys.stderr) if as_json else nullcontext():  # a model that prints must not spoil the document
        name, run = program(target, guide, read(data) if data is not None else None, arguments)
        folder = _folder(name, out, overwrite)
        fit = run(**settings, progress=False if quiet else None)
        try:
            fit.save(folder, overwrite=overwrite)
            exact = _exact(fit)
            table = pyrovi.compare(fit, exact) if exact else fit.summary()
            if not exact:
                table.attrs["elbo"] = fit.estimate_elbo()
            report = pyrovi.report(fit, folder / REPORT, exact=exact)
        except Exception as error:
            if fit.status is not pyrovi.Status.diverged:
                raise
            # Of parameters that ran away there may be nothing to draw, and what that raises is only an echo.
            typer.echo(f"error: diverged: {fit.advice} Nothing can be drawn from them ({_line(error)}).", err=True)
            raise typer.Exit(EXIT_CODES[fit.status]) from error

    if as_json:
        told = {key: getattr(fit, key) for key in ("recipe", "status", "advice", "seconds", "seed", "settings")}
        answer = {**table.attrs, "comparison" if exact else "summary": table}
        _print_json({"target": target, **told, **answer, "run": folder, "report": report})
    elif quiet:
        typer.echo(folder)
        if fit.status in EXIT_CODES:
            typer.echo(f"{fit.status}: {fit.advice}", err=True)
    else:
        _console().print(f"{fit.status} in {fit.seconds:.1f} s. {fit.advice}\n")
        (_print_comparison if exact else _print_summary)(table)
        typer.echo(f"\nrun     {folder}\nreport  {report}")
    raise typer.Exit(EXIT_CODES.get(fit.status, 0))


@app.command(
    "compare",
    epilog="Examples: [bold]pyrovi compare runs/zero[/bold]\n\n[bold]pyrovi compare runs/zero runs/zero-2[/bold]\n\n"
    "[bold]pyrovi compare runs/zero --nuts[/bold]",
)
def compare_runs(
    run: Run,
    other: Annotated[Path | None, typer.Argument(metavar="OTHER", help="Another run folder.", show_default=False)] = None,
    nuts: Annotated[bool, typer.Option("--nuts", help="Beside NUTS: run now, for minutes, or found in RUN as nuts.nc.")] = False,
    draws: Annotated[int, typer.Option(help="Draws from each fit.")] = 10_000,
    csv: Annotated[Path | None, typer.Option(help="Write the whole table there too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set a run beside its recipe's exact posterior, beside another run, or beside NUTS."""
    fit = pyrovi.load(run)
    if nuts and other is not None:
        raise SettingsError("--nuts is a reference of its own; drop it, or the other run")
    reference = pyrovi.load(other) if other is not None else pyrovi.nuts(fit, folder=run) if nuts else _exact(fit)
    if reference is None:
        raise PyroviError(f"there is no exact posterior for run {str(run)!r}; name another run to compare it with, or pass --nuts")
    table = pyrovi.compare(fit, reference, draws=draws)
    if csv is not None:
        table.to_csv(csv, index_label="variable")
    if as_json:
        _print_json({"run": run, "reference": other or ("nuts" if nuts else "exact"), **table.attrs, "comparison": table})
    else:
        _print_comparison(table)


@app.command("check", epilog="Example: [bold]pyrovi check runs/zero[/bold]")
def check_run(
    run: Run,
    restarts: Annotated[int, typer.Option(help="Restarts from dispersed points, which look for other modes.")] = RESTARTS,
    max_draws: Annotated[int | None, typer.Option(help="Draws from q at most.")] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Leave the recipe's exact posterior out.")] = False,
    keep: Annotated[bool, typer.Option(help="Keep the verdict in the run folder, for summary and report.")] = True,
    as_json: AsJson = False,
) -> None:
    """Say whether a run is to be trusted, and why: against the recipe's exact posterior where there is one.

    Exit codes: 0 trust, 10 reweight, 11 enrich, 12 sample; 2 a mistake.
    """
    fit = pyrovi.load(run)
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        verdict = pyrovi.check(fit, None if blind else _exact(fit), restarts=restarts, max_draws=max_draws)
    if keep:
        keep_verdict(run, verdict)
    if as_json:
        _print_json({"run": run, **verdict.to_dict()})
    else:
        _print_verdict(verdict)
    raise typer.Exit(LEVEL_CODES[verdict.level])


@app.command("report", epilog="Example: [bold]pyrovi report runs/zero --out zero.html[/bold]")
def report_run(
    run: Run, out: Annotated[Path | None, typer.Option(help="The page; report.html in the run folder when not given.")] = None
) -> None:
    """Write one self-contained HTML page about a run."""
    fit = pyrovi.load(run)
    typer.echo(pyrovi.report(fit, out or run / REPORT, exact=_exact(fit)))


@app.command("new", epilog="Example: [bold]pyrovi new rain[/bold], which writes rain.py and rain.csv")
def new_start(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it: a Python name.", show_default=False)],
) -> None:
    """Write a starting file with a model, a guide and data for you to edit; it runs as it is.

    Nothing is overwritten.
    """
    program, data = write_start(name)
    typer.echo(f"wrote {program} and {data}; next:\n\n  pyrovi fit {program}:model\n  python {program}")


def _sentence(error: BaseException) -> str | None:
    """What to tell the user of an error; None where the error is pyrovi's own."""
    text = _line(error)
    if isinstance(error, PyroviError):
        place = _place(error.__cause__)
        return f"{text} [{place}]" if place else text
    if place := _place(error):
        return f"{place}: {type(error).__name__}: {text}"
    return text if isinstance(error, OSError) else None


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _place(error: BaseException | None) -> str | None:
    """The line of the user's file that an error comes from; None where it does not come from there."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.walk_tb(error.__traceback__ if error else None)
    own = [f"{frame.f_code.co_filename}:{line}" for frame, line in frames if frame.f_globals.get("__name__") == OWN]
    return own[-1] if own else None


def _folder(name: str, out: Path | None, overwrite: bool) -> Path:
    """The run folder, known to be writable before the fit."""
    if out is None:
        if overwrite:
            raise SettingsError("--overwrite needs --out: without it the run takes a new folder")
        out, count = Path("runs", name), 1
        while out.exists():
            count += 1
            out = Path("runs", f"{name}-{count}")
    elif out.exists() and not overwrite:
        raise RunFolderError(f"run folder {str(out)!r} exists already; name another, or pass --overwrite")
    return check_folder(out, overwrite=overwrite)


def _exact(fit: pyrovi.Fit) -> pyrovi.ExactPosterior | None:
    """The exact posterior, given the data that the fit saw; None where there is none."""
    recipe = pyrovi.recipes.get(fit.recipe or "")
    if recipe is None or recipe.exact is None or fit.problem is None:
        return None
    return recipe.exact(**{k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in fit.problem.data.items()})


def _guide_name(guide: Any) -> str:
    handwritten = getattr(guide, "__module__", "").startswith("pyrovi.guides.")
    return "handwritten" if handwritten else getattr(guide, "__name__", str(guide))


def _console() -> Console:
    # Labels such as beta[age] are not markup.
    return Console(width=None if sys.stdout.isatty() else WIDTH, markup=False, highlight=False, emoji=False)


def _print_comparison(table: pd.DataFrame) -> None:
    error, ratio = table["error"].abs(), table["sd_ratio"]
    worst = error.sort_values(ascending=False, na_position="first", kind="stable").index[:ROWS]
    many = len(table) > ROWS
    _print_table(table.loc[worst] if many else table, COMPARED)
    lines = [f"the {ROWS} rows of {len(table):,} with the largest |error|; of all:"] if many else []
    largest, low, high = (_number(x, 0.1) for x in (error.max(skipna=False), ratio.min(skipna=False), ratio.max(skipna=False)))
    lines.append(f"|error|       at most {largest} sd_ref\nsd_ratio      {low} to {high}")
    if "kl" in table.attrs:
        lines.append(f"KL(q||p)      {table.attrs['kl']} nats\nlog evidence  {table.attrs['log_evidence']:,.3f} nats")
    if "elbo" in table.attrs:
        lines.append(f"ELBO          {table.attrs['elbo']} nats")
    _console().print("\n".join(lines))


def _print_summary(table: pd.DataFrame) -> None:
    if len(table):  # a model may have no latents
        _print_table(table[:ROWS], list(table.columns))
    if len(table) > ROWS:
        _console().print(f"the first {ROWS} rows of {len(table):,}")
    _console().print(f"ELBO  {table.attrs['elbo']} nats")
    if "verdict" in table.attrs:
        _print_verdict(pyrovi.Verdict.from_dict(table.attrs["verdict"]))


def _print_verdict(verdict: pyrovi.Verdict) -> None:
    _console().print(str(verdict))


def _print_table(frame: pd.DataFrame, columns: list[str]) -> None:
    table = Table(box=None)
    table.add_column("variable", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for label, row in frame.iterrows():
        sd = row.get("sd_ref", row.get("sd", 0.0))
        units = {"error": 0.1, "sd_ratio": 0.1, "mcse_mean": row.get("mcse_mean", sd)}
        table.add_row(str(label), *(_number(row[column], units.get(column, sd)) for column in columns))
    _console().print(table)


def _number(value: float, unit: float) -> str:
    """A number to three digits of its unit, which for a mean is the sd."""
    if not 1e-6 < unit < math.inf or not abs(value) < 1e7:
        return f"{value:.4g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(unit)))}f}"


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(_plain(document), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """What JSON can hold: no NaN, no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, pyrovi.Estimate):
        return {"value": _plain(value.value), "se": _plain(value.se)}
    if hasattr(value, "to_dict"):  # a DataFrame
        return _plain(value.to_dict("index"))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


if __name__ == "__main__":
    main()
