"""Real posteriors with references: the models prepare, the references are clean, the score and the page say what they should."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites

from pyrovi._isolation import isolated
from pyrovi.inputs import to_tensors

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
NAMES = sorted(path.stem for path in (BENCHMARKS / "posteriors" / "files").glob("*.json"))


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    """The folder on the path, as for a script in it, and what is imported from there forgotten afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
                del sys.modules[name]


@pytest.fixture
def models():
    from posteriors import MODELS

    return MODELS


@pytest.fixture
def page():
    import no_settings

    return no_settings


def test_every_posterior_has_its_files(models):
    assert sorted(models) == NAMES
    assert len(NAMES) >= 26
    assert all(m.data() and m.reference() for m in models.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_has_the_latents_of_the_model_in_their_shapes_where_its_density_is_finite(models, name):
    m = models[name]
    reference = m.reference()
    values = {site: torch.from_numpy(r.mean) for site, r in reference.items()}
    with isolated(seed=0, dtype=torch.float64):
        data = to_tensors(m.data(), torch.float64, torch.device("cpu"))
        trace = prune_subsample_sites(poutine.trace(poutine.condition(m.model, data=values)).get_trace(**data))
        trace.compute_log_prob()
    latent = {n for n, node in trace.nodes.items() if node["type"] == "sample" and n not in trace.observation_nodes}
    assert latent <= {"kind"}  # to be enumerated
    assert {site for site in trace.observation_nodes if site in reference} == set(reference)
    for site, r in reference.items():
        assert trace.nodes[site]["fn"].shape() == r.mean.shape == r.sd.shape
        assert np.isfinite(r.mean).all()
        assert (r.sd >= 0).all()
        assert (r.sd > 0).any()
    assert torch.isfinite(trace.log_prob_sum())


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_of_a_clean_run(models, name):
    """Means known to 0.03 sd and sds to 3%, a third of what a fit may be off; densities that agree to rounding."""
    found = models[name].diagnostics()
    if found["method"] == "exact":
        return
    assert found["r_hat"] < 1.01
    assert found["divergences"] == 0
    assert min(found["ess_bulk"], found["ess_tail"]) > 2_000
    assert max(found.get("mcse_mean", 0), found.get("mcse_sd", 0)) < 0.03
    assert found["agreement"] < 1e-8


def test_the_set_has_every_kind_that_a_user_brings(models):
    kinds = " ".join(m.kind for m in models.values())
    regressions = ["linear", "logistic", "Poisson", "negative", "ordered", "robust"]
    wanted = [*regressions, "AR", "ARMA", "GARCH", "mixture", "change", "Markov", "Gaussian"]
    assert [word for word in wanted if word not in kinds] == []
    hierarchical = [m for m in models.values() if any(word in m.kind for word in ("centred", "item"))]
    assert sum(m.diagnostics()["dimension"] >= 20 for m in hierarchical) >= 8
    assert sum("not centred" in m.kind for m in hierarchical) >= 2


def test_the_data_are_those_of_their_sources(models):
    pytest.importorskip("statsmodels", reason="statsmodels ships the data: pip install 'pyrovi[bench]'")
    pytest.importorskip("sklearn")
    from posteriors import sources

    for name, m in models.items():
        kept, fresh = m.data(), sources.SOURCES.get(name, getattr(sources, name, None))()
        assert set(kept) == set(fresh)
        for key, value in kept.items():
            np.testing.assert_array_equal(value, fresh[key])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_twin_in_numpyro_has_the_same_log_density(models, name):
    pytest.importorskip("numpyro", reason="the peers: pip install 'pyrovi[bench]'")
    from posteriors import reference

    assert reference.agreement(models[name], reference.near_zero(models[name])) < 1e-8


def test_longley_is_solved_exactly(models):
    """The same posterior from the normal equations, scaled and solved in extended precision."""
    m = models["longley"]
    data, reference = m.data(), m.reference()
    x = np.column_stack([np.ones(16), data["x"]]).astype(np.longdouble)
    unit = np.abs(x).max(0)
    precision = (x / unit).T @ (x / unit) + np.diag(1 / (1e5 * unit) ** 2)
    right = (x / unit).T @ data["y"]
    mean = np.linalg.solve(precision.astype(float), right.astype(float))
    for _ in range(3):  # refined by its residual in extended precision
        mean = mean + np.linalg.solve(precision.astype(float), (right - precision @ mean).astype(float))
    b = 0.01 + (data["y"] @ data["y"] - mean @ right) / 2
    assert float((0.01 + 8) / b) == pytest.approx(float(reference["precision"].mean), rel=1e-6)
    np.testing.assert_allclose(mean / unit, np.r_[reference["intercept"].mean, reference["coef"].mean], rtol=1e-6)


def test_a_score_is_the_largest_error_and_leaves_constants_out():
    from posteriors import Reference
    from posteriors.score import score

    reference = {"a": Reference(np.array(1.0), np.array(2.0)), "l": Reference(np.array([1.0, 0.0]), np.array([0.0, 1.0]))}
    unit = np.array([-1.0, 1.0])
    draws = {"a": 1.1 + 2 * unit, "l": np.stack([np.ones(2), 0.94 * unit], 1)}
    found = score(draws, reference)
    assert found.right
    assert (found.error, found.low, found.high, found.worst) == pytest.approx((0.05, 0.94, 1.0, "l"))
    assert not score({**draws, "a": 1.3 + 2 * unit}, reference).right
    assert not score({**draws, "a": 1 + 2.3 * unit}, reference).right
    assert not score({**draws, "a": np.array([np.nan, 1.0])}, reference).right


def test_the_page_counts_what_is_vouched_for_and_wrong(page):
    good = {"seed": 0, "seconds": 1.0, "error": 0.01, "low": 0.99, "high": 1.01, "vouched": True, "level": "trust"}
    wrong = {**good, "error": 0.5, "seconds": 5.0}
    failed = {"seed": 2, "seconds": 0.5, "failed": "ModelError: it"}
    assert page.totals({"a": [good, wrong, failed], "b": [{**good, "vouched": False}]}) == {
        "right": "2 of 4 (50%)",
        "right and vouched for": "1 of 4 (25%)",
        "vouched for and wrong": "1",
        "median": "1.0 s",
        "largest": "5.0 s",
    }
    peers = {"a": {"P": {**wrong, "khat": 0.5}}, "b": {"P": {**wrong, "khat": 0.9}}, "c": {"P": {"failed": "it"}}}
    assert page.peer_totals(peers) == [["P", "0 of 3 (0%)", "1", "1", "5.0 s"]]


@pytest.mark.parametrize("name", ["spector", "eight_schools", "nile_change"])
def test_a_fit_without_settings_is_right_and_vouched_for(page, name):
    row = page.one(name, 0, {})
    assert row.get("right"), page.line(row)
    assert row["vouched"], page.line(row)


FLOOR = 31
"""Of 35, right and vouched for. The goal is 95%, 34 of them; 34 are measured on seed 0 (docs/posteriors.md), 33 on seed 1."""


@pytest.fixture(scope="session")
def seen(tmp_path_factory):
    """A folder of this run's own, and of all workers among whom xdist shares its tests out."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    folder = tmp_path_factory.mktemp("seen") if run is None else tmp_path_factory.getbasetemp().parent / f"seen-{run}"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_fit_without_settings_is_vouched_for_and_wrong_and_most_are_right(page, seen, name):
    """None vouched for and wrong, a seed each; whichever of these tests ends last counts those right and vouched for."""
    row = page.one(name, 0, {})
    assert not row.get("vouched") or page.right(row), page.line(row)
    (seen / name).write_text("good" if row.get("vouched") else page.line(row))
    told = {path.name: path.read_text() for path in seen.iterdir()}
    if len(told) == len(NAMES):
        rest = {name: line for name, line in told.items() if line != "good"}
        assert len(NAMES) - len(rest) >= FLOOR, rest
