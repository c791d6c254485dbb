"""The regressions once more, in NumPyro: for the references and for the peers' column."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import gammaln


def longley(x, y):
    precision = numpyro.sample("precision", dist.Gamma(0.01, 0.01))
    sigma = precision**-0.5
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1e5 * sigma))
    coef = numpyro.sample("coef", dist.Normal(0.0, 1e5 * sigma).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("year", len(y)):
        numpyro.sample("y", dist.Normal(intercept + x @ coef, sigma), obs=y)


def diabetes(x, y):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1e3))
    coef = numpyro.sample("coef", dist.Normal(0.0, 1e3).expand([x.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(100.0))
    with numpyro.plate("patient", len(y)):
        numpyro.sample("y", dist.Normal(intercept + x @ coef, sigma), obs=y)


def stackloss(x, y):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1e3))
    coef = numpyro.sample("coef", dist.Normal(0.0, 100.0).expand([x.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(10.0))
    nu = numpyro.sample("nu", dist.Gamma(2.0, 0.1))
    with numpyro.plate("day", len(y)):
        numpyro.sample("y", dist.StudentT(nu, intercept + x @ coef, sigma), obs=y)


def engel(income, food):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1e3))
    slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    log_sd = numpyro.sample("log_sd", dist.Normal(0.0, 10.0))
    power = numpyro.sample("power", dist.Normal(0.0, 2.0))
    with numpyro.plate("household", len(food)):
        sd = jnp.exp(log_sd + power * jnp.log(income))
        numpyro.sample("food", dist.Normal(intercept + slope * income, sd), obs=food)


def co2(year, ppm):
    level = numpyro.sample("level", dist.Normal(0.0, 1e4))
    trend = numpyro.sample("trend", dist.Normal(0.0, 100.0))
    wave = numpyro.sample("wave", dist.Normal(0.0, 10.0).expand([4]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(5.0))
    angle = 2 * jnp.pi * year
    waves = jnp.stack([jnp.sin(angle), jnp.cos(angle), jnp.sin(2 * angle), jnp.cos(2 * angle)], -1)
    with numpyro.plate("month", len(ppm)):
        numpyro.sample("ppm", dist.Normal(level + trend * year + waves @ wave, sigma), obs=ppm)


def spector(x, grade):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 100.0))
    coef = numpyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("student", len(grade)):
        numpyro.sample("grade", dist.Bernoulli(logits=intercept + x @ coef), obs=grade)


def breast_cancer(x, malignant):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 100.0))
    coef = numpyro.sample("coef", dist.Normal(0.0, 1e3).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("tumour", len(malignant)):
        numpyro.sample("malignant", dist.Bernoulli(logits=intercept + x @ coef), obs=malignant)


def star98(x, above, pupils):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 100.0))
    coef = numpyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("district", len(above)):
        numpyro.sample("above", dist.Binomial(pupils, logits=intercept + x @ coef), obs=above)


def committee(x, bills):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 10.0))
    coef = numpyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("committee", len(bills)):
        numpyro.sample("bills", dist.Poisson(jnp.exp(intercept + x @ coef)), obs=bills)


def doctor_visits(x, visits):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 10.0))
    coef = numpyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    concentration = numpyro.sample("concentration", dist.HalfCauchy(5.0))
    with numpyro.plate("person", len(visits)):
        # NumPyro's GammaPoisson is right to 1e-8 only.
        total, mean = concentration + visits, jnp.exp(intercept + x @ coef)
        ways = gammaln(total) - gammaln(concentration) - gammaln(visits + 1)
        powers = concentration * jnp.log(concentration) + visits * jnp.log(mean) - total * jnp.log(concentration + mean)
        numpyro.factor("visits", ways + powers)


def no_visits(x, visits):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 10.0))
    coef = numpyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    gate = numpyro.sample("gate", dist.Normal(0.0, 5.0))
    gate_slope = numpyro.sample("gate_slope", dist.Normal(0.0, 5.0))
    with numpyro.plate("person", len(visits)):
        rate, logits = jnp.exp(intercept + x @ coef), gate + gate_slope * x[:, 0]
        numpyro.sample("visits", dist.ZeroInflatedDistribution(dist.Poisson(rate), gate_logits=logits), obs=visits)


def anes96(x, party):
    coef = numpyro.sample("coef", dist.Normal(0.0, 5.0).expand([x.shape[1]]).to_event(1))
    steps = dist.Normal(0.0, 5.0).expand([6]).to_event(1)
    cutpoints = numpyro.sample("cutpoints", dist.TransformedDistribution(steps, dist.transforms.OrderedTransform()))
    with numpyro.plate("voter", len(party)):
        numpyro.sample("party", dist.OrderedLogistic(x @ coef, cutpoints), obs=party)


def scotland(x, yes):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 100.0))
    coef = numpyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    size = numpyro.sample("size", dist.HalfCauchy(100.0))
    with numpyro.plate("district", len(yes)):
        mean = jax.nn.sigmoid(intercept + x @ coef)
        numpyro.sample("yes", dist.Beta(mean * size, (1 - mean) * size), obs=yes)


def heart(age, days, died):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 100.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    shape = numpyro.sample("shape", dist.HalfNormal(5.0))
    scale = jnp.exp(intercept + slope * age)
    with numpyro.plate("patient", len(days)):
        with numpyro.handlers.mask(mask=died == 1):
            numpyro.sample("days", dist.Weibull(scale, shape), obs=days)
        with numpyro.handlers.mask(mask=died == 0):
            numpyro.factor("alive", -((days / scale) ** shape))


def mode_choice(x, income, choice):
    constant = numpyro.sample("constant", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
    coef = numpyro.sample("coef", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    income_air = numpyro.sample("income_air", dist.Normal(0.0, 1.0))
    with numpyro.plate("traveller", len(choice)):
        utility = (x @ coef + jnp.pad(constant, (0, 1))).at[:, 0].add(income_air * income)
        numpyro.sample("choice", dist.Categorical(logits=utility), obs=choice)


def linnerud(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1e3).expand([3]).to_event(1))
    sd = numpyro.sample("sd", dist.HalfCauchy(50.0).expand([3]).to_event(1))
    corr = numpyro.sample("corr", dist.LKJCholesky(3, 2.0))
    with numpyro.plate("man", len(y)):
        numpyro.sample("y", dist.MultivariateNormal(mean, scale_tril=sd[:, None] * corr), obs=y)


def digits(x, odd):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 10.0))
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    coef = numpyro.sample("coef", dist.Normal(0.0, scale).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("image", len(odd)):
        numpyro.sample("odd", dist.Bernoulli(logits=intercept + x @ coef), obs=odd)
