"""The clock: contenders take turns, and each is as warm as the others at its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from fastconv.bench.contender import Call


class Method(NamedTuple):
    """How long is waited and measured; seconds and numbers."""

    pause: float = 0.08  # before a contender's turn
    warm_up: float = 0.03
    calls: int = 5  # timed at each turn
    rounds: int = 5  # at least
    budget: float = 2.0  # for a row: as many rounds as fit


class Contender(Protocol):
    """What is timed: a call in this process or in another."""

    def turn(self, method: Method) -> list[float]:
        """The seconds of some calls, after others that are not timed."""


class Local(NamedTuple):
    """A call in this process."""

    call: Call

    def turn(self, method: Method) -> list[float]:
        """Nobody is measured against the waiting of others.

        Threads of BLAS and ONNX Runtime spin for some tens of milliseconds after their work, so each turn begins with
        a pause, and then untimed calls that wake its own.
        """
        time.sleep(method.pause)
        until = time.perf_counter() + method.warm_up
        self.call()
        while time.perf_counter() < until:
            self.call()
        seconds = []
        for _ in range(method.calls):
            start = time.perf_counter()
            self.call()
            seconds.append(time.perf_counter() - start)
        return seconds


def interleaved(contenders: Mapping[str, Contender], method: Method) -> dict[str, float]:
    """The median seconds of each contender. They take turns: a change of the machine's speed meets all of them."""
    rounds = method.rounds
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    started = time.perf_counter()
    done = 0
    while done < rounds:
        for name, contender in contenders.items():
            seconds[name] += contender.turn(method)
        done += 1
        rounds = max(method.rounds, int(method.budget / (time.perf_counter() - started) * done))
    return {name: statistics.median(values) for name, values in seconds.items()}
