"""Regressions on raw scales: each as its user would write it, with priors that are weak in the data's own units."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine


def longley(x, y):
    """US employment on six collinear series; Normal and Gamma priors that are conjugate, so the posterior is known."""
    precision = pyro.sample("precision", dist.Gamma(0.01, 0.01))
    sigma = precision.rsqrt()
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1e5 * sigma))
    coef = pyro.sample("coef", dist.Normal(0.0, 1e5 * sigma).expand([x.shape[1]]).to_event(1))
    with pyro.plate("year", len(y)):
        pyro.sample("y", dist.Normal(intercept + x @ coef, sigma), obs=y)


def diabetes(x, y):
    """Disease progression of 442 patients on ten measurements."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1e3))
    coef = pyro.sample("coef", dist.Normal(0.0, 1e3).expand([x.shape[1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(100.0))
    with pyro.plate("patient", len(y)):
        pyro.sample("y", dist.Normal(intercept + x @ coef, sigma), obs=y)


def stackloss(x, y):
    """Ammonia lost by a plant on 21 days, with Student-t noise of unknown degrees of freedom."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1e3))
    coef = pyro.sample("coef", dist.Normal(0.0, 100.0).expand([x.shape[1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(10.0))
    nu = pyro.sample("nu", dist.Gamma(2.0, 0.1))
    with pyro.plate("day", len(y)):
        pyro.sample("y", dist.StudentT(nu, intercept + x @ coef, sigma), obs=y)


def engel(income, food):
    """Belgian households' expense for food; its sd is a power of income."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1e3))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    log_sd = pyro.sample("log_sd", dist.Normal(0.0, 10.0))
    power = pyro.sample("power", dist.Normal(0.0, 2.0))
    with pyro.plate("household", len(food)):
        sd = (log_sd + power * income.log()).exp()
        pyro.sample("food", dist.Normal(intercept + slope * income, sd), obs=food)


def co2(year, ppm):
    """Carbon dioxide by month: a trend in calendar years and two harmonics."""
    level = pyro.sample("level", dist.Normal(0.0, 1e4))
    trend = pyro.sample("trend", dist.Normal(0.0, 100.0))
    wave = pyro.sample("wave", dist.Normal(0.0, 10.0).expand([4]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(5.0))
    angle = 2 * torch.pi * year
    season = wave[0] * angle.sin() + wave[1] * angle.cos() + wave[2] * (2 * angle).sin() + wave[3] * (2 * angle).cos()
    with pyro.plate("month", len(ppm)):
        pyro.sample("ppm", dist.Normal(level + trend * year + season, sigma), obs=ppm)


def spector(x, grade):
    """Whether a course improved the grades of 32 students."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    coef = pyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("student", len(grade)):
        pyro.sample("grade", dist.Bernoulli(logits=intercept + x @ coef), obs=grade)


def breast_cancer(x, malignant):
    """Tumours, malignant or not, on texture, smoothness, area and concave points: units from 0.01 to 1,000."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    coef = pyro.sample("coef", dist.Normal(0.0, 1e3).expand([x.shape[1]]).to_event(1))
    with pyro.plate("tumour", len(malignant)):
        pyro.sample("malignant", dist.Bernoulli(logits=intercept + x @ coef), obs=malignant)


def star98(x, above, pupils):
    """Pupils above the median in mathematics in 303 Californian districts."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    coef = pyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("district", len(above)):
        pyro.sample("above", dist.Binomial(pupils, logits=intercept + x @ coef), obs=above)


def committee(x, bills):
    """Bills assigned to 20 committees of the House, Poisson."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    coef = pyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("committee", len(bills)):
        pyro.sample("bills", dist.Poisson((intercept + x @ coef).exp()), obs=bills)


def doctor_visits(x, visits):
    """Outpatient visits in a health insurance experiment, negative binomial."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    coef = pyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    concentration = pyro.sample("concentration", dist.HalfCauchy(5.0))
    with pyro.plate("person", len(visits)):
        mean = (intercept + x @ coef).exp()
        pyro.sample("visits", dist.GammaPoisson(concentration, concentration / mean), obs=visits)


def no_visits(x, visits):
    """The same visits, Poisson with an excess of zeros whose share depends on the deductible."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    coef = pyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    gate = pyro.sample("gate", dist.Normal(0.0, 5.0))
    gate_slope = pyro.sample("gate_slope", dist.Normal(0.0, 5.0))
    with pyro.plate("person", len(visits)):
        rate, logits = (intercept + x @ coef).exp(), gate + gate_slope * x[:, 0]
        pyro.sample("visits", dist.ZeroInflatedPoisson(rate, gate_logits=logits), obs=visits)


def anes96(x, party):
    """Party identification on a scale of seven, an ordered logistic regression."""
    coef = pyro.sample("coef", dist.Normal(0.0, 5.0).expand([x.shape[1]]).to_event(1))
    steps = dist.Normal(0.0, 5.0).expand([6]).to_event(1)
    cutpoints = pyro.sample("cutpoints", dist.TransformedDistribution(steps, dist.transforms.OrderedTransform()))
    with pyro.plate("voter", len(party)):
        pyro.sample("party", dist.OrderedLogistic(x @ coef, cutpoints), obs=party)


def scotland(x, yes):
    """The share of yes in 32 districts' referendum, Beta, on taxes in pounds and product a head."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    coef = pyro.sample("coef", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    size = pyro.sample("size", dist.HalfCauchy(100.0))
    with pyro.plate("district", len(yes)):
        mean = torch.sigmoid(intercept + x @ coef)
        pyro.sample("yes", dist.Beta(mean * size, (1 - mean) * size), obs=yes)


def heart(age, days, died):
    """Survival after a heart transplant, Weibull, with those still alive censored."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    shape = pyro.sample("shape", dist.HalfNormal(5.0))
    scale = (intercept + slope * age).exp()
    with pyro.plate("patient", len(days)):
        with poutine.mask(mask=died == 1):
            pyro.sample("days", dist.Weibull(scale, shape), obs=days)
        with poutine.mask(mask=died == 0):
            pyro.factor("alive", -((days / scale) ** shape))


def mode_choice(x, income, choice):
    """How 210 travellers went: air, train, bus or car, by waiting time, cost and travel time of each."""
    constant = pyro.sample("constant", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
    coef = pyro.sample("coef", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    income_air = pyro.sample("income_air", dist.Normal(0.0, 1.0))
    with pyro.plate("traveller", len(choice)):
        utility = x @ coef + torch.nn.functional.pad(constant, (0, 1))
        utility = utility + torch.nn.functional.pad((income_air * income)[:, None], (0, 3))
        pyro.sample("choice", dist.Categorical(logits=utility), obs=choice)


def linnerud(y):
    """Weight, waist and pulse of 20 men, Normal with an unknown covariance."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1e3).expand([3]).to_event(1))
    sd = pyro.sample("sd", dist.HalfCauchy(50.0).expand([3]).to_event(1))
    corr = pyro.sample("corr", dist.LKJCholesky(3, 2.0))
    with pyro.plate("man", len(y)):
        pyro.sample("y", dist.MultivariateNormal(mean, scale_tril=sd[:, None] * corr), obs=y)


def digits(x, odd):
    """Odd digits told from even ones by 61 pixels, their coefficients shrunk towards 0 by a scale that is learned."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    coef = pyro.sample("coef", dist.Normal(0.0, scale).expand([x.shape[1]]).to_event(1))
    with pyro.plate("image", len(odd)):
        pyro.sample("odd", dist.Bernoulli(logits=intercept + x @ coef), obs=odd)
