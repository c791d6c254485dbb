"""The time series once more, in NumPyro."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def sunspots(y):
    constant = numpyro.sample("constant", dist.Normal(0.0, 100.0))
    phi = numpyro.sample("phi", dist.Normal(0.0, 1.0).expand([9]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(50.0))
    lags = jnp.stack([y[9 - k : len(y) - k] for k in range(1, 10)], -1)
    with numpyro.plate("year", len(y) - 9):
        numpyro.sample("y", dist.Normal(constant + lags @ phi, sigma), obs=y[9:])


def inflation_arma(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))
    theta = numpyro.sample("theta", dist.Uniform(-1.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(5.0))

    def step(error, pair):
        last, now = pair
        expected = mu + phi * (last - mu) + theta * error
        return now - expected, expected

    _, expected = jax.lax.scan(step, y[0] - mu, (y[:-1], y[1:]))
    with numpyro.plate("quarter", len(y)):
        numpyro.sample("y", dist.Normal(jnp.concatenate([mu[None], expected]), sigma), obs=y)


def bills_garch(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    omega = numpyro.sample("omega", dist.HalfNormal(1.0))
    share = numpyro.sample("share", dist.Dirichlet(jnp.ones(3)))

    def step(h, last):
        h = omega + share[0] * (last - mu) ** 2 + share[1] * h
        return h, h

    _, h = jax.lax.scan(step, y.var(ddof=1), y[:-1])
    with numpyro.plate("quarter", len(y)):
        numpyro.sample("y", dist.Normal(mu, jnp.sqrt(jnp.concatenate([y.var(ddof=1)[None], h]))), obs=y)


def bills_volatility(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    phi = numpyro.sample("phi", dist.Beta(20.0, 1.5))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))

    def joined(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    shocks = jnp.asarray(sigma * z).at[0].divide(jnp.sqrt(1 - phi**2))
    _, h = jax.lax.associative_scan(joined, (jnp.full(len(y), phi), shocks))
    with numpyro.plate("quarter", len(y)):
        numpyro.sample("y", dist.Normal(0.0, jnp.exp((mu + h) / 2)), obs=y)


def nile_change(y):
    before = numpyro.sample("before", dist.Normal(0.0, 2e3))
    after = numpyro.sample("after", dist.Normal(0.0, 2e3))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(200.0))
    early = jnp.cumsum(dist.Normal(before, sigma).log_prob(y))
    late = jnp.cumsum(dist.Normal(after, sigma).log_prob(y)[::-1])[::-1]
    numpyro.factor("flow", jax.scipy.special.logsumexp(early[:-1] + late[1:]))


def nile_level(y):
    first = numpyro.sample("first", dist.Normal(0.0, 2e3))
    sd_level = numpyro.sample("sd_level", dist.HalfCauchy(100.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(200.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(y) - 1]).to_event(1))
    level = first + sd_level * jnp.pad(jnp.cumsum(z), (1, 0))
    with numpyro.plate("year", len(y)):
        numpyro.sample("y", dist.Normal(level, sigma), obs=y)


def inflation_regimes(y):
    start = dist.Normal(jnp.array([0.0, 0.0]), jnp.array([10.0, 2.0])).to_event(1)
    mean = numpyro.sample("mean", dist.TransformedDistribution(start, dist.transforms.OrderedTransform()))
    with numpyro.plate("regime", 2):
        sd = numpyro.sample("sd", dist.HalfNormal(5.0))
        move = numpyro.sample("move", dist.Dirichlet(jnp.ones(2)))
    seen = dist.Normal(mean, sd).log_prob(y[:, None])

    def step(alpha, seen):
        return jax.scipy.special.logsumexp(alpha[:, None] + jnp.log(move), 0) + seen, None

    # Pyro's chain makes a step before the first observation.
    alpha, _ = jax.lax.scan(step, jnp.full(2, -jnp.log(2.0)), seen)
    numpyro.factor("y", jax.scipy.special.logsumexp(alpha))
