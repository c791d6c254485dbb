"""`record`: the graph is the function, its draws are torch's, and what cannot be a pure function is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrovi.graphs import record
from pyrovi.program import Layout
from pyrovi.recording import NotTraceable, rerecord

N = 40_000


@pytest.fixture(autouse=True)
def as_in_a_fit():
    with pyro.validation_enabled(False):  # which looks at values
        yield


def leaf(*values):
    return torch.tensor(values, requires_grad=True)


def with_gradient(value, p):
    (gradient,) = torch.autograd.grad(value, p)
    return [gradient, value.detach()]


def play(recorded, p, *inputs, tensors=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(recorded.normals, generator=generator, dtype=recorded.dtype)
    uniform = torch.rand(recorded.uniforms, generator=generator, dtype=recorded.dtype)
    return recorded.body(p.detach().reshape(-1), *inputs, normal, uniform, *recorded.prologue(*tensors))


def operations(module):
    return [node for node in module.graph.nodes if node.op == "call_function"]


def written_one_by_one(p, x):
    out = torch.zeros(3)
    for i in range(3):
        out[i] = p[i].exp() * (out[i - 1] + x[i] if i else x[i])
    return (out**2).sum()


def written_in_slices(p, x):
    out = torch.zeros(2, 3)
    out[0] = p
    out[1, 1:] = x[1:] * p[1:].sin()
    out[:, 0] += p[0] ** 2
    return (out * torch.arange(6.0).reshape(2, 3)).sum() + out[1, 2] ** 2


def written_through_views(p, x):
    out = torch.zeros(3, 3)
    out.T.copy_(p[:, None] * x)
    out.diagonal().mul_(p)
    out.view(-1)[::4].add_(1.0)
    return (out * torch.arange(9.0).reshape(3, 3)).sum()


def written_by_index(p, x):
    out = torch.ones(4)
    out[torch.tensor([0, 2])] = p[:2] * x[:2]
    out.index_add_(0, torch.tensor([1, 1, 3]), p)
    return (out * torch.arange(4.0)).prod() + out.sum()


def written_before_and_after(p, x):
    """A view taken before the write sees it; a copy does not."""
    out = p * 2.0
    view, copy = out[1:], out.clone()
    out += x
    view *= 3.0
    return (out * view.sum()).sum() + copy.prod()


def clamped(p, x):
    return (p * x).clamp_(min=0.1).log_().sum()


PROGRAMS = [written_one_by_one, written_in_slices, written_through_views, written_by_index, written_before_and_after, clamped]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, where it has no rule of its own for vmap
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_in_place_writes_are_recorded_with_their_values_and_gradients(program):
    p = leaf(0.4, 0.7, 1.1)
    recorded = record(lambda x: with_gradient(program(p, x), p), [torch.tensor([1.0, 2.0, 3.0])], [], {"p": p})
    assert not any(node.target._schema.is_mutable for node in operations(recorded.body) if hasattr(node.target, "_schema"))
    others, x = torch.tensor([[0.2, 0.9, 1.4], [1.5, 0.3, 0.6]]), torch.tensor([0.5, 1.5, 2.5])
    wanted = []
    for other in others:
        q = other.clone().requires_grad_()
        wanted.append(with_gradient(program(q, x), q))
        for got, want in zip(play(recorded, other, x), wanted[-1], strict=True):
            assert torch.allclose(got, want, rtol=1e-5)
    empty = torch.zeros(2, 0)
    fixed = recorded.prologue()
    together = torch.func.vmap(recorded.body, in_dims=(0, None, 0, 0, *(None for _ in fixed)))(others, x, empty, empty, *fixed)
    for i, want in enumerate(wanted):
        assert all(torch.allclose(got[i], w, rtol=1e-5) for got, w in zip(together, want, strict=True))


def test_what_depends_on_the_data_alone_is_computed_once():
    p, data = leaf(1.0, 2.0), torch.tensor([3.0, 4.0])
    recorded = record(
        lambda: with_gradient(((p - data.exp().log1p()) ** 2).sum() + torch.lgamma(data).sum(), p), [], [data], {"p": p}
    )
    early, late = ({str(node.target) for node in operations(m)} for m in (recorded.prologue, recorded.body))
    assert {"aten.exp.default", "aten.log1p.default", "aten.lgamma.default"} <= early
    assert not {"aten.exp.default", "aten.log1p.default", "aten.lgamma.default"} & late
    other, q = torch.tensor([0.5, 1.5]), leaf(0.3, 0.4)
    gradient, value = play(recorded, q, tensors=[other])
    wanted = with_gradient(((q - other.exp().log1p()) ** 2).sum() + torch.lgamma(other).sum(), q)
    assert torch.allclose(gradient, wanted[0])
    assert torch.allclose(value, wanted[1])


def test_values_read_from_data_are_allowed_unless_they_differ_between_fits():
    p, data = leaf(1.0), torch.tensor([3.0, 4.0])

    def function():
        scale = 2.0 if data.mean() > 0 else 3.0
        return with_gradient((p * scale + data[data > 3.5]).sum(), p)

    assert play(record(function, [], [data], {"p": p}), torch.tensor([2.0]), tensors=[data])[1] == 8.0
    with pytest.raises(NotTraceable, match="one fit's own data"):
        record(function, [], [data], {"p": p}, differing=[0])


LOOKS = {
    "a branch": lambda p: p.sum() if p[0] > 0 else -p.sum(),
    "a float": lambda p: p.sum() * float(p[0]),
    "nonzero": lambda p: p.sum() * len(torch.nonzero(p > 0)),
    "a mask": lambda p: p[p > 0].sum(),
    "masked_select": lambda p: torch.masked_select(p, p > 0).sum(),
    "unique": lambda p: p.sum() * len(torch.unique(p.detach().round())),
    "a draw": lambda p: p.sum() if torch.rand(()) > 0.5 else -p.sum(),
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_course_that_depends_on_a_value_is_refused(name):
    p = leaf(0.5, 1.0)
    with pytest.raises(NotTraceable, match="its course depends on the value"):
        record(lambda: with_gradient(LOOKS[name](p), p), [], [], {"p": p})


def test_an_index_of_whole_numbers_is_no_look():
    p, groups = leaf(0.5, 1.0), torch.tensor([0, 1, 1])
    recorded = record(lambda: with_gradient((p[groups] ** 2).sum(), p), [], [groups], {"p": p})
    gradient, value = play(recorded, torch.tensor([1.0, 2.0]), tensors=[torch.tensor([1, 1, 0])])
    assert (gradient.tolist(), float(value)) == ([2.0, 8.0], 9.0)


def test_one_hot_of_a_given_number_of_classes_is_no_look():
    p, classes = leaf(0.5, 1.0), torch.tensor([0, 1, 1])
    for call in (lambda: torch.nn.functional.one_hot(classes, 2), lambda: torch.nn.functional.one_hot(classes, num_classes=2)):
        recorded = record(lambda call=call: with_gradient((call() * p).sum(), p), [], [classes], {"p": p}, differing=[0])
        assert play(recorded, p, tensors=[torch.tensor([0, 0, 1])])[0].tolist() == [2.0, 1.0]


def test_states_of_its_own_are_refused():
    p, calls, buffer = leaf(0.5, 1.0), [0], torch.zeros(2)

    def counts():
        calls[0] += 1
        return with_gradient(p.sum() * (1.0 + 1e-4 * calls[0]), p)  # a small change is one

    def changes():
        buffer.add_(1.0)
        return with_gradient((p * buffer).sum(), p)

    def changes_a_part():
        buffer[0] += 1.0
        return with_gradient((p * buffer).sum(), p)

    with pytest.raises(NotTraceable, match="state of its own"):
        record(counts, [], [], {"p": p})
    for function in (changes, changes_a_part):
        with pytest.raises(NotTraceable):
            record(function, [], [], {"p": p})


def test_an_error_is_a_reason():
    p = leaf(0.5)
    with pytest.raises(NotTraceable, match=r"RuntimeError: shape '\[3\]' is invalid"):
        record(lambda: with_gradient(p.view(3).sum(), p), [], [], {"p": p})
    other = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(NotTraceable, match="2 dtypes"):
        record(lambda: with_gradient(p.sum(), p), [], [], {"p": p, "other": other})


def test_recording_leaves_the_random_numbers_as_they_were():
    p, state = leaf(0.5), torch.get_rng_state()
    record(lambda: with_gradient((p * torch.randn(3)).sum(), p), [], [], {"p": p})
    assert torch.equal(torch.get_rng_state(), state)


def test_a_factorisation_that_fails_gives_nan():
    p = leaf(1.0)
    recorded = record(lambda: with_gradient(torch.linalg.cholesky(torch.eye(2) * p).sum(), p), [], [], {"p": p})
    good, bad = play(recorded, torch.tensor([4.0])), play(recorded, torch.tensor([-4.0]))
    assert float(good[1]) == 4.0
    assert torch.isnan(bad[1])
    noise = torch.zeros(3, 0)
    fixed = recorded.prologue()
    _, values = torch.func.vmap(recorded.body, in_dims=(0, 0, 0, *(None for _ in fixed)))(
        torch.tensor([[4.0], [-1.0], [9.0]]), noise, noise, *fixed
    )
    assert values.nan_to_num(-1.0).tolist() == [4.0, -1.0, 6.0]


def positive(x):
    return torch.full((N,), x)


DISTRIBUTIONS = {
    "Normal": lambda: dist.Normal(positive(-1.0), 2.0),
    "LogNormal": lambda: dist.LogNormal(positive(0.2), 0.5),
    "HalfNormal": lambda: dist.HalfNormal(positive(2.0)),
    "Uniform": lambda: dist.Uniform(positive(-1.0), 3.0),
    "Exponential": lambda: dist.Exponential(positive(3.0)),
    "Weibull": lambda: dist.Weibull(positive(2.0), 1.5),
    "Pareto": lambda: dist.Pareto(positive(1.0), 6.0),
    "Laplace": lambda: dist.Laplace(positive(1.0), 2.0),
    "Gumbel": lambda: dist.Gumbel(positive(1.0), 2.0),
    "Cauchy": lambda: dist.Cauchy(positive(1.0), 2.0),
    "HalfCauchy": lambda: dist.HalfCauchy(positive(2.0)),
    "Kumaraswamy": lambda: dist.Kumaraswamy(positive(2.0), 3.0),
    "Gamma": lambda: dist.Gamma(positive(0.7), 2.0),
    "Chi2": lambda: dist.Chi2(positive(3.0)),
    "InverseGamma": lambda: dist.InverseGamma(positive(6.0), 2.0),
    "Beta": lambda: dist.Beta(positive(2.0), 0.7),
    "StudentT": lambda: dist.StudentT(positive(9.0), 1.0, 2.0),
    "Dirichlet": lambda: dist.Dirichlet(torch.tensor([2.0, 0.7, 1.0]).expand(N, 3)),
    "MultivariateNormal": lambda: dist.MultivariateNormal(torch.zeros(N, 2), scale_tril=torch.tensor([[1.0, 0.0], [0.5, 2.0]])),
    "LowRank": lambda: dist.LowRankMultivariateNormal(torch.zeros(N, 2), torch.tensor([[1.0], [0.5]]), torch.ones(2)),
    "Bernoulli": lambda: dist.Bernoulli(positive(0.3)),
    "ContinuousBernoulli": lambda: dist.ContinuousBernoulli(positive(0.3)),
    "Geometric": lambda: dist.Geometric(positive(0.3)),
    "Poisson": lambda: dist.Poisson(positive(3.0)),
    "Binomial": lambda: dist.Binomial(5, positive(0.3)),
    "Categorical": lambda: dist.Categorical(torch.tensor([0.2, 0.0, 0.5, 0.3]).expand(N, 4)),
    "OneHotCategorical": lambda: dist.OneHotCategorical(torch.tensor([0.2, 0.5, 0.3]).expand(N, 3)),
    "RelaxedBernoulli": lambda: dist.RelaxedBernoulli(torch.tensor(0.5), probs=positive(0.3)),
}


def alike(a, b):
    """Two samples: means and variances within 4.5 standard errors, and the same share of each below some quantiles, likewise."""
    a, b = (v.double().reshape(N, -1) for v in (a, b))
    levels = torch.quantile(b, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64), dim=0)
    shares = [[(v <= level).double() for level in levels] for v in (a, b)]
    heavy = bool((b.abs().amax(0) > 100 * b.abs().median(0).values.clamp(min=0.1)).any())
    moments = [[] if heavy else [v, (v - b.mean(0)) ** 2] for v in (a, b)]
    for x, y in zip(shares[0] + moments[0], shares[1] + moments[1], strict=True):
        error = ((x.var(0) + y.var(0)) / N).sqrt()
        if not ((x.mean(0) - y.mean(0)).abs() <= 4.5 * error).all():
            return False
    return True


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_recorded_draws_are_distributed_as_torchs(name):
    p = leaf(0.0)
    make = DISTRIBUTIONS[name]
    recorded = record(lambda: [make().sample() + 0 * p.detach()], [], [], {"p": p})
    torch.manual_seed(0)
    (drawn,) = play(recorded, p, seed=1)
    assert alike(drawn, make().sample())
    (again,) = play(recorded, p, seed=2)
    assert not torch.equal(drawn, again)


DRAWS = {
    "normal_": lambda x: x.normal_(2.0, 3.0),
    "normal_ by default": lambda x: x.normal_(),
    "normal_ by name": lambda x: x.normal_(std=3.0),
    "uniform_": lambda x: x.uniform_(2.0, 3.0),
    "uniform_ by default": lambda x: x.uniform_(),
    "exponential_": lambda x: x.exponential_(),
    "exponential_ of a rate": lambda x: x.exponential_(3.0),
    "cauchy_": lambda x: x.cauchy_(),
    "cauchy_ about": lambda x: x.cauchy_(1.0, 2.0),
    "bernoulli_": lambda x: x.bernoulli_(),
    "bernoulli_ of a share": lambda x: x.bernoulli_(0.2),
    "bernoulli_ of shares": lambda x: x.bernoulli_(torch.full_like(x, 0.2)),
    "log_normal_": lambda x: x.log_normal_(),
    "geometric_": lambda x: x.geometric_(0.3),
    "rand": lambda x: torch.rand(N),
    "rand_like": lambda x: torch.rand_like(x),
    "randn": lambda x: torch.randn(N),
    "randn_like": lambda x: torch.randn_like(x),
    "randint": lambda x: torch.randint(4, (N,)).float(),
    "normal of numbers": lambda x: torch.normal(1.0, 2.0, (N,)),
    "normal of a mean": lambda x: torch.normal(x + 1.0, 2.0),
    "normal of a scale": lambda x: torch.normal(1.0, x + 2.0),
    "normal of both": lambda x: torch.normal(x + 1.0, x + 2.0),
    "bernoulli": lambda x: torch.bernoulli(x + 0.3),
    "dropout": lambda x: torch.nn.functional.dropout(x + 1.0, 0.5),
    "dropout of a fifth": lambda x: torch.nn.functional.dropout(x + 1.0, 0.2),
}


@pytest.mark.parametrize("name", DRAWS)
def test_every_way_to_draw_is_recorded_as_torch_draws(name):
    draw = DRAWS[name]
    p = leaf(0.0)
    recorded = record(lambda: [draw(torch.zeros(N)) + 0 * p.detach()], [], [], {"p": p})
    torch.manual_seed(0)
    assert alike(play(recorded, p, seed=1)[0], draw(torch.zeros(N)))


def test_draws_into_parts_of_a_tensor_reach_the_whole():
    p = leaf(0.0)

    def function():
        out = torch.zeros(3, N)
        out[0].normal_(1.0, 2.0)
        out[1].uniform_(5.0, 6.0)
        return [out + 0 * p.detach()]

    (drawn,) = play(record(function, [], [], {"p": p}), p)
    assert drawn[0].mean().item() == pytest.approx(1.0, abs=4 * 2 / N**0.5)
    assert drawn[0].std().item() == pytest.approx(2.0, rel=4 / (2 * N) ** 0.5)
    assert (drawn[1] >= 5).all()
    assert (drawn[1] < 6).all()
    assert not drawn[2].any()


def test_a_view_taken_before_a_draw_sees_it():
    p = leaf(0.0)

    def function():
        out = torch.zeros(2, N)
        row = out[0]
        out.normal_()
        return [row + 0 * p.detach(), out + 0 * p.detach()]

    row, whole = play(record(function, [], [], {"p": p}), p)
    assert torch.equal(row, whole[0])
    assert row.std().item() == pytest.approx(1.0, rel=4 / (2 * N) ** 0.5)


def test_two_gamma_draws_of_one_shape_are_two_draws():
    p = leaf(0.0)
    shape = torch.full((N,), 2.0)
    recorded = record(lambda: [torch.stack([torch._standard_gamma(shape) for _ in range(2)]) + 0 * p.detach()], [], [], {"p": p})
    assert torch.corrcoef(play(recorded, p)[0])[0, 1].abs() < 4.5 / math.sqrt(N)
    fixed, empty = recorded.prologue(), torch.zeros(0)
    assert not torch.equal(*(recorded.body(p.detach(), empty, empty, *fixed)[0] for _ in range(2)))  # anew at every step


def test_draws_one_after_another_are_independent():
    p = leaf(0.0)
    recorded = record(
        lambda: [torch.stack([torch.randn(N), torch.randn(N), torch.rand(N), torch.rand(N)]) + 0 * p.detach()], [], [], {"p": p}
    )
    assert (recorded.normals, recorded.uniforms) == (2 * N, 2 * N)
    correlation = torch.corrcoef(play(recorded, p)[0])
    assert (correlation - torch.eye(4)).abs().max() < 4.5 / math.sqrt(N)


@pytest.mark.parametrize("q", ["gamma", "beta", "normal", "exponential"])
def test_gradients_through_draws_are_those_of_their_means(q):
    """E[z] of each, whose derivatives are known: a/b, a/(a + b), a, 1/a. The tolerance is 5 standard errors."""
    p = leaf(1.7, 0.8)
    many = {
        "gamma": lambda: dist.Gamma(p[0].expand(N), p[1].expand(N)),
        "beta": lambda: dist.Beta(p[0].expand(N), p[1].expand(N)),
        "normal": lambda: dist.Normal(p[0].expand(N), p[1].expand(N)),
        "exponential": lambda: dist.Exponential(p[0].expand(N)),
    }[q]
    recorded = record(lambda: with_gradient(many().rsample().mean(), p), [], [], {"p": p})
    torch.manual_seed(1)
    gradient, _ = play(recorded, p)
    a, b = 1.7, 0.8
    wanted = {
        "gamma": (1 / b, -a / b**2),
        "beta": (b / (a + b) ** 2, -a / (a + b) ** 2),
        "normal": (1.0, 0.0),
        "exponential": (-1 / a**2, 0.0),
    }[q]
    assert torch.allclose(gradient, torch.tensor(wanted), atol=5 * 4 / N**0.5)


def test_many_fits_at_once_have_noise_of_their_own():
    p = leaf(0.5, 0.5)
    recorded = record(
        lambda: with_gradient((dist.Gamma(p.exp(), 1.0).rsample() + dist.Normal(p, 1.0).rsample()).sum(), p), [], [], {"p": p}
    )
    flat, normal = p.detach().expand(3, 2), torch.randn(3, recorded.normals)
    body = torch.func.vmap(recorded.body, in_dims=(0, 0, 0, *(None for _ in recorded.prologue())), randomness="different")
    _, values = body(flat, normal, torch.rand(3, recorded.uniforms), *recorded.prologue())
    assert len(set(values.tolist())) == 3


def test_an_unused_parameter_keeps_its_place():
    used, idle = leaf(1.0, 2.0), leaf(7.0)

    def function():
        gradients = torch.autograd.grad((used**2).sum(), [idle, used], allow_unused=True)
        return [torch.cat([torch.zeros(1) if g is None else g for g in gradients])]

    recorded = record(function, [], [], {"idle": idle, "used": used})
    (gradient,) = play(recorded, torch.tensor([9.0, 3.0, 4.0]))
    assert gradient.tolist() == [0.0, 6.0, 8.0]


def test_a_layout_takes_apart_what_it_puts_together():
    values = {"a": torch.tensor(1.0), "b": torch.arange(6.0).reshape(2, 3), "c": torch.zeros(0, 2), "d": torch.ones(1)}
    layout = Layout({name: value.shape for name, value in values.items()})
    named = layout.named(layout.flat(values))
    assert layout.sizes == [1, 6, 0, 1]
    assert all(torch.equal(named[name], value) and named[name].shape == value.shape for name, value in values.items())


def test_a_vectorised_graph_can_be_recorded_again():
    p = leaf(0.4, 0.7, 1.1)
    x = torch.tensor([1.0, 2.0, 3.0])
    recorded = record(lambda x: with_gradient(written_one_by_one(p, x), p), [x], [], {"p": p})
    empty, flat, fixed = torch.zeros(0), torch.tensor([[0.2, 0.9, 1.4], [1.5, 0.3, 0.6]]), recorded.prologue()
    many = torch.func.vmap(lambda flat: recorded.body(flat, x, empty, empty, *fixed))
    again = rerecord(many, [torch.zeros(2, 3)])
    assert all(torch.allclose(a, b) for a, b in zip(again(flat), many(flat), strict=True))
