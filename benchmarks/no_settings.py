"""A fit without settings on real posteriors, and the peers' defaults on the same: writes docs/posteriors.md.

    python benchmarks/no_settings.py [--only NAME …] [--seeds 5] [--no-peers]
    python benchmarks/no_settings.py --page         only the page, from what was measured earlier

Each posterior is fitted by `pyrovi.fit(model, data=data)` on one core. Seconds are the processor's, of this process and of the
compilers it starts, until `fit` returns, in a process that has fitted another model before; the first fit of a model compiles where
that pays. The fit's draws are set beside a long NUTS run's means and sds (`posteriors`). It is right when every mean is within
0.1 sd and every sd within 10%, and vouched for when its level is `trust` or `reweight`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "posteriors.md"
OURS = HERE / "posteriors" / "results" / "pyrovi.json"
THEIRS = HERE / "posteriors" / "results" / "peers.json"

DRAWS = 20_000
"""Of each fit; their own Monte Carlo error is 0.007 sd in a mean and 0.5% in a Normal's sd."""

COMFORTABLE = 0.7
"""The k-hat under which a peer's user would not worry."""

GOALS = {"right and vouched for": "≥ 95%", "vouched for and wrong": "0", "median": "≤ 2 s", "largest": "≤ 15 s"}

Result = dict[str, Any]


def processor() -> float:
    """Seconds of the processor in this process and in those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def one(name: str, seed: int, settings: Mapping[str, Any]) -> Result:
    """A fit and its score; what it raised, where it did."""
    from posteriors import MODELS
    from posteriors.score import score

    import pyrovi

    m = MODELS[name]
    began = processor()
    try:
        fit = pyrovi.fit(m.model, data=m.data(), seed=seed, progress=False, **settings)
        seconds = processor() - began
        verdict = getattr(fit, "verdict", None) or pyrovi.check(fit)
        found = score({k: v.double().numpy() for k, v in fit.posterior(DRAWS).items()}, m.reference())
    except Exception as error:  # a fit that fails is a result
        return {"seed": seed, "seconds": processor() - began, "failed": f"{type(error).__name__}: {error}"[:300]}
    return {
        "seed": seed,
        "seconds": seconds,
        "judged": processor() - began,
        "level": str(verdict.level),
        "vouched": str(verdict.level) in ("trust", "reweight"),
        "right": bool(found.right),
        "guide": str(fit.settings.get("guide", "")),
        **found._asdict(),
    }


def measure(names: list[str], seeds: int, settings: Mapping[str, Any], path: Path | None) -> None:
    """Every model and seed, kept in `path` as soon as it is there."""
    one("eight_schools", 0, settings)  # so that the process is warm
    for name in names:
        rows = []
        for seed in range(seeds):
            row = one(name, seed, settings)
            rows.append(row)
            print(f"{name:<22} {line(row)}", flush=True)
        if path is not None:
            keep(path, name, rows)


def line(row: Result) -> str:
    if "failed" in row:
        return f"seed {row['seed']}: {row['seconds']:.1f} s, FAILED: {row['failed']}"
    words = ["right" if row["right"] else "WRONG", "vouched for" if row["vouched"] else "not vouched for"]
    return (
        f"seed {row['seed']}: {row['seconds']:.1f} s, {row['level']}, {', '.join(words)}: "
        f"mean {row['error']:.3f}, sd {row['low']:.3f} to {row['high']:.3f}, worst {row['worst']}; {row['guide']}"
    )


def keep(path: Path, name: str, row: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, name: row}, indent=1) + "\n")


def right(row: Result) -> bool:
    return "failed" not in row and row["error"] < 0.1 and row["low"] > 0.9 and row["high"] < 1.1


def totals(ours: Mapping[str, list[Result]]) -> dict[str, str]:
    """The figures to be judged by, over all models and seeds."""
    rows = [row for seeds in ours.values() for row in seeds]
    vouched = [row for row in rows if row.get("vouched")]
    good, bad = [row for row in vouched if right(row)], [row for row in vouched if not right(row)]
    seconds = [row["seconds"] for row in rows]
    return {
        "right": share(sum(map(right, rows)), len(rows)),
        "right and vouched for": share(len(good), len(rows)),
        "vouched for and wrong": f"{len(bad)}",
        "median": f"{statistics.median(seconds):.1f} s",
        "largest": f"{max(seconds):.1f} s",
    }


def share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})"


def peer_totals(theirs: Mapping[str, Mapping[str, Result]]) -> list[list[str]]:
    """A line for each peer: right, wrong with a comfortable k-hat, failed, median seconds."""
    lines = []
    for peer in dict.fromkeys(peer for row in theirs.values() for peer in row):
        rows = [row[peer] for row in theirs.values() if peer in row]
        misled = sum("failed" not in r and not right(r) and r["khat"] < COMFORTABLE for r in rows)
        seconds = [r["seconds"] for r in rows if "seconds" in r]
        failed = sum("failed" in r for r in rows)
        lines.append(
            [peer, share(sum(map(right, rows)), len(rows)), f"{misled}", f"{failed}", f"{statistics.median(seconds):.1f} s"]
        )
    return lines


def cell(row: Result) -> str:
    """A peer's result in short: the largest error of a mean, the ratio of sds that is furthest from 1, k-hat."""
    if "failed" in row:
        return "failed"
    ratio = max(row["low"], row["high"], key=lambda r: abs(r - 1) if r > 1 else (1 / max(r, 1e-9) - 1))
    mark = "" if right(row) else ("**" if row["khat"] < COMFORTABLE else "")
    return f"{mark}{short(row['error'])}, {short(ratio)}, {short(row['khat'])}{mark}"


def short(value: float) -> str:
    if value != value or abs(value) == float("inf"):
        return "∞"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0e}"


def model_line(name: str, seeds: list[Result], peers: Mapping[str, Result], columns: list[str]) -> list[str]:
    """A model's line: the worst of the seeds."""
    from posteriors import MODELS

    m, done = MODELS[name], [r for r in seeds if "failed" not in r]
    levels = "failed" if not done else ", ".join(dict.fromkeys(r["level"] for r in done))
    cells = [f"`{name}`", m.kind, str(m.diagnostics()["dimension"]), levels]
    if done:
        low, high = min(r["low"] for r in done), max(r["high"] for r in done)
        cells += [short(max(r["error"] for r in done)), f"{short(low)} to {short(high)}"]
    else:
        cells += ["", ""]
    cells += [f"{sum(map(right, seeds))} of {len(seeds)}", f"{statistics.median(r['seconds'] for r in seeds):.1f}"]
    cells += [f"{max(r['seconds'] for r in seeds):.1f}"]
    return cells + [cell(peers[peer]) if peer in peers else "" for peer in columns]


def markdown(rows: list[list[str]]) -> str:
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def page(ours: Mapping[str, list[Result]], theirs: Mapping[str, Mapping[str, Result]], where: str) -> str:
    """The page in Markdown."""
    from posteriors import MODELS

    parts = [
        "# A fit without settings, on real posteriors",
        "`make bench-accuracy` measures and writes this page; the peers are `pip install 'pyrovi[bench]'`.",
        (__doc__ or "").split("\n\n")[-1].strip(),
    ]
    if ours:
        seeds = max(map(len, ours.values()))
        figures = [[name, value, GOALS.get(name, "")] for name, value in totals(ours).items()]
        parts += [f"{len(ours)} models, {seeds} seed{'s' if seeds > 1 else ''} each. {where}"]
        parts += [markdown([["pyrovi", "", "goal"], *figures])]
    if theirs:
        head = ["peer, by default", "right", f"wrong with k-hat < {COMFORTABLE}", "failed", "median"]
        parts += [markdown([head, *peer_totals(theirs)]), peers_doc()]
    if ours:
        columns = list(dict.fromkeys(peer for row in theirs.values() for peer in row))
        header = [
            "posterior",
            "what",
            "latents",
            "level",
            "mean off by, sd",
            "sd ratio",
            "right",
            "median s",
            "largest s",
            *columns,
        ]
        lines = [model_line(name, ours[name], theirs.get(name, {}), columns) for name in MODELS if name in ours]
        note = "The worst of the seeds. A peer's cell: the largest error of a mean in sds, the ratio of sds furthest from 1, k-hat."
        parts += [f"{note} Bold: wrong, with a k-hat under {COMFORTABLE}.", markdown([header, *lines])]
    parts += ["## The references", markdown(references())]
    return "\n\n".join(parts) + "\n"


def references() -> list[list[str]]:
    """What each posterior is, and the diagnostics of the run that its reference is from."""
    from posteriors import MODELS

    rows = [["posterior", "what", "latents", "reference", "r-hat", "ess, bulk", "ess, tail", "divergences"]]
    for m in MODELS.values():
        d = m.diagnostics()
        given = [f"{d[key]}" if key in d else "" for key in ("r_hat", "ess_bulk", "ess_tail", "divergences")]
        rows.append([f"`{m.name}`", m.kind, str(d["dimension"]), d["method"], *given])
    return rows


def peers_doc() -> str:
    """What is run of the peers, from their script's own words."""
    text = (HERE / "posteriors" / "peers.py").read_text()
    return text.split('"""')[1].split("\n\n")[-1].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true", help="leave the peers' figures as they are")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    parser.add_argument("--dry", action="store_true", help="print, and keep nothing")
    parser.add_argument("--settings", type=json.loads, default={}, help='of `fit`, as JSON: \'{"guide": "normal"}\'; with --dry')
    options = parser.parse_args()
    import bench

    bench.one_core()
    warnings.filterwarnings("ignore")
    from posteriors import MODELS

    names = options.only or list(MODELS)
    if not options.page:
        import torch

        torch.set_num_threads(1)
        measure(names, options.seeds, options.settings, None if options.dry else OURS)
        absent = [peer for peer in ("numpyro", "pymc") if importlib.util.find_spec(peer) is None]
        if absent:
            print(f"the peers are left out: {' and '.join(absent)} not installed (pip install 'pyrovi[bench]')")
        elif not (options.no_peers or options.dry):
            subprocess.run([sys.executable, HERE / "posteriors" / "peers.py", *names], check=True, env=os.environ)
    if not options.dry:
        ours, theirs = (json.loads(path.read_text()) if path.exists() else {} for path in (OURS, THEIRS))
        if ours:
            print(*[f"{name:<24} {value}" for name, value in totals(ours).items()], sep="\n")
        PAGE.write_text(page(ours, theirs, bench.machine()))


if __name__ == "__main__":
    main()
