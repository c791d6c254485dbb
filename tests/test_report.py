"""The report: whole in itself, honest about points and gaps, and never half-written."""

import base64
import functools
import hashlib
import itertools
import resource
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyrovi
from pyrovi import plots

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> $\\frac$"
DATA = {"x": [1.0, 2.0, 3.0]}
EMPTY_TAGS = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would find: tags with their attributes, the text, and the colours and ids in use."""

    def __init__(self, source):
        super().__init__()
        self.source = source
        self.tags, self.text, self.open = [], "", []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in EMPTY_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag in ("th", "td", "dt", "dd"):
            self.text += " "

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def ids(self):
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def figure(self, name):
        """The SVG element of one figure."""
        begin = self.source.index(f'aria-labelledby="{name}-title')
        return Page(self.source[self.source.rindex("<svg", 0, begin) : self.source.index("</svg>", begin) + 6])

    @property
    def said(self):
        return " ".join(self.text.split())


def curves(page):
    """Paths in the colour of the exact posterior, without the dashed line of the log evidence."""
    styles = [attributes.get("style", "") for attributes in page.figure("posterior").named("path")]
    return [style for style in styles if "stroke: var(--reference)" in style and "dasharray" not in style]


def report(fit, path, **options):
    return Page(pyrovi.report(fit, path, **options).read_text(encoding="utf-8"))


def normal(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def shapes(x):
    """A scalar, a matrix and a long vector, so that not everything has room."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("matrix", dist.HalfNormal(1.0).expand([2, 3]).to_event(2))
    pyro.sample("long", dist.Normal(0.0, 1.0).expand([2_500]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


@functools.cache
def fitted(model=normal, guide="normal", **settings):
    return pyrovi.fit(model, guide, DATA, **{"steps": 300, "lr": 0.05, "progress": False, **settings})


@pytest.fixture(scope="module")
def recipe():
    pyro.clear_param_store()
    chosen = pyrovi.recipe("linear_regression")
    return chosen.fit(steps=400, progress=False), chosen.exact(**chosen.load())


@pytest.fixture(scope="module")
def page(recipe, tmp_path_factory):
    fit, exact = recipe
    return report(fit, tmp_path_factory.mktemp("page") / "page.html", exact=exact)


def test_page_asks_for_nothing_and_runs_one_script_that_it_names(page):
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    script = page.source.split("<script>")[1].split("</script>")[0]
    assert page.source.count("<script") == 1
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}';" in policy
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "@import" not in page.source
    assert "url(http" not in page.source


def test_page_is_well_formed_small_and_has_each_id_once(page):
    assert not page.open
    assert len(page.source) < 3e6
    assert len(page.ids()) == len(set(page.ids()))
    references = [a["xlink:href"][1:] for a in page.named("use")]
    assert references
    assert set(references) <= set(page.ids())


def test_page_has_a_language_a_heading_order_and_described_figures(page):
    assert page.named("html") == [{"lang": "en"}]
    assert len(page.named("h1")) == 1
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in page.tags}
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    figures = [a for _, a in page.tags if a.get("role") == "img"]
    assert len(figures) == len(page.named("svg")) == len(page.named("title")) - 1 == len(page.named("desc")) == 6
    assert {name for a in figures for name in a["aria-labelledby"].split()} <= set(page.ids())
    assert all(a["scope"] in ("row", "col") for a in page.named("th"))
    assert len(page.named("caption")) == len(page.named("table")) == 2


def test_figures_take_their_colours_from_the_page(page):
    assert "prefers-color-scheme: dark" in page.source
    drawn = page.source[page.source.index("<svg") :]
    assert "var(--ink)" in drawn
    assert "var(--fitted)" in drawn
    assert not [colour for colour in ("#000000", "#ffffff", plots.FITTED, plots.REFERENCE) if colour in drawn]


def test_comparison_says_what_compare_says(recipe, page):
    fit, exact = recipe
    table = pyrovi.compare(fit, exact)
    for said in (str(table.attrs["kl"]), str(table.attrs["elbo"]), f"{exact.log_evidence:,.3f}"):
        assert said in page.said
    worst = table["error"].abs().idxmax()
    assert f"at most {abs(table['error'][worst]):.3f} exact sds ({worst})" in page.said
    assert f"{table['sd_ratio'].min():.3f} to {table['sd_ratio'].max():.3f} times" in page.said
    assert all(f"{ratio:.3f}" in page.text for ratio in table["sd_ratio"])


def test_exact_density_is_drawn_over_every_panel_and_only_with_an_exact_posterior(recipe, page, tmp_path):
    assert len(curves(page)) == 10 + 1  # ten coefficients and the legend
    alone = report(recipe[0], tmp_path / "alone.html")
    assert not curves(alone)
    assert "exact" not in alone.said
    assert "Posterior" in alone.said


def test_exact_density_is_the_marginals_pdf_of_that_element(recipe):
    fit, exact = recipe
    axes = plots.posterior(fit, exact).axes[3]
    x, density = axes.lines[0].get_data()
    assert axes.get_title() == "beta[3]"
    np.testing.assert_allclose(density, [exact.marginals["beta"].pdf(at)[3] for at in x])


def test_histogram_is_a_density_of_all_draws():
    axes = plots.posterior(fitted(), draws=2_000).axes[0]
    heights, edges, _ = axes.patches[0].get_data()
    assert 0.98 < (heights * np.diff(edges)).sum() < 1.0  # the panel leaves out four draws of a thousand at either end


def test_exact_density_that_is_infinite_at_its_edge_leaves_the_histogram_readable():
    exact = pyrovi.ExactPosterior(marginals={"w": stats.gamma(0.1)}, log_evidence=0.0)
    axes = plots.posterior(fitted(), exact).axes[0]
    heights, _, _ = axes.patches[0].get_data()
    assert axes.get_ylim()[1] < 2 * heights.max()


def test_summary_settings_and_seed_are_on_the_page(recipe, page):
    fit, _ = recipe
    summary = fit.summary()
    for name, row in summary.iterrows():
        assert name in page.text
        assert f"{row['sd']:.5f}" in page.text
    for key, value in {**fit.settings, **fit.versions, "seed": fit.seed}.items():
        if key == "phases":
            continue
        assert f"{key} {'–' if value is None else value}" in page.said
    assert fit.advice in page.said
    assert "pyrovi.load(" in page.said


def test_hostile_site_name_stays_text(tmp_path):
    def model(x):
        w = pyro.sample(HOSTILE, dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample(f"x{HOSTILE}", dist.Normal(w, 1.0), obs=x)

    exact = pyrovi.ExactPosterior(marginals={HOSTILE: stats.norm(1.5, 0.5)}, log_evidence=-5.0)
    fit = replace(fitted(model), advice="</p><script>alert(3)</script>")
    page = report(fit, tmp_path / "page.html", exact=exact)
    assert page.named("script") == [{}]  # the page's own
    assert not page.named("img")
    assert "<script>alert" not in page.source
    assert page.text.count(HOSTILE) >= 4  # title, heading, sentence, comparison
    assert "</p><script>alert(3)</script>" in page.text


def test_letters_that_matplotlib_cannot_draw_are_left_to_the_browser(tmp_path):
    def model(x):
        pyro.sample("x", dist.Normal(pyro.sample("平均", dist.Normal(0.0, 1.0)), 1.0).expand([3]).to_event(1), obs=x)

    assert report(fitted(model), tmp_path / "page.html").text.count("平均") >= 4


def test_fit_loaded_without_its_model_is_reported_from_its_stored_draws(tmp_path):
    exact = pyrovi.ExactPosterior(marginals={"w": stats.norm(1.5, 0.5)}, log_evidence=-5.0)
    fitted().save(tmp_path / "run", draws=500)
    fit = pyrovi.load(tmp_path / "run")
    assert fit.problem is None
    page = report(fit, tmp_path / "run" / "report.html", exact=exact)
    assert "From 500 draws" in page.said
    assert "KL(q‖p)" in page.said
    assert len(curves(page)) == 2
    assert "pyrovi.load('run')" in page.said
    assert str(tmp_path) not in page.said
    other = report(replace(fit, seconds=1e9), tmp_path / "run" / "other.html")
    assert "pyrovi.load('run')" not in other.said
    assert pyrovi.load(tmp_path / "run").seed == fit.seed


@pytest.mark.parametrize("stored", [False, True])
def test_point_estimate_says_so_and_shows_no_densities(stored, tmp_path):
    exact = pyrovi.ExactPosterior(marginals={"w": stats.norm(1.5, 0.5)}, log_evidence=-5.0)
    fit = fitted(guide="delta")
    fit = replace(fit, problem=None, stored=fit.to_arviz(10)) if stored else fit
    page = report(fit, tmp_path / "page.html", exact=exact)
    assert "this is an estimate, not a posterior" in page.said
    assert len(page.named("svg")) == 2  # the ELBO and the predictive check
    assert not [column for column in ("sd", "sd_ratio", "KL(q‖p)", "mcse_mean") if column in page.said.split()]
    assert "exact sds from the posterior mean (w)" in page.said
    with pytest.raises(pyrovi.PyroviError, match="point estimate"):
        plots.posterior(fit)


@pytest.mark.parametrize("stored", [False, True])
def test_fit_without_latent_sites_has_a_page(stored, tmp_path):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0), obs=x)

    def guide():
        pass

    fit = fitted(model, guide)
    fit = replace(fit, problem=None, stored=fit.to_arviz(10)) if stored else fit
    page = report(fit, tmp_path / "page.html", exact=pyrovi.ExactPosterior(marginals={}, log_evidence=-5.0))
    assert "no latent variable" in page.said
    assert "Enrich" not in page.said
    assert len(page.named("svg")) == 2
    assert not page.named("table")


@pytest.mark.parametrize(("done", "stored"), [(0, False), (1, False), (1, True)])
def test_diverged_fit_has_a_page_however_early_it_ended(done, stored, tmp_path):
    fit = fitted(lr=1e30)
    assert fit.status == "diverged"
    fit = replace(fit, problem=None, stored=fit.to_arviz(100)) if stored else fit  # in float32: the squares overflow
    page = report(replace(fit, elbo=fit.elbo[:, :done]), tmp_path / "page.html")
    assert ("No step was completed" in page.said) == (done == 0)
    assert "diverged" in page.said


def test_what_has_no_room_is_named(tmp_path):
    page = report(fitted(shapes), tmp_path / "page.html")
    assert "shown: 5 of 2,500 of long" in page.said
    assert "Too large to list here: long" in page.said
    assert "matrix[1, 2]" in page.text
    assert "long[1]" not in page.text


def test_panels_are_shared_among_variables():
    titles = [axes.get_title() for axes in plots.posterior(fitted(shapes), var_names=["long", "w"], max_panels=4).axes]
    assert titles == ["long[0]", "long[1250]", "long[2499]", "w"]
    with pytest.raises(pyrovi.SettingsError, match="did you mean 'matrix'"):
        plots.posterior(fitted(shapes), var_names=["matrx"])


def test_transient_does_not_flatten_the_trace():
    trace = np.concatenate([np.linspace(-1e7, -100.0, 100), np.random.default_rng(0).normal(-100.0, 1.0, 900)])[None]
    whole, late = plots.elbo(replace(fitted(), elbo=trace), pyrovi.ExactPosterior({}, -95.0)).axes
    assert whole.get_ylim()[0] < -9e6
    assert -104 < late.get_ylim()[0] < -102
    assert -95 < late.get_ylim()[1] < -93  # the log evidence is in sight


def test_long_trace_is_thinned_but_its_mean_is_of_every_step():
    trace = np.random.default_rng(0).normal(size=(1, 100_000))
    _, late = plots.elbo(replace(fitted(), elbo=trace)).axes
    points, mean = late.lines
    assert len(points.get_xdata()) <= plots.POINTS
    assert mean.get_ydata()[-1] == pytest.approx(trace[0, -2_001:].mean())


def test_images_share_one_grey_scale():
    figure = plots.images(np.arange(7 * 12.0).reshape(7, 3, 4), [f"image {i}" for i in range(7)], columns=4)
    shown = [axes.images[0] for axes in figure.axes if axes.images]
    assert [image.get_clim() for image in shown] == [(0.0, 83.0)] * 7
    with pytest.raises(pyrovi.SettingsError, match=r"\(n, height, width\); got \(64,\)"):
        plots.images(np.zeros(64))
    with pytest.raises(pyrovi.SettingsError, match="2 images and 1 titles"):
        plots.images(np.zeros((2, 3, 3)), ["one"])


def test_same_fit_gives_the_same_page_whatever_the_matplotlib_style(tmp_path):
    fit = fitted()
    first = report(fit, tmp_path / "first.html").source
    with matplotlib.rc_context({"text.color": "red", "axes.facecolor": "black", "svg.fonttype": "path"}):
        assert report(fit, tmp_path / "second.html").source == first


def test_matplotlib_settings_are_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    pyrovi.report(fitted(), tmp_path / "page.html")
    assert dict(matplotlib.rcParams) == before


def test_import_of_pyrovi_loads_no_plotting():
    code = "import sys, pyrovi; print({'matplotlib', 'arviz'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("place", ["a folder", "inside a file"])
def test_path_that_cannot_be_written_is_one_sentence(place, tmp_path):
    (tmp_path / "a folder").mkdir()
    (tmp_path / "file").write_text("")
    target = tmp_path / ("a folder" if place == "a folder" else "file/page.html")
    with pytest.raises(pyrovi.RunFolderError) as raised:
        pyrovi.report(fitted(), target)
    assert "\n" not in str(raised.value)
    assert str(target) in str(raised.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a folder", "file"]


def test_full_disk_leaves_the_old_page(tmp_path):
    fit, target = fitted(), tmp_path / "page.html"
    target.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_192, limits[1]))  # no file may grow past this: less than a page
    try:
        with pytest.raises(pyrovi.RunFolderError, match="could not be written"):
            pyrovi.report(fit, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_page_is_overwritten_unless_told_not_to(tmp_path):
    fit, target = fitted(), tmp_path / "new" / "page.html"
    assert pyrovi.report(fit, target) == target
    target.write_text("old")
    with pytest.raises(pyrovi.RunFolderError, match="exists already"):
        pyrovi.report(fit, target, overwrite=False)
    assert target.read_text() == "old"
    pyrovi.report(fit, str(target))
    assert target.read_text().startswith("<!DOCTYPE html>")
    assert target.stat().st_mode & 0o077 == target.parent.stat().st_mode & 0o066  # as any file made here
