"""`check`: what can be measured of a fit without knowing the posterior, or with it, and the level of trust that it earns."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer.autoguide import AutoContinuous

from pyrovi._exact import ExactPosterior
from pyrovi.agreement import Agreement, against_exact, against_weighted, columns
from pyrovi.density import Density
from pyrovi.draws import draw
from pyrovi.errors import SettingsError, first_line
from pyrovi.estimate import Estimate
from pyrovi.evidence import Local, local_weights
from pyrovi.importance import Weights, weigh
from pyrovi.preflight import Problem
from pyrovi.restarts import RESTARTS, UNRECORDED, density_of, refitted, restarted, spread_of
from pyrovi.result import Fit, Status
from pyrovi.stopping import plateau
from pyrovi.verdict import SD_TOLERANCE, Evidence, Verdict, judge

__all__ = ["check"]

Array = NDArray[np.float64]

FIRST_DRAWS, SURE_DRAWS, MOST_DRAWS = 12_500, 100_000, 200_000
"""k-hat's standard error is about 0.09, 0.05 and 0.04 there; below the second it has to be so small that its rise with the number
of draws cannot matter."""

CLEARLY = 6
"""In standard errors."""

MOST_SCALARS = 40_000_000
"""Numbers of all draws that are kept: 320 MB."""

UNVECTORIZED = 4_000
"""Draws at most of a model that runs one at a time: some seconds."""

MOST_DATA, LOCAL_DRAWS, LOCAL_SCALARS = 200, 4_000, 100_000_000
"""Where every datum has its own weights: data, draws of each, and numbers that model and guide compute for them."""

FEWEST_STEPS = 200
"""Of a noisy optimisation, below which its trace says nothing."""


def check(
    fit: Fit,
    exact: ExactPosterior | None = None,
    *,
    max_draws: int | None = None,
    restarts: int = RESTARTS,
    seed: int | None = None,
) -> Verdict:
    """Whether a fit is to be trusted, and why: did it converge, is q close, is q right as it is, is there another mode?

    Importance weights log p − log q say how close q is (k-hat), what its means, sds and quantiles would be were they mended, and
    what log p(data) is, hence KL(q‖p). Draws are taken in growing batches until k-hat and the comparison are decided. What weights
    cannot see, a mode that q never visits, is looked for by restarts from dispersed points. Where all latents belong to a datum
    each has weights of its own. With an exact posterior q is held against that instead.

    A fit without settings that keeps draws in place of q was judged by them when it was made, and that verdict is returned; so is
    the verdict kept with a fit that is loaded without its model. Any other fit keeps the verdict as `fit.verdict`, where `summary`,
    `to_arviz`, `save` and `report` find it, unless it has one that tested more.

    Args:
        fit: The fit. It has to have its model, or a verdict.
        exact: Its exact posterior, where there is one.
        max_draws: From q; 200,000 when None, fewer of a large model or one that cannot be vectorised. Up to there k-hat gets its
            chance; a k-hat that is still undecided counts as bad.
        restarts: Paths from dispersed points; 12 find a mode that attracts a fifth of them in 93 of 100 cases. Without any, the
            level is at most `reweight`.
        seed: Of draws and restarts; the fit's own when None.

    Returns:
        A `Verdict`: `level`, `text` and `evidence`.

    Raises:
        PyroviError: The fit was loaded without its model.
        SettingsError: A number is out of range.

    References:
        Yes, but did it work? Evaluating variational inference (Yao et al., 2018) | https://proceedings.mlr.press/v80/yao18a.html
        Validated variational inference via practical posterior error bounds (Huggins et al., 2020) | https://proceedings.mlr.press/v108/huggins20a.html

    Example:
        >>> import pyrovi
        >>> fit = pyrovi.recipe("normal_mean").fit()
        >>> pyrovi.check(fit).level
        <Level.trust: 'trust'>
    """
    if restarts < 0:
        raise SettingsError(f"restarts must be at least 0; got {restarts!r}")
    if max_draws is not None and max_draws < 1:
        raise SettingsError(f"max_draws must be at least 1; got {max_draws!r}")
    kept = fit.sample is not None or fit.problem is None
    if fit.verdict is not None and kept and exact is None and seed is None:
        return fit.verdict  # of the draws that the fit gives, which are not q's, or all that is known of it
    verdict = judge(_evidence(fit, exact, max_draws, restarts, seed))
    held, e = fit.verdict, verdict.evidence
    if fit.sample is None and (held is None or (e.exact, e.restarts) >= (held.evidence.exact, held.evidence.restarts)):
        object.__setattr__(fit, "verdict", verdict)  # what is measured of a fit changes none of its answers
    return verdict


def _evidence(fit: Fit, exact: ExactPosterior | None, max_draws: int | None, restarts: int, seed: int | None) -> Evidence:
    name, richer = _names(fit)
    evidence = Evidence(guide=name, richer=richer, point=fit.point_estimate)
    with fit.loaded(1, seed) as problem:
        if evidence.point:
            return evidence if problem.structure.latent else replace(evidence, guide=None, richer=None)
        local = None if exact is not None else local_weights(problem, *_local_size(problem))
        if local is not None:
            evidence = replace(evidence, **_of_data(local), **spread_of(problem, restarts, fit.seed if seed is None else seed))
        else:
            evidence = _of_draws(evidence, fit, problem, exact, max_draws, restarts, fit.seed if seed is None else seed)
    if evidence.untested.startswith(UNRECORDED) and restarts and exact is None:
        evidence = replace(evidence, **refitted(fit, evidence, fit.seed if seed is None else seed))
    converged, convergence = _rest(fit, evidence)
    return replace(evidence, converged=converged, convergence=convergence)


def _names(fit: Fit) -> tuple[str, str | None]:
    """What the guide is called, and the guide to try next."""
    guide = str(fit.settings.get("guide"))
    options = fit.settings.get("guide_options") or {}
    if guide == "whitened":
        guide = str(options.get("family", "multivariate_normal"))
    if fit.settings.get("method") == "auto" or guide == "auto":
        return "auto", None
    return guide, {"delta": "normal", "normal": "multivariate_normal"}.get(guide, "auto")


class _Taken(NamedTuple):
    """Draws from q so far: labels of all scalars, their values, the log ratios and what these come to."""

    labels: list[str]
    x: Array
    latents: dict[str, torch.Tensor]
    ratio: Array
    weights: Weights
    agreement: Agreement


def _of_draws(
    evidence: Evidence, fit: Fit, problem: Problem, exact: ExactPosterior | None, max_draws: int | None, restarts: int, seed: int
) -> Evidence:
    """What draws from q, weighted, and restarts say."""
    density = density_of(problem)
    try:
        taken = _drawn(problem, density, exact, max_draws)
    except (RuntimeError, ValueError) as error:
        return replace(evidence, finite=0.0, untested=f"at a draw from q the model raised {first_line(error)}")
    w, ratio = taken.weights, taken.ratio
    finite = float(np.isfinite(ratio).mean())
    elbo = Estimate(float(ratio.mean()), float(ratio.std() / math.sqrt(len(ratio)))) if finite == 1 else Estimate(-math.inf, 0.0)
    evidence = replace(
        evidence,
        draws=len(ratio),
        finite=finite,
        khat=w.khat,
        khat_se=w.khat_se,
        ess=w.ess,
        elbo=elbo,
        exact=exact is not None,
        **taken.agreement._asdict(),
    )
    if exact is not None:
        truth = float(exact.log_evidence)
        return replace(evidence, log_evidence=Estimate(truth, 0.0), kl=Estimate(truth - elbo.value, elbo.se))
    if w.ess:
        log_evidence = Estimate(w.log_mean, math.sqrt(max(0.0, 1 / w.ess - 1 / len(ratio))))
        kl = Estimate(math.inf, 0.0)
        if finite == 1:
            # The same draws give both; what they have in common cancels.
            se = math.sqrt(float(np.square(w.weights - 1 / len(ratio) - (ratio - ratio.mean()) / len(ratio)).sum()))
            kl = Estimate(log_evidence.value - elbo.value, se)
        evidence = replace(evidence, log_evidence=log_evidence, kl=kl, **_bounds(taken))
    return replace(evidence, **restarted(problem, density, taken.latents, taken.weights, evidence, restarts, seed))


def _draws(problem: Problem, density: Density | str, n: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Draws from q and their log ratios: by model and guide, or by functions where those run one at a time."""
    guide = problem.guide
    if problem.vectorize or isinstance(density, str) or not isinstance(guide, AutoContinuous):
        drawn = draw(problem, n)
        return drawn.posterior, drawn.elbo
    with torch.no_grad():
        q = guide.get_posterior(**problem.data)
        u = q.sample((n,))
        return density.sites(u.double()), density(u.double()).cpu() - q.log_prob(u).double().cpu()


def _drawn(problem: Problem, density: Density | str, exact: ExactPosterior | None, max_draws: int | None) -> _Taken:
    """Draws in growing batches, until k-hat is on one side of its threshold twice running and the comparison is decided."""
    sites = problem.structure.sites.values()
    scalars = max(1, sum(site.shape.numel() for site in sites))
    kept = max(1, sum(site.shape.numel() for site in sites if site.kind in ("latent", "deterministic")))
    most = max_draws or min(MOST_DRAWS, max(1_000, min(MOST_SCALARS // kept, 20 * MOST_SCALARS // scalars)))
    functions = not isinstance(density, str) and isinstance(problem.guide, AutoContinuous)
    if not problem.vectorize and not functions and max_draws is None:
        most = min(most, UNVECTORIZED)
    n, before = min(FIRST_DRAWS, most), None
    parts: list[tuple[dict[str, torch.Tensor], torch.Tensor]] = []
    while True:
        parts.append(_draws(problem, density, n - sum(len(ratio) for _, ratio in parts)))
        sample = {name: torch.cat([values[name] for values, _ in parts]) for name in parts[0][0]}
        ratio = torch.cat([ratio for _, ratio in parts]).numpy()
        weights = weigh(ratio)
        arrays = {name: value.cpu().numpy() for name, value in sample.items()}
        labels, x = columns(arrays)
        agreement = against_exact(arrays, exact.marginals) if exact is not None else against_weighted(labels, x, weights.weights)
        good = weights.good
        if n < SURE_DRAWS and good and not weights.khat + CLEARLY * weights.khat_se < weights.threshold:
            good = None
        certain = n >= SURE_DRAWS or (good is before and (good or _uneven(ratio)))
        settled = agreement.decided and (exact is not None or (good is not None and certain))
        clear = not weights.khat - CLEARLY / 2 * weights.khat_se < weights.threshold
        if n >= most or settled or (exact is None and (clear or good is False is before) and _uneven(ratio)):
            latents = {name: sample[name] for name in problem.structure.latent}
            return _Taken(labels, x, latents, ratio, weights, agreement)
        n, before = min(2 * n, most), good


def _uneven(ratio: Array) -> bool:
    """Whether few draws carry most of the weight, so that a large k-hat is no accident of the tail's beginning.

    Where the ratio has a local maximum among the bulk of the draws, the few largest weights lie far above a crowd of equal ones,
    and a Pareto fitted to both has a shape of 3 to 7 until the draws are so many that its tail begins above the crowd.
    """
    kept = ratio[np.isfinite(ratio)]
    if not kept.size:
        return True
    effective = math.exp(2 * float(np.logaddexp.reduce(kept)) - float(np.logaddexp.reduce(2 * kept)))
    return effective < len(ratio) / 20


def _bounds(taken: _Taken) -> dict[str, Any]:
    """By how much any mean of a latent can be off, and the 2-Wasserstein distance of its marginal, in sds of q.

    With χ² = E_q[w²] − 1 of weights of mean 1: √χ², by Cauchy and Schwarz, and 2 (E_q[x⁴] χ²)^¼ for a standardised x (Huggins et
    al., 2020). They need the weights' variance, which is there where k-hat is below ½.
    """
    w = taken.weights
    if not w.khat + 2 * w.khat_se < 0.5:
        return {}
    chi2 = max(0.0, len(taken.ratio) / w.ess - 1)
    with np.errstate(all="ignore"):
        fourth = float(np.nanmax(np.power((taken.x - taken.x.mean(0)) / taken.x.std(0), 4).mean(0), initial=3.0))
    return {"mean_bound": math.sqrt(chi2), "wasserstein_bound": 2 * (fourth * chi2) ** 0.25}


def _local_size(problem: Problem) -> tuple[int, int]:
    """Draws a datum, and data."""
    plates = [p.size for p in problem.structure.plates.values()] or [1]
    scalars = max(1, sum(site.shape.numel() for site in problem.structure.sites.values()) // max(plates))
    draws = LOCAL_DRAWS if problem.vectorize else LOCAL_DRAWS // 10
    return draws, max(16, min(MOST_DATA, LOCAL_SCALARS // (draws * scalars)))


def _of_data(local: Local) -> dict[str, Any]:
    """What the weights of every datum say."""
    log_w, x = local.log_weights.cpu().numpy(), local.latents.cpu().numpy()
    draws, data = log_w.shape
    found = [weigh(log_w[:, i]) for i in range(data)]
    khat = np.array([w.khat for w in found])
    agreements = [against_weighted(local.labels, x[:, i], w.weights) for i, w in enumerate(found)]
    elbo, evidence = log_w.mean(0), np.array([w.log_mean for w in found])
    variance = np.array([1 / w.ess - 1 / draws if w.ess else math.inf for w in found])
    gap = np.array(
        [float(np.square(w.weights - 1 / draws - (r - r.mean()) / draws).sum()) for w, r in zip(found, log_w.T, strict=True)]
    )

    def total(values: Array, variances: Array) -> Estimate:
        """Of all the data, from those that were looked at."""
        sampling = values.var(ddof=1) * data * (1 - data / local.of) if 1 < data < local.of else 0.0
        return Estimate(float(values.mean() * local.of), float(math.sqrt(variances.sum() + sampling) * local.of / data))

    return {
        "draws": draws,
        "finite": float(np.isfinite(log_w).mean()),
        "data": data,
        "share_above": float(np.mean([w.good is not True for w in found])),
        "khat_worst": float(khat.max()),
        "ess": float(min(w.ess for w in found)),
        "elbo": total(elbo, log_w.var(0) / draws),
        "log_evidence": total(evidence, variance),
        "kl": total(evidence - elbo, gap),
        **_worst_datum(agreements),
    }


def _worst_datum(agreements: list[Agreement]) -> dict[str, Any]:
    """The largest of every error over the data; a label's open index becomes the place among the data looked at."""
    out: dict[str, Any] = {}
    for error, worst in (("mean_error", "mean_worst"), ("sd_error", "sd_worst"), ("quantile_error", "quantile_worst")):
        estimates = [getattr(a, error) for a in agreements]
        if any(e is None for e in estimates):
            continue
        i = int(np.argmax([e.value + 2 * e.se for e in estimates]))
        out |= {error: estimates[i], worst: getattr(agreements[i], worst)}
    return out


def _rest(fit: Fit, evidence: Evidence) -> tuple[bool, str]:
    """Whether the optimisation has come to rest, and what tells.

    A noisy one has where the rule that stopped it says so; or where no more than the tolerances is left to gain, by KL(q‖p), which
    bounds it; or where the second half of its trace is flat beyond doubt.
    """
    if fit.status in (Status.diverged,):
        return False, fit.advice
    noisy = fit.settings.get("method", "svi") == "svi"
    if not noisy:
        return fit.status is Status.converged, fit.advice
    elbo = fit.best_elbo[np.isfinite(fit.best_elbo)]
    if len(elbo) < FEWEST_STEPS:
        return False, f"it took {len(elbo):,} steps, and below {FEWEST_STEPS} a noisy ELBO tells nothing"
    if fit.status is Status.converged:
        return True, fit.advice
    d = fit.problem.structure.dimension if fit.problem is not None else 1
    left = evidence.kl
    if left is not None and left.value + 2 * left.se <= max(0.1, 1.5 * SD_TOLERANCE**2 * d):
        return True, f"the ELBO can gain {left} nats at most"
    last = plateau(elbo[len(elbo) // 2 :], d)
    return last.reached, f"ELBO {last}"
