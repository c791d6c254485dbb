"""The command `pyrovi`: list the recipes, fit one or a model of your own, compare and report."""

from __future__ import annotations

import functools
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperGroup

import pyrovi
from pyrovi import _completion as completion
from pyrovi._fit import METHODS, installed
from pyrovi._new import write_start
from pyrovi._target import aimed, pairs, read, run_folder
from pyrovi._terminal import (
    console,
    in_few,
    line_of,
    print_comparison,
    print_json,
    print_plain,
    print_status,
    print_summary,
    print_verdict,
    sentence,
)
from pyrovi.engine import ENGINES
from pyrovi.errors import PyroviError, SettingsError
from pyrovi.gradients import GRADIENTS
from pyrovi.guides.auto import GUIDES
from pyrovi.objective import OBJECTIVES
from pyrovi.optim import OPTIMIZERS, SCHEDULES
from pyrovi.restarts import RESTARTS
from pyrovi.runs import REPORT, keep_verdict

__all__ = ["app", "main"]

EXIT_CODES = {"diverged": 3, "interrupted": 130}
LEVEL_CODES = {"trust": 0, "reweight": 10, "enrich": 11, "sample": 12}
UNCALIBRATED = 13


class _Commands(TyperGroup):
    """The commands; a user's mistake is told in a sentence, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `pyrovi list | head -1` is no mistake
            raise
        except KeyboardInterrupt as error:
            typer.echo("interrupted: nothing was finished, so nothing is kept", err=True)
            raise typer.Exit(EXIT_CODES["interrupted"]) from error
        except (Exception, SystemExit) as error:
            told = sentence(error)
            if told is None:
                raise
            typer.echo(f"error: {told}", err=True)
            raise typer.Exit(2) from error


app: typer.Typer = typer.Typer(cls=_Commands, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_show_locals=False)
_tuning = functools.partial(typer.Option, rich_help_panel="Optimisation")
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="A run folder, as `pyrovi fit` leaves it.", show_default=False, autocompletion=completion.runs
    ),
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE.py:MODEL", help="A recipe, or a model in a file.", show_default=False, autocompletion=completion.targets
    ),
]
Guide = Annotated[
    str | None,
    typer.Option(help=f"{', '.join(GUIDES)}, or a guide function of FILE.", autocompletion=completion.guides),
]
DataFile = Annotated[Path | None, typer.Option(help="The model's arguments: arrays of an .npz or columns of a .csv file.")]
Arguments = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="An argument of the data's load, or of the model, as in latent=20; repeat it for more."
    ),
]
GuideOptions = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="What the named guide takes, as in components=3; repeat it for more."),
]


def main() -> None:
    """Run the command."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        for name, version in sorted(installed().items(), key=lambda pair: pair[0] != "pyrovi"):
            typer.echo(f"{name} {version}")
        raise typer.Exit


@app.callback(epilog="Example: [bold]pyrovi fit normal_mean[/bold]")
def _pyrovi(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the versions of pyrovi and of what it rests on."),
    ] = False,
) -> None:
    """Variational inference on Pyro: fit a model, compare it with the exact posterior, write a page about it."""


@app.command("list", epilog="Example: [bold]pyrovi list[/bold]")
def list_recipes(as_json: AsJson = False) -> None:
    """List the recipes: models of published documents with their guides, data and, where there is one, exact posterior."""
    columns = ("name", "title", "document", "guide", "exact")
    rows = [(r.name, r.title, r.document, _guide_name(r.guide), r.exact is not None) for r in pyrovi.recipes.values()]
    if as_json:
        print_json({"recipes": [dict(zip(columns, row, strict=True)) for row in rows]})
        return
    words = [[*texts, "yes" if exact else "no"] for *texts, exact in rows]
    print_plain(words, columns, broken="title", spare=("guide", "document"))


@app.command(
    "fit",
    epilog="Examples: [bold]pyrovi fit gamma_poisson --out runs/zero[/bold]\n\n"
    "[bold]pyrovi fit coin.py:model --guide normal --data flips.csv --lr 0.05[/bold]",
)
def fit_target(
    target: Target,
    guide: Guide = None,
    data: DataFile = None,
    arg: Arguments = None,
    guide_option: GuideOptions = None,
    method: Annotated[str | None, _tuning(help=f"{', '.join(METHODS)}.", autocompletion=completion.names(METHODS))] = None,
    objective: Annotated[str | None, _tuning(help=f"{', '.join(OBJECTIVES)}.", autocompletion=completion.names(OBJECTIVES))] = None,
    gradient: Annotated[str | None, _tuning(help=f"{', '.join(GRADIENTS)}.", autocompletion=completion.names(GRADIENTS))] = None,
    kl_weight: Annotated[float | None, _tuning(help="A weight on the KL part of the ELBO.")] = None,
    kl_annealing: Annotated[int | None, _tuning(help="Steps over which that weight rises from 0.")] = None,
    steps: Annotated[int | None, _tuning(help="The largest number of steps.")] = None,
    epochs: Annotated[int | None, _tuning(help="The same as passes over the data.")] = None,
    particles: Annotated[int | None, _tuning(help="Draws a step for the gradient.")] = None,
    lr: Annotated[float | None, _tuning(help="The learning rate.")] = None,
    optimizer: Annotated[str | None, _tuning(help=f"{', '.join(OPTIMIZERS)}.", autocompletion=completion.names(OPTIMIZERS))] = None,
    schedule: Annotated[
        str | None, _tuning(help=f"Of the learning rate: {', '.join(SCHEDULES)}.", autocompletion=completion.names(SCHEDULES))
    ] = None,
    batch_size: Annotated[int | None, _tuning(help="Rows of the data a step.")] = None,
    engine: Annotated[
        str | None, _tuning(help=f"What takes the steps: {', '.join(ENGINES)}.", autocompletion=completion.names(ENGINES))
    ] = None,
    restarts: Annotated[int | None, _tuning(help="Independent fits, of which the best is kept.")] = None,
    seed: Annotated[int | None, _tuning(help="The same seed gives the same fit.")] = None,
    dtype: Annotated[
        str | None, _tuning(help="float32 or float64.", autocompletion=completion.names(["float32", "float64"]))
    ] = None,
    device: Annotated[str | None, _tuning(help="Where to run, as in cuda.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME, or the next free one, when not given.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    quiet: Quiet = False,
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
    with _kept_clean(as_json or quiet):
        chosen = aimed(target, guide, read(data) if data is not None else None, arguments)
        if chosen.left_out and not (as_json or quiet):
            typer.echo(f"columns that the model does not take: {in_few(chosen.left_out)}")
        folder = run_folder(chosen.name, out, overwrite)
        fit = chosen.fit(**settings, progress=False if quiet else None)
        saved = False
        try:
            fit.save(folder, overwrite=overwrite)
            saved = True
            exact = _exact(fit)
            table = pyrovi.compare(fit, exact) if exact else fit.summary()
            if not exact:
                table.attrs["elbo"] = fit.estimate_elbo()
            report = pyrovi.report(fit, folder / REPORT, exact=exact)
        except KeyboardInterrupt as error:
            if not saved:
                raise
            typer.echo(
                f"interrupted: the fit is kept in {folder}, without its report; `pyrovi report {folder}` writes it", err=True
            )
            raise typer.Exit(EXIT_CODES["interrupted"]) from error
        except Exception as error:
            if fit.status is not pyrovi.Status.diverged:
                raise
            # Of parameters that ran away there may be nothing to draw, and what that raises is only an echo.
            typer.echo(f"error: diverged: {fit.advice} Nothing can be drawn from them ({line_of(error)}).", err=True)
            raise typer.Exit(EXIT_CODES[fit.status]) from error

    if as_json:
        told = {key: getattr(fit, key) for key in ("recipe", "status", "advice", "seconds", "seed", "settings", "verdict")}
        rows = {"comparison" if exact else "summary": table}
        print_json({"target": target, **table.attrs, **told, **rows, "run": folder, "report": report})
    elif quiet:
        if fit.status in EXIT_CODES:
            typer.echo(f"{fit.status}: {fit.advice}", err=True)
    else:
        print_status(fit.status, f"in {fit.seconds:.1f} s. {fit.advice}\n")
        (print_comparison if exact else print_summary)(table)
        typer.echo()
        if fit.verdict is not None:
            print_verdict(fit.verdict)
        else:
            typer.echo(f"No verdict yet: `pyrovi check {folder}` gives one.")
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
        print_json({"run": run, "reference": other or ("nuts" if nuts else "exact"), **table.attrs, "comparison": table})
    else:
        print_comparison(table)


@app.command("check", epilog="Example: [bold]pyrovi check runs/zero[/bold]")
def check_run(
    run: Run,
    restarts: Annotated[int, typer.Option(help="Restarts from dispersed points, which look for other modes.")] = RESTARTS,
    max_draws: Annotated[int | None, typer.Option(help="Draws from q at most.")] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Leave the recipe's exact posterior out.")] = False,
    keep: Annotated[bool, typer.Option(help="Keep the verdict in the run folder, for summary and report.")] = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say whether a run is to be trusted, and why: against the recipe's exact posterior where there is one.

    Exit codes: 0 trust, 10 reweight, 11 enrich, 12 sample; 2 a mistake.
    """
    fit = pyrovi.load(run)
    with _kept_clean(as_json or quiet):
        verdict = pyrovi.check(fit, None if blind else _exact(fit), restarts=restarts, max_draws=max_draws)
    if keep:
        keep_verdict(run, verdict)
    if as_json:
        print_json({"run": run, **verdict.to_dict()})
    elif not quiet:
        print_verdict(verdict)
    raise typer.Exit(LEVEL_CODES[verdict.level])


@app.command(
    "calibrate",
    epilog="Example: [bold]pyrovi calibrate linear_regression --replicates 256 --steps 1000[/bold]",
)
def calibrate_target(
    target: Target,
    guide: Guide = None,
    data: DataFile = None,
    arg: Arguments = None,
    guide_option: GuideOptions = None,
    replicates: Annotated[int, typer.Option(help="Data sets to simulate; 512 show an sd that is 10% off.")] = 512,
    steps: Annotated[int | None, _tuning(help="The largest number of steps.")] = None,
    particles: Annotated[int | None, _tuning(help="Draws a step for the gradient.")] = None,
    lr: Annotated[float | None, _tuning(help="The learning rate.")] = None,
    schedule: Annotated[str | None, _tuning(help="Of the learning rate.", autocompletion=completion.names(SCHEDULES))] = None,
    seed: Annotated[int, _tuning(help="The same seed gives the same calibration.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Write the picture of the ranks there, a .png or .svg.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Ask whether the fits of a model are calibrated: fit data sets that the model itself makes.

    Exit codes: 0 every variable's ranks lie within their bands, 13 some do not, 2 a mistake.
    """
    given = {"steps": steps, "particles": particles, "lr": lr, "schedule": schedule}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if guide_option:
        settings["guide_options"] = pairs("--guide-option", guide_option)
    with _kept_clean(as_json or quiet):
        chosen = aimed(target, guide, read(data) if data is not None else None, pairs("--arg", arg or []))
        found = chosen.calibrate(replicates=replicates, seed=seed, progress=False if quiet else None, **settings)
        if plot is not None:
            found.plot().savefig(plot)
    if as_json:
        told = {key: getattr(found, key) for key in ("passes", "replicates", "draws", "prob", "ended", "seconds", "settings")}
        print_json({"target": target, **told, "table": found.table(), "plot": plot})
    elif not quiet:
        console().print(repr(found))
    raise typer.Exit(0 if found.passes else UNCALIBRATED)


@app.command(
    "report",
    epilog="Examples: [bold]pyrovi report runs/zero --out zero.html[/bold]\n\n"
    "[bold]pyrovi report runs/zero runs/zero-2 --out two.html[/bold]",
)
def report_run(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folders; several are set side by side.",
            show_default=False,
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; report.html in the run folder, of several comparison.html here, when not given.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Give a run without a verdict one first; from seconds to minutes.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write one self-contained HTML page about a run, or about several side by side."""
    fits = {str(run): pyrovi.load(run) for run in runs}
    own = runs[0] / REPORT if len(fits) == 1 else Path("comparison.html")
    first = fits[str(runs[0])]
    exact = _exact(first) if len(fits) == 1 else None  # of several, each may have data of its own
    page = pyrovi.report(fits, out or own, exact=exact, check=check)
    if not quiet:
        typer.echo(page)


@app.command("new", epilog="Example: [bold]pyrovi new rain[/bold], which writes rain.py and rain.csv")
def new_start(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it: a Python name.", show_default=False)],
) -> None:
    """Write a starting file with a model, a guide and data for you to edit; it runs as it is.

    Nothing is overwritten.
    """
    program, data = write_start(name)
    typer.echo(f"wrote {program} and {data}; next:\n\n  pyrovi fit {program}:model\n  python {program}")


def _exact(fit: pyrovi.Fit) -> pyrovi.ExactPosterior | None:
    """The exact posterior, given the data that the fit saw; None where there is none."""
    recipe = pyrovi.recipes.get(fit.recipe or "")
    if recipe is None or recipe.exact is None or fit.problem is None:
        return None
    return recipe.exact(**{k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in fit.problem.data.items()})


def _guide_name(guide: Any) -> str:
    handwritten = getattr(guide, "__module__", "").startswith("pyrovi.guides.")
    return "handwritten" if handwritten else getattr(guide, "__name__", str(guide))


def _kept_clean(wanted: bool) -> AbstractContextManager[object]:
    """Where what a model prints goes to the error stream: it must not spoil the document, or the silence."""
    return redirect_stdout(sys.stderr) if wanted else nullcontext()


if __name__ == "__main__":
    main()
