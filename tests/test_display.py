"""Results in a notebook: they say what they say as text, ask for nothing, and names stay text."""

from html.parser import HTMLParser

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest

import pyrovi

HOSTILE = "<img src=x onerror=alert(1)>"


class Markup(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data + " "


def model(x):
    w = pyro.sample(HOSTILE, dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


@pytest.fixture(scope="module")
def shown():
    pyro.clear_param_store()
    fit = pyrovi.fit(model, "normal", {"x": [1.0, 2.0, 3.0]}, steps=300, lr=0.05, progress=False)
    recipe = pyrovi.recipe("normal_mean")
    own = recipe.fit(steps=200, progress=False)
    return {
        "fit": fit,
        "verdict": fit.check(max_draws=2_000, restarts=0),
        "recipe": recipe,
        "comparison": pyrovi.compare(own, recipe.exact(**recipe.load())),
        "self": pyrovi.compare(fit, fit),
    }


@pytest.mark.parametrize("name", ["fit", "verdict", "recipe", "comparison", "self"])
def test_pieces_ask_for_nothing_are_small_and_take_the_notebooks_colours(shown, name):
    source = shown[name]._repr_html_()
    piece = Markup(source)
    assert not {"script", "link", "img", "style", "iframe"} & {tag for tag, _ in piece.tags}
    assert not [a for _, a in piece.tags if {"src", "href", "onerror"} & set(a)]
    assert len(source) < 10_000
    assert "background:#" not in source
    assert ";color:" not in source


def test_pieces_say_what_the_text_says(shown):
    fit, verdict = Markup(shown["fit"]._repr_html_()).text, Markup(shown["verdict"]._repr_html_()).text
    assert HOSTILE in fit
    assert shown["fit"].verdict.text.splitlines()[0] in fit
    assert all(line in verdict for line in shown["verdict"].text.splitlines())
    assert "pyrovi.recipe('normal_mean').fit()" in Markup(shown["recipe"]._repr_html_()).text
    table = shown["comparison"]
    assert str(table.attrs["kl"]) in Markup(table._repr_html_()).text
    assert f"{table['sd_ratio'].iloc[0]:.3f}" in Markup(table._repr_html_()).text
    assert HOSTILE in Markup(shown["self"]._repr_html_()).text


def test_comparison_is_a_dataframe_like_any_other(shown):
    table = shown["comparison"]
    assert isinstance(table, pd.DataFrame)
    for plain in (table.round(3), table[["mean", "sd"]], table.head(), table.copy(), table.T):
        assert type(plain) is pd.DataFrame
    assert table.loc["w", "mean"] == pytest.approx(table["mean"].iloc[0])
    assert table.round(3).attrs["kl"] == table.attrs["kl"]


def test_a_fit_without_settings_shows_its_verdict():
    fit = pyrovi.fit(model, data={"x": [1.0, 2.0, 3.0]}, progress=False)
    piece = Markup(fit._repr_html_()).text
    assert fit.verdict.text.splitlines()[0] in piece
    assert "found without settings" in piece
