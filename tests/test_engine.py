"""The engines agree: the recorded step, interpreted or compiled, is `svi.step` under the same noise.

Plain Pyro is run with torch's draws replaced by the numbers that a recorded fit of the same seed uses, which this file makes anew
from the seed. Losses and parameters are then compared step by step: in float64 to 1e-8, in float32 to 1e-4.
"""

import functools
import math
import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceGraph_ELBO
from torch.distributions import constraints
from torch.utils._python_dispatch import TorchDispatchMode

import pyrovi
from pyrovi import engine as engines
from pyrovi import svi
from pyrovi.plain import Plain

aten = torch.ops.aten
X = np.random.RandomState(0).normal(1.0, 1.0, 30)
GROUP = np.arange(30) % 5
TOLERANCE = {"float64": 1e-8, "float32": 1e-4}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYROVI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Given(TorchDispatchMode):
    """Torch's draws, taken from given numbers in the order in which they are asked for; Gamma's and its kin are torch's own."""

    def __init__(self, normal, uniform):
        super().__init__()
        self.left = {"normal": normal, "uniform": uniform}

    def take(self, kind, shape, dtype):
        count = math.prod(shape)
        assert count <= len(self.left[kind]), f"more {kind} numbers are drawn than the recorded step has"
        taken, self.left[kind] = self.left[kind][:count], self.left[kind][count:]
        return taken.reshape(tuple(shape)).to(dtype if dtype.is_floating_point else taken.dtype)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return GIVEN[func](self.take, *args, **(kwargs or {})) if func in GIVEN else func(*args, **(kwargs or {}))


def _written(make):
    def draw(take, x, *args, generator=None, **kwargs):
        return x.copy_(make(lambda kind: take(kind, x.shape, x.dtype), *args, **kwargs))

    return draw


def _made(kind):
    return lambda take, size, dtype=None, **_: take(kind, size, dtype or torch.get_default_dtype())


def _like(kind):
    return lambda take, x, **_: take(kind, x.shape, x.dtype)


def _about(take, mean, std, generator=None):
    tensors = [v for v in (mean, std) if isinstance(v, torch.Tensor)]
    return mean + std * take("normal", torch.broadcast_shapes(*(v.shape for v in tensors)), tensors[0].dtype)


def _class(take, weights, n, replacement=False, generator=None):
    if n != 1:
        return aten.multinomial.default(weights, n, replacement)
    below = weights.cumsum(-1).contiguous()
    return torch.searchsorted(below, (take("uniform", (*weights.shape[:-1], 1), weights.dtype) * below[..., -1:]), right=True)


GIVEN = {
    aten.normal_.default: _written(lambda take, mean=0.0, std=1.0: mean + std * take("normal")),
    aten.uniform_.default: _written(lambda take, low=0.0, high=1.0: low + (high - low) * take("uniform")),
    aten.bernoulli_.Tensor: _written(lambda take, p: (take("uniform") < p) * 1.0),
    aten.bernoulli_.float: _written(lambda take, p=0.5: (take("uniform") < p) * 1.0),
    aten.exponential_.default: _written(lambda take, rate=1.0: -torch.log1p(-take("uniform")) / rate),
    aten.cauchy_.default: _written(lambda take, x0=0.0, scale=1.0: x0 + scale * torch.tan(math.pi * (take("uniform") - 0.5))),
    aten.randn.default: _made("normal"),
    aten.rand.default: _made("uniform"),
    aten.randn_like.default: _like("normal"),
    aten.rand_like.default: _like("uniform"),
    aten.normal.Tensor_Tensor: _about,
    aten.normal.Tensor_float: _about,
    aten.normal.float_Tensor: _about,
    aten.bernoulli.default: lambda take, p, generator=None: (take("uniform", p.shape, p.dtype) < p).to(p.dtype),
    aten.multinomial.default: _class,
}


def noise_of(seed, steps, program, batches):
    """The normal and uniform numbers of every step: normals of a block of steps, then uniforms, then the next block."""
    generator, sizes = torch.Generator().manual_seed(seed), [None] * steps
    if batches is not None:
        whole, rest = divmod(batches.size, batches.batch_size)
        epoch = [batches.batch_size] * whole + [rest] * bool(rest)
        sizes = (epoch * (1 + steps // len(epoch)))[:steps]
    out = []
    while len(out) < steps:
        size = sizes[len(out)]
        step = program.steps[size]
        most, count = min(1_000, steps, max(1, 2**18 // (1 + step.normals + step.uniforms))), 0
        while count < most and len(out) + count < steps and sizes[len(out) + count] == size:
            count += 1
        normal = torch.randn(count, step.normals, generator=generator, dtype=step.dtype)
        out += zip(normal, torch.rand(count, step.uniforms, generator=generator, dtype=step.dtype), strict=True)
    return out


class Watch:
    """A callback that keeps what it is told."""

    def __init__(self):
        self.numbers, self.elbo, self.values = [], [], []

    def __call__(self, step):
        self.numbers.append(step.number)
        self.elbo.append(step.elbo)
        self.values.append(step.parameters())


def apart(a, b):
    """How far two watched fits lie apart, over their scale: in the ELBO, and in any parameter."""
    assert len(a.elbo) == len(b.elbo) > 0
    elbo = max(abs(x - y) / (1 + abs(y)) for x, y in zip(a.elbo, b.elbo, strict=True))
    pairs = [(x[name], y[name]) for x, y in zip(a.values, b.values, strict=True) for name in y]
    return max(elbo, *(float((x - y).abs().max() / (0.1 + y.abs().max())) for x, y in pairs))


def traced_and_plain(model, guide, data, *, seed=3, **settings):
    """A recorded fit and Pyro's own on the same noise: what callbacks saw of each, and the former's engine."""
    settings = {"steps": 12, "lr": 0.02, "stop": None, "seed": seed, **settings}
    made, traced, plain = [], Watch(), Watch()

    def make(kind, task):
        made.append((engines.make_engine(kind, task), task))
        return made[0][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svi, "make_engine", make)
        traced.fit = pyrovi.fit(model, guide, data, engine="traced", callbacks=traced, **settings)
    (engine, _), task = made[0]
    noise = noise_of(seed, task.steps, engine._program, task.problem.batches)
    run = Plain.run

    def run_on_noise(self, elbo):
        for step in range(elbo.shape[1]):
            with Given(*noise[self.done]) as given:
                run(self, elbo[:, step : step + 1])
            assert not len(given.left["normal"]), "the recorded step has more normal numbers than svi.step draws"
            assert not len(given.left["uniform"]), "the recorded step has more uniform numbers than svi.step draws"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plain, "run", run_on_noise)
        plain.fit = pyrovi.fit(model, guide, data, engine="pyro", callbacks=plain, **settings)
    return traced, plain, engine


def small(name):
    """A recipe's data and settings, of a size for a few steps; 60 rows in batches of 25 end with one of 10."""
    recipe = pyrovi.recipe(name)
    options = {
        "normal_mean": {"n": 20},
        "gamma_poisson": {"m": 5},
        "latent_outcome": {"n": 20},
        "poisson_factorization": {"label": 0},
    }
    data, settings = recipe.load(**options.get(name, {})), dict(recipe.settings)
    if "batch_size" in settings:
        settings["batch_size"] = 25
        data = {k: v[:60] if getattr(v, "ndim", 0) else v for k, v in data.items()}
    settings["particles"] = min(settings.get("particles", 1), 5)
    return recipe.model, recipe.guide, data, settings


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", pyrovi.recipes)
def test_every_recipe_is_the_same_fit_on_both_engines(name, dtype):
    model, guide, data, settings = small(name)
    traced, plain, _ = traced_and_plain(model, guide, data, **{**settings, "steps": 8, "dtype": dtype})
    assert apart(traced, plain) < TOLERANCE[dtype]
    assert traced.values[-1].keys() == plain.values[-1].keys()


def model(x):
    """Scalars and a vector, so that shapes could go wrong."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu + w.sum(-1, keepdim=w.dim() > 1), sigma), obs=x)


def guide(x):
    loc, w = pyro.param("loc", torch.tensor(0.3)), pyro.param("w_loc", torch.zeros(3))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    s = pyro.param("s", torch.tensor([0.1, -0.4]))
    pyro.sample("mu", dist.Normal(loc, scale))
    pyro.sample("sigma", dist.LogNormal(s[0], s[1].exp()))
    pyro.sample("w", dist.Normal(w, 0.3).to_event(1))


def mean_model(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def mean_guide(x):
    loc = pyro.param("loc", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(loc, scale))


def local_model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def amortised_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def amortised_guide(x):
    slope, scale = pyro.param("slope", torch.tensor(0.2)), pyro.param("log_scale", torch.tensor(-0.2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale.exp()))


def group_model(x, group):
    with pyro.plate("groups", int(group.max()) + 1 if len(group) == 30 else 5):  # a batch's own largest may not be looked at
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(a[..., group], 1.0), obs=x)


SGD, RMS = torch.optim.SGD, torch.optim.RMSprop
OPTIMIZERS = {
    **{name: {"optimizer": name, "lr": 0.05} for name in ("adagrad", "adam", "adamax", "adamw", "clipped_adam", "nadam")},
    **{name: {"optimizer": name, "lr": 0.05} for name in ("radam", "rmsprop")},
    "sgd": {"optimizer": "sgd", "lr": 1e-3},
    "momentum": {"optimizer": functools.partial(SGD, momentum=0.9, nesterov=True, weight_decay=0.1), "lr": 1e-3},
    "options": {"optimizer": functools.partial(torch.optim.Adam, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1), "lr": 0.05},
    "decayed": {"optimizer": functools.partial(RMS, alpha=0.5, weight_decay=0.1), "lr": 0.05},
    "clip_norm": {"clip_norm": 0.5, "optimizer": "sgd", "lr": 0.1},
    "cosine": {"schedule": "cosine", "lr": 0.1},
    "warmup_cosine": {"schedule": "warmup_cosine", "lr": 0.1},
    "own schedule": {"schedule": lambda step: 1 / (1 + step), "lr": 0.1},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_schedule_and_clipping_moves_as_in_torch(name):
    traced, plain, _ = traced_and_plain(model, guide, {"x": X}, dtype="float64", **OPTIMIZERS[name])
    assert apart(traced, plain) < 1e-8
    assert any(not torch.equal(traced.values[0][k], traced.values[-1][k]) for k in traced.values[0])


BATCHES = {"batch_size": 8}  # 30 data: the last of a pass has 6
WEIGHTS = ("importance_weighted", "renyi")
OBJECTIVES = {
    "particles": (model, guide, {"particles": 4}),
    "batches": (model, guide, BATCHES),
    "batches of particles": (model, guide, {**BATCHES, "particles": 3}),
    "kl_weight": (model, guide, {"kl_weight": 0.3}),
    "kl_annealing": (model, guide, {"kl_annealing": 6}),
    "kl_annealing in batches": (model, guide, {"kl_annealing": 6, **BATCHES}),
    "mean_field": (model, guide, {"objective": "mean_field", "particles": 2}),
    "mean_field, kl_annealing": (model, guide, {"objective": "mean_field", "kl_annealing": 6}),
    "mean_field in batches": (amortised_model, amortised_guide, {"objective": "mean_field", **BATCHES}),
    "sticking": (model, guide, {"gradient": "sticking_the_landing", "particles": 2}),
    "sticking in batches": (amortised_model, amortised_guide, {"gradient": "sticking_the_landing", **BATCHES}),
    **{
        f"{objective} {gradient}{where}": (*programs, {"objective": objective, "gradient": gradient, "particles": 4, **batches})
        for objective in WEIGHTS
        for gradient in ("total", "doubly_reparameterized")
        for where, programs, batches in (
            ("", (model, guide), {}),
            (" in batches", (amortised_model, amortised_guide), BATCHES),
        )
    },
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_and_gradient_is_the_same_on_both_engines(name):
    programs = OBJECTIVES[name]
    traced, plain, _ = traced_and_plain(*programs[:2], {"x": X}, dtype="float64", **programs[2])
    assert apart(traced, plain) < 1e-8


@pytest.mark.parametrize("guide", ["normal", "multivariate_normal", "low_rank", "structured", "delta", "laplace", "flow"])
@pytest.mark.parametrize("case", ["whole", "local in batches"])
def test_every_named_guide_is_the_same_on_both_engines(guide, case):
    program, more = (model, {"particles": 2}) if case == "whole" else (local_model, BATCHES)
    traced, plain, _ = traced_and_plain(program, guide, {"x": X}, dtype="float64", **more)
    assert apart(traced, plain) < 1e-8


@pytest.mark.parametrize("gradient", ["sticking_the_landing", "doubly_reparameterized"])
@pytest.mark.parametrize("guide", ["normal", "multivariate_normal", "low_rank", pytest.param("flow", marks=pytest.mark.slow)])
def test_named_gradients_of_named_guides_are_the_same_on_both_engines(guide, gradient):
    more = {"objective": "importance_weighted", "particles": 3} if gradient == "doubly_reparameterized" else {}
    traced, plain, _ = traced_and_plain(model, guide, {"x": X}, gradient=gradient, dtype="float64", **more)
    assert apart(traced, plain) < 1e-8


@pytest.mark.parametrize("more", [{}, BATCHES], ids=["whole", "batches"])
def test_an_index_by_group_is_recorded(more):
    traced, plain, _ = traced_and_plain(group_model, "normal", {"x": X, "group": GROUP}, dtype="float64", **more)
    assert apart(traced, plain) < 1e-8


def test_a_kl_weight_leaves_the_dtype_as_it_is():
    traced, plain, engine = traced_and_plain(mean_model, mean_guide, {"x": X}, kl_annealing=6)
    assert engine._flat.dtype is torch.float32
    assert apart(traced, plain) < 1e-4


def test_both_engines_report_the_same_mean_of_iterates():
    traced, plain, _ = traced_and_plain(mean_model, mean_guide, {"x": X}, dtype="float64", steps=400, lr=0.05)
    assert traced.fit.settings["averaged_steps"] == plain.fit.settings["averaged_steps"] == 200
    for name, value in plain.fit.unconstrained.items():
        assert torch.allclose(traced.fit.unconstrained[name], value, rtol=1e-9)
    late = torch.stack([values["loc"] for values in plain.values[200:]])
    assert torch.allclose(plain.fit.parameters["loc"], late.mean(), rtol=1e-9)


def positive(name, value):
    return pyro.param(name, torch.as_tensor(value), constraint=constraints.positive)


def share(name, value):
    chosen = constraints.unit_interval if isinstance(value, float) else constraints.simplex
    return pyro.param(name, torch.as_tensor(value), constraint=chosen)


TRIL = constraints.lower_cholesky
PRIOR_OF_COUNTS = dist.Poisson(1.0)
LATENTS = {
    "Gamma": (dist.Gamma(2.0, 1.0), lambda: dist.Gamma(positive("a", 2.0), positive("b", 1.5))),
    "Beta": (dist.Beta(1.0, 1.0), lambda: dist.Beta(positive("a", 2.0), positive("b", 1.5))),
    "Dirichlet": (dist.Dirichlet(torch.ones(3)), lambda: dist.Dirichlet(positive("a", [2.0, 1.5, 0.7]))),
    "StudentT": (dist.Normal(0.0, 1.0), lambda: dist.StudentT(positive("a", 5.0), positive("b", 0.5), positive("c", 1.2))),
    "Cauchy": (dist.Normal(0.0, 3.0), lambda: dist.Cauchy(positive("a", 0.5), positive("b", 0.5))),
    "Exponential": (dist.Gamma(2.0, 1.0), lambda: dist.Exponential(positive("a", 2.0))),
    "LogNormal": (dist.Gamma(2.0, 1.0), lambda: dist.LogNormal(positive("a", 0.2), positive("b", 0.3))),
    "Laplace": (dist.Normal(0.0, 1.0), lambda: dist.Laplace(positive("a", 0.2), positive("b", 0.3))),
    "Gumbel": (dist.Normal(0.0, 1.0), lambda: dist.Gumbel(positive("a", 0.2), positive("b", 0.3))),
    "Weibull": (dist.Gamma(2.0, 1.0), lambda: dist.Weibull(positive("a", 1.2), positive("b", 2.3))),
    "Uniform": (dist.Normal(0.0, 1.0), lambda: dist.Uniform(positive("a", 0.2), 1.0 + positive("b", 0.3))),
    "InverseGamma": (dist.Gamma(2.0, 1.0), lambda: dist.InverseGamma(positive("a", 3.0), positive("b", 2.0))),
    "MultivariateNormal": (
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        lambda: dist.MultivariateNormal(torch.zeros(2), scale_tril=pyro.param("L", torch.eye(2), constraint=TRIL)),
    ),
    "LKJCholesky": (dist.LKJCholesky(3, 1.0), lambda: dist.LKJCholesky(3, positive("a", 2.0))),
    # no derivative: the score function's gradient
    "Bernoulli": (dist.Bernoulli(0.5), lambda: dist.Bernoulli(share("a", 0.3))),
    "Categorical": (dist.Categorical(torch.ones(3) / 3), lambda: dist.Categorical(share("a", [0.2, 0.5, 0.3]))),
    "OneHotCategorical": (dist.OneHotCategorical(torch.ones(3) / 3), lambda: dist.OneHotCategorical(share("a", [0.2, 0.5, 0.3]))),
    "Poisson": (PRIOR_OF_COUNTS, lambda: dist.Poisson(positive("a", 2.0))),
    "Geometric": (PRIOR_OF_COUNTS, lambda: dist.Geometric(share("a", 0.3))),
}


@pytest.mark.parametrize("name", LATENTS)
def test_a_latent_of_every_kind_is_the_same_on_both_engines(name):
    prior, q = LATENTS[name]

    def model(x):
        z = pyro.sample("z", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z.sum().to(x.dtype), 1.0), obs=x)

    traced, plain, _ = traced_and_plain(model, lambda: pyro.sample("z", q()), {"x": X}, steps=20)
    assert apart(traced, plain) < 1e-4
    assert len({round(e, 3) for e in traced.elbo}) > 2  # the draws are not one and the same


def written(x):
    """Values written into a tensor one by one, each from the last."""
    with pyro.plate("k", 4):
        z = pyro.sample("z", dist.Normal(0.0, 0.3))
    level = torch.zeros(4)
    for i in range(4):
        level[i] = z[i].exp() * (0.5 * level[i - 1] + 0.1 if i else 1.0)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(level.sum(), 1.0), obs=x)


def written_in_rows(x):
    """Rows, columns, a transpose and a diagonal."""
    with pyro.plate("k", 4):
        z = pyro.sample("z", dist.Normal(0.0, 0.3))
    out = torch.zeros(2, 2)
    out.T.copy_(z.reshape(2, 2))
    out[0, 1] *= 2
    out[:, 0] += 1.0
    out.diagonal()[:] = z[:2].exp()
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(out[0].sum() - out[1, 0] ** 2, 1.0), obs=x)


def written_where_positive(x):
    with pyro.plate("k", 4):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    z = z.clone()
    z[z > 0] = 0.0
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)


def noise_in_a_row(x):
    """A draw into a part of a tensor."""
    z, jitter = pyro.sample("z", dist.Normal(0.0, 1.0)), torch.zeros(3, 2)
    jitter[0].normal_()
    jitter[1].uniform_(1.0, 2.0)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z + 0.1 * jitter.sum(), 1.0), obs=x)


def dropped_out(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z + torch.nn.functional.dropout(torch.ones(3), 0.5).sum(), 1.0), obs=x)


def read_from_data(x):
    """Values of the data alone may be looked at: they are the same at every step."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    if x.mean() > 0:
        z = z + 1
    chosen = x[x > 0]
    with pyro.plate("data", len(chosen)):
        pyro.sample("x", dist.Normal(z, float(x.std())), obs=chosen)


@pytest.mark.parametrize(
    "program",
    [written, written_in_rows, written_where_positive, noise_in_a_row, dropped_out, read_from_data],
    ids=lambda f: f.__name__,
)
def test_programs_that_write_in_place_or_read_data_are_the_same_on_both_engines(program):
    traced, plain, _ = traced_and_plain(program, "normal", {"x": X}, dtype="float64")
    assert apart(traced, plain) < 1e-8


def branching(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z if z > 0 else 2 * z, 1.0), obs=x)


def masking(x):
    with pyro.plate("k", 4):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z[z > 0].sum(), 1.0), obs=x)


def counting_nonzero(x):
    with pyro.plate("k", 4):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z.sum() + len(torch.nonzero(z > 0)), 1.0), obs=x)


def keeping_count():
    calls = [0]

    def model(x):
        """Anneals by itself: its second call differs from its first by little."""
        calls[0] += 1
        with pyro.poutine.scale(scale=min(1.0, calls[0] / 1_000)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


class Buffered(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + 0 * self.calls, 1.0), obs=x)


def drawing_with_numpy(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z + 1e-3 * np.random.normal(), 1.0), obs=x)


def von_mises():
    pyro.sample("z", dist.VonMises(positive("a", 0.3), positive("b", 2.0)))


def outcome_in_batches(x, group):
    """A batch's own values are another batch's others."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z if x.mean() > 0 else -z, 1.0), obs=x)


UNRECORDED = {
    "a branch on a latent": (branching, mean_guide, {}, "course depends on the value"),
    "a mask of latents": (masking, "normal", {}, "course depends on the value"),
    "nonzero of latents": (counting_nonzero, "normal", {}, "course depends on the value"),
    "a branch on a batch": (outcome_in_batches, mean_guide, {"batch_size": 10}, "course depends on the value"),
    "a counter": (keeping_count(), mean_guide, {}, "state of its own"),
    "a buffer": (Buffered(), mean_guide, {}, "outlives the step"),
    "numpy": (drawing_with_numpy, mean_guide, {}, "random numbers outside of torch"),
    "rejection": (mean_model, von_mises, {}, "course depends on the value"),
    "a mixture": (mean_model, "mixture", {}, "course depends on the value"),
    "dct_adam": (mean_model, mean_guide, {"optimizer": "dct_adam"}, "dct_adam has no pure form"),
    "rprop": (mean_model, mean_guide, {"optimizer": "rprop"}, "rprop has no pure form"),
    "an instance": (mean_model, mean_guide, {"optimizer": pyro.optim.Adam({"lr": 0.01}), "lr": None}, "no pure form"),
    "amsgrad": (mean_model, mean_guide, {"optimizer": functools.partial(torch.optim.Adam, amsgrad=True)}, "no pure form"),
    "another ELBO": (mean_model, mean_guide, {"objective": TraceGraph_ELBO}, "TraceGraph_ELBO cannot be recorded"),
}


@pytest.mark.parametrize("name", UNRECORDED)
def test_what_cannot_be_recorded_runs_on_pyro_and_says_why_once(name):
    program, guide, settings, why = UNRECORDED[name]
    if name == "a branch on a batch":
        program = functools.partial(program, group=None)
    settings = {"steps": 5, "lr": 0.01, "stop": None, **settings}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        asked = pyrovi.fit(program, guide, {"x": X}, engine="traced", **settings)
        said = [w for w in said if "cannot run this fit" in str(w.message)]
    assert asked.settings["engine"] == "pyro"
    assert why in asked.settings["engine_reason"]
    assert len(said) == 1
    assert why in str(said[0].message)
    assert said[0].category is UserWarning
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="engine=")
        warnings.filterwarnings("error", message=".*cannot run this fit")
        quiet = pyrovi.fit(program, guide, {"x": X}, **{**settings, "steps": engines.SHORT})  # nobody asked for an engine
    assert quiet.settings["engine"] == "pyro"
    assert why in quiet.settings["engine_reason"]
    plain = pyrovi.fit(program, guide, {"x": X}, engine="pyro", **settings)
    if name not in ("a counter", "numpy"):
        assert np.array_equal(plain.elbo, asked.elbo)


def test_auto_takes_pyro_for_short_fits_and_says_so():
    short = pyrovi.fit(mean_model, mean_guide, {"x": X}, steps=engines.SHORT - 1, stop=None)
    long = pyrovi.fit(mean_model, mean_guide, {"x": X}, steps=engines.SHORT, stop=None)
    assert (short.settings["engine"], short.settings["engine_reason"]) == ("pyro", "fewer than 200 steps")
    assert (long.settings["engine"], long.settings["engine_reason"]) == ("traced", "")
    with pytest.raises(pyrovi.SettingsError, match="did you mean 'compiled'"):
        pyrovi.fit(mean_model, mean_guide, {"x": X}, engine="compield")


def quick(engine="traced", **settings):
    settings = {"steps": 40, "lr": 0.05, "stop": None, "batch_size": 8, "seed": 5, **settings}
    return pyrovi.fit(model, guide, {"x": X}, engine=engine, **settings)


def same_bits(a, b):
    return np.array_equal(a.elbo, b.elbo, equal_nan=True) and all(
        torch.equal(v, b.unconstrained[k]) for k, v in a.unconstrained.items()
    )


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    for settings in ({}, {"particles": 3, "kl_annealing": 10}):
        assert same_bits(quick(**settings), quick(**settings))
        assert not same_bits(quick(**settings), quick(seed=6, **settings))


def test_neither_callbacks_nor_the_bar_change_a_fit(capsys):
    plain = quick(steps=300)
    watch = Watch()
    assert same_bits(plain, quick(steps=300, callbacks=watch))
    assert watch.numbers == list(range(1, 301))
    assert watch.elbo == plain.elbo[0].tolist()
    assert "300/300" not in capsys.readouterr().err
    assert same_bits(plain, quick(steps=300, progress=True))
    assert "300/300" in capsys.readouterr().err


def test_callbacks_see_the_parameters_of_their_step():
    """Plain gradient ascent by hand: a step moves a parameter by the rate times its gradient, known where there is no noise."""

    def point(x):
        pyro.sample("z", dist.Delta(pyro.param("loc", torch.tensor(0.0))))

    watch = Watch()
    pyrovi.fit(
        mean_model, point, {"x": X}, engine="traced", optimizer="sgd", lr=0.01, steps=5, stop=None, dtype="float64", callbacks=watch
    )
    loc = 0.0
    for seen in watch.values:
        loc += 0.01 * ((X - loc).sum() - loc)
        assert float(seen["loc"]) == pytest.approx(loc, rel=1e-12)


def test_a_callback_can_end_a_recorded_fit():
    fit = quick(callbacks=lambda step: step.number == 7)
    assert fit.status is pyrovi.Status.interrupted
    assert fit.elbo.shape == (1, 7)
    assert same_bits(fit, quick(callbacks=lambda step: step.number == 7))


def test_an_interrupt_gives_the_fit_so_far():
    def interrupt(step):
        if step.number == 11:
            raise KeyboardInterrupt

    fit = quick(callbacks=interrupt)
    assert fit.status is pyrovi.Status.interrupted
    assert "by hand after 11 of 40 steps" in fit.advice
    assert np.array_equal(fit.elbo, quick().elbo[:, :11])


@pytest.mark.parametrize("restarts", [1, 3])
def test_a_signal_in_the_middle_of_a_block_gives_the_fit_so_far(restarts):
    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        fit = quick(steps=5_000_000, restarts=restarts)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert fit.status is pyrovi.Status.interrupted
    assert "by hand after" in fit.advice
    assert 0 < fit.elbo.shape[1] < 200_000
    assert np.isfinite(fit.elbo).all()
    assert all(torch.isfinite(v).all() for v in fit.parameters.values())


def exploding(x):
    """Its likelihood is NaN once z is past 1, where the data want it."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0 + 0.0 * (1.0 - z).sqrt()), obs=x)


@pytest.mark.parametrize("batches", [{}, {"batch_size": 8}], ids=["whole", "batches"])
def test_a_loss_that_is_not_finite_ends_the_fit_and_names_the_site(batches):
    def narrow(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(-2.0)), 0.01))

    settings = {"steps": 300, "lr": 0.05, "stop": None, **batches}
    watch = Watch()
    fit = pyrovi.fit(exploding, narrow, {"x": 10 + X}, engine="traced", callbacks=watch, **settings)
    plain = pyrovi.fit(exploding, narrow, {"x": 10 + X}, engine="pyro", **settings)
    assert fit.status is plain.status is pyrovi.Status.diverged
    assert "'x'" in fit.advice
    assert fit.advice.startswith(f"At step {fit.elbo.shape[1] + 1}")
    assert np.isfinite(fit.elbo).all()
    assert 20 < fit.elbo.shape[1] < 299
    assert abs(fit.elbo.shape[1] - plain.elbo.shape[1]) < 10  # their noise differs
    assert torch.equal(fit.parameters["loc"], watch.values[fit.elbo.shape[1] - 1]["loc"])  # before the step that failed
    assert same_bits(fit, pyrovi.fit(exploding, narrow, {"x": 10 + X}, engine="traced", **settings))


def indefinite(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    root = torch.linalg.cholesky(torch.eye(3) * (1.0 - z))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0 + 0.0 * root.sum()), obs=x)


@pytest.mark.parametrize("engine", ["pyro", "traced"])
def test_a_failed_cholesky_is_a_divergence_not_an_exception(engine):
    def narrow(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(-2.0)), 0.01))

    fit = pyrovi.fit(indefinite, narrow, {"x": 10 + X}, engine=engine, steps=300, lr=0.05, stop=None)
    assert fit.settings["engine"] == engine
    assert fit.status is pyrovi.Status.diverged
    assert np.isfinite(fit.elbo).all()
    assert -2.0 < fit.parameters["loc"] < 1.0


def test_the_recorded_fit_lands_where_pyro_does():
    """As a user has them: neither noise is the other's. The tolerance is 4 standard errors of the means of 2,000 ELBO estimates."""
    fits = [pyrovi.fit(mean_model, mean_guide, {"x": X}, engine=e, steps=2_000, lr=0.02, stop=None) for e in ("pyro", "traced")]
    precision = len(X) + 1
    for fit in fits:
        assert float(fit.parameters["loc"]) == pytest.approx(X.sum() / precision, abs=0.1 / precision**0.5)
        assert float(fit.parameters["scale"]) == pytest.approx(precision**-0.5, rel=0.1)
    estimates = [fit.estimate_elbo() for fit in fits]
    assert abs(estimates[0].value - estimates[1].value) < 0.02 + 4 * math.hypot(*(e.se for e in estimates))


def test_the_compiled_fit_is_the_recorded_one():
    """One compilation for all of this: rates and seeds are inputs of the compiled step."""
    traced, compiled, watch = quick(), quick("compiled"), Watch()
    assert compiled.settings["engine"] == "compiled", compiled.settings["engine_reason"]
    assert np.abs(compiled.elbo / traced.elbo - 1).max() < 1e-4
    assert all(torch.allclose(v, traced.parameters[k], rtol=1e-4, atol=1e-4) for k, v in compiled.parameters.items())
    assert same_bits(compiled, quick("compiled"))
    assert same_bits(compiled, quick("compiled", callbacks=watch))
    assert watch.numbers == list(range(1, 41))
    assert watch.elbo == compiled.elbo[0].tolist()
    assert not same_bits(compiled, quick("compiled", seed=6))
    other, cosine = quick(seed=6, schedule="cosine"), quick("compiled", seed=6, schedule="cosine")
    assert np.abs(cosine.elbo / other.elbo - 1).max() < 1e-4
    lost, gone = quick(lr=40.0), quick("compiled", lr=40.0)
    assert lost.status is gone.status is pyrovi.Status.diverged
    assert lost.elbo.shape == gone.elbo.shape
    assert 0 < gone.elbo.shape[1] < 40
    assert np.isfinite(gone.elbo).all()
    assert gone.unconstrained["loc"] > 40  # the last finite ones, not the first
    assert all(torch.allclose(v, lost.unconstrained[k], rtol=1e-4) for k, v in gone.unconstrained.items())
    told = quick("compiled", callbacks=lambda step: step.number == 7)
    assert np.array_equal(told.elbo, compiled.elbo[:, :7])


PROGRAM = """
import numpy, sys, torch; torch.set_num_threads(1)
import pyrovi
f = pyrovi.recipe("gamma_poisson").fit(steps={steps}, particles=3, seed=5, engine="{engine}")
assert f.settings["engine"] == "{engine}", f.settings["engine_reason"]
print(f.elbo.tobytes().hex()[-64:], f.unconstrained["alpha"].numpy().tobytes().hex()[-64:])
"""


@pytest.mark.parametrize("engine", ["traced", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_new_process_gives_the_same_bits(engine):
    program = PROGRAM.format(engine=engine, steps=40)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    here = pyrovi.recipe("gamma_poisson").fit(steps=40, particles=3, seed=5, engine=engine)
    assert there.stdout.split() == [
        here.elbo.tobytes().hex()[-64:],
        here.unconstrained["alpha"].numpy().tobytes().hex()[-64:],
    ]


def compiled_and_traced(model, guide, data, dtype, **settings):
    settings = {"steps": 8, "lr": 0.02, "stop": None, "seed": 3, "dtype": dtype, **settings}
    pair = []
    for engine in ("compiled", "traced"):
        watch = Watch()
        fit = pyrovi.fit(model, guide, data, engine=engine, callbacks=watch, **settings)
        assert fit.settings["engine"] == engine, fit.settings["engine_reason"]
        pair.append(watch)
    return apart(*pair)


COMPILED = {"float64": 1e-9, "float32": 1e-4}
RECIPES = sorted(pyrovi.recipes)


@pytest.mark.slow
@pytest.mark.parametrize("names", [RECIPES[i : i + 4] for i in range(0, len(RECIPES), 4)], ids=lambda v: v[0])
@pytest.mark.parametrize("dtype", COMPILED)
def test_every_recipe_compiled_is_every_recipe_recorded(names, dtype):
    for name in names:
        model, guide, data, settings = small(name)
        assert compiled_and_traced(model, guide, data, dtype, **{**settings, "steps": 8}) < COMPILED[dtype], name


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"kl_annealing": 6, "batch_size": 8, "clip_norm": 1.0, "schedule": "cosine"},
        {"objective": "importance_weighted", "gradient": "doubly_reparameterized", "particles": 4, "optimizer": "nadam"},
        {"gradient": "sticking_the_landing", "optimizer": "radam", "restarts": 3},
    ],
    ids=lambda v: next(iter(v)),
)
def test_settings_compiled_are_settings_recorded(settings):
    assert compiled_and_traced(model, guide, {"x": X}, "float64", **settings) < 1e-9
    assert compiled_and_traced(model, guide, {"x": X}, "float32", **settings) < 1e-4
