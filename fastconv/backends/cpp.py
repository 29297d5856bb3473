"""The compiled kernels, in C++.

The instruction set is chosen at run time or by ``FASTCONV_ISA``. Threads are the module's own, which disturb and
are disturbed least beside those of other libraries, or OpenMP's with ``FASTCONV_THREAD_POOL=openmp``, for those who
place them by OpenMP's environment variables.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastconv import _native, tuning
from fastconv.activations import ACTIVATION_CODES
from fastconv.backends.protocol import Candidate, Choice, Planned
from fastconv.config import for_kernels, get_num_threads
from fastconv.errors import SettingError
from fastconv.geometry import ConvGeometry, PoolGeometry

Array = NDArray[Any]
SILENT = True

if _isa := os.environ.get("FASTCONV_ISA"):
    try:
        _native.set_isa(_isa)
    except ValueError as error:
        raise SettingError(f"FASTCONV_ISA: {error}") from error

if _pool := os.environ.get("FASTCONV_THREAD_POOL"):
    if _pool not in ("own", "openmp"):
        raise SettingError(f"FASTCONV_THREAD_POOL: expected 'own' or 'openmp', got {_pool!r}")
    if not _native.use_openmp(_pool == "openmp"):
        raise SettingError("FASTCONV_THREAD_POOL: the module was built without OpenMP")


_CODES = {name: code for code, name in enumerate(_native.algorithms())}
ALGORITHMS = (*_CODES, "tune")
TAKES_NARROW = True
_NARROW_BYTES = 2
_KERNELS: dict[str, Callable[..., None]] = {
    "conv_forward": _native.conv_forward,
    "conv_grad_input": _native.conv_grad_input,
    "conv_grad_weight": _native.conv_grad_weight,
}


def conv_forward(
    x: Array, weight: Array, bias: Array | None, activation: str | None, y: Array, geometry: ConvGeometry
) -> None:
    """``y = activation(weight * x + bias)``."""
    _run("conv_forward", (x, weight, bias, ACTIVATION_CODES[activation], y), geometry)


def conv_grad_input(
    grad_y: Array,
    weight: Array,
    bias: Array | None,
    activation: str | None,
    grad_x: Array,
    geometry: ConvGeometry,
) -> None:
    """``grad_x = activation(adjoint of the convolution applied to grad_y + bias)``."""
    _run("conv_grad_input", (grad_y, weight, bias, ACTIVATION_CODES[activation], grad_x), geometry)


def conv_grad_weight(x: Array, grad_y: Array, grad_weight: Array, geometry: ConvGeometry) -> None:
    """The derivative by the weights."""
    _run("conv_grad_weight", (x, grad_y, grad_weight), geometry)


def _run(kernel: str, operands: tuple[Any, ...], geometry: ConvGeometry) -> None:
    algorithm, threads, limit = for_kernels()
    if algorithm == "tune":
        algorithm = _quickest(kernel, operands, geometry, threads, limit)
    if operands[0].dtype.itemsize == _NARROW_BYTES:
        _native_kernel(kernel, operands)(geometry, _CODES[algorithm], threads, limit)
    else:
        _KERNELS[kernel](*operands, geometry, _CODES[algorithm], threads, limit)


def _native_kernel(kernel: str, operands: tuple[Any, ...]) -> Callable[..., None]:
    """The compiled kernel with its operands: those of 16 bits as their bits."""
    dtype = operands[0].dtype
    if dtype.itemsize != _NARROW_BYTES:
        return partial(_KERNELS[kernel], *operands)
    bits = [value.view(np.uint16) if isinstance(value, np.ndarray) else value for value in operands]
    return partial(getattr(_native, f"narrow_{kernel}"), dtype.name, *bits)


def conv_plan(
    kernel: str, weight: Array, bias: Array | None, activation: str | None, geometry: ConvGeometry
) -> Planned:
    """A kernel whose algorithm is settled and which keeps the weights as that wants them."""
    algorithm, threads, limit = for_kernels()
    code = ACTIVATION_CODES[activation]
    if algorithm == "tune":
        x, y = np.zeros(geometry.x_shape, weight.dtype), np.zeros(geometry.y_shape, weight.dtype)
        source, result = (x, y) if kernel == "conv_forward" else (y, x)
        algorithm = _quickest(kernel, (source, weight, bias, code, result), geometry, threads, limit)
    plan = _native.conv_plan(kernel, weight, bias, code, geometry, _CODES[algorithm], threads, limit)
    return Planned(
        lambda source, result: plan.run(source, result, get_num_threads()), plan.algorithm, plan.bytes
    )


def _quickest(
    kernel: str, arrays: tuple[Any, ...], geometry: ConvGeometry, threads: int, limit: int | None
) -> str:
    """The quickest algorithm for a call of a kernel, measured by that call where it is the first of its kind."""
    dtype = arrays[0].dtype
    key = _tuning_key(kernel, dtype, geometry, threads, limit)
    seconds = tuning.known(key)
    if seconds is None:
        run = _native_kernel(kernel, arrays)
        _, candidates = _native.explain_conv(kernel, dtype, geometry, _CODES["auto"], threads, limit)
        able = [name for name, candidate in candidates.items() if Candidate(*candidate).fits]
        seconds = tuning.measured(key, able, lambda name: run(geometry, _CODES[name], threads, limit))
    return tuning.winner(seconds)


def _tuning_key(
    kernel: str, dtype: np.dtype[Any], geometry: ConvGeometry, threads: int, limit: int | None
) -> Hashable:
    return kernel, dtype.name, geometry, threads, limit, _native.get_isa()


def max_pool(x: Array, y: Array, indices: Array | None, geometry: PoolGeometry) -> None:
    """Maximum of each window and, where wanted, its position."""
    _native.max_pool(x, y, indices, geometry, get_num_threads())


def max_pool_grad_input(grad_y: Array, indices: Array, grad_x: Array) -> int:
    """Each gradient goes to the element that won; returns a bad index's position or -1."""
    return _native.max_pool_grad_input(grad_y, indices, grad_x, get_num_threads())


def avg_pool(x: Array, y: Array, geometry: PoolGeometry) -> None:
    """Sum of each window divided by its divisor."""
    _native.avg_pool(x, y, geometry, get_num_threads())


def avg_pool_grad_input(grad_y: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """The adjoint of `avg_pool`."""
    _native.avg_pool_grad_input(grad_y, grad_x, geometry, get_num_threads())


def choice(kernel: str, dtype: np.dtype[Any], geometry: ConvGeometry | None) -> Choice:
    """What the compiled module says that it would run; a measured winner where there is one."""
    algorithm, threads, limit = for_kernels()
    isa = _native.get_isa()
    if geometry is None:
        return Choice(threads, isa)
    seconds = None
    code = _CODES.get(algorithm, _CODES["auto"])
    if algorithm == "tune":
        seconds = tuning.known(_tuning_key(kernel, dtype, geometry, threads, limit))
        if seconds is not None:
            code = _CODES[tuning.winner(seconds)]
    chosen, rows = _native.explain_conv(kernel, dtype, geometry, code, threads, limit)
    candidates = {name: Candidate(*row) for name, row in rows.items()}
    return Choice(candidates[chosen].threads, isa, chosen, candidates, seconds)


def describe() -> dict[str, str]:
    """What `fastconv.show_config` prints of this backend."""
    return {
        "instruction set": f"{_native.get_isa()} (available: {', '.join(_native.available_isas())})",
        "parallel": _native.parallel_description(),
        "compiler": _native.compiler(),
    }


def fma_peak(dtype: str, threads: int) -> float:
    """Floating-point operations per second of multiply-adds alone: the ceiling that `fastconv bench` draws."""
    return _native.fma_peak(dtype, threads)
