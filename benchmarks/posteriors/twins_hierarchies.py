"""The hierarchical models once more, in NumPyro."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular


def eight_schools_centred(effect, error):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(effect)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("effect", dist.Normal(theta, error), obs=effect)


def eight_schools(effect, error):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(effect)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("effect", dist.Normal(mu + tau * z, error), obs=effect)


def diabetes_by_age(bmi, age, group, y):
    level = numpyro.sample("level", dist.Normal(0.0, 1e3))
    trend = numpyro.sample("trend", dist.Normal(0.0, 100.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(50.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 100.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(100.0))
    with numpyro.plate("age", len(age)):
        intercept = numpyro.sample("intercept", dist.Normal(level + trend * age, tau))
    with numpyro.plate("patient", len(y)):
        numpyro.sample("y", dist.Normal(intercept[group] + slope * bmi, sigma), obs=y)


def affairs(marriage, years, group, had):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    slope_marriage = numpyro.sample("slope_marriage", dist.Normal(0.0, 10.0))
    slope_years = numpyro.sample("slope_years", dist.Normal(0.0, 10.0))
    with numpyro.plate("group", int(group.max()) + 1):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("woman", len(had)):
        logits = (mu + tau * z)[group] + slope_marriage * marriage + slope_years * years
        numpyro.sample("had", dist.Bernoulli(logits=logits), obs=had)


def cancer(population, deaths):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("county", len(deaths)):
        log_rate = numpyro.sample("log_rate", dist.Normal(mu, tau))
        numpyro.sample("deaths", dist.Poisson(population * jnp.exp(log_rate)), obs=deaths)


def star98_districts(x, above, pupils):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 100.0))
    coef = numpyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("district", len(above)):
        logit = numpyro.sample("logit", dist.Normal(intercept + x @ coef, tau))
        numpyro.sample("above", dist.Binomial(pupils, logits=logit), obs=above)


def fertility(year, births):
    mean = numpyro.sample("mean", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    sd = numpyro.sample("sd", dist.HalfCauchy(2.0).expand([2]).to_event(1))
    corr = numpyro.sample("corr", dist.LKJCholesky(2, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(1.0))
    with numpyro.plate("country", len(births)):
        line = numpyro.sample("line", dist.MultivariateNormal(mean, scale_tril=sd[:, None] * corr))
        numpyro.sample("births", dist.Normal(line[:, :1] + line[:, 1:] * (year - 1960), sigma).to_event(1), obs=births)


def grunfeld(value, capital, firm, invest):
    mean = numpyro.sample("mean", dist.Normal(0.0, 100.0).expand([3]).to_event(1))
    sd = numpyro.sample("sd", dist.HalfNormal(jnp.array([100.0, 0.2, 0.2])).to_event(1))
    corr = numpyro.sample("corr", dist.LKJCholesky(3, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(50.0))
    with numpyro.plate("firm", int(firm.max()) + 1):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    coef = mean + z @ (sd[:, None] * corr).T
    with numpyro.plate("row", len(invest)):
        expected = coef[firm, 0] + coef[firm, 1] * value + coef[firm, 2] * capital
        numpyro.sample("invest", dist.Normal(expected, sigma), obs=invest)


def grunfeld_summed(value, capital, firm, invest):
    """The same posterior with the firms' coefficients integrated out, and drawn given the rest from standard Normals."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 100.0).expand([3]).to_event(1))
    sd = numpyro.sample("sd", dist.HalfNormal(jnp.array([100.0, 0.2, 0.2])).to_event(1))
    corr = numpyro.sample("corr", dist.LKJCholesky(3, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(50.0))
    firms = int(firm.max()) + 1
    e = numpyro.sample("e", dist.Normal(0.0, 1.0).expand([firms, 3]).to_event(2))
    order = np.argsort(firm, kind="stable")
    x = jnp.stack([jnp.ones(len(firm)), value[order], capital[order]], -1).reshape(firms, -1, 3)
    rest = invest[order].reshape(firms, -1) - x @ mean
    x = x @ (sd[:, None] * corr)
    covariance = x @ x.mT + sigma**2 * jnp.eye(x.shape[1])
    numpyro.factor("invest", dist.MultivariateNormal(0.0, covariance).log_prob(rest).sum())
    root = jnp.linalg.cholesky(jnp.eye(3) + x.mT @ x / sigma**2)
    given = solve_triangular(root, x.mT @ rest[..., None] / sigma**2, lower=True) + e[..., None]
    numpyro.deterministic("z", solve_triangular(root.mT, given, lower=False)[..., 0])


def elnino(celsius):
    years, months = celsius.shape
    mu = numpyro.sample("mu", dist.Normal(0.0, 100.0))
    sd_year = numpyro.sample("sd_year", dist.HalfCauchy(2.0))
    sd_month = numpyro.sample("sd_month", dist.HalfCauchy(2.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.0))
    with numpyro.plate("year", years):
        year = numpyro.sample("year_effect", dist.Normal(0.0, sd_year))
    with numpyro.plate("month", months):
        month = numpyro.sample("month_effect", dist.Normal(mu, sd_month))
    with numpyro.plate("row", years, dim=-2), numpyro.plate("column", months, dim=-1):
        numpyro.sample("celsius", dist.Normal(year[:, None] + month, sigma), obs=celsius)


def china_smoking(cancer, people):
    base = numpyro.sample("base", dist.Normal(0.0, 5.0))
    effect = numpyro.sample("effect", dist.Normal(0.0, 5.0))
    sd_base = numpyro.sample("sd_base", dist.HalfNormal(1.0))
    sd_effect = numpyro.sample("sd_effect", dist.HalfNormal(1.0))
    with numpyro.plate("city", len(cancer)):
        a = numpyro.sample("a", dist.Normal(base, sd_base))
        b = numpyro.sample("b", dist.Normal(effect, sd_effect))
        logits = jnp.stack([a, a + b], -1)
        numpyro.sample("cancer", dist.Binomial(people, logits=logits).to_event(1), obs=cancer)


def item_response(high):
    tumours, items = high.shape
    difficulty = numpyro.sample("difficulty", dist.Normal(0.0, 3.0).expand([items]).to_event(1))
    discrimination = numpyro.sample("discrimination", dist.LogNormal(0.0, 0.5).expand([items]).to_event(1))
    with numpyro.plate("tumour", tumours):
        severity = numpyro.sample("severity", dist.Normal(0.0, 1.0))
        logits = discrimination * (severity[:, None] - difficulty)
        numpyro.sample("high", dist.Bernoulli(logits=logits).to_event(1), obs=high)
