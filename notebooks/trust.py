# %% [markdown]
# # When to believe a fit
#
# Every library for variational inference returns an answer, and returns it with the same face whether it is right or wrong.
# The optimiser stops, the ELBO is flat, there are draws and a table. This notebook fits good and bad approximations side by
# side and shows how `pyrovi` tells them apart: `fit.check()` and its verdict, importance weights and their k-hat, exact
# posteriors, NUTS, leave-one-out, calibration.
#
# The bad fits are the ones that occur in practice, and each of them has converged.

# %%
# %matplotlib inline
import os

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch

import pyrovi
from pyrovi import plots
from pyrovi.guides import latent_outcome as point_guides
from pyrovi.models import normal_mean

torch.set_num_threads(1)
SMALL = bool(os.environ.get("PYROVI_SMALL"))  # a small size, for the tests


def size(full, small):
    return small if SMALL else full


# %% [markdown]
# ## A good fit
#
# Two latents with a correlation of 0.99, and a $q$ that can hold it. `method="deterministic"` finds the optimum of the ELBO
# within the family, so that no learning rate is to blame for what follows.


# %%
def correlated():
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.99], [0.99, 1.0]])))


good = pyrovi.fit(correlated, "multivariate_normal", method="deterministic")
good_verdict = good.check()
print(good_verdict)

# %% [markdown]
# A verdict is a level and five answers. *Converged*: has the optimiser come to rest. *Close*: every draw of $q$ has the
# weight $p(\text{data}, z) / q(z)$; if $q$ were the posterior they would all be the same, and k-hat, the shape of a Pareto
# distribution fitted to the largest of them, says how far they are from that. *Right*: are the means and sds of $q$ those of
# its own weighted draws. *How far*: $\mathrm{KL}(q \,\|\, p)$ = log evidence − ELBO. *Same answer again*: do paths from
# dispersed points end in places that $q$ never visits.
#
# ## Converged, and wrong: mean field
#
# The same posterior, and independent Normals.

# %%
bad = pyrovi.fit(correlated, "normal", method="deterministic")
print(bad.status, "|", bad.advice, "\n")
bad_verdict = bad.check()
print(bad_verdict)

# %%
target = dist.MultivariateNormal(torch.zeros(2).double(), torch.tensor([[1.0, 0.99], [0.99, 1.0]]).double())
plots.density(bad, lambda x: target.log_prob(torch.as_tensor(x).double()), limits=[[-3.5, 3.5], [-3.5, 3.5]])

# %% [markdown]
# The status is `converged`, and rightly: this *is* the best product of Normals. It holds a seventh of each sd. The level is
# `enrich`: k-hat is above 0.7, so that not even weights can mend it, and the last line names the guide to take. This is
# k-hat's picture:

# %%
bad.plot.khat()

# %% [markdown]
# On the left, the weights. On the right, the share of draws whose weight exceeds so many mean weights, on logarithmic axes:
# a straight line is a Pareto tail, and the flatter it falls, the larger is k-hat. A few draws of 10,000 weigh as much as
# hundreds, so that 141 are effective. Of the good fit above the picture would be a wall: all weights are equal to a
# hundredth.
#
# ## The funnel
#
# $v \sim \mathrm{Normal}(0, 3)$, $x_j \mid v \sim \mathrm{Normal}(0, e^{v/2})$: Neal's funnel, the shape of every
# hierarchical model with little data. It has no data here, so the posterior is the prior and is known exactly.


# %%
def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("leaf", 9):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


funnelled = pyrovi.fit(funnel, "normal", method="deterministic")
funnelled_verdict = funnelled.check()
print(funnelled_verdict.text.splitlines()[0])
print("sd of v:", round(funnelled.posterior_arrays(10_000)["v"].std(), 2), "where it should be 3")


def slice_of_funnel(z):
    v, x = torch.as_tensor(z).double().T
    return dist.Normal(0.0, 3.0).log_prob(v) + dist.Normal(0.0, (v / 2).exp()).log_prob(x)


plots.density(funnelled, slice_of_funnel, var_names=["v", "x[0]"], limits=[[-8, 8], [-15, 15]])

# %% [markdown]
# $q$ sits in the throat. Its ELBO is flat and its draws look like any others. k-hat is above 0.7, and the restarts add that
# a part of the posterior lies off in $v$. A full covariance does not help, for the funnel is no ellipse. What helps is
# another parametrisation, and a fit without settings looks for it:

# %%
centred_funnel = pyrovi.fit(funnel)
print(centred_funnel.advice)
print("sd of v:", round(centred_funnel.posterior_arrays(10_000)["v"].std(), 2))

# %% [markdown]
# ## Two modes, and q on one of them
#
# The most dangerous case: on the mode where it sits, $q$ is perfect.


# %%
def two_modes():
    components = dist.Normal(torch.tensor([-5.0, 5.0]), 1.0)
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), components))


one = pyrovi.fit(two_modes, "normal", method="deterministic")
one_verdict = one.check()
print(one_verdict)


# %%
def log_target(x):
    x = torch.as_tensor(x).double()
    return torch.logaddexp(dist.Normal(-5.0, 1.0).log_prob(x), dist.Normal(5.0, 1.0).log_prob(x)) - np.log(2)


plots.density(one, log_target, limits=[-9, 9])

# %% [markdown]
# All weights are the same, k-hat is −∞, the estimated KL is zero and the estimated log evidence is $\log \frac12$ where it
# should be 0. Weights know only where $q$ is. What gives it away is the last question: paths from dispersed points found at
# least 49% of the posterior elsewhere. A mixture reaches both modes, and no settings are needed to:

# %%
mixture = pyrovi.fit(two_modes, "mixture", guide_options={"components": 2}, particles=64, lr=0.05, schedule="cosine", steps=1_000)
alone = pyrovi.fit(two_modes)
draws = {
    "mixture": mixture.posterior_arrays(10_000)["x"],
    "mixture, weighted": mixture.importance_resample(10_000)["x"].double().numpy(),
    "no settings": alone.posterior_arrays(10_000)["x"],
}
mixture_verdict = mixture.check()
print("levels:", mixture_verdict.level, "and", alone.verdict.level)
rows = {name: {"share below 0": np.mean(x < 0), "sd": x.std()} for name, x in draws.items()}
pd.DataFrame({**rows, "exact": {"share below 0": 0.5, "sd": np.sqrt(26)}}).T.round(2)

# %%
plots.density(alone, log_target, limits=[-9, 9])

# %% [markdown]
# The mixture has both modes and gives them 85 to 15: the weight between distant modes is what gradients move last. Its level
# is `reweight`, and the weighted draws have the halves right.
#
# ## Real data: eight schools, centred and not
#
# The effect of coaching in eight schools, each with a standard error $s_j$: the model that every statistician knows, in two
# parametrisations that are the same posterior.
#
# $$\mu \sim \mathrm{Normal}(0, 5), \quad \tau \sim \mathrm{HalfCauchy}(5), \quad \theta_j \sim \mathrm{Normal}(\mu, \tau)
# \ \text{ or } \ \theta_j = \mu + \tau \eta_j, \quad y_j \sim \mathrm{Normal}(\theta_j, s_j).$$

# %%
data = {"y": [28.0, 8, -3, 7, -1, 1, 18, 12], "s": [15.0, 10, 16, 11, 9, 11, 10, 18]}


def centred(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, s), obs=y)


def not_centred(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, s), obs=y)


schools = {
    "centred, mean field": pyrovi.fit(centred, "normal", data, method="deterministic"),
    "not centred, mean field": pyrovi.fit(not_centred, "normal", data, method="deterministic"),
    "centred, no settings": pyrovi.fit(centred, data=data),
    "not centred, no settings": pyrovi.fit(not_centred, data=data),
}
nuts = pyrovi.nuts(schools["not centred, no settings"], draws=size(1_500, 50), warmup=size(300, 50), chains=size(4, 2))


def moments(tau, weights=None):
    mean = np.average(tau, weights=weights)
    return {"mean of τ": f"{mean:.2f}", "sd of τ": f"{np.average((tau - mean) ** 2, weights=weights) ** 0.5:.2f}"}


def density_of_tau(tau):
    """p(τ | y) up to a constant: θ and μ integrated out, which leaves y ~ Normal(0, diag(s² + τ²) + 25)."""
    y, w = np.array(data["y"]), 1 / (np.square(data["s"]) + tau[:, None] ** 2)
    a, b = w.sum(1), w @ y
    log_p = 0.5 * (np.log(w).sum(1) - np.log1p(25 * a) - w @ y**2 + 25 * b**2 / (1 + 25 * a)) - np.log1p((tau / 5) ** 2)
    return np.exp(log_p - log_p.max())


grid = np.linspace(0, 300, 300_001)


verdicts = {name: fit.verdict or fit.check() for name, fit in schools.items()}
rows = {}
for name, fit in schools.items():
    told = {"level": str(verdicts[name].level), "k-hat": f"{verdicts[name].evidence.khat:.2f}"}
    rows[name] = {**told, **moments(fit.posterior_arrays(20_000)["tau"])}
    if name == "not centred, mean field":
        rows["the same, weighted"] = {"level": "", "k-hat": "", **moments(fit.importance_resample(10_000)["tau"].double().numpy())}
rows["NUTS"] = {"level": "", "k-hat": "", **moments(nuts["posterior"]["tau"].to_numpy())}
rows["exact, by quadrature"] = {"level": "", "k-hat": "", **moments(grid, density_of_tau(grid))}
pd.DataFrame(rows).T

# %% [markdown]
# Both mean-field fits have converged. Centred, τ comes out at 6.1 with an sd of 1.5, where quadrature has 3.60 and 3.22: $q$
# cannot follow the funnel, k-hat is 0.98, and the level says so. Not centred, the error is smaller, k-hat is below its
# threshold, and the level is `reweight`: the weighted draws have a mean of 3.6. NUTS is right to its Monte Carlo error, and
# so is the fit without settings, in either parametrisation.
#
# `compare` puts any two answers into one table: a row a scalar, errors in sds of the reference, and their Monte Carlo errors
# beside them. It refuses chains with an R-hat above 1.01, an effective size below 400 or divergences, unless told to go on.

# %%
pyrovi.compare(schools["not centred, no settings"], nuts, force=SMALL)[["mean", "mean_ref", "error", "error_se", "sd_ratio"]].round(
    3
)

# %%
_ = az.plot_forest(
    schools["not centred, no settings"].to_arviz(), var_names=["mu", "tau", "theta"], combined=True, backend="matplotlib"
)

# %% [markdown]
# ## An exact posterior, where there is one
#
# `pyrovi.exact` reads the recorded log density of a model of your own, and gives the posterior in closed form together with
# the proof that it is one: log joint − log posterior is the same number at some fifty points, and that number is the log
# evidence. Here one weight is read four times on each of three balances, and each balance has an unknown offset:


# %%
def weighing(y):
    weight = pyro.sample("weight", dist.Normal(50.0, 10.0))
    with pyro.plate("balance", 3, dim=-2):
        offset = pyro.sample("offset", dist.Normal(0.0, 2.0))
        with pyro.plate("reading", 4, dim=-1):
            pyro.sample("y", dist.Normal(weight + offset, 1.0), obs=y)


readings = {"y": np.array([[52.1, 50.9, 53.0, 51.8], [48.9, 50.2, 49.5, 48.8], [54.0, 52.7, 53.1, 54.4]])}
exact = pyrovi.exact(weighing, readings)
for guide in ("normal", "multivariate_normal"):
    fit = pyrovi.fit(weighing, guide, readings, method="deterministic")
    table = pyrovi.compare(fit, exact)
    print(f"{guide:20s} {fit.check(exact).level:7s} KL {table.attrs['kl']} nats, smallest sd ratio {table['sd_ratio'].min():.2f}")
fit.plot.posterior(exact=exact)

# %% [markdown]
# Weight and offsets can be traded for one another, so they are correlated, and independent Normals make an sd four times too
# small. Given the exact posterior, `check` holds $q$ against that, and the full covariance earns its `trust`. A model
# without one is refused, in a sentence that names the site:

# %%
try:
    pyrovi.exact(not_centred, data)
except pyrovi.ModelError as refusal:
    print(refusal)

# %% [markdown]
# ## Latents that belong to a datum
#
# Where each datum has latents of its own, one weight for all of them together would be hopeless in many dimensions: the
# product of 150 weights, each of them good, is not. Each datum then has weights and a k-hat of its own. The model is D4's
# latent outcome, $z_i \sim \mathrm{Normal}(0, 1)$, $y_i \mid z_i \sim \mathrm{Normal}(z_i, 1)$; the guides are networks that
# read $y$, or only $x$.

# %%
recipe = pyrovi.recipe("latent_outcome")
points = recipe.load()
seeing = recipe.fit(points, guide=point_guides.amortized_on_y, steps=size(1_500, 200))
blind = recipe.fit(points, guide=point_guides.amortized_on_x, steps=size(1_500, 200))
for name, fit in {"reads y": seeing, "reads x": blind}.items():
    print(name, "→", fit.check(), "\n")

# %%
blind.plot.khat()

# %% [markdown]
# The guide that reads $y$ is trusted. The other one has means that are up to 1.7 sds off and pays 18.8 nats; each datum's
# weights are mostly usable, since every factor has the right width in a place that is not quite right, but not all of them
# are beyond doubt: the picture has a k-hat for each datum. For a variational autoencoder this is the question that matters,
# and the share above the threshold its answer.
#
# ## Scores: leave-one-out, corrected
#
# Leave-one-out by importance sampling weights draws of the posterior by $1 / p(y_i \mid z)$. Draws of a $q$ that is not the
# posterior want the weight $p(y, z) / (q(z)\, p(y_i \mid z))$ instead, and that is what `pyrovi.loo` takes. ArviZ's `loo`
# takes the draws for the posterior's. To see it, a $q$ that is off by a quarter of an sd and 1.3 times too wide, on a model
# whose leave-one-out is known:

# %%
x = normal_mean.load(30)["x"]
posterior = normal_mean.exact(x).marginals["w"]


def off():
    loc = pyro.param("loc", torch.tensor(posterior.mean() + 0.25 * posterior.std()))
    pyro.sample("w", dist.Normal(loc, 1.3 * posterior.std()))


wrong = pyrovi.fit(normal_mean.model, off, {"x": x}, steps=1, lr=1e-12, stop=None)
left_out = [normal_mean.exact(np.delete(x, i)).predictive["x"].logpdf(x[i]) for i in range(len(x))]
plain = az.loo(wrong.to_arviz(4_000))
scores = {
    "exact": float(np.sum(left_out)),
    "ArviZ, taking q for the posterior": float(getattr(plain, "elpd_loo", None) or plain.elpd),
    "pyrovi.loo": pyrovi.loo(wrong).elpd,
}
pd.Series(scores, name="elpd, nats").round(3).to_frame()

# %% [markdown]
# Taken for the posterior, this $q$ costs 0.57 nats of elpd; corrected, the error is 0.01.
#
# ## Calibration: over all the data that the model could have made
#
# `check` looks at one data set. `pyrovi.calibrate` draws parameters from the prior, simulates data from each, fits all of
# them as one program, and asks where the truth lies in $q$. The ranks of a $q$ that is as wide as it should be are uniform.
# Two predictors with a correlation of about 0.9:


# %%
def regression(X, y):
    with pyro.plate("feature", 2):
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(beta @ X.T, 1.0), obs=y)


rng = np.random.default_rng(0)
common = rng.normal(size=(40, 1))
X = common + 0.35 * rng.normal(size=(40, 2))
table = {"X": X, "y": np.zeros(40)}
settings = {"lr": 0.05, "steps": size(1_500, 300), "particles": 4, "schedule": "cosine", "replicates": size(256, 40)}
narrow = pyrovi.calibrate(regression, "normal", table, **settings)
wide = pyrovi.calibrate(regression, "multivariate_normal", table, **settings)
pd.concat({"mean field": narrow.table(), "full covariance": wide.table()})[["within", "z_sd", "shape"]].round(2)

# %%
narrow.plot()

# %%
wide.plot()

# %% [markdown]
# First mean field: the curve rises and then falls, there are too many ranks at both ends, and `z_sd` says that its sds are
# too small by a factor of 1.8 to 1.9. Then the full covariance, within the band everywhere. All 256 fits of a guide run as
# one program.
#
# ## All verdicts in one table

# %%
judged = {
    "correlated, mean field": (bad, bad_verdict),
    "correlated, full covariance": (good, good_verdict),
    "funnel, mean field": (funnelled, funnelled_verdict),
    "funnel, no settings": (centred_funnel, centred_funnel.verdict),
    "two modes, on one": (one, one_verdict),
    "two modes, mixture": (mixture, mixture_verdict),
    "two modes, no settings": (alone, alone.verdict),
    **{f"schools, {name}": (fit, verdicts[name]) for name, fit in schools.items()},
}
rows = {}
for name, (fit, verdict) in judged.items():
    rows[name] = {
        "status": str(fit.status),
        "level": str(verdict.level),
        "k-hat": f"{verdict.evidence.khat:.2f}",
        "missed": f"{verdict.evidence.missed or 0:.0%}",
        "rung": fit.settings.get("rung", ""),
    }
pd.DataFrame(rows).T

# %% [markdown]
# The column `status` is all that an optimiser knows, and it cannot tell these fits apart. The column `level` can. `rung` is
# how far a fit without settings had to climb: a Gaussian in the right coordinates for the funnel, Student-t's fitted to
# weighted draws for two modes and for the schools.
#
# ## What a verdict cannot see
#
# - A mode that no path reaches: twelve paths find a mode that draws a fifth of them to itself in 93 of 100 cases, and one
#   that draws a hundredth in 11.
# - Mass in the far tails, beyond the last of 200,000 draws.
# - The model. A trusted fit of a wrong model is a good answer to the wrong question: `pyrovi.loo` and
#   `fit.plot.predictive()` are about that.
