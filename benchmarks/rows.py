"""The rows of the table: what is timed, against whom, and the target.

A measurement gives pairs of figures, pyrovi's and the peer's.
Torch, Pyro and the peers are imported when their row comes, after the threads have been set.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from timing import Pairs, in_turn, scaled, seconds, steps_in_turn

HERE = Path(__file__).resolve().parent


class Job(NamedTuple):
    key: str
    name: str
    peer: str
    target: float | None
    measure: Callable[[int], Pairs]
    needs: tuple[str, ...] = ()
    unit: str = "s"
    at_least: bool = False
    remark: str = ""
    """A sentence for the page: what limits the row, or what else to know of it."""


def peer(name: str) -> Any:
    """One of the modules beside this one, imported when its row comes: what it stands for may not be installed."""
    return importlib.import_module(name)


def child(*arguments: str, fresh: bool = False) -> dict[str, Any]:
    """What a Python process of its own printed last, as JSON; `fresh` gives it caches of its own, empty."""
    with tempfile.TemporaryDirectory() as folder:
        caches = dict.fromkeys(("PYROVI_CACHE", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"), folder)
        caches["PYTENSOR_FLAGS"] = f"base_compiledir={folder}"
        environment = {**os.environ, **(caches if fresh else {})}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or every process would compile anew whatever was installed as source
        done = subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else {}


def imports(rounds: int) -> Pairs:
    def one(module: str) -> float:
        return seconds(lambda: child("-c", f"import {module}"))

    one("pyrovi")  # writes Python's bytecode
    return in_turn(lambda: one("pyrovi"), lambda: one("pyro"), rounds)


def eager(name: str, guide: str | None, particles: int, steps: int, validate: bool, rounds: int) -> Pairs:
    from pyro.infer.autoguide import AutoNormal

    pyro, ours = peer("in_pyro"), peer("in_pyrovi")
    program = pyro.recipe(name, AutoNormal if guide else None, particles)
    pyro.loop(program, 20)
    ours.fit(program, "pyro", steps=20)
    return in_turn(
        lambda: seconds(lambda: ours.fit(program, "pyro", steps=steps)), lambda: pyro.loop(program, steps, validate), rounds
    )


def whole(model: str, steps: int, rounds: int, against: str = "in_numpyro", **sizes: int) -> Pairs:
    """Whole fits, warm."""
    program, other = getattr(peer("in_pyro"), model)(**sizes), getattr(peer(against), model)(**sizes)
    run = peer(against).run if against == "in_numpyro" else peer(against).loop

    def ours() -> float:
        return seconds(lambda: peer("in_pyrovi").fit(program, steps=steps))

    def theirs() -> float:
        return seconds(lambda: run(other, steps))

    ours(), theirs()
    return in_turn(ours, theirs, rounds)


def step(model: str, restarts: int, lengths: tuple[int, int], rounds: int, **sizes: int) -> Pairs:
    """A step of one fit, in µs; with restarts, of all of them over their number."""
    program, fit = getattr(peer("in_pyro"), model)(**sizes), peer("in_pyrovi").fit
    more = {"restarts": restarts} if restarts > 1 else {}
    scanned = peer("in_numpyro").Scanned(getattr(peer("in_numpyro"), model)(**sizes), restarts if restarts > 1 else None)
    return scaled(steps_in_turn(lambda n: fit(program, steps=n, **more), scanned, lengths, rounds), 1e6 / restarts)


def cold(module: str, rounds: int) -> Pairs:
    """From the start of a process to a posterior near the optimum."""

    def one(*arguments: str) -> float:
        printed = child(*arguments, fresh=True)
        _check(arguments[0], printed["loc"], printed["sd"])
        return float(printed["seconds"])

    sides = (lambda: one(str(HERE / "in_pyrovi.py"), "accurately"), lambda: one(str(HERE / f"{module}.py")))
    for run in sides:
        run()  # writes Python's bytecode
    return in_turn(*sides, rounds)


def warm(module: str, rounds: int) -> Pairs:
    ours, theirs, program = peer("in_pyrovi"), peer(module), peer("in_pyro").schools()

    def one(side: Any, run: Callable[[], Any]) -> float:
        found: list[Any] = []
        took = seconds(lambda: found.append(run()))
        _check(side.__name__, *side.posterior(found[0]))
        return took

    sides = (
        lambda: one(ours, lambda: ours.accurately(program, "warm")),
        lambda: one(theirs, lambda: theirs.accurately(**theirs.BEST)),
    )
    for run in sides:
        run()
    return in_turn(*sides, rounds)


@functools.cache
def _optimum() -> Any:
    return peer("problems").optimum()


def _check(who: str, loc: Any, sd: Any) -> None:
    import numpy as np

    reached = peer("problems").Gaussians(np.asarray(loc), np.asarray(sd))
    if not reached.near(_optimum()):
        mean, spread = reached.errors(_optimum())
        raise AssertionError(f"{Path(who).stem} is {mean:.2f} sd and {spread:.0%} of an sd from the optimum: not near enough")


def gamma(against: str, particles: int, lengths: tuple[int, int], rounds: int) -> Pairs:
    """A step in ms."""
    program, fit = peer("in_pyro").digits(particles), peer("in_pyrovi").fit
    if against == "numpyro":
        theirs = peer("in_numpyro").Scanned(peer("in_numpyro").digits(particles))
    else:
        theirs = functools.partial(peer("in_pyro").loop, program)
    return scaled(steps_in_turn(lambda n: fit(program, steps=n), theirs, lengths, rounds), 1e3)


def replicates(n: int, steps: int, rounds: int) -> Pairs:
    ours, program = peer("in_pyrovi"), peer("in_pyro").schools()
    ours.replicates(n, steps=steps)
    return in_turn(
        lambda: seconds(lambda: ours.replicates(n, steps=steps)),
        lambda: seconds(lambda: ours.fit(program, "pyro", steps=steps)),
        rounds,
    )


def training(against: str, lengths: tuple[int, int], rounds: int) -> Pairs:
    """Images a second."""
    import torch

    problems, program, fit = peer("problems"), peer("in_pyro").autoencoder(), peer("in_pyrovi").images
    if against == "torch":
        theirs = functools.partial(peer("in_torch").loop, torch.as_tensor(program.data["images"]))
    else:
        theirs = functools.partial(peer("in_pyro").image_loop, program)
    pairs = steps_in_turn(lambda n: fit(program, steps=n), theirs, lengths, rounds)
    return [(problems.BATCH / ours, problems.BATCH / others) for ours, others in pairs]


def memory(arguments: tuple[str, ...], engine: str, fresh: bool, rounds: int) -> Pairs:
    """Peak MiB of a process of its own."""

    def ours() -> float:
        return float(child(str(HERE / "in_pyrovi.py"), *arguments, engine, fresh=fresh)["peak"])

    ours()
    return in_turn(ours, lambda: float(child(str(HERE / "in_pyro.py"), *arguments)["peak"]), rounds)


EAGER = {
    "normal_mean, 1 particle": ("normal_mean", None, 1, 2_000),
    "normal_mean, AutoNormal": ("normal_mean", "normal", 1, 2_000),
    "linear_regression, 16 particles": ("linear_regression", None, 16, 1_000),
    "gamma_poisson, 16 particles": ("gamma_poisson", None, 16, 300),
}
LARGE = {"houses": 10_000, "counties": 2_400}
WHOLE = (
    "188 MiB are pyrovi's own copy of the images, so that what is done to the caller's array later does not change the fit; the "
    "rest is the run over all data at once by which it finds out how they are batched. The plain engine takes as much."
)
NUMPYRO, PYMC = ("numpyro",), ("pymc",)
NEAR = "eight schools to within 0.1 sd and 10% of an sd of the mean-field optimum"

JOBS = [
    Job("import", "`import pyrovi`", "`import pyro`", 1.1, imports),
    *(
        Job(f"eager-{i}-{key}", f"plain engine, {name}, {job[3]:,} steps, whole fit", who, target,
            functools.partial(eager, *job, key == "bare"))
        for i, (name, job) in enumerate(EAGER.items(), 1)
        for key, who, target in (("bare", "a bare `svi.step` loop", 1.05), ("unchecked", "the same, Pyro's validation off", None))
    ),
    Job("run-pyro", "eight schools, 5,000 steps, warm", "a bare `svi.step` loop", None,
        functools.partial(whole, "schools", 5_000, against="in_pyro")),
    Job("run-schools", "eight schools (20 parameters), 5,000 steps, warm", "NumPyro, `svi.run`", 0.5,
        functools.partial(whole, "schools", 5_000), NUMPYRO),
    Job("run-radon", "radon-like regression (350 parameters), 5,000 steps, warm", "NumPyro, `svi.run`", 0.5,
        functools.partial(whole, "radon_like", 5_000), NUMPYRO),
    Job("run-large", "radon-like, 10,000 houses (9,610 parameters), 5,000 steps, warm", "NumPyro, `svi.run`", 0.5,
        functools.partial(whole, "radon_like", 5_000, **LARGE), NUMPYRO),
    Job("step-schools-1", "eight schools, a step", "NumPyro, scanned by hand", 1.2,
        functools.partial(step, "schools", 1, (10_000, 110_000)), NUMPYRO, "µs"),
    Job("step-schools-64", "eight schools, a step per fit at 64 restarts", "NumPyro, scanned and vmapped", 1.0,
        functools.partial(step, "schools", 64, (2_000, 22_000)), NUMPYRO, "µs"),
    Job("step-radon-1", "radon-like, a step", "NumPyro, scanned by hand", 1.2,
        functools.partial(step, "radon_like", 1, (5_000, 25_000)), NUMPYRO, "µs"),
    Job("step-radon-64", "radon-like, a step per fit at 64 restarts", "NumPyro, scanned and vmapped", 1.0,
        functools.partial(step, "radon_like", 64, (200, 1_200)), NUMPYRO, "µs"),
    Job("cold-numpyro", f"{NEAR}, cold process", "NumPyro, `svi.run`", 0.33, functools.partial(cold, "in_numpyro"), NUMPYRO),
    Job("warm-numpyro", f"{NEAR}, warm", "NumPyro, `svi.run`", 0.1, functools.partial(warm, "in_numpyro"), NUMPYRO),
    Job("cold-pymc", f"{NEAR}, cold process", "PyMC, `pm.fit`", None, functools.partial(cold, "in_pymc"), PYMC),
    Job("warm-pymc", f"{NEAR}, warm", "PyMC, `pm.fit`", None, functools.partial(warm, "in_pymc"), PYMC),
    Job("gamma-pyro", "gamma_poisson, 128 particles, a step", "Pyro", 0.25,
        functools.partial(gamma, "pyro", 128, (100, 300)), (), "ms"),
    Job("gamma-numpyro", "gamma_poisson, 128 particles, a step", "NumPyro, scanned by hand", 0.15,
        functools.partial(gamma, "numpyro", 128, (100, 300)), NUMPYRO, "ms"),
    Job("replicates", "512 calibration replicates of the eight schools, 5,000 steps, warm", "one fit on the plain engine", 2.0,
        functools.partial(replicates, 512, 5_000)),
    Job("vae-torch", "autoencoder 784-400-20, training", "PyTorch, a loop by hand", 0.9,
        functools.partial(training, "torch", (300, 900)), (), "images/s", True),
    Job("vae-pyro", "autoencoder 784-400-20, training", "a bare `svi.step` loop", None,
        functools.partial(training, "pyro", (300, 900)), (), "images/s", True),
    *(
        Job(f"memory-{key}-{engine}", f"peak memory, {name}, engine `{engine}`, {caches} caches", "a bare `svi.step` loop", 1.2,
            functools.partial(memory, arguments, engine, caches == "empty"), (), "MiB", remark=WHOLE if key == "vae" else "")
        for key, name, arguments in (
            ("gamma", "gamma_poisson, 128 particles", ("gamma_poisson", "300", "128")),
            ("vae", "autoencoder 784-400-20", ("autoencoder", "300")),
        )
        for engine, caches in (("auto", "empty"), ("compiled", "kept"))
    ),
]  # fmt: skip
