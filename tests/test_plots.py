"""The figures: what is drawn is what was given, where it belongs, and bad input is one sentence before anything is drawn."""

import functools
import subprocess
import sys

import matplotlib.colors
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.path import Path
from scipy import stats

import pyrovi
from pyrovi import plots
from pyrovi.plots.style import CLASSES


def rng(seed=0):
    return np.random.default_rng(seed)


X = rng().permutation(np.linspace(-3, 3, 30))
MEAN, EPISTEMIC, ALEATORIC = np.sin(X), 0.1 + 0.1 * X**2, 0.3 + 0.1 * np.cos(X)


def limits(band, x):
    """Lower and upper edge of a filled band at each x."""
    corners = band.get_paths()[0].vertices
    edges = [corners[np.isclose(corners[:, 0], at), 1] for at in x]
    return np.array([e.min() for e in edges]), np.array([e.max() for e in edges])


def line(figure, name):
    (found,) = [drawn for drawn in figure.axes[0].lines if drawn.get_label() == name]
    return found.get_data()


def names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def shown(figure):
    """The arrays of the images, by their axes' order, with the limits of their scales."""
    drawn = [axes.images[0] for axes in figure.axes if axes.images]
    return [image.get_array().data for image in drawn], [image.get_clim() for image in drawn]


# Bands


def test_bands_are_the_mean_and_so_many_sds_of_either_kind_about_it():
    figure = plots.bands(X, MEAN, EPISTEMIC, ALEATORIC, level=0.5)
    outer, inner = figure.axes[0].collections
    z = stats.norm.ppf(0.75)
    for band, sd in ((inner, EPISTEMIC), (outer, np.sqrt(EPISTEMIC**2 + ALEATORIC**2))):
        low, high = limits(band, X)
        np.testing.assert_allclose(low, MEAN - z * sd)
        np.testing.assert_allclose(high, MEAN + z * sd)
    assert names(figure) == ["50%, with aleatoric", "50%, epistemic", "mean"]


def test_line_runs_from_left_to_right_whatever_the_order_of_x():
    figure = plots.bands(X, MEAN, EPISTEMIC, truth=2 * MEAN)
    order = np.argsort(X)
    np.testing.assert_array_equal(line(figure, "mean"), (X[order], MEAN[order]))
    np.testing.assert_array_equal(line(figure, "truth"), (X[order], 2 * MEAN[order]))
    median = line(plots.quantile_bands(X, [MEAN - 1, MEAN, MEAN + 1]), "median")
    np.testing.assert_array_equal(median, (X[order], MEAN[order]))


@pytest.mark.parametrize(
    ("sds", "expected"),
    [
        ((0.0, 0.0), ["mean"]),
        ((EPISTEMIC, 0.0), ["90%, epistemic", "mean"]),
        ((0.0, 0.4), ["90%, with aleatoric", "mean"]),
    ],
)
def test_band_without_width_is_left_out(sds, expected):
    figure = plots.bands(X, MEAN, *sds)
    assert names(figure) == expected
    assert len(figure.axes[0].collections) == len(expected) - 1


def test_tensors_and_columns_are_drawn_as_arrays_are():
    x, mean, epistemic = (torch.tensor(a, requires_grad=True) for a in (X[:, None], MEAN[:, None], EPISTEMIC))
    figure, same = plots.bands(x, mean, epistemic), plots.bands(X, MEAN, EPISTEMIC)
    np.testing.assert_array_equal(line(figure, "mean"), line(same, "mean"))
    np.testing.assert_array_equal(limits(figure.axes[0].collections[0], X), limits(same.axes[0].collections[0], X))


def test_observed_points_are_where_they_were_observed_and_may_be_missing():
    seen = np.array([1.0, np.nan, 3.0])
    figure = plots.bands(X, MEAN, observed=([0.5, 0.6, 0.7], seen), labels=("age", "height, m"))
    np.testing.assert_array_equal(line(figure, "observed"), ([0.5, 0.6, 0.7], seen))
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("age", "height, m")


def test_quantiles_pair_from_the_outside_in():
    rows = MEAN + np.array([-3.0, -1.0, 0.1, 2.0, 4.0])[:, None]
    figure = plots.quantile_bands(X, rows, (0.05, 0.25, 0.5, 0.75, 0.95))
    outer, inner = figure.axes[0].collections
    np.testing.assert_array_equal(limits(outer, X), (rows[0], rows[4]))
    np.testing.assert_array_equal(limits(inner, X), (rows[1], rows[3]))
    assert names(figure) == ["5% to 95%", "25% to 75%", "median"]
    assert names(plots.quantile_bands(X, MEAN[None], [0.9])) == ["90%"]


def test_legend_shows_a_band_as_dark_as_it_is_drawn():
    figure = plots.bands(X, MEAN, EPISTEMIC, ALEATORIC)
    outer, inner = (band.get_alpha() for band in figure.axes[0].collections)
    handles = [patch.get_alpha() for patch in figure.legends[0].get_patches()]
    assert handles == pytest.approx([outer, 1 - (1 - outer) * (1 - inner)])


# Forecasts

T, H = np.arange(1900.0, 1920.0), np.arange(1920.0, 1925.0)
Y = rng(1).normal(size=20)
PAST, FUTURE = rng(2).normal(size=(200, 20)), rng(3).normal(size=(200, 5))


def test_fan_is_the_quantiles_of_the_draws_and_the_forecast_follows_the_data():
    figure = plots.forecast(T, Y, PAST, H, FUTURE, levels=(0.9, 0.5))
    past_outer, past_inner, outer, inner = figure.axes[0].collections
    for band, draws, at, levels in (
        (past_outer, PAST, T, (0.05, 0.95)),
        (past_inner, PAST, T, (0.25, 0.75)),
        (outer, FUTURE, H, (0.05, 0.95)),
        (inner, FUTURE, H, (0.25, 0.75)),
    ):
        np.testing.assert_allclose(limits(band, at), np.quantile(draws, levels, axis=0))
    medians = [drawn.get_data() for drawn in figure.axes[0].lines if drawn.get_label() == "median"]
    np.testing.assert_allclose(medians[0], (T, np.median(PAST, axis=0)))
    np.testing.assert_allclose(medians[1], (H, np.median(FUTURE, axis=0)))
    assert [drawn.get_xdata() for drawn in figure.axes[0].lines if drawn.get_linestyle() == ":"] == [[T[-1], T[-1]]]


def test_moments_and_a_frozen_distribution_have_the_same_fan():
    mean, sd = Y, 1 + Y**2
    pair = plots.forecast(T, Y, (mean, sd), H, (Y[:5], 2.0))
    frozen = plots.forecast(T, Y, stats.norm(mean, sd), H, stats.norm(Y[:5], 2.0))
    for one, other, at in zip(pair.axes[0].collections, frozen.axes[0].collections, (T, T, H, H), strict=True):
        np.testing.assert_allclose(limits(one, at), limits(other, at))


def test_exact_bands_are_drawn_over_those_of_q():
    exact = stats.norm(Y, 0.5)
    figure = plots.forecast(T, Y, PAST, H, FUTURE, exact=(exact, None), actual=[1.0, 2.0, np.nan, 4.0, 5.0])
    drawn = [drawn.get_data() for drawn in figure.axes[0].lines if drawn.get_color() == plots.REFERENCE]
    np.testing.assert_allclose(drawn, [(T, exact.ppf(p)) for p in (0.05, 0.5, 0.95)])
    np.testing.assert_array_equal(line(figure, "observed later"), (H, [1.0, 2.0, np.nan, 4.0, 5.0]))


def test_dates_stay_dates():
    days = np.arange("2024-01-01", "2024-01-26", dtype="datetime64[D]")
    figure = plots.forecast(days[:20], Y, None, days[20:], FUTURE)
    assert line(figure, "observed")[0][0] == days[0]


# Images


def test_scale_is_shared_or_each_images_own_and_the_figure_says_which():
    stack = np.arange(3 * 12.0).reshape(3, 3, 4) - 10
    assert shown(plots.images(stack))[1] == [(-10, 25)] * 3
    assert shown(plots.images(stack, own_scale=True))[1] == [(-10, 1), (2, 13), (14, 25)]
    assert shown(plots.images(stack, signed=True))[1] == [(-25, 25)] * 3
    assert shown(plots.images(stack, signed=True, own_scale=True))[1] == [(-10, 10), (-13, 13), (-25, 25)]
    assert plots.images(stack).get_supxlabel() == "white −10, black 25"
    assert plots.images(np.array([[[1e-6, 0.97]]])).get_supxlabel() == "white 0, black 0.97"
    assert plots.images(stack, signed=True).get_supxlabel() == "blue −25, white 0, red 25"
    assert plots.images(stack, own_scale=True).get_supxlabel().startswith("each on its own scale")


def test_colours_are_those_that_the_figure_names():
    image = plots.images(np.array([[[-1.0, 0.0, 1.0]]]), signed=True).axes[0].images[0]
    (low, middle, high) = image.to_rgba(image.get_array())[0, :, :3]
    assert low[2] > 2 * low[0]  # blue
    assert middle.min() > 0.95  # white
    assert high[0] > 2 * high[2]  # red
    grey = plots.images(np.array([[[-1.0, 0.0, 1.0]]])).axes[0].images[0]
    np.testing.assert_allclose(grey.to_rgba(grey.get_array())[0, [0, 2], :3], [[1, 1, 1], [0, 0, 0]])


def test_every_image_has_its_reconstruction_right_under_it():
    above = rng().normal(size=(5, 2, 3))
    figure = plots.reconstructions(above, above + 10, columns=3)
    places = {}
    for axes in figure.axes:
        if axes.images:
            spot = axes.get_subplotspec()
            places[spot.rowspan.start, spot.colspan.start] = axes.images[0].get_array().data
    for i in range(5):
        row, column = 2 * (i // 3), i % 3
        np.testing.assert_array_equal(places.pop((row, column)), above[i])
        np.testing.assert_array_equal(places.pop((row + 1, column)), above[i] + 10)
    assert not places
    assert set(shown(figure)[1]) == {(above.min(), above.max() + 10)}


# Latents


def test_first_row_of_the_grid_is_the_top_of_the_second_latent():
    figure = plots.latent_grid(lambda z: z[:, :1] + 10 * z[:, 1:], (1, 1), limit=3.0, n=4)
    np.testing.assert_allclose(shown(figure)[0][0], np.linspace(-3, 3, 4) + 10 * np.linspace(3, -3, 4)[:, None], rtol=1e-6)


def test_image_stands_at_its_code_and_is_not_turned():
    seen = []

    def decode(z):
        assert not torch.is_grad_enabled()
        seen.append(z)
        return torch.arange(6.0).reshape(1, 2, 3) + 100 * z[:, :1, None]

    figure = plots.latent_grid(decode, (2, 3), limit=2.0, n=5)
    mosaic = shown(figure)[0][0]
    assert mosaic.shape == (10, 15)
    np.testing.assert_array_equal(mosaic[4:6, 6:9], [[0, 1, 2], [3, 4, 5]])
    left, right, bottom, top = figure.axes[0].images[0].get_extent()
    centres = left + (right - left) * (np.arange(5) + 0.5) / 5
    np.testing.assert_allclose(centres, [-2, -1, 0, 1, 2])
    assert (bottom, top) == (left, right)
    assert seen[0].shape == (25, 2)
    assert seen[0].dtype == torch.get_default_dtype()
    pixel = figure.axes[0].get_aspect() * (top - bottom) / 10 / ((right - left) / 15)
    assert pixel == pytest.approx(1)  # square pixels


def test_every_code_has_the_colour_of_its_class():
    z, labels = rng().normal(size=(200, 2)), rng(1).integers(10, size=200)
    figure = plots.latent_scatter(torch.tensor(z), torch.tensor(labels))
    points = figure.axes[0].collections[0]
    index = [int(np.flatnonzero((z == at).all(1))[0]) for at in points.get_offsets()]
    assert sorted(index) == list(range(200))
    assert index != sorted(index)  # shuffled
    assert [matplotlib.colors.to_hex(c) for c in points.get_facecolors()] == [CLASSES[labels[i]] for i in index]
    for text, c in zip(figure.axes[0].texts, range(10), strict=True):
        assert text.get_text() == str(c)
        np.testing.assert_allclose(text.xy, np.median(z[labels == c], axis=0))
    handles = figure.legends[0].get_lines()
    assert [handle.get_color() for handle in handles] == list(CLASSES)
    assert names(figure) == list("0123456789")


def test_classes_past_the_tenth_have_another_shape():
    figure = plots.latent_scatter(rng().normal(size=(40, 2)), [f"class {i % 12:02d}" for i in range(40)])
    first, second = figure.axes[0].collections
    assert len(first.get_offsets()) + len(second.get_offsets()) == 40
    assert len(second.get_offsets()) == sum(i % 12 >= 10 for i in range(40))
    assert not np.array_equal(first.get_paths()[0].vertices, second.get_paths()[0].vertices)


def test_many_latents_are_seen_along_their_principal_axes():
    raw = rng().normal(size=(200, 4))
    scores = np.linalg.qr(raw - raw.mean(0))[0] * [3.0, 2.0, 0.5, 0.1]  # uncorrelated, not only on average
    turn = np.linalg.qr(rng(1).normal(size=(4, 4)))[0]
    figure = plots.latent_scatter(5 + scores @ turn)
    share = scores.var(0) / scores.var(0).sum()
    assert figure.axes[0].get_xlabel() == f"principal axis 1 of 4 latents: {share[0]:.0%} of the variance"
    assert figure.axes[0].get_ylabel() == f"principal axis 2 of 4 latents: {share[1]:.0%} of the variance"
    expected = np.abs(scores[np.abs(scores[:, 0]).argsort(), :2])
    turned = plots.latent_scatter(5 + scores @ turn[:, ::-1])  # the order of the latents is of no consequence
    for drawn in (figure, turned):
        seen = np.abs(drawn.axes[0].collections[0].get_offsets())
        np.testing.assert_allclose(seen[seen[:, 0].argsort()], expected, atol=1e-9)


# q against its target


def mixture(x):
    return np.logaddexp(np.log(0.3) + stats.norm.logpdf(x, -3, 1), np.log(0.7) + stats.norm.logpdf(x, 2, 1.5))


def test_curve_is_the_targets_density_normalised_or_not():
    q = rng().normal(0.71, 2.42, size=4_000)
    for offset in (0.0, 2_000.0):
        x, curve = plots.density(q, lambda x, offset=offset: mixture(x) + offset).axes[0].lines[0].get_data()
        np.testing.assert_allclose(curve, np.exp(mixture(x)), rtol=0.005)  # the figure cuts off 0.4% at most


def test_histogram_of_q_is_a_density_under_the_curve():
    heights, edges, _ = plots.density(rng().normal(size=(100_000, 1)), stats.norm.logpdf).axes[0].patches[0].get_data()
    middles = (edges[1:] + edges[:-1]) / 2
    assert 0.98 < (heights * np.diff(edges)).sum() <= 1
    np.testing.assert_allclose(heights, stats.norm.pdf(middles), atol=0.02)  # 4 standard errors of a bar at the peak


def test_mode_that_q_misses_is_in_sight_and_limits_show_more():
    q = rng().normal(2, 1.5, size=1_000)
    low, high = plots.density(q, mixture).axes[0].get_xlim()
    assert low < -5
    assert high > 5
    assert plots.density(q, mixture, limits=(-20, 30)).axes[0].get_xlim() == (-20, 30)


def banana(p):
    a, b = p.T
    return -0.5 * a**2 / 4 - 0.5 * (b - 0.5 * a**2) ** 2


@pytest.mark.parametrize("collapsed", [False, True])
def test_contours_hold_half_and_nine_tenths_of_the_target(collapsed):
    a = 2 * rng().normal(size=20_000)
    target = np.stack([a, 0.5 * a**2 + rng(1).normal(size=20_000)], 1)
    q = 0.5 * rng().normal(size=(2_000, 2)) if collapsed else target[:2_000]
    figure = plots.density(q, banana)
    points, contours = figure.axes[0].collections
    np.testing.assert_array_equal(points.get_offsets(), q)
    held = sorted(Path(path.vertices, path.codes).contains_points(target).mean() for path in contours.get_paths())
    # A standard error is 0.0035 of the half and 0.002 of the nine tenths; a grid of 150 adds about as much.
    assert held == pytest.approx([0.5, 0.9], abs=0.015)


def test_flat_target_has_a_contour():
    inside = lambda p: torch.where((p.abs() < 1).all(1), 0.0, -torch.inf)  # noqa: E731
    figure = plots.density(rng().uniform(-1, 1, size=(500, 2)), inside)
    (path,) = figure.axes[0].collections[1].get_paths()
    assert np.abs(path.vertices).max() == pytest.approx(1, abs=0.05)


@functools.cache
def fitted(guide="normal"):
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        v = pyro.sample("v", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w + v.sum((-1, -2)), 1.0), obs=x)

    return pyrovi.fit(model, guide, {"x": [1.0, 2.0, 3.0]}, steps=20, lr=0.05, progress=False)


def test_coordinates_of_a_fit_come_by_name_in_the_order_asked_for():
    fit = fitted()
    figure = plots.density(fit, lambda p: -0.5 * (p**2).sum(1), var_names=["v[1, 2]", "w"], draws=300)
    values = fit.posterior_arrays(300)
    expected = np.stack([values["v"][:, 1, 2], values["w"]], 1)
    np.testing.assert_array_equal(figure.axes[0].collections[0].get_offsets(), expected)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("v[1, 2]", "w")
    with pytest.raises(pyrovi.SettingsError, match="one or two coordinates, and there are 7"):
        plots.density(fit, lambda p: p)
    with pytest.raises(pyrovi.PyroviError, match="point estimate"):
        plots.density(fitted("delta"), lambda p: p, var_names=["w"])


def test_posterior_shows_the_elements_asked_for_each_under_its_own_curve():
    fit = fitted()
    loc = np.arange(6.0).reshape(2, 3) / 10
    exact = pyrovi.ExactPosterior(marginals={"v": stats.norm(loc, 1.0), "w": stats.norm(0.0, 1.0)}, log_evidence=0.0)
    figure = plots.posterior(fit, exact, ["v[1, 2]", "v[0,1]", "w"])
    assert [axes.get_title() for axes in figure.axes] == ["v[1, 2]", "v[0, 1]", "w"]
    assert not figure.get_supxlabel()  # all that was asked for is shown
    for axes, mean in zip(figure.axes, (loc[1, 2], loc[0, 1], 0.0), strict=True):
        x, curve = axes.lines[0].get_data()
        np.testing.assert_allclose(curve, stats.norm.pdf(x, mean, 1.0))
    heights, edges, _ = figure.axes[0].patches[0].get_data()
    draws = fit.posterior_arrays(1_000)["v"][:, 1, 2]
    np.testing.assert_allclose(heights * np.diff(edges) * 1_000, np.histogram(draws, edges)[0])
    with pytest.raises(pyrovi.SettingsError, match=r"no v\[2, 0\]: 'v' has the shape \(2, 3\)"):
        plots.posterior(fit, var_names=["v[2, 0]"])
    with pytest.raises(pyrovi.SettingsError, match=r"no v\[1\]: 'v' has the shape \(2, 3\)"):
        plots.posterior(fit, var_names=["v[1]"])
    with pytest.raises(pyrovi.SettingsError, match="unknown variable 'u'"):
        plots.posterior(fit, var_names=["u[1]"])


# All of them

FIVE = np.zeros((5, 2, 2))
NAN = np.where(np.arange(30) == 3, np.nan, MEAN)


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: plots.bands(X, MEAN[:-1]), r"mean must have the shape \(30,\); got \(29,\)"),
        (lambda: plots.bands(X, np.tile(MEAN, (100, 1))), r"mean must have the shape \(30,\); got \(100, 30\)"),
        (lambda: plots.bands(X, NAN), "mean must be finite"),
        (lambda: plots.bands(X, "wide"), "mean must be an array of numbers; got 'wide'"),
        (lambda: plots.bands([], []), r"x must have the shape \(n,\); got \(0,\)"),
        (lambda: plots.bands(X, MEAN, -EPISTEMIC), "epistemic_sd must not be negative; its least value is -1"),
        (lambda: plots.bands(X, MEAN, 0.1, -1.0), "aleatoric_sd must not be negative"),
        (lambda: plots.bands(X, MEAN, level=90), "level must be between 0 and 1; got 90"),
        (lambda: plots.bands(X, MEAN, observed=MEAN), "observed must be a pair of arrays, x and y; it has 30 parts"),
        (lambda: plots.bands(X, MEAN, observed=(X, MEAN[:3])), r"observed y must have the shape \(30,\); got \(3,\)"),
        (lambda: plots.bands(X, MEAN, truth=MEAN[:3]), r"truth must have the shape \(30,\)"),
        (lambda: plots.quantile_bands(X, [MEAN, MEAN]), r"quantiles must have the shape \(3, 30\); got \(2, 30\)"),
        (lambda: plots.quantile_bands(X, [MEAN, MEAN], (0.1, 0.9)), "an odd number of rising probabilities"),
        (lambda: plots.quantile_bands(X, [MEAN] * 3, (0.9, 0.5, 0.1)), "an odd number of rising probabilities"),
        (lambda: plots.quantile_bands(X, [MEAN + 1, MEAN, MEAN - 1]), "must not fall from one row to the next"),
        (lambda: plots.forecast(T, Y, PAST[:, :-1], H, FUTURE), r"past must have the shape \(draws, 20\); got \(200, 19\)"),
        (lambda: plots.forecast(T, Y, (Y, Y, Y), H, FUTURE), "past as a tuple must be a mean and an sd; it has 3 parts"),
        (lambda: plots.forecast(T, Y, (Y, -1), H, FUTURE), "sd of past must not be negative"),
        (lambda: plots.forecast(T, Y, stats.norm(0, 1), H, FUTURE), r"quantiles of past must have the shape \(20,\)"),
        (lambda: plots.forecast(T, Y, PAST, H - 3, FUTURE), "times must rise"),
        (lambda: plots.forecast(T[::-1], Y, PAST, H, FUTURE), "times must rise"),
        (lambda: plots.forecast(T, Y, PAST, H.astype("datetime64[Y]"), FUTURE), "both be numbers or both be dates"),
        (lambda: plots.forecast(T, Y, PAST, H, FUTURE, levels=()), "levels must name at least one"),
        (lambda: plots.images(FIVE, columns=0), "columns must be at least 1"),
        (lambda: plots.images(np.full((1, 2, 2), np.nan)), "images must be finite"),
        (lambda: plots.reconstructions(FIVE, FIVE[:4]), r"reconstructed must have the shape \(5, 2, 2\); got \(4, 2, 2\)"),
        (lambda: plots.latent_grid(lambda z: z, (28, 28), n=3), r"9 images of 28 x 28 pixels; it gave the shape \(9, 2\)"),
        (lambda: plots.latent_grid(lambda z: z, (1, 2), n=1), "n must be at least 2"),
        (lambda: plots.latent_grid(lambda z: z, (1, 2), limit=0), "limit must be above 0"),
        (lambda: plots.latent_scatter(FIVE[0, :, :1]), "at least 2 columns"),
        (lambda: plots.latent_scatter(FIVE[0], [1, 2, 3]), r"labels must have the shape \(2,\), one for each row of z; got \(3,\)"),
        (lambda: plots.latent_scatter(np.zeros((21, 2)), range(21)), "21 classes; at most 20"),
        (lambda: plots.density(np.zeros((9, 3)), mixture), "there are 3"),
        (lambda: plots.density(NAN, mixture), "draws must be finite"),
        (lambda: plots.density(X, mixture, limits=(2, 1)), "limits must rise"),
        (lambda: plots.density(X, lambda x: x.sum()), r"what target gives must have the shape \(3000,\); got \(\)"),
        (lambda: plots.density(X, lambda x: x.log()), "target gives NaN"),
        (lambda: plots.density(X, lambda x: torch.full_like(x, -np.inf)), "is 0 throughout"),
        (lambda: plots.density(X, dist.Gamma(2.0, 2.0).log_prob), "target cannot be evaluated on .* limits can change"),
    ],
)
def test_bad_input_is_one_sentence(draw, said):
    with pytest.raises(pyrovi.SettingsError, match=said) as raised:
        draw()
    assert "\n" not in str(raised.value)


FIGURES = {
    "bands": lambda: plots.bands(X, MEAN, EPISTEMIC, ALEATORIC, observed=(X, MEAN), truth=MEAN, level=0.999),
    "quantile_bands": lambda: plots.quantile_bands(X, [MEAN] * 7, np.arange(1, 8) / 8, observed=(X, MEAN), truth=MEAN),
    "forecast": lambda: plots.forecast(T, Y, PAST, H, FUTURE, exact=(PAST, FUTURE), actual=Y[:5], levels=(0.5, 0.8, 0.95)),
    "images": lambda: plots.images(FIVE[:1], ["a title $\\frac$"], signed=True, own_scale=True),
    "reconstructions": lambda: plots.reconstructions(FIVE, FIVE + 1),
    "latent_grid": lambda: plots.latent_grid(lambda z: z, (1, 2)),
    "latent_scatter": lambda: plots.latent_scatter(rng().normal(size=(60, 3)), [f"$\\frac$ {i % 20}" for i in range(60)]),
    "density": lambda: plots.density(X, mixture),
    "density in the plane": lambda: plots.density(np.stack([X, MEAN], 1), banana),
}


@pytest.mark.parametrize("name", FIGURES)
def test_words_stay_within_the_figure(name):
    figure = FIGURES[name]()
    FigureCanvasAgg(figure).draw()
    frame = figure.bbox.padded(1)
    words = [text for legend in figure.legends for text in legend.get_texts()]
    words += [w for axes in figure.axes for w in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)]
    words += [*figure.texts, *([figure._supxlabel] if figure._supxlabel else [])]
    for word in words:
        if word.get_text():
            box = word.get_window_extent()
            assert frame.x0 <= box.x0 <= box.x1 <= frame.x1, word
            assert frame.y0 <= box.y0 <= box.y1 <= frame.y1, word


def test_figures_are_made_without_pyplot(tmp_path):
    code = """
import sys
import numpy as np
from pyrovi import plots
assert "matplotlib" not in sys.modules
x = np.linspace(0, 1, 9)
plots.bands(x, x, x, x)
plots.latent_scatter(np.eye(3), [1, 2, 3])
plots.latent_grid(lambda z: z, (1, 2))
plots.density(np.random.default_rng(0).normal(size=(99, 2)), lambda p: -(p**2).sum(1)).savefig("figure.png")
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "False"
