"""The notebooks: what is committed is what the sources say, executed; the sources run at a small size, with warnings as errors."""

import base64
import functools
import importlib.util
import json
import os
import re
import runpy
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
SOURCES = sorted(path for path in NOTEBOOKS.glob("*.py") if path.stem != "execute")
LARGEST = 1_500_000
MACHINE = re.compile(r"/(home|tmp|root|work|Users|private|opt|usr)/|[A-Z]:\\\\|\.venv|site-packages|0x[0-9a-f]{6,}")
"""Paths of a machine, and addresses in its memory."""

named = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


@functools.cache
def executed(source):
    path = source.with_suffix(".ipynb")
    assert path.exists(), f"{source.name} has not been executed: make notebooks"
    return json.loads(path.read_text(encoding="utf-8"))


def outputs(notebook):
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def text_of(output):
    """All that can be read of an output; pictures apart."""
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/png")}
    return "".join(["".join(output.get("text", "")), *("".join(value) for value in data.values())])


@named
def test_the_executed_notebook_holds_the_cells_of_its_source(source):
    jupytext = pytest.importorskip("jupytext", reason="jupytext reads the notebooks' sources")
    wanted = [(cell.cell_type, cell.source) for cell in jupytext.read(source, fmt="py:percent").cells]
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in executed(source)["cells"]]
    assert found == wanted, f"{source.name} has changed since it was executed: make notebooks"


@named
def test_it_was_run_from_top_to_bottom_without_an_error(source):
    counts = [cell["execution_count"] for cell in executed(source)["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for output in outputs(executed(source)) if output["output_type"] == "error"]


@named
def test_it_has_pictures_and_is_small(source):
    pictures = [output["data"]["image/png"] for output in outputs(executed(source)) if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert source.with_suffix(".ipynb").stat().st_size < LARGEST


@named
def test_it_says_nothing_of_the_machine_that_ran_it(source):
    notebook = executed(source)
    told = [hit.group() for output in outputs(notebook) if (hit := MACHINE.search(text_of(output)))]
    assert not told
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert not [cell for cell in notebook["cells"] if cell["metadata"]]
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]


@named
def test_it_begins_with_a_title(source):
    first = executed(source)["cells"][0]
    assert first["cell_type"] == "markdown"
    assert "".join(first["source"]).startswith("# ")


def test_progress_bars_and_timings_are_left_out():
    pytest.importorskip("jupytext", reason="execute.py reads the sources with it")
    pytest.importorskip("nbclient", reason="execute.py runs the notebooks with it")
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    spec = importlib.util.spec_from_file_location("execute", NOTEBOOKS / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    bar = new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1f"}, "text/plain": "fit: 0%"})
    emptied = new_output("display_data", {"text/html": "", "text/plain": ""})
    kept = new_output("stream", name="stdout", text="kept")
    warned = new_output("stream", name="stderr", text="fit: 10%")
    cell = new_code_cell("1", outputs=[warned, bar, emptied, kept], metadata={"execution": {}})
    found = execute.plain(new_notebook(cells=[cell], metadata={"widgets": {}}), "name")
    assert found.cells[0].outputs == [kept]
    assert found.cells[0].metadata == {}
    assert found.cells[0].id == "name-0"
    assert "widgets" not in found.metadata


@pytest.fixture
def small(monkeypatch):
    """The sources at their small size, off screen; no figure is left open."""
    import matplotlib

    monkeypatch.setitem(os.environ, "PYROVI_SMALL", "1")
    before = matplotlib.get_backend()
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield
    pyplot.close("all")
    matplotlib.use(before)


def test_the_priors_pull_fades():
    """As executed in full: the prior's share in the fitted image is 2/(2 + m), and no mean is off by 0.15 posterior sds."""
    (table,) = [output for output in outputs(executed(NOTEBOOKS / "d2_jax.py")) if "prior's share, fitted" in text_of(output)]
    rows = [line.split() for line in table["data"]["text/plain"][2:]]
    for m, _, fitted, error, _ in rows:
        assert abs(float(fitted) - 2 / (2 + int(m))) < 0.01
        assert float(error) < 0.15
    assert [row[0] for row in rows] == ["1", "2", "5", "20", "178"]


@pytest.mark.slow
@named
def test_the_source_runs_at_a_small_size(source, small):
    runpy.run_path(str(source), run_name="__main__")
