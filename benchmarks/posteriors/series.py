"""Time series, and a change in one."""

import pyro
import pyro.distributions as dist
import torch


def sunspots(y):
    """Yearly sunspots, autoregressive of order nine."""
    constant = pyro.sample("constant", dist.Normal(0.0, 100.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 1.0).expand([9]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(50.0))
    lags = torch.stack([y[9 - k : len(y) - k] for k in range(1, 10)], -1)
    with pyro.plate("year", len(y) - 9):
        pyro.sample("y", dist.Normal(constant + lags @ phi, sigma), obs=y[9:])


def inflation_arma(y):
    """Quarterly inflation of the US in per cent, ARMA(1, 1)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
    theta = pyro.sample("theta", dist.Uniform(-1.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(5.0))
    error, expected = y[0] - mu, [mu]
    for t in range(1, len(y)):
        expected.append(mu + phi * (y[t - 1] - mu) + theta * error)
        error = y[t] - expected[-1]
    with pyro.plate("quarter", len(y)):
        pyro.sample("y", dist.Normal(torch.stack(expected), sigma), obs=y)


def bills_garch(y):
    """Quarterly changes of the Treasury bill rate, GARCH(1, 1); the shares of shock, memory and the rest are on a simplex."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    omega = pyro.sample("omega", dist.HalfNormal(1.0))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3).to(y)))
    h = [y.var()]
    for t in range(1, len(y)):
        h.append(omega + share[0] * (y[t - 1] - mu) ** 2 + share[1] * h[-1])
    with pyro.plate("quarter", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.stack(h).sqrt()), obs=y)


def bills_volatility(y):
    """The same changes by stochastic volatility: a random walk of 202 log variances, not centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    phi = pyro.sample("phi", dist.Beta(20.0, 1.5))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))
    h = [z[0] * sigma / (1 - phi**2).sqrt()]
    for t in range(1, len(y)):
        h.append(phi * h[-1] + sigma * z[t])
    with pyro.plate("quarter", len(y)):
        pyro.sample("y", dist.Normal(0.0, ((mu + torch.stack(h)) / 2).exp()), obs=y)


def nile_change(y):
    """The flow of the Nile before and after a year that is summed out."""
    before = pyro.sample("before", dist.Normal(0.0, 2e3))
    after = pyro.sample("after", dist.Normal(0.0, 2e3))
    sigma = pyro.sample("sigma", dist.HalfCauchy(200.0))
    early = dist.Normal(before, sigma).log_prob(y).cumsum(0)
    late = dist.Normal(after, sigma).log_prob(y).flip(0).cumsum(0).flip(0)
    pyro.factor("flow", torch.logsumexp(early[:-1] + late[1:], 0))


def nile_level(y):
    """The Nile as a random walk seen with noise: a local level of 100 years, by its innovations."""
    first = pyro.sample("first", dist.Normal(0.0, 2e3))
    sd_level = pyro.sample("sd_level", dist.HalfCauchy(100.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(200.0))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(y) - 1]).to_event(1))
    level = first + sd_level * torch.nn.functional.pad(z.cumsum(0), (1, 0))
    with pyro.plate("year", len(y)):
        pyro.sample("y", dist.Normal(level, sigma), obs=y)


def inflation_regimes(y):
    """Inflation in two regimes, calm and high: a hidden Markov chain, summed out."""
    start = dist.Normal(torch.tensor([0.0, 0.0]).to(y), torch.tensor([10.0, 2.0]).to(y)).to_event(1)
    mean = pyro.sample("mean", dist.TransformedDistribution(start, dist.transforms.OrderedTransform()))
    with pyro.plate("regime", 2):
        sd = pyro.sample("sd", dist.HalfNormal(5.0))
        move = pyro.sample("move", dist.Dirichlet(torch.ones(2).to(y)))
    chain = dist.DiscreteHMM(torch.zeros(2).to(y), move.log(), dist.Normal(mean, sd), duration=len(y))
    pyro.sample("y", chain, obs=y)
