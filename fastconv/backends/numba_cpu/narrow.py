"""Convolution in narrow groups, such as depthwise: whole planes, one kernel position at a time.

Where a group has few channels, packing patches costs more than multiplying them. Instead a plane is *spread*
into a padded copy, in which a kernel position is one contiguous run (see `spread`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from fastconv.backends.numba_cpu.common import Array, Sizes, finish, geometry_of, panel_count, product, take
from fastconv.backends.numba_cpu.launch import Kernel, driver, inlined, worker
from fastconv.backends.numba_cpu.spread import find_places, flat_length, gather_plane, pitches, spread_plane
from fastconv.backends.numba_cpu.vectors import (
    SHIFTED_VECTORS,
    VECTOR_BYTES,
    add_shifted,
    copy_each,
    copy_to_every_second,
    dot_shifted,
    multiply_shifted,
)
from fastconv.geometry import ConvGeometry

CHUNK = 2048  # outputs that all kernel positions pass over before the next: they stay in the first cache


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
    """The reverse of `_from_flat`, for strides of 1 and 2; what lies between rows is zero already."""
    depth_pitch, pitch = pitches(g)
    depth, height, width = g.output_size
    for d in range(depth):
        for h in range(height):
            place = d * depth_pitch + h * pitch
            if g.stride[2] == 1:
                copy_each(y, start, flat, place, width)
            else:
                copy_to_every_second(y, start, flat, place, width)
            start += width


@inlined
def _flat_length(g: ConvGeometry, itemsize: int) -> int:
    """Elements of a flat output plane: whole steps of the functions that compute it."""
    return flat_length(g, SHIFTED_VECTORS * (VECTOR_BYTES // itemsize))


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
    length = _flat_length(g, x.itemsize)
    group_channels = g.in_channels // g.groups
    out_channels = g.out_channels // g.groups
    count = group_channels * product(g.kernel_size)
    offsets, rows = find_places(g, spread_size, tables[index])
    flat = buffers[index, :length]
    spread = buffers[index, length + step :]
    blocks = panel_count(out_channels, channels)
    for task in range(index, g.batch * g.groups * blocks, workers):
        plane_group, block = divmod(task, blocks)
        image, group = divmod(plane_group, g.groups)
        for c in range(group_channels):
            spread_plane(x, (plane_group * group_channels + c) * plane, g, rows, spread, c * spread_size)
        first = group * out_channels + block * channels
        for k in range(first, min(first + channels, (group + 1) * out_channels)):
            for j in range(0, length, step):
                multiply_shifted(weight, k * count, offsets, count, spread, j, flat, j)
            start = (image * g.out_channels + k) * out_plane
            _from_flat(flat, g, y, start)
            if bias.size > 0 or activation > 0:
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
    step = SHIFTED_VECTORS * (VECTOR_BYTES // grad_y.itemsize)
    length = _flat_length(g, grad_y.itemsize)
    group_channels = g.in_channels // g.groups
    out_channels = g.out_channels // g.groups
    taps = product(g.kernel_size)
    offsets, rows = find_places(g, 0, tables[index])
    flat = buffers[index, : length + step]
    spread = buffers[index, length + step :]
    for task in range(index, g.batch * g.in_channels, workers):
        image, channel = divmod(task, g.in_channels)
        group, c = divmod(channel, group_channels)
        spread[:] = 0
        for k in range(group * out_channels, (group + 1) * out_channels):
            _to_flat(grad_y, (image * g.out_channels + k) * out_plane, g, flat)
            factors = (k * group_channels + c) * taps
            for j in range(0, length, CHUNK):
                add_shifted(weight, factors, offsets, taps, flat, j, min(CHUNK, length - j), spread, j)
        gather_plane(spread, g, rows, grad_x, task * plane)
        if bias.size > 0 or activation > 0:
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
    channels: int,
    slices: int,
    sums: Array,
    buffers: Array,
    tables: Sizes,
) -> None:
    """A task is some output channels of one group in a slice of the images.

    The gradients of the outputs are multiplied with the inputs as each kernel position sees them.
    """
    g = geometry_of(sizes)
    plane = product(g.input_size)
    out_plane = product(g.output_size)
    step = SHIFTED_VECTORS * (VECTOR_BYTES // x.itemsize)
    length = _flat_length(g, x.itemsize)
    group_channels = g.in_channels // g.groups
    out_channels = g.out_channels // g.groups
    count = group_channels * product(g.kernel_size)
    offsets, rows = find_places(g, spread_size, tables[index])
    flat = buffers[index, : length + step]
    spread = buffers[index, length + step :]
    blocks = panel_count(out_channels, channels)
    slice_images = panel_count(g.batch, slices)
    for task in range(index, slices * g.groups * blocks, workers):
        rest, block = divmod(task, blocks)
        part, group = divmod(rest, g.groups)
        first = group * out_channels + block * channels
        for image in range(part * slice_images, min(g.batch, (part + 1) * slice_images)):
            for c in range(group_channels):
                channel = (image * g.groups + group) * group_channels + c
                spread_plane(x, channel * plane, g, rows, spread, c * spread_size)
            for k in range(first, min(first + channels, (group + 1) * out_channels)):
                _to_flat(grad_y, (image * g.out_channels + k) * out_plane, g, flat)
                total = (part * g.out_channels + k) * count
                for j in range(0, length, CHUNK):
                    dot_shifted(flat, j, min(CHUNK, length - j), spread, j, offsets, count, sums, total)


@driver
def _grad_weight_narrow_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _grad_weight_narrow(np.intp(index), workers, *args)


forward_narrow = Kernel(_forward_narrow, _forward_narrow_parallel)
grad_input_narrow = Kernel(_grad_input_narrow, _grad_input_narrow_parallel)
grad_weight_narrow = Kernel(_grad_weight_narrow, _grad_weight_narrow_parallel)
