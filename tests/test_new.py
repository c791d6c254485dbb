"""`pyrovi new`: the starting file runs as it is, and nothing is overwritten or hidden."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pyrovi
from pyrovi import cli
from pyrovi._new import write_start
from pyrovi.errors import SettingsError

TRUTH = {"intercept": 1.0, "slope": 2.0, "noise": 0.5}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def test_new_writes_two_files_and_names_the_next_two_commands():
    said = run("new", "rain").stdout
    assert {path.name for path in Path().iterdir()} == {"rain.py", "rain.csv"}
    assert said == "wrote rain.py and rain.csv; next:\n\n  pyrovi fit rain.py:model\n  python rain.py\n"


def test_the_command_it_names_fits_the_file_and_finds_what_the_data_were_made_with():
    run("new", "rain")
    run(
        "fit",
        "rain.py:model",
        "--guide",
        "guide",
        "--steps",
        1_500,
        "--lr",
        0.02,
        "--particles",
        4,
        "--seed",
        0,
        "--engine",
        "traced",
        "--out",
        "run",
    )
    table = pyrovi.load("run").summary()
    for name, value in TRUTH.items():  # within three posterior sds: the data have noise of their own
        assert abs(table.loc[name, "mean"] - value) < 3 * table.loc[name, "sd"], name
    assert pyrovi.load("run").settings["guide"] == "handwritten"


@pytest.mark.slow
def test_the_file_runs_as_a_program_of_its_own():
    write_start("rain")
    done = subprocess.run([sys.executable, "-W", "error", "rain.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "slope" in done.stdout
    assert Path("rain.html").is_file()


def test_a_py_at_the_end_of_the_name_is_dropped():
    assert write_start("rain.py") == (Path("rain.py"), Path("rain.csv"))


@pytest.mark.skipif(shutil.which("ruff", path=Path(sys.executable).parent) is None, reason="ruff comes with the extra dev")
@pytest.mark.parametrize("name", ["m", "of_twenty_characters"])
def test_the_file_passes_ruff_as_it_comes_and_with_this_projects_rules(name):
    program, _ = write_start(name)
    for command in (
        ("check", "--isolated"),
        ("check", "--isolated", "--select", "E,F,I,UP,B,SIM,PT,ANN"),
        ("format", "--check", "--isolated"),
    ):
        done = subprocess.run(
            [Path(sys.executable).with_name("ruff"), *command, program], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("ending", ["py", "csv"])
def test_nothing_is_overwritten(ending):
    Path(f"rain.{ending}").write_text("mine")
    result = run("new", "rain", code=2)
    assert result.stderr == f"error: 'rain.{ending}' exists already; use another name, or move it away\n"
    assert [path.read_text() for path in Path().iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["", "my model", "1st", "class", "a/b", "../up", "é", "-"])
def test_a_name_that_python_cannot_import_is_refused(name):
    with pytest.raises(SettingsError, match="cannot name a Python file; use letters, digits and underscores"):
        write_start(name)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ["random", "torch", "pyrovi", "numpy"])
def test_a_name_that_would_hide_a_module_is_refused(name):
    with pytest.raises(SettingsError, match=f"would hide the Python module '{name}'"):
        write_start(name)


def test_load_takes_arguments_of_the_command_and_gives_way_to_data():
    Path("own.py").write_text(
        "import pyro, pyro.distributions as dist, torch\n"
        "def load(n=3):\n    return {'y': torch.full((n,), 2.0)}\n"
        "def model(y, scale=1.0):\n    w = pyro.sample('w', dist.Normal(0., 1.))\n"
        "    with pyro.plate('row', len(y)):\n        pyro.sample('y', dist.Normal(w, scale), obs=y)\n"
    )
    fast = ("--guide", "normal", "--steps", 20)
    run("fit", "own.py:model", *fast, "--arg", "n=7", "--arg", "scale=0.5", "--out", "a")
    data = pyrovi.load("a").problem
    assert data is None  # the model's file is not kept
    Path("y.csv").write_text("y\n1.0\n2.0\n")
    run("fit", "own.py:model", *fast, "--data", "y.csv", "--out", "b")
    stored = {name: pyrovi.load(name).stored["observed_data"]["y"].size for name in "ab"}
    assert stored == {"a": 7, "b": 2}


def test_a_load_that_gives_no_arguments_by_name_is_refused():
    Path("own.py").write_text("def load():\n    return [1.0]\ndef model(y):\n    pass\n")
    said = run("fit", "own.py:model", code=2).stderr
    assert said.startswith("error: load() of 'own.py' gives list, not the model's arguments by name, as in {'x': x}")
