# %% [markdown]
# # The prior's pull fades (D2)
#
# The digit-zero model carries a prior image worth two examples. The same fit on m = 1, 2, 5, 20 and 178 images shows how the
# posterior leaves the prior: exactly, the posterior mean is the average of prior image and data mean, weighted by 2 and m, so
# the prior's share is 2 / (2 + m). Beside it stands the share that the fit arrives at.
#
# Run it as a script, `python notebooks/fading_prior.py`, or open it as a notebook with jupytext.

# %%
import os

import numpy as np
import pandas as pd

import pyrovi
from pyrovi.models import gamma_poisson
from pyrovi.plots import images

SIZES = (1, 2, 5, 20, 178)
SMALL = bool(os.environ.get("PYROVI_SMALL"))  # for the tests
settings = {"steps": 300, "particles": 8} if SMALL else {"particles": 32}

# %%
recipe = pyrovi.recipe("gamma_poisson")
rows, pictures = [], [gamma_poisson.ring()]
for m in SIZES:
    data = gamma_poisson.load(m)
    fit = recipe.fit(data, **settings)
    exact = gamma_poisson.exact(**data)
    mean = fit.posterior_arrays(10_000)["theta"].mean(0)
    pictures.append(mean)
    # The share s of the prior that best explains the fitted image: mean = s · prior + (1 − s) · data.
    prior, sample = data["prior_image"], data["x"].mean(0)
    share = (mean - sample) @ (prior - sample) / np.sum((prior - sample) ** 2)
    table = pyrovi.compare(fit, exact, draws=10_000)
    rows.append(
        {
            "m": m,
            "prior's share, exact": 2 / (2 + m),
            "prior's share, fitted": share,
            "largest error, sd": table["error"].abs().max(),
            "KL, nats": table.attrs["kl"].value,
        }
    )
study = pd.DataFrame(rows).set_index("m")
print(study.round(4).to_string())

# %% [markdown]
# The prior image, then the posterior mean for each m:

# %%
figure = images(np.stack(pictures).reshape(-1, 8, 8), titles=["prior", *(f"m = {m}" for m in SIZES)])
figure
