"""What the report of several fits has to say: the same questions to all of them, a column a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovi import plots
from pyrovi._exact import ExactPosterior
from pyrovi._loo import Loo
from pyrovi.errors import PyroviError
from pyrovi.estimate import Estimate
from pyrovi.page import attempt, number, table
from pyrovi.plots.diagnostics import draws_of
from pyrovi.result import Fit
from pyrovi.sections import MEANING, affordable, call, draws_at_most, leave_one_out, verdict_of
from pyrovi.svg import drawing
from pyrovi.verdict import Evidence, Verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["side_by_side"]

ELBO_DRAWS = 2_000
"""Of each fit: their sd is some nats, so the ELBO is known to a twentieth of that."""

RANK = {"trust": 0, "reweight": 1, "enrich": 2, "sample": 3}


def side_by_side(
    fits: Mapping[str, Fit], *, exact: ExactPosterior | None, reference: Any | None, checked: bool, draws: int
) -> dict[str, Any]:
    """What the template of several fits asks for; the arguments are those of `report`."""
    beside = exact if exact is not None else reference
    verdicts = {name: verdict_of(fit, exact, checked) for name, fit in fits.items()}
    elbos = {name: _elbo(fit, verdicts[name]) for name, fit in fits.items()}
    left_out = {name: attempt(lambda fit=fit: leave_one_out(fit), affordable(fit, 100)) for name, fit in fits.items()}  # type: ignore[misc]
    samples = {name: fit.posterior_arrays(draws_at_most(fit, draws)) for name, fit in fits.items()}
    spread = {name: samples[name] for name, fit in fits.items() if samples[name] and not fit.point_estimate}
    return {
        "fits": fits,
        "verdicts": verdicts,
        "meaning": MEANING,
        "said": _said(verdicts, elbos),
        "scores": table(_scores(fits, verdicts, elbos, left_out, exact), {}),
        "reasons": {name: found["why"] for name, found in left_out.items() if isinstance(found, dict)},
        "kept": [name for name, fit in fits.items() if fit.sample is not None],
        "loo_apart": len({found.pointwise.shape for found in left_out.values() if isinstance(found, Loo)}) > 1,
        "forest": attempt(
            lambda: drawing(
                "intervals",
                "Forest plot of all fits",
                "A row a scalar, a line a fit: its median, its central 50% and 90%. The numbers are in the table by variable.",
                lambda: plots.forest(spread, beside),
            ),
            "" if spread else "All fits are points: there is no spread to show.",
        ),
        "variables": attempt(lambda: table(_by_variable(fits, samples, beside), {})),
        "exact": exact,
        "reference": reference,
        "settings": _settings(fits),
        "calls": {name: call(fit) for name, fit in fits.items()},
    }


def _elbo(fit: Fit, verdict: Verdict | dict[str, str]) -> Estimate | None:
    """The ELBO of q, of the verdict's draws or of fresh ones; of a fit that keeps draws in q's place it says nothing of these."""
    if fit.sample is not None:
        return None
    if isinstance(verdict, Verdict) and verdict.evidence.elbo is not None:
        return verdict.evidence.elbo
    if fit.point_estimate or fit.problem is None or affordable(fit, 100):
        return None
    found = attempt(lambda: fit.estimate_elbo(min(ELBO_DRAWS, fit._affordable(ELBO_DRAWS))))
    return found if isinstance(found, Estimate) else None


def _said(verdicts: Mapping[str, Verdict | dict[str, str]], elbos: Mapping[str, Estimate | None]) -> str:
    """The verdict on all of them, in a sentence or two."""
    levels: dict[str, list[str]] = {}
    for name, verdict in verdicts.items():
        levels.setdefault(str(verdict.level) if isinstance(verdict, Verdict) else "not checked", []).append(name)
    parts = [f"{', '.join(names)}: {level}" for level, names in sorted(levels.items(), key=lambda item: RANK.get(item[0], 4))]
    known = {name: e for name, e in elbos.items() if e is not None and math.isfinite(e.value)}
    said = f"{'; '.join(parts)}."
    if len(known) > 1:
        first, second = sorted(known, key=lambda name: -known[name].value)[:2]
        gap = known[first].value - known[second].value
        se = math.hypot(known[first].se, known[second].se)
        clear = f"{first} has the highest ELBO, by {Estimate(gap, se)} nats over {second}"
        said += f" {clear}." if gap > 2 * se else f" The ELBOs of {first} and {second} do not differ beyond noise."
    return said


def _scores(
    fits: Mapping[str, Fit],
    verdicts: Mapping[str, Verdict | dict[str, str]],
    elbos: Mapping[str, Estimate | None],
    left_out: Mapping[str, Any],
    exact: ExactPosterior | None,
) -> pd.DataFrame:
    """A row a fit."""
    import pandas as pd

    scored = {name: found for name, found in left_out.items() if isinstance(found, Loo)}
    best = max(scored.values(), key=lambda found: found.elpd, default=None)
    rows = {}
    for name, fit in fits.items():
        verdict, elbo = verdicts[name], elbos[name]
        evidence = verdict.evidence if isinstance(verdict, Verdict) else None
        khat = None
        if evidence is not None and evidence.khat is not None:
            khat = f"{evidence.khat:.2f} ± {evidence.khat_se:.2f}"
        elif evidence is not None and evidence.khat_worst is not None:
            khat = f"{evidence.khat_worst:.2f} (worst datum)"
        kl = evidence.kl if evidence is not None and fit.sample is None and _estimable(evidence) else None
        if exact is not None and elbo is not None:
            kl = Estimate(float(exact.log_evidence) - elbo.value, elbo.se)
        found = scored.get(name)
        gap = "–"
        if found is not None and best is not None and found.pointwise.shape == best.pointwise.shape:
            apart = (found.pointwise - best.pointwise).ravel()
            gap = f"{apart.sum():,.2f} ± {math.sqrt(apart.size * apart.var()):,.2f}" if found is not best else "0"
        rows[name] = {
            "level": str(verdict.level) if isinstance(verdict, Verdict) else "not checked",
            "ELBO, nats": _estimate(elbo),
            "KL(q‖p), nats": _estimate(kl),
            "k-hat": khat or "–",
            "elpd, nats": f"{found.elpd:,.2f} ± {found.se:,.2f}" if found is not None else "–",
            "elpd − best": gap,
            "seconds": f"{fit.seconds:,.1f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _estimable(evidence: Evidence) -> bool:
    """Whether the verdict says that KL can be: with weights whose k-hat is too high it cannot."""
    return evidence.exact or evidence.data is not None or evidence.weights_good is not False


def _estimate(value: Estimate | None) -> str:
    return str(value) if value is not None and math.isfinite(value.value) else "–"


def _by_variable(fits: Mapping[str, Fit], samples: Mapping[str, Any], beside: Any | None) -> pd.DataFrame:
    """Means and sds of every scalar that the first fit has, a column a fit."""
    import pandas as pd

    first = next(iter(samples.values()))
    if not first:
        raise PyroviError("the fits have no latent variable, and so nothing to set side by side")
    points = {name for name, fit in fits.items() if fit.point_estimate}
    rows: dict[str, dict[str, str]] = {}
    reference = None if beside is None or isinstance(beside, ExactPosterior) else draws_of(beside)
    for variable, value in first.items():
        shape = value.shape[1:]
        columns = {}
        for name, sample in samples.items():
            have = variable in sample and sample[variable].shape[1:] == shape
            flat = sample[variable].reshape(len(sample[variable]), -1) if have else None
            columns[name] = (
                None if flat is None else flat.mean(0),
                None if flat is None or name in points else flat.std(0, ddof=1),
            )
        truth = _reference(beside, reference, variable, shape)
        for i, index in enumerate(np.ndindex(shape)):
            row = {f"{name}: mean": number(mean[i]) if mean is not None else "–" for name, (mean, _) in columns.items()}
            if truth is not None:
                row["reference: mean"] = number(truth[0][i])
            row |= {f"{name}: sd": number(sd[i]) if sd is not None else "–" for name, (_, sd) in columns.items()}
            if truth is not None:
                row["reference: sd"] = number(truth[1][i])
            rows[f"{variable}[{', '.join(map(str, index))}]" if shape else variable] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("–")


def _reference(beside: Any | None, drawn: Mapping[str, Any] | None, variable: str, shape: tuple[int, ...]) -> Any:
    """Means and sds of the reference, flat; None where it does not have the variable."""
    if isinstance(beside, ExactPosterior):
        marginal = beside.marginals.get(variable)
        return None if marginal is None else tuple(np.broadcast_to(x, shape).ravel() for x in (marginal.mean(), marginal.std()))
    if drawn is None or variable not in drawn or drawn[variable].shape[1:] != shape:
        return None
    flat = drawn[variable].reshape(len(drawn[variable]), -1)
    return flat.mean(0), flat.std(0, ddof=1)


def _settings(fits: Mapping[str, Fit]) -> dict[str, Any]:
    """The settings in which the fits differ, and what they share."""
    import pandas as pd

    every = {name: {**{k: v for k, v in fit.settings.items() if k != "phases"}, "seed": fit.seed} for name, fit in fits.items()}
    names = list(dict.fromkeys(key for one in every.values() for key in one))
    said = {key: {name: "–" if one.get(key) is None else str(one[key]) for name, one in every.items()} for key in names}
    differ = {key: row for key, row in said.items() if len(set(row.values())) > 1}
    shared = {key: next(iter(row.values())) for key, row in said.items() if key not in differ}
    return {"differ": table(pd.DataFrame.from_dict(differ, orient="index"), {}) if differ else None, "shared": shared}
