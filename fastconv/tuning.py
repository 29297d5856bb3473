"""Choices by measurement: which of several ways to do the same is the quickest here, remembered for the next time.

Choices are those of the process; `fastconv.clear_cache` forgets them. One thread measures at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from time import perf_counter

CAPACITY = 1024  # choices remembered; beyond, the oldest is forgotten
RUNS = 5  # of each way
ENOUGH = 0.5  # seconds: from then on, two runs of each must do

_choices: dict[Hashable, Mapping[str, float]] = {}
_lock = threading.RLock()  # a signal's handler may call what is being measured


def known(key: Hashable) -> Mapping[str, float] | None:
    """The seconds that each way took for ``key``; ``None`` where nobody measured."""
    return _choices.get(key)


def winner(seconds: Mapping[str, float]) -> str:
    """The quickest way."""
    return min(seconds, key=seconds.__getitem__)


def measured(key: Hashable, names: Sequence[str], run: Callable[[str], object]) -> Mapping[str, float]:
    """The median of some runs of each way, in turns, which is `known` from now on.

    ``run(name)`` does what is to be done; a single way is not run. Where another thread has just measured the same,
    its figures are returned. What ``run`` raises passes through, and nothing is remembered.
    """
    with _lock:
        if (found := _choices.get(key)) is not None:
            return found
        seconds = _measure(names, run) if len(names) > 1 else dict.fromkeys(names, 0.0)
        while len(_choices) >= CAPACITY:
            del _choices[next(iter(_choices))]
        _choices[key] = seconds
        return seconds


def _measure(names: Sequence[str], run: Callable[[str], object]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in names}
    begin = perf_counter()
    for count in range(1 + RUNS):  # the first touches new memory and wakes threads
        if count > 2 and perf_counter() - begin > ENOUGH:
            break
        for name in names:
            start = perf_counter()
            run(name)
            times[name].append(perf_counter() - start)
    return {name: median(taken[1:]) for name, taken in times.items()}


def median(values: Sequence[float]) -> float:
    """The upper one of two; the module `statistics` takes long to import."""
    return sorted(values)[len(values) // 2]


def forget() -> None:
    """Measure everything anew."""
    with _lock:
        _choices.clear()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # the thread that held it is not in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
