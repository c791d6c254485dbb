"""The benchmarks' table, on figures made up: what the page says follows from the pairs, and rows that are not run again stay."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """The command's module; its neighbours import one another by bare names, as a script's do."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import bench

        yield bench
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
                del sys.modules[name]


@pytest.fixture
def job(bench):
    return bench.Job("key", "a job", "a peer", 0.5, lambda rounds: [])


def test_the_ratio_is_the_median_pairs(bench, job):
    """Figures that drift together, as on a machine that slows down, leave the ratio alone: 0.4 although 4/9 of the medians."""
    row = bench.table.row(job, [(1.0, 2.0), (4.0, 10.0), (40.0, 9.0), (0.3, 1.0), (40.0, 100.0)])
    assert row.ratio == "0.400 (0.300 to 4.444)"
    assert (row.pyrovi, row.theirs) == ("4 s", "9 s")


@pytest.mark.parametrize(
    ("ours", "at_least", "verdict"),
    [(0.49, False, "met"), (0.51, False, "**not met**"), (0.49, True, "**not met**"), (0.51, True, "met"), (0.5, False, "met")],
)
def test_a_target_is_met_from_the_right_side(bench, job, ours, at_least, verdict):
    row = bench.table.row(job._replace(at_least=at_least), [(ours, 1.0)] * 3)
    assert row.verdict == verdict
    assert row.target == ("≥ 0.5" if at_least else "≤ 0.5")


def test_a_row_without_a_target_has_no_verdict(bench, job):
    row = bench.table.row(job._replace(target=None), [(1.0, 2.0)])
    assert (row.target, row.verdict) == ("", "")


def test_rows_that_were_not_run_again_stay_on_the_page(bench):
    first, second = bench.JOBS[0], bench.JOBS[3]
    old = [bench.table.row(job, [(1.0, 4.0)]) for job in (first, second)]
    points = {"restarts": [bench.curves.Point(1, 5.0, 6.0), bench.curves.Point(64, 1_234.5, float("nan"))]}
    text = bench.page(old, points, "a machine")
    new = bench.table.row(second, [(3.0, 4.0)])
    assert bench.table.merged([new], bench.table.rows_of(text), bench.JOBS) == [old[0], new]
    read = bench.curves.read(text)["restarts"]
    assert read[0] == points["restarts"][0]
    assert read[1][:2] == (64, 1_234.5)


def test_a_linear_cost_grows_with_exponent_one(bench):
    """Of the last interval: before it, what a step costs anyway hides the growth."""
    points = [bench.curves.Point(size, 3.0 * max(size, 8), 1.0) for size in (1, 8, 64)]
    assert bench.curves.growth(points) == pytest.approx(1.0)


def test_a_missing_peer_is_left_out_with_a_line(bench, job, capsys):
    assert bench.measured(job._replace(needs=("no_such_package",)), 5) is None
    assert "key is left out: no_such_package not installed" in capsys.readouterr().out


def test_a_row_that_fails_does_not_take_the_others_along(bench, job, capsys):
    def broken(rounds):
        raise ValueError("no such thing")

    assert bench.measured(job._replace(measure=broken), 5) is None
    assert "key has FAILED: ValueError: no such thing" in capsys.readouterr().out


def test_which_side_comes_first_changes_from_round_to_round(bench):
    order = []
    pairs = bench.peer("timing").in_turn(lambda: order.append("a") or 1.0, lambda: order.append("b") or 2.0, 3)
    assert pairs == [(1.0, 2.0)] * 3
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_jobs_have_keys_and_rows_of_their_own(bench):
    assert len({job.key for job in bench.JOBS}) == len(bench.JOBS)
    assert len({(job.name, job.peer) for job in bench.JOBS}) == len(bench.JOBS)


def test_the_optimum_of_the_eight_schools_is_one(bench):
    """No Gaussian nearby does better, by a Monte Carlo ELBO of the Pyro model: 20,000 draws, the same for all."""
    import torch

    problems, data = bench.peer("problems"), bench.peer("problems").eight_schools()
    y, s = (torch.as_tensor(data[name]) for name in "ys")
    best = problems.optimum()
    noise = torch.randn(20_000, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.cat([noise, -noise])

    def elbo(loc, sd):
        u = torch.as_tensor(loc) + torch.as_tensor(sd) * noise
        mu, tau, z = u[:, 0], u[:, 1].exp(), u[:, 2:]
        prior = -(mu**2) / 50 - torch.log1p((tau / 5) ** 2) + u[:, 1] - (z**2).sum(1) / 2
        likelihood = -(((y - mu[:, None] - tau[:, None] * z) / s) ** 2).sum(1) / 2
        return float((prior + likelihood).mean() + torch.as_tensor(sd).log().sum())

    at = elbo(*best)
    for i in range(10):
        for change in (-0.2, 0.2):
            loc, sd = best.loc.copy(), best.sd.copy()
            loc[i] += change * best.sd[i]
            assert elbo(loc, best.sd) < at
            sd[i] *= 1 + change
            assert elbo(best.loc, sd) < at
