"""Bad input is one clear sentence before the first step, that names the thing and the cure; nothing is lost or half-written."""

import os

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

import pyrovi
from pyrovi.models import gamma_poisson, normal_mean

X = np.random.RandomState(0).normal(size=(6, 3))
COUNTS = np.arange(18.0).reshape(6, 3)


def model(counts, rate=1.0):
    with pyro.plate("pixel", 3, dim=-1):
        theta = pyro.sample("theta", dist.Gamma(1.0, rate))
        with pyro.plate("image", len(counts), dim=-2):
            pyro.sample("x", dist.Poisson(theta), obs=counts)


def guide(counts):
    with pyro.plate("pixel", 3, dim=-1):
        pyro.sample("theta", dist.Gamma(pyro.param("a", torch.ones(3), constraint=constraints.positive), 1.0))


def change(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def renamed(name):
    def other(counts):
        with pyro.plate("pixel", 3, dim=-1):
            pyro.sample(name, dist.Gamma(pyro.param("a", torch.ones(3), constraint=constraints.positive), 1.0))

    return other


def incomplete(counts):
    pyro.param("a", torch.ones(3))


def too_much(counts):
    guide(counts)
    pyro.sample("tau", dist.Normal(0.0, 1.0))


def without_plate(counts):
    pyro.sample("theta", dist.Gamma(torch.ones(3), 1.0).to_event(1))


def outside_the_support(counts):
    with pyro.plate("pixel", 3, dim=-1):
        pyro.sample("theta", dist.Normal(torch.tensor(-3.0), 0.1))


def asks_for_more(counts, weights):
    guide(counts)


def samples_the_data(counts):
    guide(counts)
    pyro.sample("x", dist.Poisson(torch.ones(6, 3)).to_event(2))


def raising_guide(counts):
    raise RuntimeError("guide trouble")


DATA = {"counts": COUNTS}

MISTAKES = {
    "a missing name": (dict(data={}), pyrovi.DataError, "needs data named 'counts'"),
    "a misspelt name": (dict(data={"count": COUNTS}), pyrovi.DataError, "no data named 'count'; did you mean 'counts'"),
    "an extra name": (dict(data={**DATA, "weights": COUNTS}), pyrovi.DataError, "no data named 'weights'"),
    "data that are no mapping": (dict(data=COUNTS), pyrovi.DataError, "must map argument names"),
    "text": (dict(data={"counts": np.array([["a"] * 3] * 6)}), pyrovi.DataError, "'counts' holds"),
    "a wrong shape against a plate": (
        dict(data={"counts": COUNTS[:, :2]}),
        pyrovi.DataError,
        r"'x'.*'image' of size 6.*\(6, 3\).*\(6, 2\)",
    ),
    "a column for a row": (
        dict(model=normal_mean.model, guide="normal", data={"x": X[:, :1]}),
        pyrovi.DataError,
        r"'x'.*\(6,\).*\(6, 1\)",
    ),
    "NaN": (
        dict(data={"counts": change(COUNTS, (2, 1), np.nan)}),
        pyrovi.DataError,
        r"'counts' has 1 NaN value, the first at \(2, 1\)",
    ),
    "infinity": (dict(data={"counts": change(COUNTS, (0, 0), np.inf)}), pyrovi.DataError, "1 infinite value"),
    "too large for float32": (dict(data={"counts": change(COUNTS, (0, 0), 1e300)}), pyrovi.DataError, "float64"),
    "a negative count": (
        dict(data={"counts": change(COUNTS, (2, 1), -1)}),
        pyrovi.DataError,
        r"'x' is Poisson.*counts.*first -1 at \(2, 1\)",
    ),
    "half a count": (dict(data={"counts": change(COUNTS, (5, 2), 1.5)}), pyrovi.DataError, r"first 1.5 at \(5, 2\)"),
    "an unknown guide": (dict(guide="nromal"), pyrovi.GuideError, "'nromal'; did you mean 'normal'"),
    "a guide that is a number": (dict(guide=3), pyrovi.GuideError, "guide must be"),
    "a guide with another site": (dict(guide=renamed("tehta")), pyrovi.GuideError, "'tehta'.*did you mean 'theta'"),
    "a guide without a site": (dict(guide=incomplete), pyrovi.GuideError, "does not sample the model's site 'theta'"),
    "a guide with one site too many": (dict(guide=too_much), pyrovi.GuideError, "samples 'tau', which the model does not"),
    "a guide that samples the data": (dict(guide=samples_the_data), pyrovi.GuideError, "samples 'x', which the model observes"),
    "a guide with another shape": (dict(guide=without_plate), pyrovi.GuideError, "event shape"),
    "a guide outside the support": (
        dict(guide=outside_the_support),
        pyrovi.GuideError,
        "draws site 'theta' from Normal, whose values are real numbers; in the model they are at least 0",
    ),
    "a guide that asks for more": (dict(guide=asks_for_more), pyrovi.GuideError, "asks for 'weights'"),
    "a guide that raises": (dict(guide=raising_guide), pyrovi.GuideError, "RuntimeError: guide trouble"),
    "a model that is no function": (dict(model=3), pyrovi.ModelError, "model must be"),
    "a model that raises": (dict(model=lambda counts: counts.nonsense), pyrovi.ModelError, "AttributeError"),
    "an unknown optimizer": (dict(optimizer="adm"), pyrovi.SettingsError, "'adm'; did you mean 'adam'"),
    "a bound optimizer": (
        dict(optimizer=torch.optim.Adam([torch.ones(1, requires_grad=True)])),
        pyrovi.SettingsError,
        "pass the class",
    ),
    "an optimizer's function": (dict(optimizer=pyro.optim.Adam), pyrovi.SettingsError, "call it first"),
    "two rates": (dict(optimizer=pyro.optim.Adam({"lr": 1.0}), lr=0.1), pyrovi.SettingsError, "belong to"),
    "an unknown schedule": (dict(schedule="cosin"), pyrovi.SettingsError, "did you mean 'cosine'"),
    "no steps": (dict(steps=0), pyrovi.SettingsError, "steps must be a whole number of at least 1; got 0"),
    "half a step": (dict(steps=1.5), pyrovi.SettingsError, "steps"),
    "steps and epochs": (dict(steps=5, epochs=2), pyrovi.SettingsError, "give one"),
    "no particles": (dict(particles=-1), pyrovi.SettingsError, "particles"),
    "a negative rate": (dict(lr=-0.1), pyrovi.SettingsError, "lr must be"),
    "a negative seed": (dict(seed=-1), pyrovi.SettingsError, "seed"),
    "an unknown stop": (dict(stop="soon"), pyrovi.SettingsError, "stop"),
    "an unknown dtype": (dict(dtype="float46"), pyrovi.DataError, "did you mean 'float64'"),
    "a dtype of NumPy's": (dict(dtype=np.float64), pyrovi.DataError, "dtype must be"),
    "a rate in words": (dict(lr="fast"), pyrovi.SettingsError, "lr must be a positive number; got 'fast'"),
    "masked values": (dict(data={"counts": np.ma.masked_greater(COUNTS, 10)}), pyrovi.DataError, "masked values"),
    "a ragged list": (dict(data={"counts": [[1, 2, 3], [4]]}), pyrovi.DataError, "'counts' is not an array"),
    "complex numbers": (dict(data={"counts": torch.tensor(COUNTS) * 1j}), pyrovi.DataError, "complex"),
    "a callback that is a number": (dict(callbacks=3), pyrovi.SettingsError, "callbacks must be functions"),
    "a missing device": (dict(device="cuda:99"), pyrovi.SettingsError, "not available"),
    "a batch of nothing": (dict(batch_size=0), pyrovi.SettingsError, "batch_size"),
    "an unknown plate": (dict(batch_size={"imag": 2}), pyrovi.SettingsError, "did you mean 'image'"),
    "batch data that are none": (dict(batch_size=2, batch_data=["rate"]), pyrovi.SettingsError, "batch_data names 'rate'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_before_the_first_step(mistake, tmp_path):
    settings, error, pattern = MISTAKES[mistake]
    steps = []
    arguments = {"model": model, "guide": guide, "data": DATA, "steps": 3, "callbacks": steps.append, **settings}
    if "epochs" in settings:
        arguments["steps"] = settings["steps"]
    with pytest.raises(error, match=pattern) as caught:
        pyrovi.fit(**arguments, folder=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, pyrovi.PyroviError)
    assert not steps
    assert not list(tmp_path.iterdir())


def test_a_plate_that_does_not_fit_another_site_is_named():
    def wrong(counts):
        with pyro.plate("pixel", 3):
            pyro.sample("theta", dist.Gamma(torch.ones(4), 1.0))

    with pytest.raises(pyrovi.ModelError, match=r"plate\('pixel'\) at site theta.*3 vs 4.*counts \(6, 3\)"):
        pyrovi.fit(wrong, "normal", DATA, steps=3)


def test_data_without_a_plate_are_not_accepted():
    def no_plate(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    with pytest.raises(pyrovi.DataError, match=r"no plate.*pyro.plate or .to_event"):
        pyrovi.fit(no_plate, "normal", {"x": X[:, 0]}, steps=3)


@pytest.mark.parametrize(
    ("fn", "value", "words"),
    [
        (dist.Bernoulli(0.5), 0.3, "0 or 1"),
        (dist.LogNormal(0.0, 1.0), -1.0, "greater than 0"),
        (dist.Beta(1.0, 1.0), 1.2, "between 0 and 1"),
        (dist.Binomial(4, 0.5), 5.0, "IntegerInterval"),
    ],
    ids=str,
)
def test_a_value_outside_a_sites_support_is_found(fn, value, words):
    def observing(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", fn, obs=x + 0 * w.detach())

    good = fn.sample().item() if not isinstance(fn, dist.Beta) else 0.5
    pyrovi.fit(observing, "normal", {"x": [good, good]}, steps=2)
    with pytest.raises(pyrovi.DataError, match=f"'x' is {type(fn).__name__}.*{words}.*1 observed value is not"):
        pyrovi.fit(observing, "normal", {"x": [good, value]}, steps=2)


@pytest.mark.parametrize("outcome", [np.array([0, 1, 1]), np.array([False, True, True])], ids=["integers", "booleans"])
def test_outcomes_may_be_integers_or_booleans(outcome):
    """Which torch's Bernoulli does not score; a label that the model indexes with stays an integer."""

    def coin(y, label):
        with pyro.plate("side", 2):
            p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("toss", len(y)):
            pyro.sample("label", dist.Categorical(torch.ones(2)), obs=label)
            pyro.sample("y", dist.Bernoulli(p[..., label]), obs=y)

    fit = pyrovi.fit(coin, "normal", {"y": outcome, "label": np.array([0, 1, 1])}, steps=2)
    assert fit.problem.data["y"].is_floating_point()
    assert not fit.problem.data["label"].is_floating_point()


def test_a_normal_used_as_a_scale_is_not_a_false_alarm():
    """At 0, where the first look at the shapes puts it, the scale is invalid; the guide never goes there."""

    def bold(x):
        s = pyro.sample("s", dist.Normal(2.0, 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, s), obs=x)

    def careful(x):
        pyro.sample("s", dist.Normal(pyro.param("loc", torch.tensor(2.0)), 0.01))

    assert pyrovi.fit(bold, careful, {"x": X[:, 0]}, steps=2).elbo.shape == (1, 2)


def test_a_discrete_latent_and_an_autoguide_say_who_sums_it_out():
    def mixture(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(k.float(), 1.0), obs=x)

    with pytest.raises(pyrovi.GuideError, match="'k' is discrete.*without settings.*MixtureSameFamily"):
        pyrovi.fit(mixture, "normal", {"x": X[:, 0]}, steps=2)


def test_a_model_that_takes_anything_is_asked_for_names():
    with pytest.raises(pyrovi.ModelError, match="give its arguments names"):
        pyrovi.fit(lambda *args: None, "normal", {"x": X}, steps=2)


def test_a_model_that_cannot_be_run_at_zero_is_not_a_false_alarm():
    def process(x, y):
        scale = pyro.sample("scale", dist.Normal(1.0, 0.01))
        cov = torch.exp(-0.5 * ((x[:, None] - x) / scale) ** 2) + 1e-4 * torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), scale_tril=torch.linalg.cholesky(cov)), obs=y)

    def guide(x, y):
        pyro.sample("scale", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 0.01))

    x = np.linspace(0, 3, 5)
    assert pyrovi.fit(process, guide, {"x": x, "y": np.sin(x)}, steps=2).elbo.shape == (1, 2)


def test_small_unsigned_integers_do_not_wrap_around():
    fit = pyrovi.fit(model, guide, {"counts": np.full((6, 3), 255, dtype=np.uint8)}, steps=2)
    assert np.isfinite(fit.elbo).all()


def test_a_tuple_of_integers_and_an_infinite_number_are_settings():
    def shaped(x, shape, cap):
        w = pyro.sample("w", dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w.sum().clamp(max=cap), 1.0), obs=x)

    assert pyrovi.fit(shaped, "normal", {"x": X[:, 0], "shape": (2, 3), "cap": float("inf")}, steps=2).posterior(1)["w"].shape == (
        1,
        2,
        3,
    )


def test_a_guide_that_could_leave_the_support_is_found_before_it_does():
    def coin(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("toss", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    def inside_for_now(y):
        pyro.sample("p", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 0.01))

    with pytest.raises(pyrovi.GuideError, match="'p' from Normal.*between 0 and 1"):
        pyrovi.fit(coin, inside_for_now, {"y": [0, 1]}, steps=2)


def test_a_module_that_cannot_be_copied_says_so():
    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cache = torch.ones(1, requires_grad=True) * 2

        def forward(self, counts):
            guide(counts)

    with pytest.raises(pyrovi.GuideError, match="cannot be copied.*pass a fresh one"):
        pyrovi.fit(model, Guide(), DATA, steps=2)


def test_a_used_autoguide_is_fitted_anew_and_keeps_its_model():
    used = AutoNormal(model)
    used(torch.tensor(COUNTS))
    pyro.clear_param_store()
    assert pyrovi.fit(model, used, DATA, steps=2).elbo.shape == (1, 2)
    assert used.model is not None


@pytest.mark.parametrize("kind", ["folder", "file", "unwritable", "under a file"])
def test_a_run_folder_that_cannot_be_made_is_refused_before_the_first_step(tmp_path, kind):
    target = tmp_path / "run"
    if kind == "folder":
        target.mkdir()
        (target / "precious.txt").write_text("mine")
    elif kind == "file":
        target.write_text("mine")
    elif kind == "under a file":
        (tmp_path / "file").write_text("mine")
        target = tmp_path / "file" / "run"
    else:
        if os.geteuid() == 0:
            target = "/proc/run"  # root may write anywhere else
        else:
            tmp_path.chmod(0o500)
    steps = []
    with pytest.raises(pyrovi.RunFolderError):
        pyrovi.fit(model, guide, DATA, steps=3, callbacks=steps.append, folder=target)
    assert not steps
    if kind == "folder":
        assert [p.name for p in target.iterdir()] == ["precious.txt"]


def test_a_folder_that_is_no_run_is_not_overwritten(tmp_path):
    fit = pyrovi.fit(model, guide, DATA, steps=3)
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(pyrovi.RunFolderError, match="not a run folder"):
        fit.save(tmp_path, overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_save_that_fails_half_way_keeps_the_run_that_was_there(tmp_path, monkeypatch):
    fit = pyrovi.fit(model, guide, DATA, steps=3)
    fit.save(tmp_path / "run")
    before = (tmp_path / "run" / "fit.json").read_bytes()

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("pyrovi._arviz.write", full)
    with pytest.raises(pyrovi.RunFolderError, match="no space left"):
        fit.save(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "fit.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_one_bad_pixel_of_the_document_is_found():
    data = gamma_poisson.load()
    data["x"][17, 30] = 3.5
    with pytest.raises(pyrovi.DataError, match=r"first 3.5 at \(17, 30\)"):
        pyrovi.recipe("gamma_poisson").fit(data)
