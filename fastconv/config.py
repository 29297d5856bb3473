"""Settings: the backend, threads, algorithm and workspace of a call.

Each setting is looked up in the context (a `contextvars.ContextVar`, so threads and async tasks keep their own),
then in the process-wide value, then in the environment. Nothing here imports a backend.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

from fastconv.errors import ShapeError
from fastconv.geometry import one_bool, one_int
from fastconv.machine import usable_processors

ALGORITHMS = ("auto", "tune", "direct", "gemm", "window", "depthwise", "winograd")  # those of all backends


class Config(NamedTuple):
    """What `config_context` and `use_backend` set; ``None`` means "not set here"."""

    backend: str | None = None
    threads: int | None = None
    algorithm: str | None = None
    workspace_limit: int | None = None
    deterministic: bool | None = None


_context: ContextVar[Config] = ContextVar("fastconv_config", default=Config())  # noqa: B039  (a tuple)
_process = Config()
_BACKEND_KEY = os.environ.encodekey("FASTCONV_BACKEND")


def backend_name() -> str | None:
    """The backend that context, process or environment name, in this order; ``None`` where none does."""
    return _context.get().backend or _process.backend or os.environ.get("FASTCONV_BACKEND") or None


def snapshot() -> Hashable:
    """All that decides what the functions here return: equal as long as they return the same."""
    return _context.get(), _process, _named_by_environment()


def _named_by_environment() -> object:
    try:
        # A name that is not set costs os.environ twenty times as much as the dict that it keeps.
        return os.environ._data.get(_BACKEND_KEY)  # type: ignore[attr-defined]
    except AttributeError:  # another interpreter's
        return os.environ.get("FASTCONV_BACKEND")


def algorithm() -> str:
    """The algorithm to use: ``"auto"`` unless a `config_context` names another that it allows."""
    return _allowed(_context.get())


def workspace_limit() -> int | None:
    """Bytes of temporary memory that an algorithm may take; ``None`` where nobody set a limit."""
    return _context.get().workspace_limit


def get_num_threads() -> int:
    """The number of threads that the ``cpp`` and ``numba`` backends use.

    Returns
    -------
    int
        What `config_context`, `set_num_threads` or ``FASTCONV_NUM_THREADS`` say; otherwise the processors that this
        process may use when it first asks, by its affinity mask and its cgroups' CPU quota.
    """
    return _context.get().threads or _process.threads or _default_threads()


def for_kernels() -> tuple[str, int, int | None]:
    """`algorithm`, `get_num_threads` and `workspace_limit`, looked up together."""
    context = _context.get()
    threads = context.threads or _process.threads or _default_threads()
    if context.algorithm is None:
        return "auto", threads, context.workspace_limit
    return _allowed(context), threads, context.workspace_limit


def _allowed(context: Config) -> str:
    """What is measured differs from run to run, and with it the rounding of results."""
    if context.algorithm == "tune" and context.deterministic:
        return "auto"
    return context.algorithm or "auto"


def set_num_threads(n: int) -> None:
    """Set the number of threads of the ``cpp`` and ``numba`` backends for the whole process.

    Parameters
    ----------
    n : int
        At least 1. Results do not depend on it, except where a measurement or a limit of memory chooses the algorithm
        (``algorithm="tune"`` or ``workspace_limit`` in `config_context`).

    Raises
    ------
    ShapeError
        If ``n`` is smaller than 1.
    TypeError
        If ``n`` is not an int.
    """
    global _process
    _process = _process._replace(threads=_thread_count("set_num_threads", "n", n))


def set_process_backend(name: str | None) -> None:
    """Make ``name`` the backend of the whole process; whether it can run is the caller's to check."""
    global _process
    _process = _process._replace(backend=name)


@contextmanager
def backend_context(name: str) -> Iterator[None]:
    """Make ``name`` the backend inside a ``with`` block; whether it can run is the caller's to check."""
    token = _context.set(_context.get()._replace(backend=name))
    try:
        yield
    finally:
        _context.reset(token)


@contextmanager
def config_context(
    *,
    threads: int | None = None,
    algorithm: str | None = None,
    workspace_limit: int | None = None,
    deterministic: bool | None = None,
) -> Iterator[None]:
    """Settings for the calls inside a ``with`` block, in this thread or async task only.

    Parameters
    ----------
    threads : int, optional
        Number of threads, as in `set_num_threads`.
    algorithm : {"auto", "tune", "direct", "gemm", "window", "depthwise", "winograd"}, optional
        The convolution algorithm; `numba` and `reference` know ``"auto"`` and ``"direct"`` only. One that cannot
        serve a call raises and says what it needs; `fastconv.explain` tells which one serves a call, and why.

        ``"auto"``: the one that a closed-form cost model expects to be the quickest.
        ``"tune"``: the quickest as measured. The first call of a geometry, dtype, direction, number of threads and
        limit of workspace runs every algorithm that serves it a few times, and later ones take the winner, until
        `fastconv.clear_cache`. Which one wins, and so the rounding of results, may differ from process to process.
        ``"direct"``: whichever the model prefers of those that sum the products of the definition, and of whole
        numbers exactly: ``"gemm"``, an implicit matrix product that serves every geometry; ``"window"``, sums of
        weighted rows for few channels; ``"depthwise"``, the same without a copy where a result has one input channel.
        ``"winograd"``: without stride, 4x4 results of a 3x3 kernel, or of a larger one as a sum of such, with a quarter
        of the products, but several times the rounding error: up to 64 units of ``eps * conv(abs(x), abs(w))``, the
        largest of the 4x4 (for a weight gradient, of a filter).
    workspace_limit : int, optional
        Bytes of temporary memory of a convolution of `cpp`: packed or transformed weights, and some panels per
        thread. Algorithms that by the model's estimate take more are left out, and where none remains, the call
        raises `MemoryError` with what they need. Threads take memory each, so with a limit their number may decide
        which algorithm serves a call, and so the rounding of its result. Without a limit, ``"auto"`` and ``"tune"``
        leave out Winograd's algorithm where it takes more than 256 MiB.
    deterministic : bool, optional
        Ask for bitwise reproducible results, which every algorithm gives: ``"tune"`` is ``"auto"`` then.

    Raises
    ------
    ValueError
        If ``algorithm`` is unknown.
    TypeError, ShapeError
        If a number is not an int or too small.

    Examples
    --------
    >>> import fastconv, numpy as np
    >>> x, weight = np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3))
    >>> with fastconv.config_context(algorithm="tune", threads=1):
    ...     y = fastconv.conv2d(x, weight, backend="cpp")
    >>> with fastconv.config_context(algorithm="winograd"):
    ...     y = fastconv.conv2d(x, weight, backend="cpp")
    Traceback (most recent call last):
    ValueError: conv2d: algorithm 'winograd' needs floating-point numbers, a kernel of at least 2x2 ...
    """
    changes: dict[str, Any] = {}
    if threads is not None:
        changes["threads"] = _thread_count("config_context", "threads", threads)
    if algorithm is not None:
        if algorithm not in ALGORITHMS:
            raise ValueError(
                f"config_context: algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}"
            )
        changes["algorithm"] = algorithm
    if workspace_limit is not None:
        changes["workspace_limit"] = one_int("config_context", "workspace_limit", workspace_limit, low=0)
    if deterministic is not None:
        changes["deterministic"] = one_bool("config_context", "deterministic", deterministic)
    token = _context.set(_context.get()._replace(**changes))
    try:
        yield
    finally:
        _context.reset(token)


MAX_THREADS = 1024


def _thread_count(op: str, name: str, value: object) -> int:
    count = one_int(op, name, value, low=1)
    if count > MAX_THREADS:
        raise ShapeError(f"{op}: {name} must be at most {MAX_THREADS}, got {count}")
    return count


@lru_cache(maxsize=1)
def _default_threads() -> int:
    wanted = os.environ.get("FASTCONV_NUM_THREADS")
    if wanted:
        if not wanted.isdecimal():
            raise ValueError(f"FASTCONV_NUM_THREADS must be a positive int, got {wanted!r}")
        return _thread_count("FASTCONV_NUM_THREADS", "value", int(wanted))
    return min(usable_processors(), MAX_THREADS)
