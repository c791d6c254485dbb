"""Mixtures, with their components told apart by ordered means, and Gaussian processes."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate


def iris(y):
    """Petal lengths of three species, unlabelled: a mixture of three Normals."""
    start = dist.Normal(torch.zeros(3).to(y), torch.tensor([5.0, 1.0, 1.0]).to(y)).to_event(1)
    mean = pyro.sample("mean", dist.TransformedDistribution(start, dist.transforms.OrderedTransform()))
    sd = pyro.sample("sd", dist.LogNormal(-1.0, 0.5).expand([3]).to_event(1))
    weight = pyro.sample("weight", dist.Dirichlet(torch.full((3,), 5.0).to(y)))
    with pyro.plate("flower", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weight), dist.Normal(mean, sd)), obs=y)


@config_enumerate
def wine(y):
    """Flavonoids of 178 wines: two Normals, and a latent assignment for each wine that is enumerated."""
    start = dist.Normal(torch.zeros(2).to(y), torch.tensor([5.0, 1.0]).to(y)).to_event(1)
    mean = pyro.sample("mean", dist.TransformedDistribution(start, dist.transforms.OrderedTransform()))
    sd = pyro.sample("sd", dist.LogNormal(-1.0, 0.5).expand([2]).to_event(1))
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    with pyro.plate("bottle", len(y)):
        kind = pyro.sample("kind", dist.Categorical(torch.stack([1 - weight, weight], -1)))
        pyro.sample("y", dist.Normal(mean[kind], sd[kind]), obs=y)


def nile_process(year, y):
    """The Nile as a smooth function of the year: a Gaussian process, its function integrated out."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2e3))
    amplitude = pyro.sample("amplitude", dist.HalfNormal(300.0))
    length = pyro.sample("length", dist.LogNormal(3.0, 0.7))
    sigma = pyro.sample("sigma", dist.HalfNormal(300.0))
    distance = (year[:, None] - year) / length
    covariance = amplitude**2 * (-0.5 * distance**2).exp() + sigma**2 * torch.eye(len(y)).to(y)
    pyro.sample("y", dist.MultivariateNormal(mean.expand(len(y)), covariance), obs=y)


def vote(age, dole, voters):
    """The vote of 1996 by age: a logistic Gaussian process, its value at each of 71 ages a latent, by a Cholesky factor."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    amplitude = pyro.sample("amplitude", dist.HalfNormal(1.0))
    length = pyro.sample("length", dist.Gamma(4.0, 0.2))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(age)]).to_event(1))
    distance = (age[:, None] - age).abs() / length
    correlation = (1 + 3**0.5 * distance) * (-(3**0.5) * distance).exp()
    factor = torch.linalg.cholesky(correlation + 1e-6 * torch.eye(len(age)).to(dole))
    with pyro.plate("age_group", len(age)):
        pyro.sample("dole", dist.Binomial(voters, logits=mean + amplitude * factor @ z), obs=dole)


def transplants(age, died, patients):
    """Deaths after a heart transplant in 16 groups of age: a smooth logistic process, its squared exponential nearly singular."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    amplitude = pyro.sample("amplitude", dist.HalfNormal(2.0))
    length = pyro.sample("length", dist.HalfNormal(50.0))
    distance = (age[:, None] - age) / length
    covariance = amplitude**2 * (-0.5 * distance**2).exp() + 1e-4 * torch.eye(len(age)).to(died)
    f = pyro.sample("f", dist.MultivariateNormal(mean.expand(len(age)), scale_tril=torch.linalg.cholesky(covariance)))
    with pyro.plate("age_group", len(age)):
        pyro.sample("died", dist.Binomial(patients, logits=f), obs=died)
