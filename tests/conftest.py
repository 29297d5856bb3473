"""Fixtures: every backend that computes here, the compiled one with each of its instruction sets.

FASTCONV_TEST_BACKENDS=cpp,numba,emulator
    Test these backends only (by default, all that work here). The emulator is the CUDA backend down to its launches,
    and the kernels' own source on the CPU (tests/emulator).
FASTCONV_REQUIRE_BACKENDS=cpp,numba,emulator
    Fail at once where one of these does not work, instead of leaving it out.
FASTCONV_REQUIRE_TORCH=1, FASTCONV_REQUIRE_DATA=1
    Run what needs PyTorch, or Fashion-MNIST where Debian puts it, even where that is missing: to fail, not to skip.
FASTCONV_EXPECT_SANITIZED=1
    Test the compiled backend, and the emulator, only; fail at once unless they are built with AddressSanitizer.
"""

import importlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

os.environ.pop("FASTCONV_BACKEND", None)  # tests name their backends

import emulator

import fastconv
from fastconv import config
from fastconv.backends import BACKENDS, Row

EMULATOR = "emulator"  # a backend of these tests: no other process knows it
CPU_BACKENDS = ("reference", "cpp", "numba")
SANITIZED = os.environ.get("FASTCONV_EXPECT_SANITIZED", "0") not in ("", "0")


class Target(NamedTuple):
    """A backend, the instruction set that it is to use (None where it has no choice), and whose threads."""

    backend: str
    isa: str | None = None
    openmp: bool = False

    def __str__(self) -> str:
        return "-".join(filter(None, [self.backend, self.isa, "openmp" * self.openmp]))


def names_in(variable: str, default: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in os.environ.get(variable, "").split(",") if name.strip())
    return names or default


def isas_of(backend: str) -> tuple[str | None, ...]:
    if backend != "cpp":
        return (None,)
    return tuple(importlib.import_module("fastconv._native").available_isas())


if SANITIZED:  # it watches the ends of what malloc gives
    os.environ["FASTCONV_CACHE_BYTES"] = "0"

STATE = {**fastconv.available_backends(), EMULATOR: emulator.available()}
if STATE["cpp"] is True:  # a recycled buffer may hold the right result of the call before
    importlib.import_module("fastconv._native").set_poison(True)
WANTED = ("cpp", EMULATOR) if SANITIZED else names_in("FASTCONV_TEST_BACKENDS", (*CPU_BACKENDS, EMULATOR))
TESTED = [name for name in WANTED if name != EMULATOR and STATE[name] is True]
EMULATED = EMULATOR in WANTED and STATE[EMULATOR] is True
TARGETS = [Target(name, isa) for name in TESTED for isa in isas_of(name)]
THREADED_TARGETS = [target for target in TARGETS if target.backend != "reference"]
if EMULATED:
    TARGETS.append(Target(EMULATOR))
if "cpp" in TESTED and "OpenMP 20" in importlib.import_module("fastconv._native").parallel_description():
    THREADED_TARGETS.append(Target("cpp", isas_of("cpp")[0], openmp=True))


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job ignores Ctrl-C, and so would every process that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    required = ("cpp",) if SANITIZED else names_in("FASTCONV_REQUIRE_BACKENDS", ())
    for name in required:
        if name not in TESTED and not (name == EMULATOR and EMULATED):
            raise pytest.UsageError(
                f"backend {name!r} is required and not tested: {STATE.get(name, 'unknown')}"
            )
    if SANITIZED:
        module = Path(importlib.import_module("fastconv._native").__file__)
        if b"__asan_init" not in module.read_bytes():
            raise pytest.UsageError(f"{module} is not built with AddressSanitizer")


def pytest_report_header() -> list[str]:
    expected = (*CPU_BACKENDS, EMULATOR)
    missing = [f"{name} ({STATE[name]})" for name in expected if STATE[name] is not True]
    return [f"fastconv: {', '.join(map(str, TARGETS))}", *(f"fastconv: without {text}" for text in missing)]


@contextmanager
def chosen(target: Target) -> Iterator[Target]:
    if target.backend == EMULATOR:
        BACKENDS[EMULATOR] = Row("emulator", "numpy", None)
        try:
            yield target
        finally:
            del BACKENDS[EMULATOR]
        return
    if target.isa is None:
        yield target
        return
    native = importlib.import_module("fastconv._native")
    before = native.get_isa()
    native.set_isa(target.isa)
    native.use_openmp(target.openmp)
    try:
        yield target
    finally:
        native.set_isa(before)
        native.use_openmp(False)


@pytest.fixture(params=TARGETS, ids=str)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend, while the instruction set in question is chosen."""
    with chosen(request.param) as target:
        yield target.backend


@pytest.fixture(params=THREADED_TARGETS, ids=str)
def threaded_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `backend`, without the reference, which has no threads, and with OpenMP's threads as well as our own."""
    with chosen(request.param) as target:
        yield target.backend


@pytest.fixture(params=[target for target in TARGETS if target.isa], ids=lambda target: target.isa)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the compiled backend, while it is chosen."""
    with chosen(request.param) as target:
        yield target.isa


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    """Whatever a test sets for the process ends with it."""
    before = config._process
    yield
    config._process = before
