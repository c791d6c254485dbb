"""What a fit shows while it runs: one line that is gone in the end, in a terminal, a notebook or a log."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading

import numpy as np
import pytest

from pyrovi import progress
from pyrovi.progress import Progress, Stages, sparkline

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
LOOP = """
import time
import numpy as np
from pyrovi.progress import Progress, Stages
elbo = -100.0 / np.arange(1, 41)
with Progress(40, None) as bar:
    for step in range(1, 41):
        time.sleep(0.02)
        if step == 20:
            print("said by the model")
        if step >= bar.due:
            bar.show(step, elbo)
"""


@pytest.fixture
def in_terminal(monkeypatch):
    """Run a program whose error stream is a terminal; gives what that was written, and what went to a piped standard output."""

    def run(program, columns=80, *, encoding="utf-8", piped=False, **environment):
        for name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "24", **environment}.items():
            monkeypatch.setenv(name, value)
        ours, theirs = pty.openpty()
        written, pipe = [], io.StringIO()
        reader = threading.Thread(target=lambda: written.extend(pieces(ours)))
        reader.start()
        with open(theirs, "w", encoding=encoding, buffering=1) as terminal:
            monkeypatch.setattr(sys, "stderr", terminal)
            monkeypatch.setattr(sys, "stdout", pipe if piped else terminal)
            exec(program, {})
            monkeypatch.undo()
        reader.join()
        os.close(ours)
        return b"".join(written).decode(), pipe.getvalue()

    return run


def pieces(ours):
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux's way to say that nobody writes any more
            return
        if not piece:
            return
        yield piece


def left_on_screen(written):
    """The lines of a terminal that was written to; enough of one for lines that are erased and written again."""
    lines, row = [""], 0
    for piece in re.split(r"(\x1b\[[0-9;?]*[a-zA-Z]|\r\n|\n|\r)", written):
        if piece in ("\n", "\r\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece.endswith("A") and piece.startswith("\x1b"):
            row -= int(piece[2:-1] or 1)
        elif piece in ("\x1b[2K", "\r"):
            lines[row] = "" if piece != "\r" else lines[row]
        elif piece and not piece.startswith("\x1b"):
            lines[row] = piece
    return [line for line in lines if line]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_terminal_sees_one_line_with_the_elbo_which_is_gone_in_the_end(in_terminal, columns):
    written, _ = in_terminal(LOOP, columns)
    shown = [line.strip() for line in re.split(r"[\r\n]", ESCAPES.sub("", written)) if line.startswith("fit")]
    assert len(shown) > 1
    assert max(map(len, shown)) <= columns
    assert re.match(r"fit +\d+%  ELBO -[\d.]+ ± [\d.]+", shown[-1])
    assert all(("left" in line) for line in shown)
    assert left_on_screen(written) == ["said by the model"]


def test_what_a_model_prints_goes_into_its_pipe_and_not_to_the_terminal(in_terminal):
    written, through = in_terminal(LOOP, piped=True)
    assert through == "said by the model\n"
    assert "said by the model" not in written
    assert "ELBO" in written


def test_no_colour_reaches_a_terminal_that_wants_none(in_terminal):
    written, _ = in_terminal(LOOP, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", written)


def test_a_terminal_that_is_not_unicode_gets_plain_characters(in_terminal):
    written, _ = in_terminal(LOOP, encoding="ascii")
    assert written.isascii()
    assert "+/-" in written


STAGES = """
import time
from pyrovi.progress import Stages
with Stages(None) as tell:
    for stage in ("coordinates", "gaussian", "skewed", "restarts"):
        tell(stage)
        time.sleep(0.4)
"""


def test_stages_are_named_with_the_time_and_gone_in_the_end(in_terminal):
    written, _ = in_terminal(STAGES, 60)
    plain = ESCAPES.sub("", written)
    assert "checks → coordinates …" in plain
    assert "gaussian → skewed → restarts …" in plain
    assert "0:01" in plain  # by itself: no stage begins there
    assert left_on_screen(written) == []


@pytest.mark.slow
def test_the_command_shows_it_and_ends_within_80_columns(tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    command = [sys.executable, "-m", "pyrovi.cli", "fit", "normal_mean", "--steps", "2000", "--engine", "pyro", "--out", "r"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path)
    os.close(theirs)
    written = b"".join(pieces(ours)).decode()
    os.close(ours)
    assert process.wait() == 0, written
    lines = re.split(r"[\r\n]+", ESCAPES.sub("", written))
    assert any(line.startswith("fit") and "ELBO" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert left_on_screen(written)[-2:] == ["run     r", "report  r/report.html"]


def test_a_log_gets_the_last_line_only(capsys):
    with Progress(10, True) as bar:
        for step in range(1, 11):
            bar.show(step, np.arange(10.0))
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1
    assert written.err.startswith("fit 100%  ELBO 4.50 ± 0.96")


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", -1.0)
    with Progress(10, True) as bar:
        for step in range(1, 11):
            bar.show(step, np.arange(10.0))
    assert capsys.readouterr().err.count("\n") == 10


@pytest.mark.parametrize("shown", [None, False])
def test_nothing_is_shown_where_nobody_watches(capsys, shown):
    with Progress(10, shown) as bar, Stages(shown) as tell:
        assert bar.due == float("inf")
        bar.show(10, np.arange(10.0))
        tell("gaussian")
    assert capsys.readouterr() == ("", "")


def test_the_clock_is_looked_at_every_fifth_of_a_second_at_most(capsys):
    with Progress(10**9, True) as bar:
        bar.show(1_000_000, np.zeros(1_000_000))
        assert bar.due > 1_000_001


def test_a_course_that_rises_out_of_the_noise_is_drawn_and_noise_is_level():
    noise = np.random.default_rng(0).normal(size=1_000)
    assert set(sparkline(noise, 1.0)) <= set("▅▆▇█")
    rising = sparkline(noise + np.linspace(-100, 0, 1_000), 1.0)
    assert (rising[0], rising[-1], len(rising)) == ("▁", "█", 10)
    assert list(rising) == sorted(rising)


def test_what_is_not_finite_is_left_out_of_the_course():
    assert sparkline(np.array([np.nan, 0.0, -np.inf, 1.0])) == "▁█"
    assert sparkline(np.array([np.nan, np.nan])) == ""


def executed(*cells):
    nbclient = pytest.importorskip("nbclient", reason="runs notebooks; it comes with the extra notebooks")
    nbformat = pytest.importorskip("nbformat", reason="reads notebooks; it comes with the extra notebooks")
    pytest.importorskip("ipykernel", reason="the notebook's Python; it comes with the extra notebooks")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    return nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute().cells


SLOW = LOOP.replace("0.02", "0.05")


@pytest.mark.slow
def test_an_executed_notebook_keeps_no_bar_and_no_warning_and_of_a_quick_fit_nothing():
    quick = LOOP.replace("0.02", "0.001").replace('print("said by the model")', "pass")
    first, second = executed(quick, f"{SLOW}\nwith Stages(None) as tell:\n    time.sleep(1.1)\n    tell('gaussian')\n")
    assert first.outputs == []
    streams = [output for output in second.outputs if output.output_type == "stream"]
    assert [(s.name, s.text) for s in streams] == [("stdout", "said by the model\n")]
    shown = [output for output in second.outputs if output.output_type == "display_data"]
    assert [output.data for output in shown] == [{"text/plain": "", "text/html": ""}] * 2  # one for either, emptied


def test_a_notebook_is_shown_a_bar_with_the_line_beside_it(monkeypatch):
    display = pytest.importorskip("IPython.display", reason="comes with notebooks")
    shown = []

    class Handle:
        def update(self, bundle, raw):
            shown.append(bundle)

    def first(bundle, raw, display_id):
        shown.append(bundle)
        return Handle()

    monkeypatch.setattr(display, "display", first)
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with Progress(10, None) as bar:
        bar.show(5, np.zeros(10))
        bar.show(10, np.zeros(10))
    assert [bool(bundle["text/plain"]) for bundle in shown] == [True, True, False]
    assert 'value="0.5000"' in shown[0]["text/html"]
    assert shown[1]["text/plain"].startswith("fit 100%  ELBO 0.000 ± 0.000")
