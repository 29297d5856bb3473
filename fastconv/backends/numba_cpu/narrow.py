"""Convolution in narrow groups, such as depthwise: whole planes, one kernel position at a time.

Where a group has few channels, packing patches costs more than multiplying them. Instead a plane is *spread*
into a padded copy, in which a kernel position is one contiguous run (see `spread`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from fastconv.backends.numba_cpu.common import Array, Sizes, finish, geometry_of, panel_count, product, take
from fastconv.backends.numba_cpu.launch import Kernel, contracted, driver, inlined, reassociated, worker
from fastconv.backends.numba_cpu.spread import find_places, flat_length, gather_plane, pitches, spread_plane
from fastconv.backends.numba_cpu.vectors import SHIFTED_VECTORS, VECTOR_BYTES, copy_each, multiply_shifted
from fastconv.geometry import ConvGeometry

CHUNK = (
    2048  # elements that all kernel positions pass over before the next ones: they stay in the first cache
)


@contracted
def _add_scaled(target: Array, source: Array, factor: Any) -> None:
    for i in range(source.size):
        target[i] += factor * source[i]


@reassociated
def _dot(a: Array, b: Array) -> Any:
    total = a.dtype.type(0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@inlined
def _from_flat(flat: Array, g: ConvGeometry, y: Array, start: int) -> None:
    """Copy an output plane from where its elements lie as far apart as those that they read."""
    depth_pitch, pitch = pitches(g)
    depth, height, width = g.output_size
    for d in range(depth):
        for h in range(height):
            take(flat, d * depth_pitch + h * pitch, g.stride[2], y, start, width)
            start += width


@inlined
def _to_flat(y: Array, start: int, g: ConvGeometry, flat: Array) -> None:
    """The reverse of `_from_flat`; what lies between is zero already."""
    depth_pitch, pitch = pitches(g)
    depth, height, width = g.output_size
    step = g.stride[2]
    for d in range(depth):
        for h in range(height):
            place = d * depth_pitch + h * pitch
            if step == 1:
                copy_each(y, start, flat, place, width)
            else:
                for i in range(width):
                    flat[place + step * i] = y[start + i]
            start += width


@worker
def _forward_narrow(
    index: int,
    workers: int,
    x: Array,
    weight: Array,
    bias: Array,
    activation: int,
    y: Array,
    sizes: Sizes,
    spread_size: int,
    channels: int,
    buffers: Array,
    tables: Sizes,
) -> None:
    """A task is some output channels of one group of one image."""
    g = geometry_of(sizes)
    plane = product(g.input_size)
    out_plane = product(g.output_size)
    step = SHIFTED_VECTORS * (VECTOR_BYTES // x.itemsize)
    length = flat_length(g, step)
    group_channels = g.in_channels // g.groups
    out_channels = g.out_channels // g.groups
    count = group_channels * product(g.kernel_size)
    offsets, rows = find_places(g, spread_size, tables[index])
    flat = buffers[index, :length]
    spread = buffers[index, length:]
    blocks = panel_count(out_channels, channels)
    for task in range(index, g.batch * g.groups * blocks, workers):
        plane_group, block = divmod(task, blocks)
        for c in range(group_channels):
            spread_plane(x, (plane_group * group_channels + c) * plane, g, rows, spread, c * spread_size)
        first = (plane_group % g.groups) * out_channels + block * channels
        image = plane_group // g.groups
        for k in range(first, first + min(channels, out_channels - block * channels)):
            for j in range(0, length, step):
                multiply_shifted(weight, k * count, offsets, count, spread, j, flat, j)
            start = (image * g.out_channels + k) * out_plane
            _from_flat(flat, g, y, start)
            finish(y[start : start + out_plane], bias, k, activation)


@driver
def _forward_narrow_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _forward_narrow(np.intp(index), workers, *args)


@worker
def _grad_input_narrow(
    index: int,
    workers: int,
    grad_y: Array,
    weight: Array,
    bias: Array,
    activation: int,
    grad_x: Array,
    sizes: Sizes,
    buffers: Array,
    tables: Sizes,
) -> None:
    """A task is one input plane: every kernel position adds the output gradients to where it reads."""
    g = geometry_of(sizes)
    plane = product(g.input_size)
    out_plane = product(g.output_size)
    length = flat_length(g, SHIFTED_VECTORS * (VECTOR_BYTES // grad_y.itemsize))
    group_channels = g.in_channels // g.groups
    out_channels = g.out_channels // g.groups
    taps = product(g.kernel_size)
    offsets, rows = find_places(g, 0, tables[index])
    flat = buffers[index, :length]
    spread = buffers[index, length:]
    for task in range(index, g.batch * g.in_channels, workers):
        image, channel = divmod(task, g.in_channels)
        group, c = divmod(channel, group_channels)
        spread[:] = 0
        for k in range(group * out_channels, (group + 1) * out_channels):
            _to_flat(grad_y, (image * g.out_channels + k) * out_plane, g, flat)
            factors = weight[(k * group_channels + c) * taps : (k * group_channels + c + 1) * taps]
            for first in range(0, length, CHUNK):
                part = flat[first : first + CHUNK]
                for t in range(taps):
                    begin = offsets[t] + first
                    _add_scaled(spread[begin : begin + part.size], part, factors[t])
        gather_plane(spread, g, rows, grad_x, task * plane)
        finish(grad_x[task * plane : (task + 1) * plane], bias, channel, activation)


@driver
def _grad_input_narrow_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _grad_input_narrow(np.intp(index), workers, *args)


@worker
def _grad_weight_narrow(
    index: int,
    workers: int,
    x: Array,
    grad_y: Array,
    sizes: Sizes,
    spread_size: int,
    slices: int,
    sums: Array,
    buffers: Array,
    tables: Sizes,
) -> None:
    """A task is one output channel in a slice of the images: products of its gradient with shifted inputs."""
    g = geometry_of(sizes)
    plane = product(g.input_size)
    out_plane = product(g.output_size)
    length = flat_length(g, SHIFTED_VECTORS * (VECTOR_BYTES // grad_y.itemsize))
    group_channels = g.in_channels // g.groups
    out_channels = g.out_channels // g.groups
    count = group_channels * product(g.kernel_size)
    offsets, rows = find_places(g, spread_size, tables[index])
    flat = buffers[index, :length]
    spread = buffers[index, length:]
    slice_images = panel_count(g.batch, slices)
    for task in range(index, slices * g.out_channels, workers):
        part, k = divmod(task, g.out_channels)
        group = k // out_channels
        total = sums[part, k * count : (k + 1) * count]
        for image in range(part * slice_images, min(g.batch, (part + 1) * slice_images)):
            for c in range(group_channels):
                channel = (image * g.groups + group) * group_channels + c
                spread_plane(x, channel * plane, g, rows, spread, c * spread_size)
            _to_flat(grad_y, (image * g.out_channels + k) * out_plane, g, flat)
            for first in range(0, length, CHUNK):
                gradients = flat[first : first + CHUNK]
                for t in range(count):
                    begin = offsets[t] + first
                    total[t] += _dot(gradients, spread[begin : begin + gradients.size])


@driver
def _grad_weight_narrow_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _grad_weight_narrow(np.intp(index), workers, *args)


forward_narrow = Kernel(_forward_narrow, _forward_narrow_parallel)
grad_input_narrow = Kernel(_grad_input_narrow, _grad_input_narrow_parallel)
grad_weight_narrow = Kernel(_grad_weight_narrow, _grad_weight_narrow_parallel)
