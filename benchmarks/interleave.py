# SPDX-License-Identifier: Apache-2.0
"""Time several callables side by side, so that a noisy machine is equally noisy for all."""

import random
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np

from . import machine

MOST_EVICTED = 512 << 20
SLOW = 10  # a call this many times slower than the fastest is timed in FEW rounds only
FEW = 5
LONG = 1e-3  # seconds


def evict_bytes() -> int:
    """Twice the last-level cache, as far as the system tells and within reason."""
    last_level = max(machine.caches().values(), default=0)
    return min(max(2 * last_level, 96 << 20), MOST_EVICTED)


def seconds_of(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one call; what a call returns as a float is its own measurement."""
    start = clock()
    result = call()
    return result if isinstance(result, float) else clock() - start


def interleave(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    cold: bool = False,
    warm_up: int = 10,
    clock: Callable[[], float] = time.perf_counter,
    primed: bool = False,
    settle_s: float = 0.0,
    budget_s: float | None = None,
) -> dict[str, list[float]]:
    """Seconds of every call, one per round and callable, in an order drawn anew each round.

    clock:    that measures.
    cold:     before each call the caches are filled with something else, as they are after a step of a language model.
    primed:   each is timed right after two untimed calls of itself, one if that takes longer than LONG. They wake its
              threads and warm its code; after one short call the caches still hold a part of what was called before.
    settle_s: pause before every call, for idle workers of other thread pools to go to sleep.
    budget_s: fewer rounds if they would take longer, but not below FEW.
    """
    first = {}
    for name, call in calls.items():
        first[name] = seconds_of(call)
        for _ in range(warm_up if first[name] < 0.1 else 1):
            first[name] = min(first[name], seconds_of(call))
    filler = np.zeros(evict_bytes() // 8) if cold else None
    if budget_s is not None:
        pause = settle_s + (seconds_of(lambda: np.add(filler, 1.0, out=filler)) if filler is not None else 0)
        made = [1 + primed * (2 if seconds < LONG else 1) for seconds in first.values()]
        spent = sum(seconds * n + pause for seconds, n in zip(first.values(), made, strict=True))
        rounds = max(FEW, min(rounds, int(budget_s / spent)))
    slow = {name for name, seconds in first.items() if seconds > SLOW * min(first.values())}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        shuffle(order)
        for name in order:
            if i >= FEW and name in slow:
                continue
            if settle_s:
                time.sleep(settle_s)
            if primed and seconds_of(calls[name]) < LONG:
                calls[name]()
            if filler is not None:
                filler += 1.0
            times[name].append(seconds_of(calls[name], clock))
    return times


def summary(times: Mapping[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Per callable: median and quartiles in microseconds; median and quartiles of its ratio to the base of the same
    round, which load that comes and goes moves less than either time."""
    result = {}
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        ratios = [value / own for value, own in zip(values, times[base], strict=False)]
        ratio_low, _, ratio_high = statistics.quantiles(ratios, n=4)
        result[name] = {
            "median_us": statistics.median(values) * 1e6,
            "q1_us": low * 1e6,
            "q3_us": high * 1e6,
            "ratio": statistics.median(ratios),
            "ratio_q1": ratio_low,
            "ratio_q3": ratio_high,
            "rounds": len(values),
        }
    return result
