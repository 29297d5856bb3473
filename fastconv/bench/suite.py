"""The measurement: every layer and direction, checked against a referee before the clock runs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

import numpy as np

import fastconv
from fastconv import backends
from fastconv.bench import numpy_peer
from fastconv.bench.contender import Array, BenchError, NotOffered, operands
from fastconv.bench.peers import PEERS, Peer, can_limit_blas, fastconv_on, ours, set_up
from fastconv.bench.process import Process
from fastconv.bench.timing import Contender, Local, Method, interleaved
from fastconv.bench.workloads import DIRECTIONS, WORKLOADS, Layer, PoolLayer

TOLERANCE = {"float32": 2e-4, "float64": 1e-10}  # of the largest result: a wrong kernel is far beyond

_VARIABLES = (
    "FASTCONV_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "MALLOC_",
    "THP_",
)  # that make a difference


class Task(NamedTuple):
    """One row that is to be measured."""

    workload: str
    layer: Layer
    direction: str


class Row(TypedDict):
    """One row that was measured; ``absent`` says of contenders without a time what their cells say."""

    label: str
    group: str
    workload: str
    direction: str
    batch: int
    repeats: int
    flops: int
    seconds: dict[str, float]
    absent: dict[str, str]


class Results(TypedDict):
    """What ``--json`` writes; ``ceiling`` is in floating-point operations per second, or unknown."""

    machine: dict[str, Any]
    arguments: dict[str, Any]
    ours: list[str]
    peers: list[str]
    versions: dict[str, str]
    missing: dict[str, str]
    notes: list[str]
    ceiling: float | None
    rows: list[Row]


class Settings(NamedTuple):
    """What to measure: names of `WORKLOADS`, directions, backends and `PEERS`. The first backend is "ours"."""

    workloads: Sequence[str]
    backends: Sequence[str]
    peers: Sequence[str] = tuple(PEERS)
    directions: Sequence[str] = DIRECTIONS
    batch: int = 8
    threads: int = 1
    dtype: str = "float32"
    filter: str = ""
    method: Method = Method()


def tasks(settings: Settings) -> list[Task]:
    """The rows that the settings ask for; raises `BenchError` where there are none."""
    found = [
        Task(workload, layer, direction)
        for workload in settings.workloads
        for direction in settings.directions
        for layer in WORKLOADS[workload]
        if direction in layer.directions and settings.filter in layer.name
    ]
    if not found:
        raise BenchError(
            f"no layer of {', '.join(settings.workloads)} has a name that contains {settings.filter!r} "
            f"and one of the directions {', '.join(settings.directions)}"
        )
    return found


def begin(settings: Settings) -> Results:
    """Results without rows: who takes part, on what machine, and under which ceiling.

    Raises
    ------
    BackendUnavailableError
        If one of the backends cannot run here.
    """
    for name in settings.backends:
        backends.load(name)
    missing = {name: module for name in settings.peers if (module := PEERS[name].missing()) is not None}
    present = [name for name in settings.peers if name not in missing]
    notes = [f"{name}: not measured, {module} is not installed" for name, module in missing.items()]
    if "numpy" in present and not can_limit_blas():
        notes.append(
            "numpy: has as many threads as the environment of its BLAS says, threadpoolctl is not installed"
        )
    return Results(
        machine=machine(),
        arguments={**settings._asdict(), "method": settings.method._asdict()},
        ours=[ours(name) for name in settings.backends],
        peers=present,
        versions={key: value for name in present for key, value in PEERS[name].versions().items()},
        missing=missing,
        notes=notes,
        ceiling=ceiling(settings.dtype, settings.threads),
        rows=[],
    )


def measure(settings: Settings, peers: Sequence[str]) -> Iterator[Row]:
    """The rows, one by one.

    Raises
    ------
    BenchError
        If a contender's result is wrong, or its process ends.
    """
    inside: dict[str, Peer] = {ours(name): fastconv_on(name) for name in settings.backends}
    inside |= {name: PEERS[name] for name in peers if not PEERS[name].environment}
    with ExitStack() as stack:
        stack.enter_context(set_up(inside.values(), settings.threads))
        outside = {
            name: stack.enter_context(Process(name, settings.threads)) for name in peers if name not in inside
        }
        for task in tasks(settings):
            yield _measure(task, settings, inside, outside)


def _measure(
    task: Task, settings: Settings, inside: Mapping[str, Peer], outside: Mapping[str, Process]
) -> Row:
    layer, direction = task.layer, task.direction
    batch = layer.batch or settings.batch
    label = f"{layer.name} {direction}"
    a = operands(layer, batch, settings.dtype)
    expected = _referee(layer)(layer, direction, a)()
    contenders: dict[str, Contender] = {}
    absent = {}
    for name in (*inside, *outside):
        try:
            if name in inside:
                call = inside[name].prepare(layer, direction, a)
                contenders[name] = Local(call)
                result = call()
            else:
                contenders[name] = outside[name]
                result = outside[name].prepare(layer, direction, batch, settings.dtype)
        except NotOffered as reason:
            contenders.pop(name, None)
            absent[name] = str(reason)
            continue
        check(f"{label}: {name}", result, expected, TOLERANCE[settings.dtype])
        del result
    del expected
    return Row(
        label=label,
        group=f"{task.workload} {direction}",
        workload=task.workload,
        direction=direction,
        batch=batch,
        repeats=layer.repeats,
        flops=layer.flops(batch),
        seconds=interleaved(contenders, settings.method),
        absent=absent,
    )


def _referee(layer: Layer) -> Any:
    return numpy_peer.pooling if isinstance(layer, PoolLayer) else numpy_peer.convolution


def check(who: str, result: Array, expected: Array, tolerance: float) -> None:
    """Raises `BenchError` where a result is not that of the referee: a wrong kernel is not timed."""
    if result.shape != expected.shape:
        raise BenchError(f"{who} has a result of shape {result.shape}, expected {expected.shape}")
    scale = np.abs(expected).max() or 1
    error = float(np.abs(result - expected).max() / scale)
    if not error <= tolerance:  # NaN is wrong, too
        raise BenchError(f"{who} differs from NumPy's result by {error:.1e} of the largest element")


def ceiling(dtype: str, threads: int) -> float | None:
    """The floating-point operations per second of multiply-adds alone; unknown without the compiled backend."""
    if fastconv.available_backends()["cpp"] is not True:
        return None
    from fastconv.backends.cpp import fma_peak

    return fma_peak(dtype, threads)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), model)
    names = [name for name in os.environ if name.startswith(_VARIABLES)]
    return {
        "processor": model,
        "config": fastconv.show_config("dicts"),
        "environment": {name: os.environ[name] for name in sorted(names)},
    }


def load(path: Path) -> Results:
    """What ``--json`` wrote; raises `BenchError` where it is something else."""
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise BenchError(f"{path}: {error}") from error
    if not isinstance(results, dict) or not Results.__required_keys__ <= results.keys():
        raise BenchError(f"{path}: not the figures of 'fastconv bench --json'")
    return cast("Results", results)
