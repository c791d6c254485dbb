"""The stopping rule: flat is flat, rising is rising, and noise is no evidence."""

import numpy as np
import pytest

from pyrovi.stopping import looks, plateau, tolerance

SEEDS = range(20)


def ar1(rng, n, sd, correlation=0.9):
    noise = rng.normal(size=n) * sd * (1 - correlation**2) ** 0.5
    out = np.empty(n)
    out[0] = rng.normal() * sd
    for i in range(1, n):
        out[i] = correlation * out[i - 1] + noise[i]
    return out


def test_a_flat_trace_of_little_noise_has_converged():
    assert all(plateau(-100 + 0.1 * np.random.default_rng(s).normal(size=1_000), 1).reached for s in SEEDS)


def test_a_rising_trace_has_not():
    rise = np.linspace(0, 1, 1_000)
    assert not any(plateau(-100 + rise + 0.1 * np.random.default_rng(s).normal(size=1_000), 1).reached for s in SEEDS)


def test_noise_is_no_evidence_of_convergence():
    assert not any(plateau(5 * np.random.default_rng(s).normal(size=1_000), 1).reached for s in SEEDS)


def test_a_falling_trace_has_not_converged():
    assert not plateau(np.linspace(0, -1, 500), 1).reached


def test_the_standard_error_holds_for_autocorrelated_noise():
    """Over 200 traces, the gain divided by its standard error has an sd near 1; ignoring the correlation gives 4."""
    z = []
    for seed in range(200):
        judged = plateau(ar1(np.random.default_rng(seed), 2_000, 1.0), 1)
        z.append(judged.gain / judged.se)
    assert 0.8 < np.std(z) < 1.5


def test_a_steady_rise_does_not_count_as_noise():
    judged = plateau(np.linspace(0, 1, 300), 1)
    assert judged.gain > 5 * judged.se


def test_a_short_window_says_nothing():
    assert not plateau(np.zeros(50), 1).reached


def test_the_tolerance_grows_with_the_latents():
    assert tolerance(1) == tolerance(20) == 0.1
    assert tolerance(1_000) == pytest.approx(5.0)


@pytest.mark.parametrize("steps", [1, 99, 200, 399, 400, 5_000, 10_001])
def test_looks_end_at_the_last_step_and_double(steps):
    at = looks(steps)
    assert at[-1] == steps
    assert all(100 <= a <= b <= 2 * a for a, b in zip(at, at[1:], strict=False))
