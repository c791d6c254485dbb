"""The picture of the README: eight schools by mean-field SVI and without settings, over a long NUTS run. About a minute.

python docs/schools_picture.py [FILE]
"""

import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

import pyrovi
from pyrovi import plots

DATA = {"y": [28.0, 8, -3, 7, -1, 1, 18, 12], "s": [15.0, 10, 16, 11, 9, 11, 10, 18]}
MASSES = (0.9, 0.5)


def schools(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, s), obs=y)


def standardised(y, s):
    """The same posterior in coordinates that NUTS can cross."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, s), obs=y)


def reference():
    chains = pyrovi.nuts(standardised, data=DATA, draws=4_000).posterior
    mu, tau, z = (chains[name].values.reshape(-1, *chains[name].shape[2:]) for name in ("mu", "tau", "z"))
    return np.stack([np.log(tau), mu + tau * z[:, 0]])


def picture():
    points = reference()
    density = gaussian_kde(points)
    x, y = np.meshgrid(np.linspace(-4, 4, 160), np.linspace(-20, 40, 160))
    height = density(np.stack([x.ravel(), y.ravel()])).reshape(x.shape)
    at = np.sort(density(points[:, ::4]))
    levels = [at[int(len(at) * (1 - mass))] for mass in MASSES]

    mean_field = pyrovi.fit(schools, "normal", DATA, steps=10_000, particles=10, lr=0.01, seed=0)
    automatic = pyrovi.fit(schools, data=DATA, seed=0)
    figure = Figure(figsize=(8.4, 3.3), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, fit, title in zip(
        axes, (mean_field, automatic), ('pyrovi.fit(schools, "normal", data)', "pyrovi.fit(schools, data=data)"), strict=True
    ):
        verdict = fit.verdict or fit.check()
        draws = fit.posterior(1_500)
        ax.scatter(draws["tau"].log(), draws["theta"][:, 0], s=4, color=plots.FITTED, alpha=0.35, linewidths=0)
        ax.contour(x, y, height, levels=levels, colors=[plots.REFERENCE], linewidths=1.6)
        ax.set_title(f"{title}\nverdict: {verdict.level.value}, k-hat {verdict.evidence.khat:.2f}", fontsize=10)
        ax.set(xlabel="log τ, spread of the schools", xlim=(-4, 4), ylim=(-20, 40))
    axes[0].set_ylabel("θ, effect in the first school")
    return figure


if __name__ == "__main__":
    picture().savefig(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("schools.png"), dpi=130)
