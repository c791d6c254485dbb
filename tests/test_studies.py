"""The studies in notebooks/ run from top to bottom, and say what they say."""

import os
import runpy
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(os.environ, "PYROVI_SMALL", "1")


def test_the_priors_pull_fades(small, capsys):
    """The share of the prior in the fitted image falls with m as 2/(2 + m) does; 300 steps do not get further than 0.1."""
    study = runpy.run_path(str(NOTEBOOKS / "fading_prior.py"))["study"]
    fitted, exact = study["prior's share, fitted"], study["prior's share, exact"]
    assert fitted.is_monotonic_decreasing
    assert (fitted - exact).abs().max() < 0.1
    assert "KL" in capsys.readouterr().out


@pytest.mark.slow
def test_the_priors_pull_fades_as_it_should():
    study = runpy.run_path(str(NOTEBOOKS / "fading_prior.py"))["study"]
    assert (study["prior's share, fitted"] - study["prior's share, exact"]).abs().max() < 0.01
    assert study["largest error, sd"].max() < 0.15
