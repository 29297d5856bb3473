"""The backend of CuPy's arrays: kernels in CUDA, compiled when they are first used, on the current stream.

Nothing waits for the device but `max_pool_grad_input`, which must say whether an index lies outside; while a stream is
captured into a graph it cannot, and such indices are left out.
"""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from fastconv.backends.cupy import compile as nvrtc
from fastconv.backends.cupy import conv, pool
from fastconv.backends.cupy.registry import Kernel
from fastconv.backends.protocol import Choice, Planned, planned
from fastconv.geometry import ConvGeometry, PoolGeometry

Array = Any  # cupy.ndarray

ALGORITHMS = ("auto", "direct")
TAKES_NARROW = False
SILENT = True
OLDEST = 75  # compute capability times ten: Turing


class _Device:
    """See `fastconv.backends.cupy.launch.Device`: CuPy's current device and stream."""

    def __init__(self) -> None:
        self.functions: dict[tuple[int, Kernel], Any] = {}

    def launch(self, kernel: Kernel, blocks: int, *arguments: Any) -> None:
        key = cupy.cuda.runtime.getDevice(), kernel
        function = self.functions.get(key)
        if function is None:
            function = self.functions[key] = _load(kernel)
        function((blocks,), (kernel.threads,), arguments)

    def empty(self, size: int, dtype: np.dtype[Any]) -> Array:
        return cupy.empty(size, dtype)


def _load(kernel: Kernel) -> Any:
    code, name = nvrtc.machine_code(kernel, f"sm_{cupy.cuda.Device().compute_capability}")
    module = cupy.cuda.function.Module()
    module.load(code)
    return module.get_function(name)


def _require_device() -> None:
    """Raises `ImportError` with the reason where no kernel can run."""
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ImportError(f"no CUDA device: {error}") from error
    if count == 0:
        raise ImportError("no CUDA device")
    capability = cupy.cuda.Device().compute_capability
    if int(capability) < OLDEST:
        raise ImportError(f"the device has compute capability {capability}, expected at least {OLDEST}")
    try:
        nvrtc.version()
    except (RuntimeError, OSError) as error:
        raise ImportError(f"no CUDA compiler (NVRTC): {error}") from error


_require_device()
_device = _Device()


def conv_forward(
    x: Array, weight: Array, bias: Array | None, activation: str | None, y: Array, geometry: ConvGeometry
) -> None:
    """``y = activation(weight * x + bias)``."""
    with x.device:
        conv.conv_forward(_device, x, weight, bias, activation, y, geometry)


def conv_grad_input(
    grad_y: Array,
    weight: Array,
    bias: Array | None,
    activation: str | None,
    grad_x: Array,
    geometry: ConvGeometry,
) -> None:
    """``grad_x = activation(adjoint of the convolution applied to grad_y + bias)``."""
    with grad_y.device:
        conv.conv_grad_input(_device, grad_y, weight, bias, activation, grad_x, geometry)


def conv_grad_weight(x: Array, grad_y: Array, grad_weight: Array, geometry: ConvGeometry) -> None:
    """The derivative by the weights."""
    with x.device:
        conv.conv_grad_weight(_device, x, grad_y, grad_weight, geometry)


def conv_plan(
    kernel: str, weight: Array, bias: Array | None, activation: str | None, geometry: ConvGeometry
) -> Planned:
    """A kernel with copies of the weights."""
    kernels = {"conv_forward": conv_forward, "conv_grad_input": conv_grad_input}
    return planned(kernels[kernel], weight, bias, activation, geometry)


def max_pool(x: Array, y: Array, indices: Array | None, geometry: PoolGeometry) -> None:
    """Maximum of each window and, where wanted, its position."""
    with x.device:
        pool.max_pool(_device, x, y, indices, geometry)


def max_pool_grad_input(grad_y: Array, indices: Array, grad_x: Array) -> int:
    """Each gradient goes to the element that won; returns a bad index's position or -1."""
    with grad_y.device:
        bad = pool.max_pool_grad_input(_device, grad_y, indices, grad_x)
        return -1 if cupy.cuda.get_current_stream().is_capturing() else int(bad[0])


def avg_pool(x: Array, y: Array, geometry: PoolGeometry) -> None:
    """Sum of each window divided by its divisor."""
    with x.device:
        pool.avg_pool(_device, x, y, geometry)


def avg_pool_grad_input(grad_y: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """The adjoint of `avg_pool`."""
    with grad_y.device:
        pool.avg_pool_grad_input(_device, grad_y, grad_x, geometry)


def choice(_kernel: str, _dtype: np.dtype[Any], geometry: ConvGeometry | None) -> Choice:
    """One thread of this machine starts everything."""
    return Choice(threads=1, algorithm=None if geometry is None else "direct")


def describe() -> dict[str, str]:
    """What `fastconv.show_config` prints of this backend."""
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    return {
        "cupy": cupy.__version__,
        "device": f"{properties['name'].decode()}, compute capability {cupy.cuda.Device().compute_capability}",
        "driver": str(cupy.cuda.runtime.driverGetVersion()),
        "compiler": f"NVRTC {nvrtc.version()}",
    }
