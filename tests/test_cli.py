"""The command line: what it prints, what it leaves, and what it says when something is wrong."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import pyrovi
from pyrovi import _terminal, cli

COIN = """
import pyro, pyro.distributions as dist, torch
from torch.distributions import constraints

def model(flips, a=1.0):
    p = pyro.sample("p", dist.Beta(a, 1.0))
    with pyro.plate("flip", len(flips)):
        pyro.sample("flips", dist.Bernoulli(p), obs=flips)

def beta(flips):
    a = pyro.param("alpha", torch.tensor(2.0), constraint=constraints.positive)
    pyro.sample("p", dist.Beta(a, 2.0))
"""
FAST = ("--steps", "20")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder with a model, `coin.py`, and its data; what a file does to Python's import path is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("coin.py").write_text(COIN)
    Path("flips.csv").write_text("flips\n1.0\n0.0\n1.0\n1.0\n")
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def document(*arguments, code=0):
    """The one JSON document that a command prints; NaN and Infinity are not JSON."""
    return json.loads(run(*arguments, "--json", code=code).stdout, parse_constant=pytest.fail)


def complaint(*arguments):
    """The one sentence on standard error of a command that ends with exit code 2 and says nothing else."""
    result = run(*arguments, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_list_names_every_recipe_within_80_columns():
    lines = run("list").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines if line[1] != " "} == {"name", *pyrovi.recipes}


def test_list_goes_without_columns_in_a_narrow_terminal(monkeypatch):
    monkeypatch.setattr(_terminal, "_width", lambda: 60)
    lines = run("list").stdout.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[0].split() == ["name", "title", "exact"]
    assert len(lines) < 4 * len(pyrovi.recipes)


def test_list_as_json_says_which_recipes_have_an_exact_posterior():
    listed = {row["name"]: row for row in document("list")["recipes"]}
    assert {name: row["exact"] for name, row in listed.items()} == {r.name: r.exact is not None for r in pyrovi.recipes.values()}
    assert listed["normal_mean"] == {
        "name": "normal_mean", "title": "the mean of a Normal", "document": "D3", "guide": "handwritten", "exact": True
    }  # fmt: skip


def test_fit_ends_with_status_comparison_evidence_and_what_it_left():
    out = run("fit", "normal_mean", *FAST).stdout
    for said in ("step_limit in", "steps are too few", "mean_ref", "sd_ratio", "KL(q||p)", "log evidence  -136.807 nats"):
        assert said in out
    assert out.endswith("run     runs/normal_mean\nreport  runs/normal_mean/report.html\n")
    left = {path.name for path in Path("runs/normal_mean").iterdir()}
    assert left == {"fit.json", "parameters.safetensors", "data.safetensors", "posterior.nc", "report.html"}


def test_a_fit_is_the_one_that_python_gives():
    told = document("fit", "normal_mean", *FAST, "--seed", 3)
    recipe = pyrovi.recipe("normal_mean")
    table = pyrovi.compare(recipe.fit(steps=20, seed=3), recipe.exact(**recipe.load()))
    assert told["comparison"]["w"]["mean"] == table.loc["w", "mean"]
    assert told["kl"] == pytest.approx({"value": table.attrs["kl"].value, "se": table.attrs["kl"].se}, rel=1e-6)


def test_every_option_reaches_the_fit():
    options = {
        "steps": 12,
        "particles": 3,
        "lr": 0.001,
        "optimizer": "sgd",
        "schedule": "cosine",
        "dtype": "float64",
        "device": "cpu",
    }
    told = document("fit", "coin.py:model", "--data", "flips.csv", "--seed", 7, "--guide", "multivariate_normal", "--batch-size", 2,
                    *(word for name, value in options.items() for word in (f"--{name}", value)))  # fmt: skip
    assert told["settings"].items() >= {**options, "guide": "multivariate_normal", "batch_size": 2}.items()
    assert told["seed"] == 7
    told = document("fit", "coin.py:model", "--data", "flips.csv", "--batch-size", 2, "--epochs", 3)
    assert told["settings"]["steps"] == 6


def test_the_worst_rows_of_many_fit_on_a_screen():
    recipe = pyrovi.recipe("gamma_poisson")
    np.savez("zeros.npz", **recipe.load(3))  # of 178 images: the rest are a matter of seconds
    told = document("fit", "gamma_poisson", "--data", "zeros.npz", "--steps", 3, "--particles", 1)
    table = pd.DataFrame.from_dict(told["comparison"], orient="index")
    assert len(table) == 64
    lines = run("compare", told["run"]).stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    worst = table["error"].abs().sort_values(ascending=False)
    assert [line.split()[0] for line in lines[1 : 1 + _terminal.ROWS]] == list(worst.index[: _terminal.ROWS])
    assert f"at most {worst.iloc[0]:.3f} sd_ref" in "\n".join(lines)
    assert f"{table['sd_ratio'].min():.3f} to {table['sd_ratio'].max():.3f}" in "\n".join(lines)


def test_the_label_of_a_row_is_printed_as_it_is(capsys):
    _terminal._print_figures(pd.DataFrame({"mean": [1.0]}, index=["beta[age]"]), ["mean"])
    assert "beta[age]" in capsys.readouterr().out


def test_a_number_shows_three_digits_of_its_unit():
    assert _terminal._number(1.87738, 0.0995) == "1.8774"
    assert _terminal._number(-14252.3456, 12.0) == "-14252.3"
    assert _terminal._number(1.5e30, 0.1) == "1.5e+30"
    assert _terminal._number(2.5, float("nan")) == "2.5"


def test_a_run_without_a_folder_named_takes_the_next_free_one():
    assert [document("fit", "normal_mean", *FAST)["run"] for _ in range(3)] == [
        "runs/normal_mean", "runs/normal_mean-2", "runs/normal_mean-3"
    ]  # fmt: skip


def test_a_folder_that_exists_is_kept_unless_told_to_overwrite():
    first = document("fit", "normal_mean", *FAST, "--out", "mine", "--seed", 1)
    assert complaint("fit", "normal_mean", "--out", "mine") == (
        "error: run folder 'mine' exists already; name another, or pass --overwrite\n"
    )
    assert pyrovi.load("mine").seed == first["seed"]
    run("fit", "normal_mean", *FAST, "--out", "mine", "--seed", 2, "--overwrite")
    assert pyrovi.load("mine").seed == 2


def test_overwrite_spares_a_folder_that_is_not_a_run():
    Path("thesis").mkdir()
    assert "is not a run folder, so it is not overwritten" in complaint("fit", "normal_mean", "--out", "thesis", "--overwrite")
    assert "--overwrite needs --out" in complaint("fit", "normal_mean", "--overwrite")


def test_the_folder_is_checked_before_the_fit(monkeypatch):
    Path("file").touch()
    monkeypatch.setattr(cli.pyrovi.Recipe, "fit", lambda *_, **__: pytest.fail("the fit was begun"))
    assert "cannot be made" in complaint("fit", "normal_mean", "--out", "file/run")


def test_quiet_prints_nothing_but_errors():
    Path("own.py").write_text("from coin import model as inner\ndef model(flips):\n    print('hello')\n    inner(flips)\n")
    result = run("fit", "own.py:model", "--data", "flips.csv", *FAST, "--quiet", "--out", "run")
    assert result.stdout == ""
    assert "ELBO" not in result.stderr
    assert (Path("run") / "report.html").is_file()
    assert run("report", "run", "--quiet").output == ""
    assert complaint("fit", "nromal_mean", "--quiet").startswith("error: unknown recipe")


def test_ones_own_model_is_fitted_to_columns_of_a_csv_file_and_summarised():
    out = run("fit", "coin.py:model", "--data", "flips.csv", *FAST).stdout
    assert "mcse_mean" in out
    assert "ELBO  -" in out
    assert "KL" not in out
    assert "run     runs/coin-model\n" in out
    assert pyrovi.load("runs/coin-model").settings["guide"] == "normal"


def test_columns_that_the_model_does_not_take_are_left_out_and_named():
    Path("more.csv").write_text("id,flips,who\n1,1.0,ann\n2,0.0,bob\n")
    out = run("fit", "coin.py:model", "--data", "more.csv", *FAST).stdout
    assert out.startswith("columns that the model does not take: id, who\n")
    told = document("fit", "coin.py:model", "--data", "more.csv", *FAST)
    assert told["settings"]["columns_left_out"] == ["id", "who"]
    assert run("fit", "coin.py:model", "--data", "more.csv", *FAST, "--quiet").stdout == ""


def test_a_guide_function_beside_the_model_is_found_by_name():
    told = document("fit", "coin.py:model", "--guide", "beta", "--data", "flips.csv", *FAST)
    assert told["settings"]["guide"] == "beta"
    assert told["summary"]["p"].keys() == {"mean", "sd", "5%", "95%", "mcse_mean"}


def test_a_scalar_of_an_npz_file_is_a_plain_number():
    Path("own.py").write_text(COIN.replace("dist.Beta(a, 1.0)", "dist.Beta({3.0: 1.0}[a], 1.0)"))
    np.savez("flips.npz", flips=np.array([1.0, 0.0]), a=3.0)
    assert document("fit", "own.py:model", "--data", "flips.npz", *FAST)["status"] == "step_limit"


def test_a_recipe_takes_other_data_and_is_held_against_their_exact_posterior():
    np.savez("x.npz", x=np.array([5.0, 7.0]))
    told = document("fit", "normal_mean", "--data", "x.npz", *FAST)
    assert told["comparison"]["w"]["mean_ref"] == pytest.approx(4.0)
    assert document("compare", told["run"])["comparison"]["w"]["mean_ref"] == pytest.approx(4.0)


def test_a_file_can_import_its_neighbours_and_what_it_prints_does_not_spoil_the_json(monkeypatch, tmp_path):
    Path("sub").mkdir()
    Path("sub/neighbour_of_coin.py").write_text(COIN)
    Path("sub/own.py").write_text(
        "from neighbour_of_coin import model as inner\ndef model(flips):\n    print('hello')\n    inner(flips)\n"
    )
    assert document("fit", "sub/own.py:model", "--data", "flips.csv", *FAST)["run"] == "runs/own-model"


def test_a_number_that_is_not_finite_is_null_in_json():
    assert _terminal.plain({"kl": pyrovi.Estimate(float("nan"), 1.0), "rows": [float("inf"), 2]}) == {
        "kl": {"value": None, "se": 1.0}, "rows": [None, 2]
    }  # fmt: skip


def test_a_misspelt_recipe_is_one_sentence_and_exit_code_2():
    assert "unknown recipe 'nromal_mean'; did you mean 'normal_mean'?" in complaint("fit", "nromal_mean")


def test_a_misspelt_model_guide_or_file_is_named_with_its_nearest_match():
    assert "'coin.py' has no model 'modle'; did you mean 'model'? Known: beta, model" in complaint("fit", "coin.py:modle")
    assert "did you mean 'beta'?" in complaint("fit", "coin.py:model", "--guide", "betta")
    assert "unknown guide 'nromal'; did you mean 'normal'?" in complaint("fit", "normal_mean", "--guide", "nromal")
    assert "there is no Python file 'coins.py'" in complaint("fit", "coins.py:model")
    assert "there is no Python file 'flips.csv'" in complaint("fit", "flips.csv:model")
    assert "say which model in 'coin.py', as in coin.py:model" in complaint("fit", "coin.py")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('usage')", "SystemExit: usage"),
        ("def model(:", "SyntaxError: invalid syntax"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_with_its_line(line, said):
    Path("own.py").write_text(f"\n\n{line}\n")
    assert complaint("fit", "own.py:model").startswith(f"error: own.py:3: {said}")


def test_a_model_that_raises_is_named_with_its_line_before_the_fit_and_within_it():
    Path("own.py").write_text("def model():\n    inner()\n\ndef inner():\n    raise RuntimeError('no')\n")
    assert complaint("fit", "own.py:model").endswith("raised RuntimeError: no (data: none) [own.py:5]\n")
    Path("own.py").write_text(
        f"{COIN}\ncalls = []\ndef late(flips):\n    calls.append(1)\n    assert len(calls) < 40, 'tired'\n    model(flips)\n"
    )
    assert complaint("fit", "own.py:late", "--data", "flips.csv", "--engine", "pyro").startswith(
        "error: own.py:17: AssertionError: tired"
    )


def test_data_files_that_cannot_be_read_are_named_with_the_cure():
    def about(name):
        return complaint("fit", "coin.py:model", "--data", name)

    assert "there is no data file 'none.csv'" in about("none.csv")
    assert "data file 'coin.py' is neither .npz nor .csv" in about("coin.py")
    Path("empty.csv").touch()
    assert "data file 'empty.csv' cannot be read (No columns to parse from file); its first line names" in about("empty.csv")
    Path("fake.npz").write_bytes(b"not a zip")
    assert "data file 'fake.npz' cannot be read (it is not an archive); write it with numpy.savez" in about("fake.npz")
    Path("words.csv").write_text("flips\nhead\ntail\n")
    assert "data 'flips' holds" in about("words.csv")
    Path("other.csv").write_text("flip\n1.0\n")
    assert "the model needs data named 'flips'; did you mean the column 'flip'?" in about("other.csv")


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


def test_pickled_objects_in_an_npz_file_are_never_run():
    np.savez("trap.npz", flips=np.array([Trap()], dtype=object))
    assert "pickled objects are not read" in complaint("fit", "coin.py:model", "--data", "trap.npz")
    assert not Path("sprung").exists()


def test_settings_out_of_range_are_exit_code_2():
    assert "steps must be a whole number of at least 1; got 0" in complaint("fit", "normal_mean", "--steps", 0)
    assert "device 'mars' is not available" in complaint("fit", "normal_mean", "--device", "mars")
    assert "No such option" in run("fit", "normal_mean", "--stepz", 3, code=2).stderr


def test_a_diverged_fit_is_kept_and_exits_3():
    nan = "    pyro.factor('f', torch.tensor(float('nan') if len(calls) == 30 else 0.0))\n"
    Path("own.py").write_text(f"{COIN}\ncalls = []\ndef odd(flips):\n    calls.append(1)\n    model(flips)\n{nan}")
    told = document("fit", "own.py:odd", "--data", "flips.csv", "--engine", "pyro", code=3)
    assert told["status"] == "diverged"
    assert pyrovi.load(told["run"]).status == "diverged"
    quiet = run("fit", "own.py:odd", "--data", "flips.csv", "--engine", "pyro", "--quiet", code=3)
    assert quiet.stdout == ""
    assert quiet.stderr.startswith("diverged: ")


def test_a_fit_that_diverged_beyond_drawing_is_told_so_and_exits_3():
    body = "    calls.append(1)\n    assert len(calls) < 31, 'tired'\n    model(flips)\n"
    nan = "    pyro.factor('f', torch.tensor(float('nan') if len(calls) == 30 else 0.0))\n"
    Path("own.py").write_text(f"{COIN}\ncalls = []\ndef odd(flips):\n{body}{nan}")
    result = run("fit", "own.py:odd", "--data", "flips.csv", "--engine", "pyro", code=3)
    assert result.stdout == ""
    assert result.stderr.startswith("error: diverged: At step ")
    assert result.stderr.endswith("Nothing can be drawn from them (tired).\n")


def test_ctrl_c_keeps_the_fit_so_far_and_exits_130():
    interrupt = "    if len(calls) == 30:\n        raise KeyboardInterrupt\n"
    Path("own.py").write_text(f"{COIN}\ncalls = []\ndef stop(flips):\n    calls.append(1)\n{interrupt}    model(flips)\n")
    told = document("fit", "own.py:stop", "--data", "flips.csv", "--engine", "pyro", code=130)
    assert told["status"] == "interrupted"
    assert 0 < pyrovi.load(told["run"]).elbo.size < 30
    assert Path(told["report"]).is_file()


def test_ctrl_c_before_the_first_step_leaves_nothing_and_exits_130():
    Path("own.py").write_text("def model():\n    raise KeyboardInterrupt\n")
    run("fit", "own.py:model", code=130)
    assert not Path("runs").exists()


def test_compare_sets_a_run_beside_the_exact_posterior_or_another_run():
    for seed in (1, 2):
        run("fit", "normal_mean", *FAST, "--seed", seed, "--out", seed)
    exact = document("compare", 1, "--csv", "table.csv")
    assert exact["reference"] == "exact"
    assert exact["kl"]["value"] == pytest.approx(exact["log_evidence"] - exact["elbo"]["value"])
    assert pd.read_csv("table.csv", index_col="variable").loc["w", "error"] == pytest.approx(exact["comparison"]["w"]["error"])
    other = document("compare", 1, 2, "--draws", 100)
    assert other["reference"] == "2"
    assert "kl" not in other
    assert other["comparison"]["w"]["mean_ref"] == pytest.approx(
        document("compare", 2, 1, "--draws", 100)["comparison"]["w"]["mean"]
    )
    assert "KL" not in run("compare", 1, 2).stdout


def test_runs_of_ones_own_model_can_be_compared_but_have_no_exact_posterior():
    for out in ("a", "b"):
        run("fit", "coin.py:model", "--data", "flips.csv", *FAST, "--out", out)
    assert document("compare", "a", "b")["comparison"]["p"]["error"] == 0
    assert "there is no exact posterior for run 'a'; name another run to compare it with" in complaint("compare", "a")


def test_a_folder_that_is_not_a_run_is_exit_code_2():
    for command in ("compare", "report"):
        assert "nowhere is not a run folder" in complaint(command, "nowhere")


def test_report_goes_into_the_run_folder_or_where_told():
    page = document("fit", "normal_mean", *FAST)["report"]
    Path(page).unlink()
    assert run("report", "runs/normal_mean").stdout == f"{page}\n"
    assert "KL" in Path(page).read_text()
    assert run("report", "runs/normal_mean", "--out", "page.html").stdout == "page.html\n"
    assert Path("page.html").is_file()


def test_report_of_several_runs_sets_them_side_by_side():
    for _ in range(2):
        document("fit", "normal_mean", *FAST)
    assert run("report", "runs/normal_mean", "runs/normal_mean-2").stdout == "comparison.html\n"
    page = Path("comparison.html").read_text()
    assert "2 fits side by side" in page
    assert "runs/normal_mean-2" in page


def test_a_table_that_cannot_be_written_is_exit_code_2():
    run("fit", "normal_mean", *FAST)
    assert "nowhere" in complaint("compare", "runs/normal_mean", "--csv", "nowhere/table.csv")


@pytest.mark.parametrize("command", [(), ("list",), ("fit",), ("compare",), ("report",)])
def test_every_help_text_has_an_example(command):
    help_text = run(*command, "--help").stdout
    assert f"pyrovi {' '.join(command)}" in help_text.split("Example")[1]


def test_a_pipe_that_closes_is_no_error(monkeypatch):
    def closed():
        raise BrokenPipeError(errno.EPIPE, "closed")

    monkeypatch.setattr(_terminal, "console", closed)
    assert run("list", code=1).output == ""


def test_a_dataclass_in_the_file_finds_its_module():
    lines = "from __future__ import annotations", "import dataclasses", "@dataclasses.dataclass\nclass Prior:\n    a: float = 1.0"
    Path("own.py").write_text("\n".join(lines))
    assert "'own.py' has no model 'model'; known: Prior" in complaint("fit", "own.py:model")


def test_an_error_of_pyrovis_own_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "_exact", lambda fit: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("fit", "normal_mean", *FAST)


def test_the_module_runs_as_a_program_of_its_own():
    program = [sys.executable, "-m", "pyrovi.cli", "fit", "normal_mean", *FAST, "--json"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["recipe"] == "normal_mean"


def test_the_version_names_what_a_bug_report_needs():
    lines = run("--version").stdout.splitlines()
    assert lines[0] == f"pyrovi {pyrovi.__version__}"
    assert {"torch", "pyro-ppl", "arviz", "numpy", "python"} <= {line.split()[0] for line in lines}


def test_arguments_go_to_the_recipes_loader_and_to_the_model():
    data = pyrovi.load(document("fit", "normal_mean", "--arg", "n=7", "--arg", "prior_sd=2.0", *FAST)["run"]).problem.data
    assert data["x"].shape == (7,)
    assert data["prior_sd"] == 2.0


def test_arguments_go_to_a_models_of_ones_own():
    run("fit", "coin.py:model", "--data", "flips.csv", "--arg", "a=3.5", *FAST, "--out", "own")
    assert json.loads(Path("own/fit.json").read_text())["data"] == {"a": 3.5}


def test_arguments_that_nobody_takes_or_that_are_not_pairs():
    assert "no data named 'nn'" in complaint("fit", "normal_mean", "--arg", "nn=10", *FAST)
    assert "--arg wants NAME=VALUE" in complaint("fit", "normal_mean", "--arg", "n", *FAST)
    assert "takes no option 'rank'" in complaint("fit", "normal_mean", "--guide", "normal", "--guide-option", "rank=2", *FAST)


def test_objective_and_guide_options():
    more = ("--objective", "mean_field", "--kl-weight", "0.5", "--kl-annealing", "10")
    settings = document("fit", "normal_mean", "--guide", "mixture", "--guide-option", "components=3", *more, *FAST)["settings"]
    assert settings["guide_options"] == {"components": 3}
    assert (settings["objective"], settings["kl_weight"], settings["kl_annealing"]) == ("mean_field", 0.5, 10)


def test_ctrl_c_while_the_report_is_written_keeps_the_fit(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.pyrovi, "report", interrupted)
    result = run("fit", "normal_mean", *FAST, code=130)
    assert "interrupted: the fit is kept in runs/normal_mean, without its report" in result.stderr
    assert pyrovi.load("runs/normal_mean").elbo.size == 20


def test_ctrl_c_in_a_check_says_that_nothing_is_kept(monkeypatch):
    run("fit", "normal_mean", *FAST, "--out", "run", "--quiet")
    before = Path("run/fit.json").read_bytes()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.pyrovi, "check", interrupted)
    assert run("check", "run", code=130).stderr == "interrupted: nothing was finished, so nothing is kept\n"
    assert Path("run/fit.json").read_bytes() == before


def test_a_fit_without_a_verdict_names_the_command_that_gives_one():
    lines = run("fit", "normal_mean", *FAST).stdout.splitlines()
    assert lines[-4:] == [
        "No verdict yet: `pyrovi check runs/normal_mean` gives one.", "",
        "run     runs/normal_mean", "report  runs/normal_mean/report.html",
    ]  # fmt: skip


FIGURES = pd.DataFrame(
    {"mean": [1234.5, 0.001], "mean_ref": [1234.6, 0.001], "error": [-0.03, 0.02], "sd": [2.0, 0.0001], "sd_ref": [2.1, 0.0001],
     "sd_ratio": [0.95, 1.0]},
    index=["intercept_of_the_observatory[Paranal, 2024, north]", "tau"],
)  # fmt: skip


@pytest.mark.parametrize(("width", "dropped"), [(60, "sd_ref, mean_ref"), (48, "sd_ref, mean_ref"), (80, ""), (120, "")])
def test_a_comparison_fits_the_terminal_with_names_of_any_width(monkeypatch, capsys, width, dropped):
    monkeypatch.setattr(_terminal, "_width", lambda: width)
    _terminal.print_comparison(FIGURES)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[1].startswith("int" if width < 120 else FIGURES.index[0])
    assert ("…" in lines[1]) == (width < 120)
    assert "-0.030" in lines[1]
    assert [line for line in lines if line.startswith("not shown")] == (
        [f"not shown in {width} columns: {dropped}"] if dropped else []
    )


def test_no_escape_codes_reach_a_pipe(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for command in (("list",), ("fit", "normal_mean", *FAST), ("--help",)):
        assert "\x1b" not in run(*command).output


def test_calibrate_says_whether_ranks_are_within_their_bands():
    told = document(
        "calibrate", "normal_mean", "--replicates", 40, "--steps", 400, "--particles", 8, "--lr", 0.05, "--plot", "r.png"
    )
    assert told["passes"] is True
    assert told["table"]["w"]["within"] is True
    assert Path("r.png").read_bytes().startswith(b"\x89PNG")


def test_calibrate_exits_13_where_ranks_leave_their_bands():
    Path("twice.py").write_text(
        "import pyro, pyro.distributions as dist, torch\n"
        "def load():\n    return {'y': torch.zeros(5)}\n"
        "def model(y):\n    w = pyro.sample('w', dist.Normal(0., 1.))\n"
        "    with pyro.plate('n', len(y)):\n        pyro.sample('y', dist.Normal(w, 1.), obs=y)\n"
        "def guide(y):\n    loc = pyro.param('loc', torch.tensor(0.))\n    pyro.sample('w', dist.Normal(loc, 0.05))\n"
    )
    result = run("calibrate", "twice.py:model", "--guide", "guide", "--replicates", 60, "--steps", 300, "--lr", 0.05, code=13)
    assert "1 of 1 scalars outside" in result.stdout.replace("\n", " ")


def completed(line):
    """What the shell would be offered for a line whose last word is being typed."""
    environment = {"_PYROVI_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    result = CliRunner().invoke(cli.app, [], prog_name="pyrovi", env=environment)
    return result.stdout.split()


def test_the_shell_completes_recipes_models_in_files_guides_and_settings():
    assert completed("pyrovi fit gamma_") == ["gamma_poisson"]
    assert {"coin.py:beta", "coin.py:model"} == set(completed("pyrovi fit coin"))
    assert completed("pyrovi fit coin.py:mo") == ["coin.py:model"]
    assert completed("pyrovi fit coin.py:model --guide multi") == ["multivariate_normal"]
    assert completed("pyrovi fit coin.py:model --objective mean") == ["mean_field"]
    assert completed("pyrovi fit coin.py:model --engine comp") == ["compiled"]
    assert "--json" in completed("pyrovi check --j")


def test_the_shell_completes_run_folders():
    run("fit", "normal_mean", *FAST, "--quiet")
    assert completed("pyrovi check ru") == ["runs/normal_mean"]
