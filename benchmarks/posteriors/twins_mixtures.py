"""The mixtures and Gaussian processes once more, in NumPyro."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def iris(y):
    start = dist.Normal(jnp.zeros(3), jnp.array([5.0, 1.0, 1.0])).to_event(1)
    mean = numpyro.sample("mean", dist.TransformedDistribution(start, dist.transforms.OrderedTransform()))
    sd = numpyro.sample("sd", dist.LogNormal(-1.0, 0.5).expand([3]).to_event(1))
    weight = numpyro.sample("weight", dist.Dirichlet(jnp.full(3, 5.0)))
    with numpyro.plate("flower", len(y)):
        numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weight), dist.Normal(mean, sd)), obs=y)


def wine(y):
    start = dist.Normal(jnp.zeros(2), jnp.array([5.0, 1.0])).to_event(1)
    mean = numpyro.sample("mean", dist.TransformedDistribution(start, dist.transforms.OrderedTransform()))
    sd = numpyro.sample("sd", dist.LogNormal(-1.0, 0.5).expand([2]).to_event(1))
    weight = numpyro.sample("weight", dist.Beta(2.0, 2.0))
    with numpyro.plate("bottle", len(y)):
        parts = dist.Categorical(jnp.stack([1 - weight, weight], -1))
        numpyro.sample("y", dist.MixtureSameFamily(parts, dist.Normal(mean, sd)), obs=y)


def nile_process(year, y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2e3))
    amplitude = numpyro.sample("amplitude", dist.HalfNormal(300.0))
    length = numpyro.sample("length", dist.LogNormal(3.0, 0.7))
    sigma = numpyro.sample("sigma", dist.HalfNormal(300.0))
    distance = (year[:, None] - year) / length
    covariance = amplitude**2 * jnp.exp(-0.5 * distance**2) + sigma**2 * jnp.eye(len(y))
    numpyro.sample("y", dist.MultivariateNormal(jnp.broadcast_to(mean, (len(y),)), covariance), obs=y)


def vote(age, dole, voters):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    amplitude = numpyro.sample("amplitude", dist.HalfNormal(1.0))
    length = numpyro.sample("length", dist.Gamma(4.0, 0.2))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(age)]).to_event(1))
    distance = jnp.abs(age[:, None] - age) / length
    correlation = (1 + 3**0.5 * distance) * jnp.exp(-(3**0.5) * distance)
    factor = jnp.linalg.cholesky(correlation + 1e-6 * jnp.eye(len(age)))
    with numpyro.plate("age_group", len(age)):
        numpyro.sample("dole", dist.Binomial(voters, logits=mean + amplitude * factor @ z), obs=dole)


def transplants(age, died, patients):
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    amplitude = numpyro.sample("amplitude", dist.HalfNormal(2.0))
    length = numpyro.sample("length", dist.HalfNormal(50.0))
    distance = (age[:, None] - age) / length
    covariance = amplitude**2 * jnp.exp(-0.5 * distance**2) + 1e-4 * jnp.eye(len(age))
    factor = jnp.linalg.cholesky(covariance)
    f = numpyro.sample("f", dist.MultivariateNormal(jnp.broadcast_to(mean, (len(age),)), scale_tril=factor))
    with numpyro.plate("age_group", len(age)):
        numpyro.sample("died", dist.Binomial(patients, logits=f), obs=died)


def transplants_not_centred(age, died, patients):
    """The same posterior as NUTS can sample it."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    amplitude = numpyro.sample("amplitude", dist.HalfNormal(2.0))
    length = numpyro.sample("length", dist.HalfNormal(50.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(age)]).to_event(1))
    distance = (age[:, None] - age) / length
    factor = jnp.linalg.cholesky(amplitude**2 * jnp.exp(-0.5 * distance**2) + 1e-4 * jnp.eye(len(age)))
    f = numpyro.deterministic("f", mean + factor @ z)
    with numpyro.plate("age_group", len(age)):
        numpyro.sample("died", dist.Binomial(patients, logits=f), obs=died)
