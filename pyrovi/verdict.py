"""What was measured of a fit, and the level of trust that it earns. Pure: no fit is needed, and nothing is run.

`judge` goes from the worst to the best: q is a point; there is a mode that it does not visit; its weights cannot be used; they
mend what is wrong with it; it is right as it is. What was not tested counts as not passed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from pyrovi.estimate import Estimate
from pyrovi.importance import beyond_doubt, threshold

__all__ = ["MEAN_TOLERANCE", "SD_TOLERANCE", "Evidence", "Level", "Verdict", "judge"]

MEAN_TOLERANCE = 0.1
"""How far a mean may be off, in sds."""

SD_TOLERANCE = 0.1
"""How far an sd may be off, relative."""


FEWEST_EFFECTIVE = 400
"""Effective draws below which weights mend nothing: a mean's Monte Carlo error is then 0.05 sd, an sd's 4%, and the worst of a
hundred three times that."""

MOST_RHAT, MOST_EVIDENCE_SE = 1.02, 0.3
"""Of draws moved to the posterior in eight groups: at 1.02 the groups' means lie 0.2 sd apart, their own mean is within 0.07."""


DIFFERENT = 1.1
"""R-hat over restarts of Gaussians whose means vary by about half their sd."""


class Level(StrEnum):
    """What a fit may be used for."""

    trust = "trust"
    """q is right as it is."""
    reweight = "reweight"
    """Draws from q are good once they are weighted: `Fit.importance_resample`."""
    enrich = "enrich"
    """Neither; a richer guide is likely to help."""
    sample = "sample"
    """Neither, and no richer guide is left: use NUTS."""


@dataclass(frozen=True)
class Evidence:
    """What was measured of a fit; None, or empty, is what was not.

    Attributes:
        guide: What it is called.
        richer: The guide to try next; None where there is none.
        point: Whether q is a point.
        converged: Whether the optimisation has come to rest,
        convergence: and what tells.
        draws: Draws from q,
        finite: and the share of them that have a density under the model.
        khat: Pareto's shape of their importance ratios,
        khat_se: and its standard error.
        ess: Their effective number.
        data: Latents that belong to a datum: how many data k-hat was measured for, each with its own weights,
        share_above: the share of them above the threshold,
        khat_worst: and the largest.
        mean_error: The largest difference of a mean under q and reweighted, in reweighted sds, with its standard error,
        mean_worst: and whose it is.
        sd_error: The largest difference of an sd, relative,
        sd_worst: and whose.
        quantile_error: The largest difference of a 5%, 50% or 95% quantile, in sds, less what the tolerances leave it,
        quantile_worst: and whose.
        elbo: In nats.
        log_evidence: By importance sampling, or exact: then without a standard error.
        kl: KL(q‖p) = log evidence − ELBO, in nats.
        exact: Whether q was held against the exact posterior.
        restarts: Dispersed restarts that found a Gaussian.
        rhat: R-hat over restarts, of the Gaussians found; the largest,
        rhat_worst: and whose.
        missed: The share of the posterior, at least, in parts that restarts found and q does not visit,
        missed_where: and the variables by which they differ.
        switched: Whether they differ by the labels alone.
        untested: Why there were no restarts.
        moved: Draws that were moved from q to the posterior by degrees, and used in place of weighted ones,
        moved_rhat: the nested R-hat of their groups, of means and squares, the largest,
        moved_evidence: and the log evidence by them.
        shift: By how much the means of draws, in sds, or their sds changed when they were moved on at the posterior,
        still: and whether that is nothing.
        kept: Whether the fit keeps such draws, weighted or moved, and gives them as its posterior.
        mean_bound: The largest error of any mean that the weights allow for, in sds of q,
        wasserstein_bound: and 2-Wasserstein distance of a marginal.
    """

    guide: str | None = None
    richer: str | None = None
    point: bool = False
    converged: bool | None = None
    convergence: str = ""
    draws: int = 0
    finite: float = 1.0
    khat: float | None = None
    khat_se: float = 0.0
    ess: float | None = None
    data: int | None = None
    share_above: float | None = None
    khat_worst: float | None = None
    mean_error: Estimate | None = None
    mean_worst: str = ""
    sd_error: Estimate | None = None
    sd_worst: str = ""
    quantile_error: Estimate | None = None
    quantile_worst: str = ""
    elbo: Estimate | None = None
    log_evidence: Estimate | None = None
    kl: Estimate | None = None
    exact: bool = False
    restarts: int = 0
    rhat: float | None = None
    rhat_worst: str = ""
    missed: float | None = None
    missed_where: str = ""
    switched: bool = False
    untested: str = ""
    moved: int | None = None
    moved_rhat: float | None = None
    moved_evidence: Estimate | None = None
    shift: float | None = None
    still: bool | None = None
    kept: bool = False
    mean_bound: float | None = None
    wasserstein_bound: float | None = None

    @property
    def threshold(self) -> float:
        """What k-hat has to be below."""
        return threshold(self.draws)

    @property
    def weights_good(self) -> bool | None:
        """Whether k-hat is below the threshold beyond doubt; None where its error leaves that open, or it was not measured."""
        return None if self.khat is None or math.isnan(self.khat) else beyond_doubt(self.khat, self.khat_se, self.draws)


@dataclass(frozen=True, repr=False)
class Verdict:
    """A level of trust, why, and what it rests on.

    Attributes:
        level: `trust`, `reweight`, `enrich` or `sample`.
        text: Why, in numbers, and what to do next: a sentence or some, with line breaks between what was asked.
        evidence: What was measured.
    """

    level: Level
    text: str
    evidence: Evidence = field(default_factory=Evidence)

    def __repr__(self) -> str:
        return f"{self.level}: {self.text}"

    def _repr_html_(self) -> str:
        from pyrovi.display import of_verdict

        return of_verdict(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold: an infinite number becomes a string, an estimate `{"value": …, "se": …}`."""
        measured = {f.name: getattr(self.evidence, f.name) for f in fields(self.evidence)}
        return {"level": str(self.level), "text": self.text, "evidence": {name: _plain(value) for name, value in measured.items()}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Verdict:
        """The same from what `to_dict` gave; what another version measured and this one does not know is left out."""
        known = {f.name for f in fields(Evidence)}
        texts = {f.name for f in fields(Evidence) if f.type in ("str", "str | None")}
        values = {
            name: value if name in texts else _number(value) for name, value in stored.get("evidence", {}).items() if name in known
        }
        return cls(Level(stored["level"]), stored["text"], Evidence(**values))


def judge(evidence: Evidence) -> Verdict:
    """The level that the evidence earns, and the text that says why.

    `trust` takes all of: a k-hat below the threshold beyond doubt; means, sds and quantiles of q and of the weighted draws that
    agree beyond doubt; an optimisation that has come to rest; restarts that found no mode which q does not visit. With an exact
    posterior, q's agreement with that replaces k-hat and the restarts.

    >>> print(judge(Evidence(guide="delta", richer="normal", point=True)))
    enrich: q is a point: it has no spread, so nothing of the posterior's width, and no weights. Next: guide="normal".
    """
    e = evidence
    if e.point:
        if not e.guide and not e.richer:
            e = replace(e, richer="auto")
        return Verdict(
            Level.enrich,
            f"q is a point: it has no spread, so nothing of the posterior's width, and no weights. {_next(e)}",
            e,
        )
    level, reasons = _level(e)
    lines = [f"{'; '.join(reasons)}."]
    told = (_converged(e), _close(e), _moments(e), _distance(e), _restarts(e)) if e.finite > 0.5 else (_converged(e),)
    lines += [line for line in told if line]
    if level is Level.reweight and e.data is not None:
        lines.append("Next: fit.estimate_bound(), which weights every datum's draws; draws themselves want a richer guide.")
    elif level is Level.reweight and e.kept:
        lines.append("Next: nothing. The weights are in fit.posterior() already, and in all that is made from it.")
    elif level is Level.reweight:
        lines.append("Next: fit.importance_resample(), whose draws are the weighted ones.")
    elif level in (Level.enrich, Level.sample):
        lines.append(_next(e))
    return Verdict(level, "\n".join(lines), e)


def _level(e: Evidence) -> tuple[Level, list[str]]:
    climb = Level.enrich if e.richer else Level.sample
    if e.finite <= 0.5:
        return climb, [f"{_share(1 - e.finite)} of q's draws have no finite density under the model"]
    doubts = _doubts(e)
    if e.exact and not doubts:
        return Level.trust, ["q agrees with the exact posterior"]
    usable = bool(e.weights_good and not _few(e)) if e.data is None else bool(e.share_above == 0)
    missed = []
    if e.missed and not e.exact and not e.switched:
        missed = [
            f"q does not visit a part of the posterior, at least {_share(e.missed)} of it, which lies off in {e.missed_where}"
        ]
    if e.moved is not None:
        level, reasons = _moved(e, climb)
        return (climb, [*reasons, *missed]) if missed else (level, reasons)
    if missed or not usable:
        return climb, [*([] if usable else [_unusable(e)]), *missed]
    if doubts and e.kept:
        return Level.reweight, [
            "use fit.posterior(), whose draws are weighted to stand for the posterior; the guide's own distribution q does not"
        ]
    if doubts:
        return Level.reweight, doubts
    return Level.trust, ["q is right as it is, as far as was tested"]


def _moved(e: Evidence, climb: Level) -> tuple[Level, list[str]]:
    """Of draws that were moved to the posterior: whether groups that never met agree about it."""
    assert e.moved is not None
    rhat, evidence = math.inf if e.moved_rhat is None else e.moved_rhat, e.moved_evidence
    by = f", log evidence {evidence}" if evidence is not None else ""
    said = f"{e.moved:,} draws were moved to the posterior and on there: nested R-hat {rhat:.3f}{by}"
    if not e.still:
        return climb, [f"{said}, but their moments still shift, or weights have found what they did not"]
    if rhat < MOST_RHAT and (evidence is None or evidence.se < MOST_EVIDENCE_SE):
        return Level.reweight, [f"{said}, and nothing shifts any more"]
    return climb, [f"{said}, which is not enough (below {MOST_RHAT}, and ± {MOST_EVIDENCE_SE})"]


def _doubts(e: Evidence) -> list[str]:
    """What stands between usable weights and trust."""
    doubts = []
    if e.converged is not True:
        doubts.append("convergence was not tested" if e.converged is None else "the optimisation has not come to rest")
    against = "the exact posterior" if e.exact else "its own weighted draws"
    for what, error, worst, tolerance in (
        ("mean", e.mean_error, e.mean_worst, MEAN_TOLERANCE),
        ("sd", e.sd_error, e.sd_worst, SD_TOLERANCE),
        ("quantile", e.quantile_error, e.quantile_worst, 0.0),
    ):
        if error is None:
            if what != "quantile" or not e.exact:
                doubts.append(f"{what}s were not compared")
        elif not error.value + 2 * error.se <= tolerance:
            doubts.append(_differ(what, worst, error, tolerance, against))
    if e.finite < 1:
        doubts.append(f"{_share(1 - e.finite)} of q's draws have no finite density under the model")
    if not e.exact:
        if e.switched:
            doubts.append("there are modes that differ from q's by their labels alone, and q visits one of them")
        elif not e.restarts:
            doubts.append(f"other modes were not looked for ({e.untested or 'no restarts were made'})")
    return doubts


def _differ(what: str, worst: str, error: Estimate, tolerance: float, against: str) -> str:
    """That a moment or quantile is off by more than it may be, or that this is not known."""
    off, se, most = (f"{x:.0%}" if what == "sd" else f"{x:.2f} sd" for x in (error.value, 2 * error.se, tolerance))
    if error.value - 2 * error.se > tolerance:
        return f"q and {against} differ: {what} of {worst} by {off}"
    if what == "quantile":  # its error is what goes beyond the room that the tolerances of mean and sd leave it
        return f"whether a quantile of {worst} is off is not known ({off} beyond its tolerance, give or take {se})"
    return f"whether the {what} of {worst} is off by more than {most} is not known ({off}, give or take {se})"


def _few(e: Evidence) -> bool:
    return e.ess is not None and e.ess < FEWEST_EFFECTIVE


def _unusable(e: Evidence) -> str:
    if e.data is not None:
        return f"of {e.data:,} data, {_share(e.share_above or 0.0)} have a k-hat that is not below {e.threshold:.2f} beyond doubt"
    if e.khat is None:
        return "importance weights were not measured"
    if e.weights_good and _few(e):
        return f"of {e.draws:,} weighted draws {e.ess:,.0f} are effective, fewer than {FEWEST_EFFECTIVE}"
    if e.weights_good is None:
        return f"whether q's weights can be used is not known: {_khat(e)}, the threshold is {e.threshold:.2f}"
    return f"q is too far from the posterior for weights to mend: {_khat(e)}, above {e.threshold:.2f}"


def _converged(e: Evidence) -> str:
    if e.converged is None or not e.convergence:
        return ""
    what = e.convergence.split(". ")[0].rstrip(".")
    return f"Converged? {'Yes' if e.converged else 'No'}: {what}."


def _close(e: Evidence) -> str:
    if e.data is not None:
        worst = f", the largest {e.khat_worst:.2f}" if e.khat_worst is not None and math.isfinite(e.khat_worst) else ""
        return f"Close? k-hat of each of {e.data:,} data: {_share(e.share_above or 0.0)} above {e.threshold:.2f}{worst}."
    if e.khat is None:
        return ""
    effective = f", {e.ess:,.0f} effective of {e.draws:,} draws" if e.ess is not None else f", {e.draws:,} draws"
    return f"Close? {_khat(e)} (threshold {e.threshold:.2f}){effective}."


def _khat(e: Evidence) -> str:
    assert e.khat is not None
    if e.khat == -math.inf:
        return "the importance ratio is constant to a hundredth"
    return f"k-hat {e.khat:.2f} ± {e.khat_se:.2f}" if math.isfinite(e.khat) else "k-hat could not be estimated"


def _moments(e: Evidence) -> str:
    if e.mean_error is None or e.sd_error is None or (not e.exact and e.weights_good is False):
        return ""
    against = "the exact posterior" if e.exact else "the weighted draws"
    return (
        f"Right? Against {against} q's means are off by up to {e.mean_error.value:.2f} sd ({e.mean_worst}), its sds by up to "
        f"{e.sd_error.value:.0%} ({e.sd_worst})."
    )


def _distance(e: Evidence) -> str:
    if e.kl is None or e.log_evidence is None or e.elbo is None:
        return ""
    if e.kept and not (math.isfinite(e.kl.value) and e.kl.se < 1):
        return f"How far? Log evidence {_nats(e.log_evidence)} nats (by importance sampling)."
    if not e.exact and e.data is None and e.weights_good is False:
        return f"How far? ELBO {_nats(e.elbo)} nats; with such weights the log evidence, and so KL(q‖p), cannot be estimated."
    how = "exact" if e.exact else "by importance sampling"
    evidence = f"{e.log_evidence.value:,.3f}" if e.exact else _nats(e.log_evidence)
    bound = f" No mean is off by more than {e.mean_bound:.2g} sd of q." if e.mean_bound is not None and e.mean_bound < 10 else ""
    return f"How far? KL(q‖p) {_nats(e.kl)} nats: log evidence {evidence} ({how}), ELBO {_nats(e.elbo)}.{bound}"


def _restarts(e: Evidence) -> str:
    if e.exact:
        return ""
    if e.untested and not e.restarts:
        return f"Same answer again? Not tested: {e.untested}."
    if not e.restarts:
        return ""
    rhat = ""
    if e.rhat is not None:
        rhat = f"; R-hat over restarts up to {e.rhat:.2f} ({e.rhat_worst})"
        if e.rhat > DIFFERENT and not e.missed:  # by the rules of MCMC's R-hat it would look like a failure
            rhat += ", for what they found one by one differs, and q covers it"
    found = "no part of the posterior that q does not visit"
    if e.missed:
        alike = "label switching" if e.switched else f"in {e.missed_where}"
        found = f"parts of the posterior that q does not visit, at least {_share(e.missed)} of it ({alike})"
    return f"Same answer again? {e.restarts} dispersed restarts found {found}{rhat}."


def _next(e: Evidence) -> str:
    first = "let the optimisation come to rest, by more steps or a lower learning rate; then " if e.converged is False else ""
    return f'Next: {first}guide="{e.richer}".' if e.richer else f"Next: {first}pyrovi.nuts(model, data)."


def _nats(e: Estimate) -> str:
    """To a ten thousandth at most: what is less is rounding."""
    return str(Estimate(e.value, max(e.se, 1e-4)) if math.isfinite(e.value) else e)


def _share(x: float) -> str:
    return f"{x:.2g}" if 0 < x < 0.001 else f"{x:.1%}" if 0 < x < 0.1 or 0.99 < x < 1 else f"{x:.0%}"


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return {"value": _plain(value.value), "se": _plain(value.se)}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Estimate(_number(value["value"]), _number(value["se"]))
    return float(value) if isinstance(value, str) else value
