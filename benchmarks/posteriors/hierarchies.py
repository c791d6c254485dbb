"""Hierarchical models, centred and not, of 10 to 304 latents."""

import pyro
import pyro.distributions as dist
import torch


def eight_schools_centred(effect, error):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effect)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


def eight_schools(effect, error):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effect)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("effect", dist.Normal(mu + tau * z, error), obs=effect)


def diabetes_by_age(bmi, age, group, y):
    """Disease progression with an intercept for each age, itself on a line: centred, unequal groups, as with radon by county."""
    level = pyro.sample("level", dist.Normal(0.0, 1e3))
    trend = pyro.sample("trend", dist.Normal(0.0, 100.0))
    tau = pyro.sample("tau", dist.HalfCauchy(50.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 100.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(100.0))
    with pyro.plate("age", len(age)):
        intercept = pyro.sample("intercept", dist.Normal(level + trend * age, tau))
    with pyro.plate("patient", len(y)):
        pyro.sample("y", dist.Normal(intercept[group] + slope * bmi, sigma), obs=y)


def affairs(marriage, years, group, had):
    """Affairs by marriage and its years, with an intercept for each occupation and religiousness: not centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    slope_marriage = pyro.sample("slope_marriage", dist.Normal(0.0, 10.0))
    slope_years = pyro.sample("slope_years", dist.Normal(0.0, 10.0))
    with pyro.plate("group", int(group.max()) + 1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("woman", len(had)):
        logits = (mu + tau * z)[group] + slope_marriage * marriage + slope_years * years
        pyro.sample("had", dist.Bernoulli(logits=logits), obs=had)


def cancer(population, deaths):
    """Breast cancer deaths in 301 counties, Poisson with a log rate for each: centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("county", len(deaths)):
        log_rate = pyro.sample("log_rate", dist.Normal(mu, tau))
        pyro.sample("deaths", dist.Poisson(population * log_rate.exp()), obs=deaths)


def star98_districts(x, above, pupils):
    """The districts' counts again, with an effect of each of 100 districts: centred."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    coef = pyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("district", len(above)):
        logit = pyro.sample("logit", dist.Normal(intercept + x @ coef, tau))
        pyro.sample("above", dist.Binomial(pupils, logits=logit), obs=above)


def fertility(year, births):
    """Births a woman in 40 countries over 11 years: an intercept and a slope for each, correlated, centred."""
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    sd = pyro.sample("sd", dist.HalfCauchy(2.0).expand([2]).to_event(1))
    corr = pyro.sample("corr", dist.LKJCholesky(2, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    with pyro.plate("country", len(births)):
        line = pyro.sample("line", dist.MultivariateNormal(mean, scale_tril=sd[:, None] * corr))
        pyro.sample("births", dist.Normal(line[:, :1] + line[:, 1:] * (year - 1960), sigma).to_event(1), obs=births)


def grunfeld(value, capital, firm, invest):
    """Investment of 11 firms on their value and capital in dollars: three coefficients a firm, correlated, not centred."""
    mean = pyro.sample("mean", dist.Normal(0.0, 100.0).expand([3]).to_event(1))
    sd = pyro.sample("sd", dist.HalfNormal(torch.tensor([100.0, 0.2, 0.2]).to(invest)).to_event(1))
    corr = pyro.sample("corr", dist.LKJCholesky(3, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(50.0))
    with pyro.plate("firm", int(firm.max()) + 1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    coef = mean + z @ (sd[:, None] * corr).T
    with pyro.plate("row", len(invest)):
        expected = coef[firm, 0] + coef[firm, 1] * value + coef[firm, 2] * capital
        pyro.sample("invest", dist.Normal(expected, sigma), obs=invest)


def elnino(celsius):
    """Sea surface temperature by year and month: crossed effects, centred."""
    years, months = celsius.shape
    mu = pyro.sample("mu", dist.Normal(0.0, 100.0))
    sd_year = pyro.sample("sd_year", dist.HalfCauchy(2.0))
    sd_month = pyro.sample("sd_month", dist.HalfCauchy(2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.0))
    with pyro.plate("year", years):
        year = pyro.sample("year_effect", dist.Normal(0.0, sd_year))
    with pyro.plate("month", months):
        month = pyro.sample("month_effect", dist.Normal(mu, sd_month))
    with pyro.plate("row", years, dim=-2), pyro.plate("column", months, dim=-1):
        pyro.sample("celsius", dist.Normal(year[:, None] + month, sigma), obs=celsius)


def china_smoking(cancer, people):
    """Lung cancer among non-smokers and smokers of eight cities: log odds and their difference by city, centred."""
    base = pyro.sample("base", dist.Normal(0.0, 5.0))
    effect = pyro.sample("effect", dist.Normal(0.0, 5.0))
    sd_base = pyro.sample("sd_base", dist.HalfNormal(1.0))
    sd_effect = pyro.sample("sd_effect", dist.HalfNormal(1.0))
    with pyro.plate("city", len(cancer)):
        a = pyro.sample("a", dist.Normal(base, sd_base))
        b = pyro.sample("b", dist.Normal(effect, sd_effect))
        logits = torch.stack([a, a + b], -1)
        pyro.sample("cancer", dist.Binomial(people, logits=logits).to_event(1), obs=cancer)


def item_response(high):
    """Seven features of 100 tumours, above the median or not, as items of a two-parameter test of severity."""
    tumours, items = high.shape
    difficulty = pyro.sample("difficulty", dist.Normal(0.0, 3.0).expand([items]).to_event(1))
    discrimination = pyro.sample("discrimination", dist.LogNormal(0.0, 0.5).expand([items]).to_event(1))
    with pyro.plate("tumour", tumours):
        severity = pyro.sample("severity", dist.Normal(0.0, 1.0))
        logits = discrimination * (severity[:, None] - difficulty)
        pyro.sample("high", dist.Bernoulli(logits=logits).to_event(1), obs=high)
