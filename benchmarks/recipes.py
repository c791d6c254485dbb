"""Every recipe as its document runs it, at full size: the ELBO reached, what it could have been, and the time it took.

python benchmarks/recipes.py              all of them, as a table on standard output
python benchmarks/recipes.py --only vae   one
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch

import pyrovi

COLUMNS = ("recipe", "status", "ELBO, nats", "exact, nats", "what it is", "short of it", "largest error, sd", "sd ratio", "s")


def row(recipe: pyrovi.Recipe) -> list[str]:
    """Fit one recipe and set it beside its answer."""
    began = time.perf_counter()
    data = recipe.load()
    fit = recipe.fit(data, progress=False)
    seconds = time.perf_counter() - began
    elbo = fit.estimate_elbo()
    exact = recipe.exact(**data) if recipe.exact is not None else None
    error = ratio = ""
    if exact is not None and not fit.point_estimate:
        table = pyrovi.compare(fit, exact)
        error = f"{table['error'].abs().max():.3f}"
        ratio = f"{table['sd_ratio'].min():.3f} to {table['sd_ratio'].max():.3f}"
    best, what = _best(recipe, data, exact)
    gap = f"{best - elbo.value:,.2f}" if best is not None else ""
    told = f"{best:,.2f}" if best is not None else ""
    return [f"`{recipe.name}`", str(fit.status), str(elbo), told, what, gap, error, ratio, f"{seconds:,.0f}"]


def _best(recipe: pyrovi.Recipe, data: dict[str, Any], exact: pyrovi.ExactPosterior | None) -> tuple[float | None, str]:
    if recipe.optimum is not None and (best := recipe.optimum(**data)) is not None:
        return best, "the guide family's optimum"
    if exact is not None:
        return exact.log_evidence, "log evidence"
    if recipe.reference is not None:
        return float(getattr(answer := recipe.reference(**data), "value", answer)), "another method's ELBO"
    return None, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(pyrovi.recipes), default=list(pyrovi.recipes))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("|", " | ".join(COLUMNS), "|")
    print("|", " | ".join(["---"] * len(COLUMNS)), "|")
    for name in options.only:
        print("|", " | ".join(row(pyrovi.recipe(name))), "|", flush=True)
    print(f"\ntorch {torch.__version__}, {options.threads} thread(s), seed 0", file=sys.stderr)


if __name__ == "__main__":
    main()
