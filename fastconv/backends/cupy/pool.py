"""Pooling on a device: from the geometry to launches."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.backends.cupy import registry
from fastconv.backends.cupy.launch import Array, Device, DType, Launch, blocks_of, index_type, packed
from fastconv.geometry import PoolGeometry, Size3

LANES = 32  # threads of a warp
WARPS = 8192  # that keep every device busy
SHARE = 128  # elements that are worth a warp


class Windows(NamedTuple):
    """The fields of the struct Pooling in pooling.cuh, in its order."""

    planes: int
    input: Size3
    output: Size3
    kernel: Size3
    stride: Size3
    dilation: Size3
    pad_low: Size3
    pad_high: Size3
    adaptive: bool
    count_include_pad: bool
    divisor_override: int

    def index_type(self) -> DType:
        """What holds every size, place and offset."""
        reach = [
            (size + 1) * (outputs + 1)
            if self.adaptive
            else (outputs + 1) * stride + kernel * dilation + size + low + high
            for size, outputs, kernel, stride, dilation, low, high in zip(*self[1:8], strict=True)
        ]
        elements = self.planes * max(math.prod(self.input), math.prod(self.output))
        return index_type((*reach, elements, abs(self.divisor_override)))


@lru_cache(maxsize=1024)
def pool_plan(template: str, geometry: PoolGeometry, dtype: DType) -> Launch:
    """The launch of a kernel that has a thread for each of its results."""
    windows = Windows(*geometry)
    index = windows.index_type()
    source = "max_pool.cuh" if template == "max_pool" else "avg_pool.cuh"
    kernel = registry.simple(template, source, dtype, index)
    results = geometry.x_shape if template == "avg_pool_grad_input" else geometry.y_shape
    return Launch(kernel, blocks_of(math.prod(results), kernel), packed(windows, index))


def max_pool(device: Device, x: Array, y: Array, indices: Array | None, geometry: PoolGeometry) -> None:
    """Maximum of each window and, where wanted, its position."""
    kernel, blocks, parameters = pool_plan("max_pool", geometry, x.dtype)
    lowest = x.dtype.type(-np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min)
    device.launch(kernel, blocks, parameters, lowest, x, y, indices)


def max_pool_grad_input(device: Device, grad_y: Array, indices: Array, grad_x: Array) -> Array:
    """Each gradient goes to the element that won; returns an array of a bad index's position or -1."""
    planes, size, pooled = grad_x.shape[0], math.prod(grad_x.shape[1:]), math.prod(grad_y.shape[1:])
    parts = max(1, min(WARPS // planes, size // SHARE))
    index = index_type((grad_x.size, grad_y.size, LANES * planes * parts))
    kernel = registry.simple("max_pool_grad_input", "max_pool.cuh", grad_y.dtype, index)
    bad = device.empty(1, np.dtype(np.int64))
    bad[...] = -1  # the largest number without a sign
    numbers = map(index.type, (planes, size, pooled, parts))
    device.launch(kernel, blocks_of(LANES * planes * parts, kernel), *numbers, grad_y, indices, grad_x, bad)
    return bad


def avg_pool(device: Device, x: Array, y: Array, geometry: PoolGeometry) -> None:
    """Sum of each window divided by its divisor."""
    kernel, blocks, parameters = pool_plan("avg_pool", geometry, x.dtype)
    device.launch(kernel, blocks, parameters, x, y)


def avg_pool_grad_input(device: Device, grad_y: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """The adjoint of `avg_pool`."""
    kernel, blocks, parameters = pool_plan("avg_pool_grad_input", geometry, grad_y.dtype)
    device.launch(kernel, blocks, parameters, grad_y, grad_x)
