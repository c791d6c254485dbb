"""pyrovi against its peers, side by side in one run: prints the table and writes docs/benchmarks.md and its picture.

    python benchmarks/bench.py                                everything
    python benchmarks/bench.py --only eager step --rounds 3   rows whose key begins so; the page keeps its other rows
    python benchmarks/bench.py --list

Everything runs on one core with one thread, and seconds are the processor's: on one core they are those on the wall, less what
other programs take away. A ratio is pyrovi's figure over the peer's; the two are taken in turn, a pair a round, and which comes
first changes from round to round. The table has the median pair and the range. Warm: the same has been done once before in the
process. Cold: a new interpreter and empty caches, but for Python's bytecode. A step's cost is the difference between two
lengths of fit, so that what happens once a fit cancels.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import curves
import table
from rows import HERE, JOBS, Job, peer

PAGE = HERE.parent / "docs" / "benchmarks.md"
THREADS = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
VERSIONS = ("torch", "pyro-ppl", "jax", "jaxlib", "numpyro", "pymc", "numpy")
METHODS = """## What is run

- Adam in single precision on all sides (PyMC in double); the same model, guide family and number of steps. Before anything is
  timed the peers' models are checked: their log joint at fixed values is Pyro's to 1e-5 of itself, and NumPyro's ELBO at fixed
  parameters of the guide is ours to four Monte Carlo standard errors.
- The radon-like regression is synthetic: 919 houses in 85 counties, where every county has an intercept and a slope of its own,
  both hierarchical.
- The mean-field optimum of the eight schools is computed without Monte Carlo (`problems.optimum`). pyrovi gets near it in
  a cold process by `method="deterministic"` with its defaults, warm by 10,000 compiled steps at a rate of 0.02, which get there
  from each of 20 seeds. NumPyro has the fastest run of a grid over steps, rate and particles, with a rate
  that falls by a cosine, that gets there from each of 20 seeds (`python benchmarks/in_numpyro.py --tune 20`); PyMC's settings
  were found by hand. Every posterior that is timed is checked as well.
- NumPyro's `svi.run` is without its progress bar, which slows it. "Scanned by hand" is `lax.scan` of its step, jitted once and
  called again, which is all that XLA can do.
- The autoencoder's images, 0 or 1, are MNIST's, or noise as sparse where those are not at hand; batches of 128, KL in closed
  form."""


def page(rows: list[table.Row], growth: Mapping[str, list[curves.Point]], where: str) -> str:
    """The page in Markdown."""
    parts = [
        "# Benchmarks",
        "`make bench` writes this page and its picture; the peers are `pip install 'pyrovi[bench]'`.",
        __doc__.split("\n\n")[-1].strip(),
        where,
        table.lines(table.HEADER, rows),
        "\n".join(f"- {job.name}, against {job.peer}: {job.remark}" for job in JOBS if job.remark),
        "![Ratios beside their targets, and how the cost of a step grows](benchmarks.png)",
        curves.section(growth) if growth else "",
        METHODS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def machine() -> str:
    """The processor and the versions."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    found = [f"Python {platform.python_version()}"]
    for name in VERSIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return f"{model[1].strip() if model else platform.machine()}, one core, one thread. {', '.join(found)}."


def one_core() -> None:
    """This process and its children on one core, each library with one thread; before any of them is imported."""
    os.environ.update(THREADS)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def measured(job: Job, rounds: int) -> table.Row | None:
    """A job's row, printed; None, with a line that says why, where it cannot be had."""
    if absent := [name for name in job.needs if importlib.util.find_spec(name) is None]:
        print(f"{job.key} is left out: {' and '.join(absent)} not installed (pip install 'pyrovi[bench]')", flush=True)
        return None
    try:
        row = table.row(job, job.measure(rounds))
    except Exception as error:  # the other rows are worth having all the same
        print(f"{job.key} has FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
        return None
    print(table.line(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="KEY", help="rows whose key begins so, or `curves`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="print, and leave the page as it is")
    parser.add_argument("--list", action="store_true", help="print the keys")
    options = parser.parse_args()
    if options.list:
        print(*[f"{job.key:<24} {job.name}, against {job.peer}" for job in JOBS], "curves", sep="\n")
        return
    one_core()
    print(machine(), end="\n\n", flush=True)
    wanted = tuple(options.only)
    chosen = [job for job in JOBS if job.key.startswith(wanted)]
    peer("in_pyrovi").one_thread()
    if any(job.needs for job in chosen):
        peer("agreement").check()
    print(table.lines(table.HEADER, []), flush=True)
    new = [row for job in chosen if (row := measured(job, options.rounds))]
    before = PAGE.read_text() if PAGE.exists() else ""
    growth = curves.measure(options.rounds) if "curves".startswith(wanted) else curves.read(before)
    rows = table.merged(new, table.rows_of(before), JOBS)
    if not options.dry:
        PAGE.write_text(page(rows, growth, machine()))
        curves.picture(rows, growth, PAGE.with_suffix(".png"))


if __name__ == "__main__":
    main()
