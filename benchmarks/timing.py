"""Clocks: processor time, in pairs taken in turn; and the most memory held."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from pathlib import Path

Pairs = list[tuple[float, float]]
"""Figures of pyrovi and of the peer, a pair a round."""


def clock() -> float:
    """Seconds of processor time of this process and the children it has waited for.

    On one core that is the time on the wall, less what other programs on the machine take away.
    """
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def peak() -> float:
    """The most memory this process has held, in MiB. Not `ru_maxrss`, which a child inherits from the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def seconds(run: Callable[[], object]) -> float:
    gc.collect()
    began = clock()
    run()
    return clock() - began


def a_step(run: Callable[[int], object], short: int, long: int) -> float:
    """Seconds a step, from fits of two lengths."""
    return (seconds(lambda: run(long)) - seconds(lambda: run(short))) / (long - short)


def steps_in_turn(ours: Callable[[int], object], theirs: Callable[[int], object], lengths: tuple[int, int], rounds: int) -> Pairs:
    """Seconds a step, warm: each length has been run before, since a compiled program may depend on it."""
    for run in (ours, theirs):
        for n in lengths:
            run(n)
    return in_turn(lambda: a_step(ours, *lengths), lambda: a_step(theirs, *lengths), rounds)


def scaled(pairs: Pairs, scale: float) -> Pairs:
    return [(scale * ours, scale * theirs) for ours, theirs in pairs]


def in_turn(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Pairs:
    pairs = []
    for i in range(rounds):
        if i % 2:
            second, first = theirs(), ours()
            pairs.append((first, second))
        else:
            pairs.append((ours(), theirs()))
    return pairs
