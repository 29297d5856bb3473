"""The compiled kernels, in C++.

The instruction set is chosen at run time or by ``FASTCONV_ISA``. Threads are the module's own, which disturb and
are disturbed least beside those of other libraries, or OpenMP's with ``FASTCONV_THREAD_POOL=openmp``, for those who
place them by OpenMP's environment variables.
"""

from __future__ import annotations

import os
from typing import Any

from numpy.typing import NDArray

from fastconv import _native
from fastconv.activations import ACTIVATION_CODES
from fastconv.config import ALGORITHMS, for_kernels, get_num_threads
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


_ALGORITHM_CODES = {name: code for code, name in enumerate(ALGORITHMS)}  # as the compiled module counts them


def conv_forward(
    x: Array, weight: Array, bias: Array | None, activation: str | None, y: Array, geometry: ConvGeometry
) -> None:
    """``y = activation(weight * x + bias)``."""
    algorithm, threads = for_kernels()
    code = ACTIVATION_CODES[activation]
    _native.conv_forward(x, weight, bias, code, y, geometry, _ALGORITHM_CODES[algorithm], threads)


def conv_grad_input(
    grad_y: Array,
    weight: Array,
    bias: Array | None,
    activation: str | None,
    grad_x: Array,
    geometry: ConvGeometry,
) -> None:
    """``grad_x = activation(adjoint of the convolution applied to grad_y + bias)``."""
    algorithm, threads = for_kernels()
    code = ACTIVATION_CODES[activation]
    _native.conv_grad_input(
        grad_y, weight, bias, code, grad_x, geometry, _ALGORITHM_CODES[algorithm], threads
    )


def conv_grad_weight(x: Array, grad_y: Array, grad_weight: Array, geometry: ConvGeometry) -> None:
    """The derivative by the weights."""
    algorithm, threads = for_kernels()
    _native.conv_grad_weight(x, grad_y, grad_weight, geometry, _ALGORITHM_CODES[algorithm], threads)


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
