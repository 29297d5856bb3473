"""Convolution that never touches padding, element by element.

The other kernels multiply padding as zeros, which is right as long as the other factor is finite. Where it
is not, these kernels leave the padding out, so that what is not finite reaches only the outputs that it took
part in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from fastconv.backends.numba_cpu.common import Array, Sizes, clip, finish, geometry_of, product
from fastconv.backends.numba_cpu.launch import Kernel, driver, worker


@worker
def _forward_direct(
    index: int, workers: int, x: Array, weight: Array, bias: Array, activation: int, y: Array, sizes: Sizes
) -> None:
    """A task is one row of the output."""
    g = geometry_of(sizes)
    channels = g.in_channels // g.groups
    size = g.input_size
    kernel = g.kernel_size
    step = g.stride[2]
    width = g.output_size[2]
    for task in range(index, g.batch * g.out_channels * g.output_size[0] * g.output_size[1], workers):
        rest, oh = divmod(task, g.output_size[1])
        rest, od = divmod(rest, g.output_size[0])
        image, k = divmod(rest, g.out_channels)
        first_channel = image * g.in_channels + k // (g.out_channels // g.groups) * channels
        row = y[task * width : (task + 1) * width]
        row[:] = 0
        factor = k * channels * product(kernel)
        for c in range(first_channel, first_channel + channels):
            for kd in range(kernel[0]):
                d = od * g.stride[0] - g.pad_low[0] + kd * g.dilation[0]
                for kh in range(kernel[1]):
                    h = oh * g.stride[1] - g.pad_low[1] + kh * g.dilation[1]
                    for kw in range(kernel[2]):
                        w = kw * g.dilation[2] - g.pad_low[2]
                        first, end = clip(w, step, width, size[2])
                        if 0 <= d < size[0] and 0 <= h < size[1]:
                            start = ((c * size[0] + d) * size[1] + h) * size[2] + w
                            for i in range(first, end):
                                row[i] += weight[factor] * x[start + i * step]
                        factor += 1
        finish(row, bias, k, activation)


@driver
def _forward_direct_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _forward_direct(np.intp(index), workers, *args)


@worker
def _repair_grad_weight(
    index: int, workers: int, x: Array, grad_y: Array, sizes: Sizes, grad_weight: Array
) -> None:
    """Compute anew what is not finite. A task is one weight."""
    g = geometry_of(sizes)
    channels = g.in_channels // g.groups
    size = g.input_size
    kernel = g.kernel_size
    step = g.stride[2]
    depth, height, width = g.output_size
    for task in range(index, grad_weight.size, workers):
        if grad_weight[task] - grad_weight[task] == 0:
            continue
        rest, kw = divmod(task, kernel[2])
        rest, kh = divmod(rest, kernel[1])
        rest, kd = divmod(rest, kernel[0])
        k, c = divmod(rest, channels)
        c += k // (g.out_channels // g.groups) * channels
        w = kw * g.dilation[2] - g.pad_low[2]
        first, end = clip(w, step, width, size[2])
        total = 0.0
        for image in range(g.batch):
            for od in range(depth):
                d = od * g.stride[0] - g.pad_low[0] + kd * g.dilation[0]
                for oh in range(height):
                    h = oh * g.stride[1] - g.pad_low[1] + kh * g.dilation[1]
                    if 0 <= d < size[0] and 0 <= h < size[1]:
                        start = (((image * g.in_channels + c) * size[0] + d) * size[1] + h) * size[2] + w
                        row = (((image * g.out_channels + k) * depth + od) * height + oh) * width
                        for i in range(first, end):
                            total += grad_y[row + i] * x[start + i * step]
        grad_weight[task] = total


@driver
def _repair_grad_weight_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _repair_grad_weight(np.intp(index), workers, *args)


forward_direct = Kernel(_forward_direct, _forward_direct_parallel)
repair_grad_weight = Kernel(_repair_grad_weight, _repair_grad_weight_parallel)
