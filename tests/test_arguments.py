"""A table gives the model the columns that it names; what is wrong with the data's names is said at once, with the cure."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi

TABLE = pd.DataFrame(
    {
        "Unnamed: 0": range(1, 7),
        "y": [3, 5, 9, 8, 12, 4],
        "x": [0.1, -0.2, 0.3, 0.0, 0.2, -0.4],
        "shop": [1, 1, 2, 2, 3, 3],
        "who": ["ann", "bob", "ann", "bob", "ann", "bob"],
    }
)
OUTSIDE = ["Unnamed: 0", "shop", "who"]


def line(x, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Poisson((a + x).exp()), obs=y)


def straight(x, y):
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(a * x, 1.0), obs=y)


def shops(x, shop, y, n_shops=3):
    with pyro.plate("shop", n_shops):
        a = pyro.sample("a", dist.Normal(0.0, 3.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Poisson((a[..., shop] + x).exp()), obs=y)


def complaint(model, data, *, guide="normal", error=pyrovi.DataError, **settings):
    with pytest.raises(error) as caught:
        pyrovi.fit(model, guide, data, steps=3, **settings)
    return str(caught.value)


def test_of_a_table_the_columns_that_the_model_names_are_taken_and_the_others_named():
    fit = pyrovi.fit(line, "normal", TABLE, steps=3)
    assert fit.settings["columns_left_out"] == OUTSIDE
    same = pyrovi.fit(line, "normal", {"x": TABLE["x"], "y": TABLE["y"]}, steps=3)
    assert "columns_left_out" not in same.settings
    np.testing.assert_array_equal(fit.elbo, same.elbo)


def test_every_way_in_takes_a_table(tmp_path):
    fit = pyrovi.fit(line, "normal", TABLE, steps=3)
    new = TABLE[["x", "who"]][:2]
    assert fit.predictive(5, data=new)["y"].shape == (5, 2)
    assert fit.on(TABLE[:4]).predictive(5)["y"].shape == (5, 4)
    assert "row 6" in repr(pyrovi.model_graph(line, TABLE))
    assert pyrovi.calibrate(line, "normal", TABLE, replicates=20, steps=20).replicates == 20
    assert pyrovi.exact(straight, TABLE).log_evidence == pytest.approx(
        pyrovi.exact(straight, {"x": TABLE["x"], "y": TABLE["y"]}).log_evidence
    )
    many = pyrovi.fit_many(line, "normal", TABLE[["x", "who"]], over={"y": np.ones((2, 6))}, steps=3)
    assert many.elbo.shape[0] == 2
    fit.save(tmp_path / "run")
    assert pyrovi.load(tmp_path / "run", model=line, data=TABLE).settings["columns_left_out"] == OUTSIDE


def test_a_model_that_takes_anything_is_given_every_column():
    def anything(x, **rest):
        a = pyro.sample("a", dist.Normal(0.0, 3.0))
        with pyro.plate("row", len(x)):
            pyro.sample("out", dist.Normal(a, 1.0), obs=rest["y"].float())

    assert "columns_left_out" not in pyrovi.fit(anything, "normal", TABLE.drop(columns="who"), steps=3).settings


def test_an_argument_that_is_no_column_is_missed_with_the_likely_one():
    said = complaint(line, TABLE.rename(columns={"x": "xs"}))
    assert said == "the model needs data named 'x'; did you mean the column 'xs'? The table has: Unnamed: 0, y, xs, shop, who"
    assert "data={**table, 'x': …}, or --arg x=…" in complaint(line, TABLE.drop(columns="x"))


def test_an_outcome_whose_column_is_called_a_little_otherwise_is_not_left_out_in_silence():
    """It would be fitted as a latent."""
    assert "argument 'y' has no column of its name; did you mean the column 'Y'?" in complaint(
        line, TABLE.rename(columns={"y": "Y"})
    )


def test_all_wrong_names_of_a_dictionary_are_said_at_once():
    said = complaint(shops, {"x": TABLE["x"], "shp": TABLE["shop"], "who": TABLE["y"]})
    assert said == (
        "the model takes no data named 'shp', 'who'; did you mean 'shop' by 'shp'? It also needs data named 'y'; "
        "it takes: n_shops, shop, x, y"
    )
    said = complaint(shops, {"x": TABLE["x"], "qqq": TABLE["y"]})
    assert said == "the model takes no data named 'qqq', and needs data named 'shop', 'y'; it takes: n_shops, shop, x, y"


def test_the_likelier_of_two_guesses_is_made():
    def model(lbase):
        pyro.sample("a", dist.Normal(0.0, 1.0))

    assert "did you mean 'lbase' by 'lbsae'?" in complaint(model, {"lage": TABLE["x"], "lbsae": TABLE["x"]})


def test_a_name_that_is_given_is_no_guess_for_another():
    def model(lage, lbase):
        pyro.sample("a", dist.Normal(0.0, 1.0))

    assert complaint(model, {"lage": TABLE["x"]}) == "the model needs data named 'lbase'; given: lage"
    assert "mean 'lage'" not in complaint(model, {"lage": TABLE["x"], "lages": TABLE["x"]})


@pytest.mark.parametrize("data", [TABLE, dict(TABLE)], ids=["a table", "a dictionary"])
def test_data_in_the_place_of_the_guide_are_sent_to_data(data):
    with pytest.raises(pyrovi.GuideError, match="second argument is the guide.*as data="):
        pyrovi.fit(line, data)


def with_who(x, who, y):
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Poisson((a * who).exp()), obs=y)


@pytest.mark.parametrize("kind", [list, pd.Categorical, np.array], ids=["text", "categories", "an array"])
def test_text_is_shown_and_how_to_encode_it(kind):
    said = complaint(with_who, {**TABLE[["x", "y"]], "who": kind(TABLE["who"])})
    assert said == (
        "data 'who' holds text ('ann', 'bob'), not numbers; encode it, as in (table['who'] == 'bob').astype(float), or as numbers "
        "of groups, pandas.factorize(table['who'])[0]"
    )


def test_text_among_numbers_is_shown_too():
    said = complaint(with_who, {**TABLE[["x", "y"]], "who": ["1", "2", ".", "4", "5", "6"]})
    assert "data 'who' holds text ('.') among the numbers" in said


@pytest.mark.parametrize("settings", [{}, {"guide": "normal"}, {"method": "deterministic"}], ids=["auto", "svi", "deterministic"])
@pytest.mark.parametrize("outcome", [dist.Poisson, lambda m: dist.Normal(m, 1.0)], ids=["discrete", "continuous"])
def test_a_forgotten_obs_is_asked_for(settings, outcome):
    def forgot(x, y):
        a = pyro.sample("a", dist.Normal(0.0, 3.0))
        with pyro.plate("row", len(x)):
            pyro.sample("y", outcome((a + x).exp()))

    with pytest.raises(pyrovi.ModelError, match="site 'y' has the name of the data 'y' but no obs=; did you forget obs=y"):
        pyrovi.fit(forgot, data=TABLE, **settings)


def test_an_outcome_that_is_not_given_is_no_forgotten_obs():
    fit = pyrovi.fit(line, "normal", TABLE, steps=3)
    assert fit.predictive(3, data={"x": [0.0], "y": None})["y"].shape == (3, 1)

    def free(x, y=None):
        pyro.sample("y", dist.Normal(x.mean(), 1.0), obs=y)

    assert sorted(pyrovi.fit(free, "normal", {"x": TABLE["x"], "y": None}, steps=3).posterior(2)) == ["y"]
    assert sorted(pyrovi.fit(free, "normal", {"x": TABLE["x"]}, steps=3).posterior(2)) == ["y"]


def test_groups_counted_from_1_are_named():
    said = complaint(shops, TABLE, error=pyrovi.ModelError)
    assert "index 3 is out of bounds for dimension 0 with size 3; indices count from 0: 'shop' runs from 1 to 3" in said


def test_groups_with_numbers_far_away_are_sent_to_factorize():
    said = complaint(shops, TABLE.assign(shop=TABLE["shop"] * 100), error=pyrovi.ModelError)
    assert "indices count from 0, and pandas.factorize gives such numbers: 'shop' runs from 100 to 300" in said


def test_groups_that_are_floats_are_named():
    said = complaint(shops, TABLE.assign(shop=TABLE["shop"] - 1.0), error=pyrovi.ModelError)
    assert "give 'shop' as integers, by .astype(int), or .long() of a tensor" in said


def test_another_index_out_of_range_is_left_as_it_is():
    def beyond(x, y):
        pyro.sample("a", dist.Normal(0.0, 1.0))
        torch.zeros(3)[torch.tensor([7])]

    assert "with size 3 (data:" in complaint(beyond, TABLE, error=pyrovi.ModelError)
