"""How compiled functions are made and started: caching on disk, threads, forks and concurrent callers.

Every kernel is a *worker*, ``worker(index, workers, ...)``, which does its share of a list of tasks, and a
*driver*, which runs all workers in a parallel loop. Where one thread is enough, or threads must not be
started, one worker is called directly. The result is the same: what is added up in which order depends on
shapes only.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numba

from fastconv import activations, config, geometry

Compiled = Callable[..., Any]
Function = TypeVar("Function", bound=Compiled)

_REENTRANT_LAYERS = ("tbb", "omp")  # the others abort the process when two threads enter them
_WORTH_A_THREAD = 10_000  # nanoseconds of work


class Kernel(NamedTuple):
    """A worker and the driver that runs it on several threads."""

    worker: Compiled
    driver: Compiled

    def run(self, workers: int, *args: Any) -> None:
        """Do all tasks with ``workers`` workers."""
        if workers == 1:
            self.worker(0, 1, *args)
        else:
            _run_parallel(self.driver, workers, args)


def inlined(function: Function) -> Function:
    """Compile a function that other compiled functions call."""
    return cast("Function", numba.njit(nogil=True, error_model="numpy")(function))


def merged(function: Function) -> Function:
    """As `inlined`, for functions that are called often: a real call would count references to its arrays."""
    return cast("Function", numba.njit(nogil=True, error_model="numpy", inline="always")(function))


def worker(function: Compiled) -> Compiled:
    """Compile a worker, to be called from Python or from its driver."""
    return _cached(function, nogil=True, error_model="numpy")


def driver(function: Compiled) -> Compiled:
    """Compile a driver, whose ``prange`` runs on Numba's threads."""
    return _cached(function, nogil=True, error_model="numpy", parallel=True)


def _source_hash() -> str:
    """A digest of the files that compiled functions are made from."""
    digest = hashlib.blake2b(digest_size=6)
    own = sorted(Path(__file__).parent.glob("[!_]*.py"))
    for path in (*own, Path(geometry.__file__), Path(activations.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_VERSION = _source_hash()


def _cached(function: Compiled, **options: Any) -> Compiled:
    # Numba keys its cache by the file of the function alone, although what it calls lies in others:
    # the name, which becomes part of the cache's file name, says from which sources the function was made.
    function.__qualname__ += f".{_VERSION}"
    try:
        return cast("Compiled", numba.njit(cache=True, **options)(function))
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        _state.cached = False
        return cast("Compiled", numba.njit(**options)(function))


class _State:
    """What the process knows of its threads."""

    def __init__(self) -> None:
        self.cached = True
        self.serial = False
        self.entrance = threading.Lock()


_state = _State()


def worker_count(nanoseconds: float) -> int:
    """Workers for what takes one thread about so long: as many as configured and worth their start."""
    if _state.serial:
        return 1
    most = min(config.get_num_threads(), int(numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    return max(1, min(most, int(nanoseconds) // _WORTH_A_THREAD))


def _run_parallel(start: Compiled, workers: int, args: tuple[Any, ...]) -> None:
    """Run a driver with that many threads. Numba keeps the number per calling thread, which gets its own
    back.
    """
    before = numba.get_num_threads()  # starts the threading layer
    numba.set_num_threads(workers)
    try:
        if layer() in _REENTRANT_LAYERS:
            start(workers, *args)
        else:
            with _state.entrance:
                start(workers, *args)
    finally:
        numba.set_num_threads(before)


def layer() -> str | None:
    """The threading layer's name once it runs."""
    try:
        return str(numba.threading_layer())  # type: ignore[attr-defined]
    except ValueError:  # Numba's way to say that it has not started
        return None


def describe() -> dict[str, str]:
    """Version, threading and caching, for `fastconv.show_config`."""
    configured = numba.config.THREADING_LAYER  # type: ignore[attr-defined]
    return {
        "numba": str(numba.__version__),
        "threading layer": layer() or f"{configured} (not started)",
        "threads": str(worker_count(2**62)) + " (forked from a process with threads)" * _state.serial,
        "cache": "on disk" if _state.cached else "off (no folder can be written; set NUMBA_CACHE_DIR)",
    }


def _after_fork() -> None:
    """A child has none of its parent's threads, and GNU OpenMP would end it at the next parallel loop."""
    _state.serial = _state.serial or layer() is not None
    _state.entrance = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
