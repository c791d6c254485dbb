# %% [markdown]
# # How fast, and why
#
# This notebook measures what `pyrovi` does about speed: the same fit on three engines, restarts and many data sets as one
# program, draws a step, and the optimum without a learning rate. Every ratio below was measured while this notebook ran, on
# one core with one thread. They depend on the machine and on the model, so they are findings and not promises; the last
# section says what stays slow. Figures against NumPyro, PyMC and PyTorch are in docs/benchmarks.md.
#
# What is measured is the processor's time of this process, which on a quiet core is the time on the wall. Each figure is the
# smallest of three repeats.

# %%
# %matplotlib inline
import os
import time

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import pyrovi
from pyrovi.models import gamma_poisson
from pyrovi.plots.style import SEVERAL

torch.set_num_threads(1)
SMALL = bool(os.environ.get("PYROVI_SMALL"))  # a small size, for the tests, which wait for no compiler
FASTEST = "traced" if SMALL else "compiled"


def size(full, small):
    return small if SMALL else full


def seconds(job, repeats=2):
    """The least processor time of some repeats, the first of which is for the caches."""
    found = []
    for _ in range(size(1 + repeats, 1)):
        began = time.process_time()
        job()
        found.append(time.process_time() - began)
    return min(found)


def panel(xlabel, ylabel):
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


# %% [markdown]
# ## One fit, three engines
#
# The eight schools, ten latents, independent Normals, Adam. First the loop that anyone would write with Pyro, then the same
# steps by `pyrovi.fit`. `engine="pyro"` calls `svi.step`. `"traced"` runs model, guide, objective and backward pass once,
# writes every tensor operation down, and plays the list. `"compiled"` makes machine code of the list.

# %%
data = {"y": [28.0, 8, -3, 7, -1, 1, 18, 12], "s": [15.0, 10, 16, 11, 9, 11, 10, 18]}
tensors = {name: torch.tensor(values) for name, values in data.items()}
STEPS = size(1_000, 100)


def schools(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, s), obs=y)


def loop():
    pyro.clear_param_store()
    svi = SVI(schools, AutoNormal(schools), pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(STEPS):
        svi.step(**tensors)
    pyro.clear_param_store()


def fit(engine, steps=STEPS, **more):
    return pyrovi.fit(schools, "normal", data, lr=0.02, steps=steps, stop=None, engine=engine, progress=False, **more)


times = {"a loop by hand": seconds(loop)}
for engine in ("pyro", "traced", FASTEST):
    times[f"engine={engine!r}"] = seconds(lambda engine=engine: fit(engine))
table = pd.DataFrame({"seconds": times})
table["µs a step"] = table["seconds"] / STEPS * 1e6
table["times as fast as the loop"] = times["a loop by hand"] / table["seconds"]
table.round(3)

# %% [markdown]
# Recording the steps makes the fit about three times as fast as the loop by hand, compiling them more than twenty times. A
# whole fit has work besides its steps: checks of the data and names, a first trace, the `Fit`. What a step costs is the
# difference between a long and a short fit:

# %%
lengths = size(
    {"pyro": (1_000, 200), "traced": (2_000, 400), "compiled": (50_000, 5_000)},
    {"pyro": (60, 20), "traced": (200, 50)},
)


def per_step(engine, long, short):
    return (seconds(lambda: fit(engine, long)) - seconds(lambda: fit(engine, short))) / (long - short)


step = {engine: per_step(engine, long, short) for engine, (long, short) in lengths.items()}
pd.DataFrame({"µs a step": {name: value * 1e6 for name, value in step.items()}}).round(2)

# %%
figure = Figure(figsize=(7, 2), layout="constrained")
axes = figure.subplots()
bars = axes.barh(list(step), [max(value, 1e-8) * 1e6 for value in step.values()], color=SEVERAL[0], height=0.6)
axes.bar_label(bars, labels=[f" {value * 1e6:,.1f}" for value in step.values()])
axes.set(xlabel="µs a step (logarithmic)", xscale="log")
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
axes.margins(x=0.15)
figure

# %% [markdown]
# The answers are the same: traced and compiled steps agree to rounding under the same noise, and Pyro's own differ by Monte
# Carlo noise only, for it draws in another order.

# %%
by = {engine: fit(engine) for engine in step}
means = {
    engine: {name: draws.mean().item() for name, draws in f.posterior(10_000).items() if name != "eta"} for engine, f in by.items()
}
gap = max((by["traced"].parameters[name] - value).abs().max().item() for name, value in by[FASTEST].parameters.items())
print(f"largest difference of a parameter, traced and compiled: {gap:.1g}")
pd.DataFrame(means).T.round(3)

# %% [markdown]
# Which engine a fit took, and why not a faster one, stands in its settings. `engine="auto"`, the default, compiles where the
# steps to come outweigh the compiler's seconds, which are paid once: the machine code is kept for later processes.

# %%
print(pyrovi.fit(schools, "normal", data, progress=False, **size({}, {"steps": 300})).settings["engine"])


def walk(y, s):  # its course depends on a latent, so that its operations cannot be written down once for all
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("school", len(y)):
        pyro.sample("y", dist.Normal(mu if mu > 0 else 2 * mu, s), obs=y)


stuck = pyrovi.fit(walk, "normal", data, steps=300, stop=None, progress=False)
print(stuck.settings["engine"], "|", stuck.settings["engine_reason"])

# %% [markdown]
# ## Where arithmetic rules
#
# What recording saves is overhead: Python, handlers, checks. With 64 pixels, 178 images and many draws a step, the
# arithmetic itself takes over, and with it Gamma draws, which reject and cannot be made outside the program. The ratio is
# smaller:

# %%
recipe = pyrovi.recipe("gamma_poisson")
zeros = gamma_poisson.load()
rows = {}
for particles in size((1, 8, 64), (1, 8)):
    n = size(200, 20)

    def run(engine, particles=particles, n=n):
        return recipe.fit(zeros, steps=n, particles=particles, engine=engine, progress=False)

    rows[particles] = {"pyro": seconds(lambda: run("pyro")), FASTEST: seconds(lambda: run(FASTEST))}
arithmetic = pd.DataFrame(rows).T
arithmetic["ratio"] = arithmetic["pyro"] / arithmetic[FASTEST]
arithmetic.index.name = "particles"
arithmetic.round(3)

# %% [markdown]
# For whole fits of 200 steps the compiled ones are about three to five times as fast.
#
# ## Draws a step
#
# More draws a step (particles) mean a quieter gradient and a dearer step. They run as one vectorised batch, so that on a
# small model the first dozens are almost free:

# %%
counts = size((1, 4, 16, 64, 256, 1_024), (1, 4))
n = size(2_000, 100)
cost = {k: seconds(lambda k=k: fit(FASTEST, n, particles=k)) for k in counts}
noise = {k: fit(FASTEST, n, particles=k).best_elbo[n // 2 :].std() for k in counts}
particles = pd.DataFrame({"seconds": cost, "sd of the ELBO, nats": noise})
particles["price of one particle's fit"] = particles["seconds"] / particles["seconds"].iloc[0]
particles.index.name = "particles"
particles.round(3)

# %%
figure, axes = panel("particles", "seconds, and nats")
axes.plot(particles.index, particles["seconds"], "o-", color=SEVERAL[0], label=f"seconds for {n:,} steps")
axes.plot(particles.index, particles["sd of the ELBO, nats"], "s--", color=SEVERAL[1], label="sd of the ELBO (nats)")
axes.legend(frameon=False)
figure

# %% [markdown]
# The noise falls as one over the root of the particles. The price does not rise in proportion, for a small model: 1,024
# particles cost less than three times as much as one.
#
# ## Restarts, and many data sets
#
# A leading axis turns the program of one fit into that of many. `restarts=` fits from dispersed starts and returns the best;
# `fit_many` fits a model to many data sets, for a simulation study or a bootstrap. One after the other they would cost as
# many times one fit.

# %%
n = size(2_000, 100)
counts = size((1, 4, 16, 64, 256), (1, 4))
together = {k: seconds(lambda k=k: fit(FASTEST, n, restarts=k)) for k in counts}
restarts = pd.DataFrame({"seconds": together})
restarts["one by one would take"] = restarts["seconds"].iloc[0] * restarts.index
restarts["ratio"] = restarts["one by one would take"] / restarts["seconds"]
restarts.index.name = "restarts"
restarts.round(3)

# %%
figure, axes = panel("restarts", f"seconds for {n:,} steps of each")
axes.plot(restarts.index, restarts["seconds"], "o-", color=SEVERAL[0], label="as one program")
axes.plot(restarts.index, restarts["one by one would take"], "--", color=SEVERAL[1], label="one by one")
axes.legend(frameon=False)
figure

# %%
rng = np.random.default_rng(0)
tau = np.abs(5 * rng.standard_cauchy(size(200, 10))).clip(0, 50)
truth = rng.normal(0, 5, len(tau))[:, None] + tau[:, None] * rng.standard_normal((len(tau), 8))
simulated = truth + np.array(data["s"]) * rng.standard_normal(truth.shape)


def many():
    settings = {"lr": 0.02, "steps": n, "stop": None, "engine": FASTEST, "progress": False}
    return pyrovi.fit_many(schools, "normal", {"s": data["s"]}, over={"y": simulated}, **settings)


whole, one = seconds(many), seconds(lambda: fit(FASTEST, n))
fits = many()
print(f"{len(fits)} data sets: {whole:.2f} s together, {whole / len(fits) * 1e3:.1f} ms each; one fit alone {one * 1e3:.0f} ms")
print("every one of them is a Fit:", fits[3])

# %% [markdown]
# 256 restarts as one program take less than ten times as long as one fit, where one by one they would take 256 times as
# long. The data sets of `fit_many` cost about two milliseconds each. This is what makes simulation-based calibration
# (`pyrovi.calibrate`) a matter of seconds.
#
# ## The optimum without a learning rate
#
# With the draws fixed the ELBO is an ordinary function, and L-BFGS and Newton take it to its optimum in a few dozen
# evaluations. There is no rate to choose and no noise to average away. Beside it SVI with its default settings, which stops
# by itself, and the best ELBO of independent Normals, −31.596 by 20,000 Sobol draws, and of a full covariance, −31.534. The
# exact mean of τ, by quadrature, is 3.60.

# %%
routes = {
    "SVI, defaults": lambda: pyrovi.fit(schools, "normal", data, progress=False, **size({}, {"steps": 300})),
    "SVI, lr 0.02, 20,000 compiled steps": lambda: fit(FASTEST, size(20_000, 500)),
    "deterministic": lambda: pyrovi.fit(schools, "normal", data, method="deterministic", progress=False),
    "deterministic, full covariance": lambda: pyrovi.fit(
        schools, "multivariate_normal", data, method="deterministic", progress=False
    ),
    "no settings": lambda: pyrovi.fit(schools, data=data, progress=False),
}
rows = {}
for name, route in routes.items():
    fitted = route()
    elbo = "" if name == "no settings" else str(fitted.estimate_elbo(size(100_000, 2_000)))
    tau = fitted.posterior_arrays(20_000)["tau"]
    rows[name] = {"seconds": f"{seconds(route):.2f}", "ELBO, nats": elbo, "mean of τ": f"{tau.mean():.2f}"}
pd.DataFrame(rows).T

# %% [markdown]
# All routes are fast here, so look at the other columns. SVI at a constant rate stops a hundredth of a nat below the
# optimum; the deterministic fits are on it. Neither speed nor the ELBO is the whole story: independent Normals have the mean
# of τ at 2.9 however well they are fitted, and the fit without settings, a second slower, has it at 3.6. Whether to trust a
# fit is another notebook's question.
#
# ## What is slow, and why
#
# - **The first fit of a new shape, compiled.** The C++ compiler takes some seconds; later fits and processes of the same
#   shape find its work in a cache. Without a compiler the recorded steps are interpreted.
# - **What cannot be recorded**: control flow on a latent's value, values taken out of torch, numbers drawn by Python or
#   NumPy. Such steps run on Pyro itself, as above.
# - **Arithmetic.** Large networks, many rows, many draws: there a step is as fast as torch's kernels, and no overhead is
#   left to save. An autoencoder trains about as fast as a loop by hand in PyTorch. Mini-batches are the remedy for many
#   rows.
# - **Gamma, Poisson and binomial draws**, which reject, and are made step by step.
# - **NUTS.** A draw costs some ten gradients, and thousands of draws are wanted: half a minute for eight schools. It is a
#   reference.
# - **Imports.** Torch and Pyro take about a second; `pyrovi` adds less than a tenth to that.
