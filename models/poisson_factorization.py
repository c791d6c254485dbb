"""Counts as a product of Gamma factors: Poisson factorization of images or ratings (D2, its reference 4).

    theta_uk ~ Gamma(a, b), row u = 1..n (an image, a user), factor k = 1..K
    beta_ki ~ Gamma(c, d), column i = 1..m (a pixel, an item)
    x_ui ~ Poisson(Σ_k theta_uk · beta_ki)

The variational-inference tutorial in JAX on the 8 x 8 digits names it as the answer to its own blurry images: there every image of
a zero has the same mean, here every image is its own sum of factors that all images share.

There is no exact posterior. The reference is the coordinate ascent of Gopalan, Hofman & Blei, which maximises a bound that is
augmented with allocations of every count to the factors, and so below the plain ELBO of the same q. Compare plain ELBOs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray

from pyrovi import data
from pyrovi._typing import Path
from pyrovi.errors import DataError, SettingsError, nearest
from pyrovi.result import Estimate

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CoordinateAscent",
    "Factors",
    "Ratings",
    "coordinate_ascent",
    "elbo",
    "factors",
    "load",
    "log_predictive",
    "model",
    "ratings",
    "reference",
]

Array = NDArray[np.float64]


def model(
    x: torch.Tensor | None = None,
    K: int = 20,
    a: float = 0.3,
    b: float = 0.3,
    c: float | torch.Tensor = 0.3,
    d: float | torch.Tensor = 0.3,
    observed: torch.Tensor | None = None,
    shape: tuple[int, int] | None = None,
) -> None:
    """Observe `x`, an `(n, m)` matrix of counts.

    Args:
        x: The counts; None to predict a matrix of `shape`.
        K: The number of factors; 20, as for the digits in the documents.
        a: Shape of theta's prior. Below 1 its mass is near 0, so that a row uses few factors.
        b: Its rate.
        c: Shape of beta's prior, a number or `(K, 1, m)`: that of a fit's q, say, to meet new rows with the factors known.
        d: Its rate, likewise.
        observed: Which entries count, `(n, m)` booleans; all when None. The paper takes an unrated item for a count of 0.
        shape: `(n, m)` where there is no `x`.
    """
    n, m = _size(x, shape)
    factor, row, column = pyro.plate("factor", K, dim=-3), pyro.plate("row", n, dim=-2), pyro.plate("column", m, dim=-1)
    with factor, row:
        theta = pyro.sample("theta", dist.Gamma(a, b))
    with factor, column:
        beta = pyro.sample("beta", dist.Gamma(c, d))
    rate = theta.transpose(-3, -1) @ beta.transpose(-3, -2)  # (1, n, K) @ (1, K, m), after the particles if there are any
    rate = rate if rate.dim() > 3 else rate.squeeze(0)
    # The product of two tiny draws may be 0 in floating point, where a count above 0 has no log density.
    rate = rate.clamp(min=torch.finfo(rate.dtype).tiny)
    with row, column:
        pyro.sample("x", dist.Poisson(rate).mask(True if observed is None else observed.bool()), obs=x)


def _size(x: torch.Tensor | None, shape: tuple[int, int] | None) -> tuple[int, int]:
    if x is None and shape is None:
        raise DataError("poisson_factorization needs x, or shape=(rows, columns) to predict one")
    if x is not None and x.dim() != 2:
        raise DataError(f"x must be a matrix of counts, a row an image or a user; its shape is {tuple(x.shape)}")
    n, m = x.shape if x is not None else shape  # type: ignore[misc]
    return n, m


def load(
    label: int | None = None,
    table: pd.DataFrame | Path | None = None,
    user: str = "user",
    item: str = "item",
    count: str = "count",
    missing: str = "zero",
) -> dict[str, NDArray[Any]]:
    """The 1,797 digits, or those of one `label`, as `(n, 64)` counts from 0 to 16; or a user's `table`, as `ratings` reads it."""
    if table is not None:
        return ratings(table, user=user, item=item, count=count, missing=missing).data
    return {"x": data.digits(label).images.reshape(-1, 64).astype(float)}


class Ratings(NamedTuple):
    """`data`: for `pyrovi.fit`. `coords`: the names of rows and columns, for `fit.to_arviz(coords=…)`."""

    data: dict[str, NDArray[Any]]
    coords: dict[str, list[Any]]


def ratings(
    table: pd.DataFrame | Path, *, user: str = "user", item: str = "item", count: str = "count", missing: str = "zero"
) -> Ratings:
    """A table with a row a rating, play or purchase, as a matrix of counts: users down, items across.

    The matrix is dense, 8 bytes an entry; mini-batches of rows keep the work of a step small.

    Args:
        table: A DataFrame, or the path of a .csv file.
        user: The column that names the row of the matrix.
        item: The column that names its column.
        count: The column of counts; those of a pair that is there twice are added.
        missing: What a pair that is not there means: `"zero"`, a count of 0, as in the paper, where not consuming is
            evidence of not liking; or `"unobserved"`, nothing, by the model's argument `observed`.

    Raises:
        DataError: A column is not there, a count is not a whole number of at least 0, or a name is missing.

    >>> import pandas as pd
    >>> plays = pd.DataFrame({"user": ["ann", "bob", "ann"], "item": ["x", "y", "y"], "count": [3, 1, 2]})
    >>> ratings(plays).data["x"].tolist(), ratings(plays).coords
    ([[3.0, 2.0], [0.0, 1.0]], {'row': ['ann', 'bob'], 'column': ['x', 'y']})
    """
    import pandas as pd

    if missing not in ("zero", "unobserved"):
        raise SettingsError(f"missing must be 'zero' or 'unobserved'; got {missing!r}")
    try:
        frame = table if isinstance(table, pd.DataFrame) else pd.read_csv(table, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the table {str(table)!r} cannot be read ({error}); give a DataFrame or the path of a .csv file"
        ) from error
    for name in (user, item, count):
        if name not in frame:
            raise DataError(f"the table has no column {name!r}; {nearest(name, map(str, frame.columns))}")
        if frame[name].isna().any():
            raise DataError(f"column {name!r} has {int(frame[name].isna().sum())} missing values; drop those rows")
    try:
        counts = frame[count].to_numpy(dtype=float)
    except ValueError as error:
        raise DataError(f"column {count!r} does not hold numbers; encode or drop what is not a count") from error
    bad = (counts < 0) | (counts != np.floor(counts)) | np.isinf(counts)
    if bad.any():
        raise DataError(f"column {count!r} must hold counts, 0, 1, 2, …; {int(bad.sum())} are not, the first {counts[bad][0]:g}")
    rows, users = pd.factorize(frame[user], sort=True)
    columns, items = pd.factorize(frame[item], sort=True)
    x = np.zeros((len(users), len(items)))
    np.add.at(x, (rows, columns), counts)
    arrays: dict[str, NDArray[Any]] = {"x": x}
    if missing == "unobserved":
        arrays["observed"] = np.zeros(x.shape, dtype=bool)
        arrays["observed"][rows, columns] = True
    return Ratings(arrays, {"row": users.tolist(), "column": items.tolist()})


@dataclass(frozen=True, repr=False)
class CoordinateAscent:
    """What coordinate ascent ends with: independent Gammas, and its own bound.

    Attributes:
        theta_shape: Shapes of q(theta), `(K, n)`.
        theta_rate: Rates of q(theta), `(K, n)`.
        beta_shape: Shapes of q(beta), `(K, m)`.
        beta_rate: Rates of q(beta), `(K, m)`.
        bound: The augmented bound after every iteration, in nats; it never falls, and is below the plain ELBO of the same q.
    """

    theta_shape: Array
    theta_rate: Array
    beta_shape: Array
    beta_rate: Array
    bound: Array

    def __repr__(self) -> str:
        return f"CoordinateAscent(K={len(self.theta_shape)}; bound {self.bound[-1]:,.1f} after {len(self.bound)} iterations)"


def coordinate_ascent(
    x: ArrayLike,
    K: int = 20,
    a: float = 0.3,
    b: float = 0.3,
    c: float = 0.3,
    d: float = 0.3,
    *,
    observed: ArrayLike | None = None,
    iterations: int = 2_000,
    tol: float = 1e-7,
    seed: int = 0,
) -> CoordinateAscent:
    """The reference: variational inference with every count allocated to factors, one factor of q at a time in closed form.

    With x_ui = Σ_k z_uik and z_uik ~ Poisson(theta_uk · beta_ki) the complete conditionals are Gammas and a multinomial:

        phi_uik ∝ exp(E log theta_uk + E log beta_ki)
        theta_uk: Gamma(a + Σ_i x_ui phi_uik, b + Σ_i E beta_ki), and beta_ki likewise

    It starts at the prior plus small random offsets, up to 0.01 in every shape and 0.1 in a factor's rate, as in the paper;
    a wide random start ends thousands of nats lower on the digits. Every seed has its own local optimum.

    Args:
        x: Counts, `(n, m)`.
        K: The number of factors.
        a: Shape of theta's prior.
        b: Its rate.
        c: Shape of beta's prior.
        d: Its rate.
        observed: Which entries count, `(n, m)` booleans; all when None.
        iterations: The largest number of updates of both factors.
        tol: Stop when the bound rises by less than this share of itself; 1e-7 of the digits' is 0.02 nats.
        seed: Of the start.

    References:
        Scalable recommendation with Poisson factorization (Gopalan, Hofman & Blei, 2013) | https://arxiv.org/abs/1311.1704
    """
    from scipy.special import digamma, gammaln, xlogy  # here, because it takes as long to import as Pyro

    counts, seen = _counts(x, observed)
    rng, (n, m) = np.random.default_rng(seed), counts.shape
    constant = gammaln(counts + 1).sum()
    theta_shape, theta_rate = a + 0.01 * rng.random((n, K)).T, np.repeat(b + 0.1 * rng.random((K, 1)), n, axis=1)
    beta_shape, beta_rate = c + 0.01 * rng.random((K, m)), np.repeat(d + 0.1 * rng.random((K, 1)), m, axis=1)
    geometric_theta = np.exp(digamma(theta_shape)) / theta_rate
    geometric_beta = np.exp(digamma(beta_shape)) / beta_rate
    bound: list[float] = []

    def product() -> Array:
        """The denominator of phi, `(n, m)`: Σ_i x_ui phi_uik needs no array of n·m·K."""
        return np.maximum(geometric_theta.T @ geometric_beta, np.finfo(float).tiny)

    for _ in range(iterations):
        theta_shape = a + geometric_theta * (geometric_beta @ (counts / product()).T)
        theta_rate = b + beta_shape / beta_rate @ seen.T
        geometric_theta = np.exp(digamma(theta_shape)) / theta_rate
        beta_shape = c + geometric_beta * (geometric_theta @ (counts / product()))
        beta_rate = d + theta_shape / theta_rate @ seen
        geometric_beta = np.exp(digamma(beta_shape)) / beta_rate
        likelihood = xlogy(counts, product()).sum() - constant
        likelihood -= (seen * ((theta_shape / theta_rate).T @ (beta_shape / beta_rate))).sum()
        bound.append(float(likelihood - _kl(theta_shape, theta_rate, a, b) - _kl(beta_shape, beta_rate, c, d)))
        if len(bound) > 1 and bound[-1] - bound[-2] < tol * abs(bound[-1]):
            break
    return CoordinateAscent(theta_shape, theta_rate, beta_shape, beta_rate, np.array(bound))


def _counts(x: ArrayLike, observed: ArrayLike | None) -> tuple[Array, Array]:
    """The counts that were observed, with 0 elsewhere, and 1.0 where they were."""
    counts = np.asarray(x, dtype=float)
    if counts.ndim != 2 or not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise DataError(f"x must be a matrix of counts, 0, 1, 2, …; its shape is {counts.shape}, its least value {counts.min()}")
    seen = np.ones_like(counts) if observed is None else np.asarray(observed, dtype=float)
    if seen.shape != counts.shape:
        raise DataError(f"observed has shape {seen.shape}, x {counts.shape}; they must be the same")
    return counts * seen, seen


def _kl(shape: Array, rate: Array, prior_shape: float, prior_rate: float) -> float:
    """KL(Gamma(shape, rate) ‖ the prior), summed."""
    from scipy.special import digamma, gammaln

    each = (shape - prior_shape) * digamma(shape) - gammaln(shape) + gammaln(prior_shape)
    each += prior_shape * np.log(rate / prior_rate) + shape * (prior_rate / rate - 1)
    return float(each.sum())


def elbo(
    x: ArrayLike,
    q: Mapping[str, Any] | CoordinateAscent,
    a: float = 0.3,
    b: float = 0.3,
    c: float = 0.3,
    d: float = 0.3,
    *,
    observed: ArrayLike | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Estimate:
    """The plain ELBO of independent Gammas, in nats: the KL in closed form, the expected log likelihood from draws in float64.

    One scale for both: a fit's `parameters`, and what `coordinate_ascent` ends with.

    Args:
        x: Counts, `(n, m)`.
        q: `theta_shape` and `theta_rate`, `(K, n)`, `beta_shape` and `beta_rate`, `(K, m)`, by name or as attributes.
        a: Shape of theta's prior.
        b: Its rate.
        c: Shape of beta's prior.
        d: Its rate.
        observed: Which entries count, `(n, m)` booleans; all when None.
        draws: Of q; 200 put a standard error of about 8 nats on the digits' −215,000.
        seed: Of the draws.
    """
    from scipy.special import gammaln, xlogy

    theta_shape, theta_rate, beta_shape, beta_rate = (
        np.asarray(q[name] if isinstance(q, Mapping) else getattr(q, name), dtype=float)
        for name in ("theta_shape", "theta_rate", "beta_shape", "beta_rate")
    )
    counts, seen = _counts(x, observed)
    rng, likelihood = np.random.default_rng(seed), np.empty(draws)
    for i in range(draws):
        rate = (rng.gamma(theta_shape) / theta_rate).T @ (rng.gamma(beta_shape) / beta_rate)
        likelihood[i] = xlogy(counts, np.maximum(rate, np.finfo(float).tiny)).sum() - (seen * rate).sum()
    kl = _kl(theta_shape, theta_rate, a, b) + _kl(beta_shape, beta_rate, c, d)
    return Estimate(float(likelihood.mean() - gammaln(counts + 1).sum() - kl), float(likelihood.std(ddof=1) / draws**0.5))


def reference(
    x: ArrayLike,
    K: int = 20,
    a: float = 0.3,
    b: float = 0.3,
    c: float = 0.3,
    d: float = 0.3,
    observed: ArrayLike | None = None,
    *,
    starts: int = 3,
    draws: int = 200,
) -> Estimate:
    """The plain ELBO of coordinate ascent's q, in nats: the best of `starts` seeds. An SVI fit should reach at least that."""
    prior = (a, b, c, d)
    found = (coordinate_ascent(x, K, *prior, observed=observed, seed=seed) for seed in range(starts))
    return max((elbo(x, q, *prior, observed=observed, draws=draws) for q in found), key=lambda estimate: estimate.value)


class Factors(NamedTuple):
    """`images`: `(K, m)`, what each factor adds to an average row, in counts. `share`: `(K,)`, of all counts. `order`: `(K,)`."""

    images: Array
    share: Array
    order: NDArray[np.intp]


def factors(theta: ArrayLike, beta: ArrayLike) -> Factors:
    """The factors as images, the one with the largest share of the counts first; `order` says which k each one is.

    Theta and beta are only known up to a scale a factor, theta_k · s and beta_k / s; what a factor adds to an average row is
    free of that, and over all factors these images sum to the average row.

    Args:
        theta: Draws `(draws, K, n)`, as in `fit.posterior_arrays()`, or means `(K, n)`.
        beta: Draws `(draws, K, m)`, or means `(K, m)`.
    """
    images = np.asarray(theta, dtype=float).mean(-1, keepdims=True) * np.asarray(beta, dtype=float)
    images = images.mean(0) if images.ndim == 3 else images
    share = images.sum(1) / images.sum()
    order = np.argsort(-share)
    return Factors(images[order], share[order], order)


def log_predictive(x: ArrayLike, theta: ArrayLike, beta: ArrayLike) -> Array:
    """The log predictive probability of every count, `(n, m)`, in nats: log of the mean of Poisson(x_ui; rate_ui) over draws.

    Of entries that the fit did not see (`observed` False) it is the held-out log score.

    Args:
        x: Counts, `(n, m)`.
        theta: Draws `(draws, K, n)`, as in `fit.posterior_arrays()`.
        beta: Draws `(draws, K, m)`.
    """
    from scipy.special import gammaln, xlogy

    counts, thetas, betas = (np.asarray(value, dtype=float) for value in (x, theta, beta))
    total, constant = np.full(counts.shape, -np.inf), gammaln(counts + 1)
    for one_theta, one_beta in zip(thetas, betas, strict=True):
        rate = np.maximum(one_theta.T @ one_beta, np.finfo(float).tiny)
        total = np.logaddexp(total, xlogy(counts, rate) - rate - constant)
    return np.asarray(total - np.log(len(thetas)))
