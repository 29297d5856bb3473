"""The table of backends, and how the backend of a call is settled.

A backend is a module with the functions of `fastconv.backends.protocol`; it is imported when it is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple, cast

from fastconv import config, memory
from fastconv.backends.protocol import Backend
from fastconv.errors import BackendUnavailableError, SettingError
from fastconv.geometry import show


class Row(NamedTuple):
    """Where a backend lives, whose arrays it takes, and what installs it, if anything does."""

    module: str
    library: str
    install: str | None


BACKENDS: dict[str, Row] = {
    "reference": Row("fastconv.backends.reference", "numpy", "pip install fastconv"),
    "cpp": Row("fastconv.backends.cpp", "numpy", "pip install --force-reinstall fastconv"),
    "numba": Row("fastconv.backends.numba_cpu", "numpy", "pip install 'fastconv[numba]'"),
    "cupy": Row("fastconv.backends.cupy.backend", "cupy", "pip install 'fastconv[cuda]', and a CUDA device"),
}
_replacement: ContextVar[Callable[[Backend], Backend] | None] = ContextVar(
    "fastconv_replacement", default=None
)
AUTOMATIC = ("cpp", "numba", "reference")  # best first


def load(name: str) -> Backend:
    """The backend's module; raises `BackendUnavailableError` with the reason where it cannot run."""
    _check_name("", name)
    return _import(name)


@cache
def _import(name: str) -> Backend:
    row = BACKENDS[name]
    try:
        memory.cache_limit()  # a wrong setting shall not wait for the first large result
        return cast("Backend", importlib.import_module(row.module))
    except ImportError as error:
        settled = isinstance(error, SettingError) or row.install is None
        needs = "" if settled else f"; it needs: {row.install}"
        raise BackendUnavailableError(f"backend {name!r} is not available: {error}{needs}") from error


def available_backends() -> dict[str, bool | str]:
    """Which backends can run here.

    Returns
    -------
    dict
        ``True`` for each backend that can, otherwise the reason why not. Imports every backend.
    """
    found: dict[str, bool | str] = {}
    for name in BACKENDS:
        try:
            load(name)
            found[name] = True
        except BackendUnavailableError as error:
            found[name] = str(error.__cause__)
    return found


def resolve(op: str, explicit: str | None, library: str) -> tuple[str, Backend]:
    """The backend for arrays of ``library`` in call ``op``: by name, by the arrays, by the settings, else the best.

    Raises
    ------
    BackendUnavailableError
        If the named backend cannot run here.
    TypeError
        If the named backend takes another library's arrays: arrays are never moved between devices unasked.
    """
    name = explicit
    if name is None and library != "numpy":
        name = next(n for n, row in BACKENDS.items() if row.library == library)
    if name is not None:
        _check_name(f"{op}: ", name)
    elif (name := config.backend_name()) is not None:
        _check_name("FASTCONV_BACKEND: ", name)  # other settings were checked when they were made
    else:
        name = _automatic()
    backend = _import(name)
    if BACKENDS[name].library != library:
        raise TypeError(f"{op}: backend {name!r} takes {BACKENDS[name].library} arrays, got {library} arrays")
    replace = _replacement.get()
    return name, backend if replace is None else replace(backend)


@contextmanager
def replaced(replace: Callable[[Backend], Backend]) -> Iterator[None]:
    """Inside a ``with`` block, in this thread or async task only, calls get what ``replace`` makes of their backend."""
    token = _replacement.set(replace)
    try:
        yield
    finally:
        _replacement.reset(token)


def set_backend(name: str | None) -> None:
    """Make a backend the default of the whole process; ``None`` returns to the automatic choice.

    Raises
    ------
    ValueError
        If there is no such backend.
    BackendUnavailableError
        If it cannot run here; the message says why and what to install.
    """
    if name is not None:
        load(name)
    config.set_process_backend(name)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use a backend inside a ``with`` block, in this thread or async task only. Raises as `set_backend` does."""
    load(name)
    with config.backend_context(name):
        yield


@cache
def _automatic() -> str:
    for name in AUTOMATIC:
        try:
            load(name)
        except BackendUnavailableError as error:
            if isinstance(error.__cause__, SettingError):
                raise  # somebody asked for what no other backend can give
            continue
        return name
    raise AssertionError("the reference backend needs NumPy only")


def _check_name(prefix: str, name: object) -> None:
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"{prefix}backend must be one of {', '.join(BACKENDS)}, got {show(name)}")
