"""From a model's log density to draws that can be used: one rung after another, until weights say that it is enough.

    coordinates       latents with a prior that depends on others are seen from it (`pyrovi.centering`)
    gaussian          the best Gaussian, full covariance, by natural gradients, from Pathfinder's start; then skewed
    student           Student-t's matched to the weighted draws, over every mode that restarts find, until they match no better
    tempered          draws of the skewed Gaussian moved to the posterior by degrees (`pyrovi.tempering`)

What counts is decided by importance weights on fresh draws, never by the ELBO: the rungs only propose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovi._typing import Tensors
from pyrovi.centering import Centering
from pyrovi.density import Density
from pyrovi.errors import ModelError
from pyrovi.fixed_draws import Objective
from pyrovi.guides.gaussian import initial, place
from pyrovi.guides.student import Student, matched
from pyrovi.importance import Weights, resample, systematic, weigh
from pyrovi.modes import Restarts, look
from pyrovi.natural_gradient import best_gaussian
from pyrovi.pathfinder import Start, dispersed, gaussians, standard_draws
from pyrovi.tempering import CHANCE, GROUPS, LARGE, MOVES, SMALL, Moments, Settled, Tempered, settle, temper

__all__ = ["Found", "Proposal", "search"]

Array = NDArray[np.float64]

PATHS, MOST_PATHS, PATH_NUMBERS = 8, 96, 5e7
"""Restarts that look for other modes: the more the cheaper, as long as a step of all of them computes so many numbers at most."""

MOST_FULL = 100
"""Latents up to which a path's Gaussians have full covariances; past that natural gradients find them from independent ones."""

INFORMING = 64
"""Draws over which the likelihood's curvature is averaged, for the coordinates."""

SKEWING = 512
"""Fixed draws for the skew's four numbers a latent."""

FIRST, MOST = 5_000, 60_000
"""Draws that weights are judged by: of the first k-hat has a standard error of about 0.1; the last where that leaves it open."""

ENOUGH = 3_000
"""Effective draws with which the mean of any of hundreds of latents is known to 0.06 sd and its sd to 5%."""

SPREAD = 1.5

LEAST_MOVED, MOST_MOVED, MOVED_NUMBERS = 256, 2_048, 3e9
"""Draws that are moved, and numbers that moving them computes."""

FEW_LATENTS, PARTS, CLUSTERED, MIXED_ROUNDS, MIXED_DF = 12, 8, 4_000, 8, 8.0
"""Latents up to which a bent posterior can be covered by so many Student-t's, from so many draws in so many rounds."""

WIDENINGS = 5

ROUNDS = 3
"""Of restarts and of Student-t's that take in what they find."""

LOOKED_AT = 20_000
"""Weighted draws that restarts are held against."""

TAILS = 8
"""Latents whose variances are looked at."""

MOST_NUMBERS = 2e10
"""Numbers that draws are moved on for, in all."""

STANDING = 0.9
"""The share of effective draws from which, with a k-hat of the variances below ½, nothing is left to move."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """A q over the density's coordinates, its draws and what they weigh.

    Attributes:
        rung: `gaussian`, `student` or `tempered`.
        parameters: Of the guide that q is: `pyrovi.guides.gaussian.place`'s, or a `Student`'s.
        z: Draws, `(n, dimension)`;
        ratio: their log p − log q, `(n,)`, NumPy.
        weights: The same, smoothed.
        tail: The largest k-hat of the weights times a latent's squared distance from its mean: a variance can depend on a tail
            that q hardly reaches where log p(data) does not.
        draws: Gives more.
        moved: How draws were moved to the posterior from there,
        settled: whether they stood still there,
        moved_z: the draws, where they are to be used,
        contradicted: and whether another's weights found more mass.
    """

    rung: str
    parameters: Tensors
    z: torch.Tensor
    ratio: Array
    weights: Weights
    tail: float
    draws: Draw
    moved: Tempered | None = None
    settled: Settled | None = None
    moved_z: torch.Tensor | None = None
    contradicted: bool = False

    @property
    def good(self) -> bool:
        """Whether its weights are good beyond doubt, for the variances of the latents too."""
        return self.weights.good is True and self.tail < self.weights.threshold

    @property
    def enough(self) -> bool:
        """Whether they are, and enough draws effective."""
        return self.good and self.weights.ess >= ENOUGH


@dataclass(frozen=True, eq=False)
class Found:
    """What the search ended with."""

    density: Density
    """In the coordinates that it chose."""
    centering: dict[str, Centering]
    best: Proposal
    tried: list[Proposal]
    restarts: Restarts


def search(
    make: Callable[..., Density],
    sites: list[str],
    start: torch.Tensor,
    prior: Callable[[Density], torch.Tensor],
    *,
    seed: int,
    tell: Callable[[str], None] = lambda rung: None,
) -> Found:
    """Climb the ladder.

    Args:
        make: Records the log density: `make(centering=…)`, `make(likelihood=True)`.
        sites: Those whose priors depend on other latents.
        start: Where the first path starts, unconstrained, `(dimension,)`.
        prior: Prior draws in a density's coordinates, to start from.
        seed: Of everything random.
        tell: Told the rung that is being tried.
    """
    tell("coordinates")
    density, centering, q = _coordinates(make, sites, start, prior, seed)
    tell("gaussian")
    tried = [_gaussian(density, q, seed)]
    if not tried[-1].enough and not _nearly(tried[-1]):
        tell("skewed")
        tried.append(_skewed(density, q, seed))
    tell("restarts")
    missed = _modes(density, tried[-1], prior, seed)
    whole = [] if missed.paths else tried[:]  # those that visit all modes found
    for round_ in range(ROUNDS):
        if whole and (whole[-1].enough or _nearly(whole[-1])) and not missed.paths:
            break
        tell("student")
        more = _students(density, max(tried, key=_merit) if round_ else tried[-1], missed, [seed, round_])
        tried, whole = tried + more, whole + more
        if not missed.paths:
            break
        missed = _modes(density, max(more, key=_merit), prior, seed)
    best = max(whole, key=_merit)
    if not (best.enough or _nearly(best)) and density.dimension <= FEW_LATENTS:
        tell("mixture")
        most = max(whole, key=lambda p: p.weights.ess / p.weights.draws)
        tried.append(_mixture(density, most.z, most.weights.weights, seed))
        best = max(best, tried[-1], key=_merit)
    if not best.enough:
        tell("more draws")
        best = _extended(density, best)
    if (best.enough or _nearly(best)) and density.dimension <= FEW_LATENTS and not _standing(best):
        tell("widened")
        best = _widened(density, best, seed)
        if best not in tried:
            tried.append(best)
            best = _extended(density, best)
    if best.enough:
        tell("settled")
        best = _settled(density, best, seed)
    if not best.enough or best.settled is not None and not best.settled.still:
        tell("tempered")
        best = _tempered(density, tried[0], seed)
        best = replace(best, contradicted=_contradicted(best, tried))
        tried.append(best)
        if density.dimension <= FEW_LATENTS and best.moved_z is not None:
            # A proposal that is matched to them can be weighted, and weights are the better witnesses.
            again = _mixture(density, best.moved_z, np.full(len(best.moved_z), 1 / len(best.moved_z)), seed + 1)
            again = _extended(density, _widened(density, again, seed + 1) if again.enough or _nearly(again) else again)
            if again.enough:
                tried.append(again)
                best = again
    if best.moved_z is not None:
        missed = _modes(density, best, prior, seed)
    return Found(density, centering, best, tried, missed)


def _nearly(p: Proposal) -> bool:
    """Whether its weights are good, and only too few draws effective: more of them are cheaper than another proposal."""
    return p.good and p.weights.ess / p.weights.draws > 0.2


def _merit(p: Proposal) -> tuple[bool, float]:
    return p.good, p.weights.ess / p.weights.draws


def _coordinates(
    make: Callable[..., Density], sites: list[str], start: torch.Tensor, prior: Callable[[Density], torch.Tensor], seed: int
) -> tuple[Density, dict[str, Centering], Start]:
    """The coordinates and the best Gaussian in them."""
    plain = make()
    parts = [part for part in plain.parts if part.name in sites]
    q = _first(plain, start, prior(plain), seed)
    if not parts:
        if q is None:
            raise ModelError(NOWHERE)
        return plain, {}, q
    # Seen from the prior, or as they are: either may be a funnel that no path leaves.
    density, centering = plain, {}
    prior_alone = {part.name: Centering(torch.zeros(part.shape), torch.zeros(part.shape)) for part in parts}
    other, origin = make(centering=prior_alone), start.clone()
    for part in parts:
        origin[part.start : part.stop] = 0.0
    rival = _first(other, origin, prior(other), seed)
    if rival is not None and (q is None or rival.elbo > q.elbo):
        density, centering, q = other, prior_alone, rival
    if q is None:
        raise ModelError(NOWHERE)
    likelihood = make(likelihood=True)
    for _ in range(2):
        informed = _informed(likelihood, density, q, [part.name for part in parts])
        other = make(centering=informed)
        try:
            better = best_gaussian(other, _carried(density, other, q), seed=seed)
        except (RuntimeError, ModelError):
            break
        gain = better.elbo - q.elbo
        if not gain > 0:
            break
        density, centering, q = other, informed, better
        if gain < 0.02 * density.dimension:
            break
    return density, centering, q


NOWHERE = (
    "no Gaussian about any path from different starts has a finite ELBO: the model's density is zero or NaN wherever they went; "
    "check its priors and supports"
)


def _first(density: Density, start: torch.Tensor, prior: torch.Tensor, seed: int) -> Start | None:
    """The best Gaussian that paths from dispersed starts lead to."""
    starts = torch.cat([dispersed(start, seed, PATHS // 2), prior[: PATHS // 2].to(start)])
    found = gaussians(density, starts, full=density.dimension <= MOST_FULL)
    return best_gaussian(density, max(found, key=lambda s: s.elbo), seed=seed) if found else None


def _informed(likelihood: Density, density: Density, q: Start, sites: list[str]) -> dict[str, Centering]:
    """What the likelihood says of every element of the sites: a Normal's, by its mean slope and curvature under q."""
    e = standard_draws(INFORMING, density.dimension, 0)
    u = density.unconstrained(q.loc + e @ q.scale.mT)
    centre = u.mean(0)
    out = {}
    for part in likelihood.parts:
        if part.name not in sites:
            continue
        here = slice(part.start, part.stop)
        bent = _bends(likelihood, u, part.start, part.stop)
        slope = likelihood.gradient(u)[1][:, here].nan_to_num(0.0).mean(0)
        precision = (-bent).clamp_min(0.0)
        estimate = centre[here] + torch.where(precision > 0, slope / precision.clamp_min(1e-300), 0.0)
        estimate = torch.where(precision > 0, estimate, 0.0)
        out[part.name] = Centering(precision.reshape(part.shape), estimate.reshape(part.shape))
    return out


def _bends(likelihood: Density, u: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """The diagonal of the likelihood's Hessian, averaged over rows."""
    d = u.shape[1]
    rows = u[: max(2, min(len(u), 4_096 // (stop - start)))]
    basis = torch.eye(d, dtype=u.dtype)[start:stop]
    products = likelihood.curvature(rows.repeat_interleave(stop - start, 0), basis.repeat(len(rows), 1))
    products = products.reshape(len(rows), stop - start, d)[:, :, start:stop]
    return products.diagonal(dim1=1, dim2=2).nan_to_num(0.0).mean(0)


def _carried(density: Density, other: Density, q: Start) -> Start:
    """The mean and covariance of q in other coordinates, by draws."""
    d = density.dimension
    e = standard_draws(max(512, 8 * d), d, 1)
    z = other.coordinates(density.unconstrained(q.loc + e @ q.scale.mT))
    z = z[torch.isfinite(z).all(1)]
    low, high = z.quantile(0.16, 0), z.quantile(0.84, 0)  # of which no tail spoils the scale
    sds = ((high - low) / 2).clamp_min(1e-12)
    clipped = ((z - z.median(0).values) / sds).clamp(-4, 4)
    correlation = 0.9 * torch.corrcoef(clipped.mT).reshape(d, d).nan_to_num(0.0).fill_diagonal_(1.0) + 0.1 * torch.eye(
        d, dtype=z.dtype
    )
    return Start(z.median(0).values, sds[:, None] * torch.linalg.cholesky(correlation), -math.inf)


Draw = Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]
"""So many draws, of a stream of random numbers by its number, and their log q."""


def _gaussian(density: Density, q: Start, seed: int) -> Proposal:
    d = density.dimension
    parameters = initial("multivariate_normal", q.loc, q.scale)
    return _judged("gaussian", density, parameters, _placed(parameters, d, seed))


def _skewed(density: Density, q: Start, seed: int) -> Proposal:
    """The Gaussian, with skew and tails of its own in every whitened coordinate."""
    from scipy.optimize import minimize

    d = density.dimension
    objective = Objective(density, initial("normal", q.loc, q.scale, skew=True), standard_draws(SKEWING, d, seed + 101))

    def negative(v: Array) -> tuple[float, Array]:
        value, gradient = objective(aligned(v))
        return min(value, 1e300), gradient.numpy()

    with np.errstate(all="ignore"):
        still = 2e-4 * d / max(1.0, abs(q.elbo))
        found = minimize(
            negative, objective.start.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 40, "maxcor": 20, "ftol": still}
        )
    parameters = objective.parameters(aligned(found.x if found.fun < 1e299 else objective.start.numpy()))
    parameters |= {"lower": torch.zeros(d * (d - 1) // 2, dtype=q.loc.dtype)}
    return _judged("skewed", density, parameters, _placed(parameters, d, seed))


def _placed(parameters: Tensors, d: int, seed: int) -> Draw:
    def draws(n: int, stream: int) -> tuple[torch.Tensor, torch.Tensor]:
        e = standard(n, d, [seed, stream])
        z, log_det = place(parameters, e)
        return z, -0.5 * e.square().sum(1) - d / 2 * math.log(2 * math.pi) - log_det

    return draws


def _judged(rung: str, density: Density, parameters: Tensors, draws: Draw) -> Proposal:
    z, log_q = draws(FIRST, 0)
    ratio = (density(z) - log_q).numpy()
    weights = weigh(ratio)
    return Proposal(rung, parameters, z, ratio, weights, _tail(density, z, weights), draws)


def _tail(density: Density, z: torch.Tensor, weights: Weights) -> float:
    """The k-hat of the latents' variances, of those with the heaviest tails."""
    if weights.good is False:
        return math.inf
    if weights.khat == -math.inf:
        return -math.inf  # all weights are the same, and a variance is what q says
    w = weights.weights
    x = torch.cat([x.reshape(len(z), -1) for x in density.sites(z).values()], 1).numpy()
    with np.errstate(all="ignore"):
        mean = w @ x
        squares = np.square(x - mean)
        kurtosis = np.nan_to_num(w @ np.square(squares) / np.square(w @ squares), nan=0.0)
        heaviest = np.argsort(-kurtosis)[:TAILS]
        return max(
            (weigh(weights.log_weights + np.log(squares[:, j])).khat for j in heaviest if kurtosis[j] > 0), default=-math.inf
        )


def _extended(density: Density, p: Proposal) -> Proposal:
    """More draws, while it is open whether the weights are good, or good ones are too few."""
    for stream, most in enumerate((4 * FIRST, MOST)):
        if p.weights.good is False or p.enough or p.weights.ess / p.weights.draws < ENOUGH / MOST:
            break
        wanted = 1.2 * ENOUGH * p.weights.draws / p.weights.ess if p.weights.good else most
        upto = min(most, max(2 * len(p.z), math.ceil(wanted)))
        z, log_q = p.draws(upto - len(p.z), 1 + stream)
        ratio = np.concatenate([p.ratio, (density(z) - log_q).numpy()])
        together, weights = torch.cat([p.z, z]), weigh(ratio)
        p = replace(p, z=together, ratio=ratio, weights=weights, tail=_tail(density, together, weights))
    return p


def _modes(density: Density, p: Proposal, prior: Callable[[Density], torch.Tensor], seed: int) -> Restarts:
    if p.moved_z is not None:
        z, weights = p.moved_z.numpy(), np.full(len(p.moved_z), 1 / len(p.moved_z))
        evidence = p.moved.log_evidence if p.moved is not None else p.weights.log_mean
    else:
        z, weights = p.z.numpy()[:LOOKED_AT], np.where(np.isfinite(p.ratio), p.weights.weights, 0.0)[:LOOKED_AT]
        evidence = p.weights.log_mean
    return look(density, z, weights / weights.sum(), evidence, prior(density).numpy(), restarts=_restarts(density), seed=seed)


def _restarts(density: Density) -> int:
    return int(min(MOST_PATHS, max(PATHS, PATH_NUMBERS / (density.work * density.dimension**2))))


def _students(density: Density, p: Proposal, missed: Restarts, seed: list[int]) -> list[Proposal]:
    """Rounds of matching Student-t's to the weighted draws, as long as more of them become effective."""
    d = density.dimension
    dfs = (5.0, 30.0) if d <= 10 else (30.0,)
    out: list[Proposal] = []
    for df in dfs:
        q = matched(p.z, aligned(p.weights.weights), df)
        if missed.paths:
            elbo = np.array([p.weights.log_mean, *(path.elbo for path in missed.paths)])
            q = Student(
                aligned(np.maximum(elbo - elbo.max(), -5.0)),
                torch.cat([q.locs, torch.stack([path.loc for path in missed.paths])]),
                torch.cat([q.scales, torch.stack([_lower(path.scale) for path in missed.paths])]),
                q.df,
            )
        best = None
        for round_ in range(4):
            now = _student(density, q, [*seed, int(df), round_])
            if best is not None and now.weights.ess / now.weights.draws < 1.05 * best.weights.ess / best.weights.draws:
                break
            best = now
            q = matched(now.z, aligned(now.weights.weights), df, q)
        assert best is not None
        out.append(best)
        if best.enough:
            break
    return out


def _mixture(density: Density, z: torch.Tensor, weights: Array, seed: int) -> Proposal:
    """Several Student-t's along what is bent or has several parts, matched round after round, first to weighted draws."""
    from scipy.cluster.vq import kmeans2

    rng = np.random.default_rng([seed, 33])
    whole = matched(z, aligned(weights), MIXED_DF)
    z = z[torch.from_numpy(systematic(weights, CLUSTERED, rng))]
    z = z + 0.2 * standard(len(z), density.dimension, [seed, 34]) @ whole.scales[0].mT  # of few effective draws many are the same
    e = torch.linalg.solve_triangular(whole.scales[0], (z - whole.locs[0]).mT, upper=False).mT
    _, label = kmeans2(e.numpy(), PARTS, minit="++", seed=rng)
    parts = [k for k in range(PARTS) if (label == k).sum() > 2 * density.dimension]
    alike = [torch.full((int((label == k).sum()),), 1 / int((label == k).sum()), dtype=z.dtype) for k in parts]
    each = [matched(z[torch.from_numpy(label == k)], w, MIXED_DF) for k, w in zip(parts, alike, strict=True)]
    q = Student(
        aligned(np.log([(label == k).sum() for k in parts])),
        torch.cat([one.locs for one in each]),
        torch.cat([one.scales for one in each]),
        whole.df,
    )
    best = None
    for round_ in range(MIXED_ROUNDS):
        now = _student(density, q, [seed, 35, round_])
        if best is None or _merit(now) > _merit(best):
            best = now
        if now.enough or _nearly(now):
            break
        q = matched(now.z, aligned(now.weights.weights), MIXED_DF, q)
    assert best is not None
    return best


def _lower(scale: torch.Tensor) -> torch.Tensor:
    return torch.diag(scale) if scale.dim() == 1 else scale


def _student(density: Density, q: Student, seed: list[int]) -> Proposal:
    def draws(n: int, stream: int) -> tuple[torch.Tensor, torch.Tensor]:
        z = q.draw(n, int(np.random.SeedSequence([*seed, stream]).generate_state(1)[0]))
        return z, torch.logsumexp(q.log_density(z), 1)

    return _judged("student", density, q._asdict(), draws)


def _standing(p: Proposal) -> bool:
    return p.weights.ess > STANDING * p.weights.draws and p.tail < 0.5


def _widened(density: Density, p: Proposal, seed: int) -> Proposal:
    """Weighted draws of a wider q: where they have other moments, q ended too soon, and a wider one takes its place."""
    shift = 0.0
    q = Student(**p.parameters) if p.rung == "student" else matched(p.z, aligned(p.weights.weights), MIXED_DF)
    for round_ in range(WIDENINGS):
        wide = _student(density, q._replace(scales=1.5 * q.scales, df=torch.full_like(q.df, 4.0)), [seed, 36, round_])
        if wide.weights.good is False:
            return p
        mine, theirs = (Moments.weighted(_values(density, x.z), aligned(x.weights.weights)) for x in (p, wide))
        shift, _ = theirs.shift(mine, CHANCE)
        if shift <= SMALL:
            return p
        # Chance or not, the wider one is the safer; which of them is right the next, wider still, will say.
        q = matched(wide.z, aligned(wide.weights.weights), MIXED_DF, Student(**wide.parameters))
        p = max(_student(density, q, [seed, 37, round_]), wide, key=_merit)
    return p if shift <= LARGE else replace(p, tail=math.inf)


def _settled(density: Density, p: Proposal, seed: int) -> Proposal:
    """Whether its weighted draws, resampled, stand still when they are moved; where they do not, those that they become."""
    if _standing(p):
        return p
    weights = aligned(p.weights.weights)
    n = _affordable(density)
    index = torch.from_numpy(resample(p.weights, n, np.random.default_rng([seed, 55])))
    return _moved_on(density, p, p.z[index], Moments.weighted(_values(density, p.z), weights), p.z, weights, seed)


def _moved_on(
    density: Density, p: Proposal, z: torch.Tensor, before: Moments, around: torch.Tensor, weights: torch.Tensor, seed: int
) -> Proposal:
    """Draws z moved on at the posterior, in the coordinates of the mean and covariance of weighted draws `around`."""
    whole = matched(around, weights, 30.0)
    loc, scale = whole.locs[0], whole.scales[0]

    def ratio(e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, slope = density.gradient(loc + e @ scale.mT)
        return value + 0.5 * e.square().sum(1), slope @ scale + e

    e = torch.linalg.solve_triangular(scale, (z - loc).mT, upper=False).mT
    moves = int(max(3 * MOVES, MOST_NUMBERS / (density.work * len(e) * 12)))
    settled = settle(ratio, e, before, lambda e: _values(density, loc + e @ scale.mT), moves, 1 + (p.moved is not None), seed=seed)
    stays = settled.still and settled.blocks == 1
    return replace(p, settled=settled, moved_z=None if stays and p.moved is None else loc + settled.e @ scale.mT)


def _values(density: Density, z: torch.Tensor) -> torch.Tensor:
    """What is to stand still: coordinates and the latents' own values."""
    return torch.cat([z, *(x.reshape(len(z), -1) for x in density.sites(z).values())], 1)


def _contradicted(p: Proposal, others: list[Proposal]) -> bool:
    """Whether weights have found more mass than tempering: of an estimate that is seldom too large, a sign that it lost some."""
    assert p.moved is not None

    def least(other: Proposal) -> float:
        w = other.weights
        return w.log_mean - 3 * math.sqrt(1 / w.ess) if w.ess >= 50 else -math.inf

    return max(map(least, others)) > p.moved.log_evidence + 2 * p.moved.log_evidence_se


def _affordable(density: Density) -> int:
    """Draws to move: as many as compute so many numbers, in multiples of the groups."""
    leaps = MOVES * 4 * 3
    return GROUPS * int(min(MOST_MOVED, max(LEAST_MOVED, MOVED_NUMBERS / (density.work * leaps))) // GROUPS)


def _tempered(density: Density, p: Proposal, seed: int) -> Proposal:
    """The Gaussian's draws, spread out, moved to the posterior by degrees, and on until they stand still.

    Spread out, for draws are brought in from where the posterior is not more easily than sent out to where it is and q was not; by
    so much that q's entropy grows by about two nats, whatever the dimension.
    """
    d, parameters = density.dimension, p.parameters
    wider = 1 + SPREAD / math.sqrt(d)

    @torch.enable_grad()
    def ratio(e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        e = e.detach().requires_grad_()
        z, log_det = place(parameters, wider * e)
        value, slope = density.gradient(z.detach())
        (pulled,) = torch.autograd.grad((z * slope).sum() + log_det.expand(len(e)).sum(), e)
        e = e.detach()
        return value + (log_det.detach() + 0.5 * e.square().sum(1)) + d * (
            math.log(wider) + 0.5 * math.log(2 * math.pi)
        ), pulled + e

    e = standard(_affordable(density), d, [seed, 77])
    moved = temper(ratio, e, seed=seed)
    z = place(parameters, wider * moved.e)[0]
    alike = torch.full_like(z[:, 0], 1 / len(z))
    before = Moments.grouped(_values(density, z))
    return _moved_on(density, replace(p, rung="tempered", moved=moved), z, before, z, alike, seed)


def standard(n: int, d: int, seed: list[int]) -> torch.Tensor:
    """Standard Normal draws."""
    return aligned(np.random.default_rng(seed).standard_normal((n, d)))


def aligned(x: Array) -> torch.Tensor:
    """A tensor in memory of its own: sums are in another order, and differ by rounding, where an array begins elsewhere."""
    return torch.from_numpy(x).clone()
