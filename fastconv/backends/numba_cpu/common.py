"""What the kernels share: their geometry, the patches of an input, and the last step of a store."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastconv.activations import ACTIVATION_CODES, LEAKY_SLOPE
from fastconv.backends.numba_cpu.launch import inlined, merged
from fastconv.backends.numba_cpu.vectors import copy_each, copy_every_second
from fastconv.geometry import ConvGeometry

Array = NDArray[Any]
Sizes = NDArray[np.int64]
Flags = NDArray[np.bool_]
RUN = 6  # numbers that describe a run of columns, see `find_runs`

RELU = ACTIVATION_CODES["relu"]
RELU6 = ACTIVATION_CODES["relu6"]
LEAKY_RELU = ACTIVATION_CODES["leaky_relu"]
ELU = ACTIVATION_CODES["elu"]
SIGMOID = ACTIVATION_CODES["sigmoid"]
TANH = ACTIVATION_CODES["tanh"]


def sizes_of(geometry: ConvGeometry) -> Sizes:
    """A geometry as a flat array: parallel loops do not take nested tuples."""
    return np.array(
        [n for field in geometry for n in (field if isinstance(field, tuple) else (field,))], np.int64
    )


@inlined
def geometry_of(s: Sizes) -> ConvGeometry:
    """What `sizes_of` was given."""
    return ConvGeometry(
        s[0],
        s[1],
        s[2],
        s[3],
        (s[4], s[5], s[6]),
        (s[7], s[8], s[9]),
        (s[10], s[11], s[12]),
        (s[13], s[14], s[15]),
        (s[16], s[17], s[18]),
        (s[19], s[20], s[21]),
    )


@inlined
def product(size: tuple[int, int, int]) -> int:
    """Elements of a block of that size."""
    return size[0] * size[1] * size[2]


@inlined
def panel_count(count: int, width: int) -> int:
    """How many panels of that width it takes."""
    return (count + width - 1) // width


@inlined
def _activated(activation: int, value: Any) -> Any:
    """As in `fastconv.activations`; NaN stays NaN in each."""
    if activation == RELU6:
        return min(max(value, 0), 6) if value == value else value
    if activation == LEAKY_RELU:
        return value if value > 0 else LEAKY_SLOPE * value
    if activation == ELU:
        return value if value > 0 else math.expm1(value)
    if activation == TANH:
        return math.tanh(value)
    small = math.exp(-abs(value))
    logistic = (1 if value >= 0 else small) / (1 + small)
    return logistic if activation == SIGMOID else value * logistic


@inlined
def finish(row: Array, bias: Array, channel: int, activation: int) -> None:
    """The last step of a store: add the channel's bias and apply the activation, where there are any."""
    if bias.size > 0:
        shift = bias[channel]
        for i in range(row.size):
            row[i] += shift
    if activation == RELU:
        for i in range(row.size):
            row[i] = 0 if row[i] < 0 else row[i]
    elif activation > 0:
        for i in range(row.size):
            row[i] = _activated(activation, row[i])


@inlined
def clip(start: int, step: int, count: int, size: int) -> tuple[int, int]:
    """Which of ``start + i*step`` for i in 0..count-1 lie in 0..size-1: from first to before end."""
    first = 0 if start >= 0 else min(count, (step - 1 - start) // step)
    end = count if start + (count - 1) * step < size else max(first, -((start - size) // step))
    return first, end


@inlined
def find_runs(g: ConvGeometry, column: int, count: int, runs: Sizes) -> int:
    """Cut columns into runs that lie in one output row and return how many.

    `RUN` numbers describe each: offset, length, image, and the output position (d, h, w).
    """
    depth, height, width = g.output_size
    rest, w = divmod(column, width)
    rest, h = divmod(rest, height)
    image, d = divmod(rest, depth)
    found = 0
    offset = 0
    while offset < count:
        length = min(count - offset, width - w)
        run = runs[RUN * found : RUN * (found + 1)]
        run[0] = offset
        run[1] = length
        run[2] = image
        run[3] = d
        run[4] = h
        run[5] = w
        found += 1
        offset += length
        w = 0
        h += 1
        if h == height:
            h = 0
            d += 1
            if d == depth:
                d = 0
                image += 1
    return found


@merged
def take(source: Array, start: int, step: int, target: Array, begin: int, count: int) -> None:
    """``target[begin + i] = source[start + i*step]``."""
    if step == 1:
        copy_each(source, start, target, begin, count)
    elif step == 2:
        copy_every_second(source, start, target, begin, count)
    else:
        for i in range(count):
            target[begin + i] = source[start + step * i]


@inlined
def pack_patches(
    x: Array,
    g: ConvGeometry,
    group: int,
    rows: tuple[int, int],
    runs: Sizes,
    run_count: int,
    stride: int,
    patches: Array,
) -> None:
    """Write rows ``rows[0]`` to ``rows[1]`` of the patches, ``stride`` elements apart, for the columns of
    ``runs``.
    """
    channels = g.in_channels // g.groups
    size = g.input_size
    plane = product(size)
    kernel = g.kernel_size
    taps = product(kernel)
    step = g.stride[2]
    tap = 0
    for kd in range(kernel[0]):
        for kh in range(kernel[1]):
            for kw in range(kernel[2]):
                first_channel = panel_count(max(0, rows[0] - tap), taps)
                last_channel = panel_count(max(0, rows[1] - tap), taps)
                for r in range(run_count if first_channel < last_channel else 0):
                    offset, length, image, od, oh, ow = runs[RUN * r : RUN * (r + 1)]
                    d = od * g.stride[0] - g.pad_low[0] + kd * g.dilation[0]
                    h = oh * g.stride[1] - g.pad_low[1] + kh * g.dilation[1]
                    w = ow * step - g.pad_low[2] + kw * g.dilation[2]
                    first, end = clip(w, step, length, size[2])
                    if d < 0 or d >= size[0] or h < 0 or h >= size[1]:
                        first, end = length, length
                    start = (d * size[1] + h) * size[2] + w + first * step
                    start += ((image * g.groups + group) * channels + first_channel) * plane
                    begin = (first_channel * taps + tap - rows[0]) * stride + offset
                    if end - first < length:
                        for c in range(last_channel - first_channel):
                            row = patches[begin + c * taps * stride :][:length]
                            for i in range(first):
                                row[i] = 0
                            for i in range(end, length):
                                row[i] = 0
                    begin += first
                    if step == 1:
                        for _ in range(first_channel, last_channel):
                            copy_each(x, start, patches, begin, end - first)
                            start += plane
                            begin += taps * stride
                    else:
                        for _ in range(first_channel, last_channel):
                            take(x, start, step, patches, begin, end - first)
                            start += plane
                            begin += taps * stride
                tap += 1
