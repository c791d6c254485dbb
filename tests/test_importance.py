"""Importance weights against closed forms: q = Normal(0, s) for p = Normal(0, 1), whose k-hat is 1 − s² and whose KL is known."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

import pyrovi
from pyrovi.importance import Weights, beyond_doubt, log_evidence, resample, threshold, weigh


def ratio(s, n, seed=0, shift=7.0):
    """`log p − log q` at draws from q, where the evidence is exp(shift)."""
    z = np.random.default_rng(seed).normal(size=n) * s
    return z, -0.5 * z**2 + 0.5 * (z / s) ** 2 + math.log(s) + shift


@pytest.mark.parametrize("s", [0.6, 0.7, 0.8, 0.9])
def test_k_hat_is_that_of_the_ratio_s_tail(s):
    """For a Normal too narrow it tends to 1 − s² from below, at a logarithm's pace: here within 0.12, three standard errors."""
    found = weigh(ratio(s, 200_000)[1])
    assert found.khat == pytest.approx(1 - s**2, abs=3 * found.khat_se + 0.02)


def test_k_hat_of_a_q_that_is_too_wide_is_negative():
    found = weigh(ratio(1.3, 10_000)[1])
    assert found.khat < 0
    assert found.good


def test_the_standard_error_is_that_over_seeds():
    found = [weigh(ratio(0.7, 10_000, seed)[1]) for seed in range(60)]
    stated = np.mean([w.khat_se for w in found])
    assert np.std([w.khat for w in found], ddof=1) == pytest.approx(stated, rel=0.35)  # of 60 draws, 9% a standard error


@pytest.mark.parametrize("seed", range(20))
def test_the_evidence_is_right_to_its_standard_error(seed):
    found = log_evidence(ratio(1.3, 5_000, seed)[1])
    assert abs(found.value - 7) < 4 * found.se
    assert found.se == pytest.approx(math.sqrt(0.0963 / 5_000), rel=0.1)  # √(E w² − 1), E w² = s²/√(2s² − 1)


def test_the_evidence_needs_no_finite_ratio_of_every_draw():
    _, r = ratio(1.3, 20_000)
    r[::4] = np.nan
    assert log_evidence(r).value == pytest.approx(7 + math.log(0.75), abs=0.02)
    r[1::4] = -np.inf
    assert log_evidence(r).value == pytest.approx(7 + math.log(0.5), abs=0.03)
    assert np.isneginf(weigh(r).log_weights[::4]).all()
    assert log_evidence([np.nan] * 30).value == -math.inf


def test_weights_sum_to_one_and_have_the_posteriors_moments():
    z, r = ratio(0.8, 50_000)
    w = weigh(r).weights
    assert w.sum() == pytest.approx(1)
    assert w @ z == pytest.approx(0, abs=0.03)
    assert w @ z**2 == pytest.approx(1, abs=0.05)


def test_a_constant_ratio_has_the_best_k_hat_there_is():
    for r in (np.zeros(1_000), np.full(1_000, -1e5) + 1e-6 * np.random.default_rng(0).normal(size=1_000)):
        found = weigh(r)
        assert found.khat == -math.inf
        assert found.good
        assert found.ess == pytest.approx(1_000)


def test_ratios_of_which_none_is_finite_are_never_good():
    found = weigh([np.inf, np.nan, -np.inf])
    assert (found.khat, found.ess, found.good) == (math.inf, 0.0, False)
    assert weigh(np.zeros(3) + [0, 1, 2]).good is False  # three draws have no tail


def test_one_draw_that_carries_all_is_told():
    r = np.zeros(10_000)
    r[:3] = [200.0, 100.0, 50.0]
    found = weigh(r + np.random.default_rng(0).normal(size=10_000))
    assert found.ess < 2
    assert found.good is False


def test_the_threshold_falls_with_few_draws():
    assert threshold(100) == 0.5
    assert threshold(10**6) == 0.7
    assert beyond_doubt(0.55, 0.02, 100) is False
    assert beyond_doubt(math.nan, 0.1, 10_000) is False


def test_resampling_gives_each_draw_its_share_to_within_one():
    rng = np.random.default_rng(0)
    w = rng.dirichlet(np.ones(50))
    weights = Weights(np.log(w), 0.0, 0.1, 1 / (w**2).sum(), 50, 0.0)
    index = resample(weights, 1_000, rng)
    counts = np.bincount(index, minlength=50)
    assert np.abs(counts - 1_000 * w).max() < 1
    assert not (np.diff(index) >= 0).all()  # shuffled
    assert len(resample(weights, 1, rng)) == 1


def test_resampling_is_right_on_average():
    w = np.array([0.5, 0.3, 0.2])
    weights = Weights(np.log(w), 0.0, 0.1, 1 / (w**2).sum(), 3, 0.0)
    counts = sum(np.bincount(resample(weights, 2, np.random.default_rng(seed)), minlength=3) for seed in range(4_000))
    assert counts / 8_000 == pytest.approx(w, abs=4 * 0.5 / math.sqrt(8_000))


def test_a_draw_of_weight_zero_is_never_taken():
    weights = Weights(np.log([0.5, 1e-320, 0.5]), 0.0, 0.1, 2.0, 3, 0.0)
    assert set(resample(weights, 99, np.random.default_rng(0))) == {0, 2}


def test_nothing_to_weigh_is_said():
    with pytest.raises(pyrovi.SettingsError, match="give at least one draw"):
        weigh([])
    with pytest.raises(pyrovi.SettingsError, match="at least 1"):
        resample(weigh(np.zeros(30)), 0, np.random.default_rng(0))


@pytest.mark.skipif("PYROVI_OTHER_PYTHON" not in os.environ, reason="PYROVI_OTHER_PYTHON names a Python with the other ArviZ")
def test_both_lines_of_arviz_give_the_same_k_hat():
    program = (
        "import sys, numpy as np; from pyrovi.importance import weigh; from pyrovi._arviz import ARVIZ_1;"
        "z = [np.random.default_rng(i).normal(size=50_000) * s for i, s in enumerate((0.5, 0.7, 0.9, 1.3))];"
        "print(ARVIZ_1, *[weigh(-z**2 / 2 + (z / s)**2 / 2).khat for z, s in zip(z, (0.5, 0.7, 0.9, 1.3))])"
    )
    lines = [
        subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.split()
        for python in (sys.executable, os.environ["PYROVI_OTHER_PYTHON"])
    ]
    assert {line[0] for line in lines} == {"True", "False"}
    ours, theirs = (np.array(line[1:], dtype=float) for line in lines)
    assert ours == pytest.approx(theirs, abs=0.01)
    assert ours[:3] == pytest.approx([0.75, 0.51, 0.19], abs=0.15)
    assert ours[3] < 0
