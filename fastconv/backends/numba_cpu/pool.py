"""The pooling kernels.

Windows may be far larger than their input: what lies inside is found by arithmetic
(`fastconv.geometry.pool_windows`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from fastconv.backends.numba_cpu.common import Array, Sizes, clip, geometry_of, product, take
from fastconv.backends.numba_cpu.launch import Kernel, driver, inlined, merged, worker
from fastconv.backends.numba_cpu.spread import find_places, pitches, spread_plane
from fastconv.backends.numba_cpu.vectors import (
    MOST_NUMBERS,
    SHIFTED_VECTORS,
    VECTOR_BYTES,
    largest_of_run,
    largest_of_shifted,
    sum_of_run,
)
from fastconv.geometry import ConvGeometry, PoolGeometry, pool_windows


class Pool(NamedTuple):
    """A pooling as its kernels see it; ``windows`` holds the arrays of `AxisWindows`, axis by axis."""

    planes: int
    input_size: tuple[int, int, int]
    output_size: tuple[int, int, int]
    dilation: tuple[int, int, int]
    divisor: int
    count_include_pad: int
    windows: Sizes


def table_of(geometry: PoolGeometry) -> Sizes:
    """A pooling as a flat array: parallel loops do not take nested tuples."""
    g = geometry
    header = (g.planes, *g.input_size, *g.output_size, *g.dilation, g.divisor_override, g.count_include_pad)
    windows = (array for axis in pool_windows(g) for array in axis)
    return np.concatenate([np.array(header, np.int64), *windows])


@inlined
def _pool(table: Sizes) -> Pool:
    """What `table_of` was given."""
    t = table
    return Pool(t[0], (t[1], t[2], t[3]), (t[4], t[5], t[6]), (t[7], t[8], t[9]), t[10], t[11], t[12:])


@inlined
def _axis(p: Pool, axis: int) -> tuple[Sizes, Sizes, Sizes]:
    """First tap, taps inside the input, and divisor length of each window of an axis."""
    begin = 0
    for before in range(axis):
        begin += 3 * p.output_size[before]
    count = p.output_size[axis]
    return (
        p.windows[begin : begin + count],
        p.windows[begin + count : begin + 2 * count],
        p.windows[begin + 2 * count : begin + 3 * count],
    )


@inlined
def _share(tasks: int, index: int, workers: int) -> tuple[int, int]:
    """Consecutive tasks for each worker."""
    return tasks * index // workers, tasks * (index + 1) // workers


# --- maximum ------------------------------------------------------------------------------------------------


@inlined
def _position(g: ConvGeometry, outputs: tuple[int, int, int]) -> int:
    """Where in the plane an output's window has its first element, or -1 if it has none."""
    position = 0
    for axis in range(3):
        start = outputs[axis] * g.stride[axis] - g.pad_low[axis]
        first, end = clip(start, g.dilation[axis], g.kernel_size[axis], g.input_size[axis])
        if first >= end:
            return -1
        position = position * g.input_size[axis] + start + first * g.dilation[axis]
    return position


@inlined
def _find_tap_distances(g: ConvGeometry, distances: Sizes) -> None:
    """How far in a plane each kernel position is from the first."""
    _, height, width = g.input_size
    found = 0
    for kd in range(g.kernel_size[0]):
        for kh in range(g.kernel_size[1]):
            for kw in range(g.kernel_size[2]):
                row = kd * g.dilation[0] * height + kh * g.dilation[1]
                distances[found] = row * width + kw * g.dilation[2]
                found += 1


@worker
def _max_pool_small(
    index: int,
    workers: int,
    x: Array,
    y: Array,
    indices: Sizes,
    lowest: Any,
    sizes: Sizes,
    segments: int,
    length: int,
    buffers: Array,
    numbers: Array,
    tables: Sizes,
) -> None:
    """Windows of few taps: all outputs of some rows at once. A task is a segment of a plane's output rows.

    ``buffers`` holds ``length`` values, and then the plane spread between ``lowest``, which never wins. So
    where no tap won, the window holds nothing larger, and its first element is the first of the largest.
    """
    g = geometry_of(sizes)
    taps = product(g.kernel_size)
    offsets, rows = find_places(g, 0, tables[index, taps:])
    distances = tables[index, :taps]
    _find_tap_distances(g, distances)
    depth_pitch, pitch = pitches(g)
    depth, height, width = g.output_size
    row_length = (width - 1) * g.stride[2] + 1
    most_rows = max(1, (length - row_length) // pitch + 1)
    step = SHIFTED_VECTORS * (VECTOR_BYTES // x.itemsize)
    best = buffers[index, :length]
    winners = numbers[index]
    spread = buffers[index, length:]
    spread[:] = lowest
    begin, end = _share(g.batch * segments, index, workers)
    for task in range(begin, end):
        plane, segment = divmod(task, segments)
        spread_plane(x, plane * product(g.input_size), g, rows, spread, 0)
        row, last = _share(depth * height, segment, segments)
        while row < last:
            od, oh = divmod(row, height)
            count = min(last - row, height - oh, most_rows)
            source = od * depth_pitch + oh * pitch
            for j in range(0, (count - 1) * pitch + row_length, step):
                largest_of_shifted(spread, source + j, offsets, taps, lowest, best, winners, j)
            for h in range(oh, oh + count):
                source = (h - oh) * pitch
                target = (plane * depth * height + row) * width
                take(best, source, g.stride[2], y, target, width)
                if indices.size > 0:
                    first = (
                        (od * g.stride[0] - g.pad_low[0]) * g.input_size[1] + h * g.stride[1] - g.pad_low[1]
                    )
                    first = first * g.input_size[2] - g.pad_low[2]
                    for w in range(width):
                        winner = winners[source + w * g.stride[2]]
                        if winner >= 0:
                            indices[target + w] = first + w * g.stride[2] + distances[winner]
                        else:
                            indices[target + w] = _position(g, (od, h, w))
                row += 1


@driver
def _max_pool_small_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _max_pool_small(np.intp(index), workers, *args)


@merged
def _largest_of_row(
    x: Array, start: int, count: int, step: int, lowest: Any, best: Array, winners: Array, offsets: Sizes
) -> tuple[Any, int]:
    """The largest of ``x[start + i*step]`` and the first i that has it; of NaN, the last."""
    value = x[start]
    found = 0
    done = 1
    lanes = best.size
    if step == 1:
        while count - done >= 2 * lanes:
            rounds = min(MOST_NUMBERS, (count - done) // lanes)
            largest_of_run(x, start + done, offsets, rounds, lowest, best, winners, 0)
            # Lanes hold interleaved parts of the row: of equal values the first counts, of NaN the last.
            for lane in range(lanes):
                place = done + winners[lane] * lanes + lane
                other = best[lane]
                equal = other == value and place < found
                if winners[lane] >= 0 and (
                    other > value or equal or (other != other and (value == value or place > found))
                ):
                    value = other
                    found = place
            done += rounds * lanes
    for i in range(done, count):
        other = x[start + i * step]
        if other > value or other != other:
            value = other
            found = i
    return value, found


@worker
def _max_pool_large(
    index: int,
    workers: int,
    x: Array,
    y: Array,
    indices: Sizes,
    lowest: Any,
    table: Sizes,
    buffers: Array,
    numbers: Array,
    tables: Sizes,
) -> None:
    """Any windows, one by one. A task is one row of the output."""
    p = _pool(table)
    depth, height, width = p.input_size
    columns = p.output_size[2]
    first_d, inside_d, _ = _axis(p, 0)
    first_h, inside_h, _ = _axis(p, 1)
    first_w, inside_w, _ = _axis(p, 2)
    best = buffers[index]
    winners = numbers[index]
    offsets = tables[index]
    for i in range(offsets.size):
        offsets[i] = i * best.size
    begin, end = _share(p.planes * p.output_size[0] * p.output_size[1], index, workers)
    for task in range(begin, end):
        rest, oh = divmod(task, p.output_size[1])
        plane, od = divmod(rest, p.output_size[0])
        for ow in range(columns):
            # Rows that follow each other without a gap are one.
            runs, length = inside_h[oh], inside_w[ow]
            if length == width and p.dilation[1] == 1 == p.dilation[2] and runs > 0:
                runs, length = 1, runs * width
            largest = lowest
            found = -1
            for i in range(inside_d[od] if length > 0 else 0):
                for j in range(runs):
                    place = (first_d[od] + i * p.dilation[0]) * height + first_h[oh] + j * p.dilation[1]
                    place = place * width + first_w[ow]
                    start = plane * depth * height * width + place
                    value, at = _largest_of_row(
                        x, start, length, p.dilation[2], lowest, best, winners, offsets
                    )
                    if found < 0 or value > largest or value != value:
                        largest = value
                        found = place + at * p.dilation[2]
            y[task * columns + ow] = largest
            if indices.size > 0:
                indices[task * columns + ow] = found


@driver
def _max_pool_large_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _max_pool_large(np.intp(index), workers, *args)


@worker
def _max_pool_grad_input(
    index: int, workers: int, grad_y: Array, indices: Sizes, grad_x: Array, planes: int, wrong: Sizes
) -> None:
    """A task is one plane. ``wrong[index]`` becomes the place of the first index outside its plane, or
    stays.
    """
    outputs = grad_y.size // planes
    inputs = grad_x.size // planes
    begin, end = _share(planes, index, workers)
    for plane in range(begin, end):
        target = grad_x[plane * inputs : (plane + 1) * inputs]
        target[:] = 0
        for i in range(plane * outputs, (plane + 1) * outputs):
            place = indices[i]
            if place < -1 or place >= inputs:
                wrong[index] = i
                return
            if place >= 0:
                target[place] += grad_y[i]


@driver
def _max_pool_grad_input_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _max_pool_grad_input(np.intp(index), workers, *args)


# --- average ------------------------------------------------------------------------------------------------


@inlined
def _column_divisors(p: Pool, divisors: NDArray[np.float64]) -> None:
    """What each window's columns contribute to its divisor; as floats, because huge windows overflow."""
    _, inside, length = _axis(p, 2)
    for i in range(divisors.size):
        divisors[i] = 1 if p.divisor != 0 else length[i] if p.count_include_pad else inside[i]


@inlined
def _row_divisor(divisor: int, count_include_pad: int, length: float, inside: float) -> float:
    """The rest of the divisor of all windows of an output row, given their extent in depth and height."""
    if divisor != 0:
        return float(divisor)
    return length if count_include_pad else inside


@merged
def _divide(values: Array, row_divisor: float, divisors: NDArray[np.float64], quotients: Array) -> None:
    for i in range(divisors.size):
        divisor = row_divisor * divisors[i]
        quotients[i] = values[i] / (divisor if divisor != 0 else 1.0)  # a window of padding alone sums to 0


@inlined
def _is_one_run(p: Pool) -> bool:
    """Whether each window covers whole rows, so that its elements at one depth follow each other."""
    _, inside, _ = _axis(p, 2)
    return p.output_size[2] == 1 and inside[0] == p.input_size[2] and p.dilation[1] == 1 == p.dilation[2]


@worker
def _avg_pool(
    index: int, workers: int, x: Array, y: Array, table: Sizes, buffers: NDArray[np.float64]
) -> None:
    """A task is one row of the output: its input rows are added up, then the columns of each window."""
    p = _pool(table)
    depth, height, width = p.input_size
    columns = p.output_size[2]
    first_d, inside_d, length_d = _axis(p, 0)
    first_h, inside_h, length_h = _axis(p, 1)
    first_w, inside_w, _ = _axis(p, 2)
    divisors = buffers[index, :columns]
    totals = buffers[index, columns : 2 * columns]
    sums = buffers[index, 2 * columns :]
    _column_divisors(p, divisors)
    one_run = _is_one_run(p)
    begin, end = _share(p.planes * p.output_size[0] * p.output_size[1], index, workers)
    rest, oh = divmod(begin - 1, p.output_size[1])
    plane, od = divmod(rest, p.output_size[0])
    for task in range(begin, end):
        oh += 1
        if oh == p.output_size[1]:
            oh = 0
            od += 1
            if od == p.output_size[0]:
                od = 0
                plane += 1
        inside = float(inside_d[od]) * inside_h[oh]
        divisor = _row_divisor(p.divisor, p.count_include_pad, float(length_d[od]) * length_h[oh], inside)
        if one_run:
            total = 0.0
            for i in range(inside_d[od]):
                start = ((plane * depth + first_d[od] + i * p.dilation[0]) * height + first_h[oh]) * width
                total += sum_of_run(x, start, inside_h[oh] * width)
            divisor *= divisors[0]
            y[task] = total / (divisor if divisor != 0 else 1.0)
            continue
        sums[:] = 0
        for i in range(inside_d[od]):
            for j in range(inside_h[oh]):
                row = (plane * depth + first_d[od] + i * p.dilation[0]) * height
                row += first_h[oh] + j * p.dilation[1]
                values = x[row * width : (row + 1) * width]
                for k in range(width):
                    sums[k] += values[k]
        for ow in range(columns):
            total = 0.0
            place = first_w[ow]
            for _ in range(inside_w[ow]):
                total += sums[place]
                place += p.dilation[2]
            totals[ow] = total
        _divide(totals, divisor, divisors, y[task * columns : (task + 1) * columns])


@driver
def _avg_pool_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _avg_pool(np.intp(index), workers, *args)


@worker
def _avg_pool_grad_input(
    index: int, workers: int, grad_y: Array, grad_x: Array, table: Sizes, buffers: NDArray[np.float64]
) -> None:
    """A task is one plane: each output row is spread along its columns, then added to its input rows."""
    p = _pool(table)
    depth, height, width = p.input_size
    columns = p.output_size[2]
    first_d, inside_d, length_d = _axis(p, 0)
    first_h, inside_h, length_h = _axis(p, 1)
    first_w, inside_w, _ = _axis(p, 2)
    divisors = buffers[index, :columns]
    shares = buffers[index, columns : 2 * columns]
    sums = buffers[index, 2 * columns :]
    _column_divisors(p, divisors)
    one_run = _is_one_run(p)
    begin, end = _share(p.planes, index, workers)
    for plane in range(begin, end):
        target = grad_x[plane * depth * height * width : (plane + 1) * depth * height * width]
        target[:] = 0
        for od in range(p.output_size[0]):
            for oh in range(p.output_size[1]):
                start = ((plane * p.output_size[0] + od) * p.output_size[1] + oh) * columns
                inside = float(inside_d[od]) * inside_h[oh]
                divisor = _row_divisor(
                    p.divisor, p.count_include_pad, float(length_d[od]) * length_h[oh], inside
                )
                _divide(grad_y[start : start + columns], divisor, divisors, shares)
                runs, length = inside_h[oh], width
                if one_run:
                    runs, length = 1, runs * width
                else:
                    sums[:] = 0
                    for ow in range(columns):
                        place = first_w[ow]
                        for _ in range(inside_w[ow]):
                            sums[place] += shares[ow]
                            place += p.dilation[2]
                for i in range(inside_d[od]):
                    for j in range(runs):
                        row = (first_d[od] + i * p.dilation[0]) * height + first_h[oh] + j * p.dilation[1]
                        values = target[row * width : row * width + length]
                        if one_run:
                            for k in range(length):
                                values[k] += shares[0]
                        else:
                            for k in range(length):
                                values[k] += sums[k]


@driver
def _avg_pool_grad_input_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _avg_pool_grad_input(np.intp(index), workers, *args)


max_pool_small = Kernel(_max_pool_small, _max_pool_small_parallel)
max_pool_large = Kernel(_max_pool_large, _max_pool_large_parallel)
max_pool_grad_input = Kernel(_max_pool_grad_input, _max_pool_grad_input_parallel)
avg_pool = Kernel(_avg_pool, _avg_pool_parallel)
avg_pool_grad_input = Kernel(_avg_pool_grad_input, _avg_pool_grad_input_parallel)
