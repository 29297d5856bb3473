"""Dense convolution: products of weights and *patches*, as in a matrix multiplication.

Row ``(c, t)`` of the patches holds, for every output position (a "column"), the input that kernel position
``t`` reads in channel ``c``. Patches are never written out as a whole: a block of them is packed when it is
needed, into panels as wide as the register tile, so that the inner loop reads memory in order. Columns run
on across the images of a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from fastconv.backends.numba_cpu.common import (
    RUN,
    Array,
    Flags,
    Sizes,
    clip,
    find_runs,
    finish,
    geometry_of,
    pack_patches,
    panel_count,
    product,
)
from fastconv.backends.numba_cpu.launch import Kernel, driver, inlined, worker
from fastconv.backends.numba_cpu.vectors import (
    DEPTH,
    GRAD_ROWS,
    GRAD_VECTORS,
    PATCH_STRIDE,
    TILE_ROWS,
    TILE_VECTORS,
    VECTOR_BYTES,
    copy_each,
    interleave_tile,
    multiply_columns,
    multiply_rows,
    transpose_square,
)
from fastconv.geometry import ConvGeometry

WEIGHT_PANELS = 16  # of one block of depth: they stay in the cache while all columns of a block pass

# --- forward ------------------------------------------------------------------------------------------------


@inlined
def _store_tile(
    values: Array,
    begin: int,
    stride: int,
    size: tuple[int, int],
    column: int,
    channel: int,
    channels: int,
    plane: int,
    adds: bool,
    y: Array,
) -> None:
    """Store a tile of channels by columns, or add it, where its columns belong in each image."""
    rows, columns = size
    image, place = divmod(column, plane)
    done = 0
    while done < columns:
        length = min(columns - done, plane - place)
        source = begin + done
        start = (image * channels + channel) * plane + place
        for _ in range(rows):
            if adds:
                row = y[start : start + length]
                part = values[source : source + length]
                for i in range(length):
                    row[i] += part[i]
            else:
                copy_each(values, source, y, start, length)
            source += stride
            start += plane
        done += length
        image += 1
        place = 0


@inlined
def _finish_tile(
    size: tuple[int, int],
    column: int,
    channel: int,
    channels: int,
    plane: int,
    bias: Array,
    activation: int,
    y: Array,
) -> None:
    """`finish` for channels by columns, in whatever images these lie."""
    rows, columns = size
    image, place = divmod(column, plane)
    while columns > 0:
        length = min(columns, plane - place)
        for m in range(channel, channel + rows):
            start = (image * channels + m) * plane + place
            finish(y[start : start + length], bias, m, activation)
        columns -= length
        image += 1
        place = 0


@worker
def _pack_weights(
    index: int,
    workers: int,
    weight: Array,
    matrices: int,
    rows: int,
    depth: int,
    strides: Sizes,
    depth_block: int,
    packed: Array,
    finite: Flags,
) -> None:
    """Cut matrices into blocks of depth and panels of `TILE_ROWS` rows, padded with zeros, stored depth by
    depth.
    """
    matrix_stride, row_stride, depth_stride = strides
    panels = panel_count(rows, TILE_ROWS)
    width = VECTOR_BYTES // weight.itemsize
    good = True
    for task in range(index, matrices * panels, workers):
        matrix, panel = divmod(task, panels)
        count = min(TILE_ROWS, rows - panel * TILE_ROWS)
        for k0 in range(0, depth, depth_block):
            length = min(depth_block, depth - k0)
            source = matrix * matrix_stride + panel * TILE_ROWS * row_stride + k0 * depth_stride
            target = (matrix * depth + k0) * panels * TILE_ROWS + panel * TILE_ROWS * length
            done = 0
            if count == TILE_ROWS and depth_stride == 1:
                while done + width <= length:
                    interleave_tile(
                        weight, source + done, row_stride, packed, target + done * TILE_ROWS, width
                    )
                    done += width
            elif count == TILE_ROWS and row_stride == 1:
                while done < length:
                    copy_each(
                        weight, source + done * depth_stride, packed, target + done * TILE_ROWS, TILE_ROWS
                    )
                    done += 1
            for k in range(done, length):
                for i in range(count):
                    packed[target + k * TILE_ROWS + i] = weight[source + i * row_stride + k * depth_stride]
                for i in range(count, TILE_ROWS):
                    packed[target + k * TILE_ROWS + i] = 0
        if row_stride >= depth:
            for i in range(count):
                start = matrix * matrix_stride + (panel * TILE_ROWS + i) * row_stride
                for value in weight[start : start + depth]:
                    good &= value - value == 0
    finite[index] = good


@driver
def _pack_weights_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _pack_weights(np.intp(index), workers, *args)


@worker
def _forward_dense(
    index: int,
    workers: int,
    x: Array,
    packed: Array,
    bias: Array,
    activation: int,
    y: Array,
    sizes: Sizes,
    blocks: Sizes,
    buffers: Array,
    tables: Sizes,
) -> None:
    """Weights times patches. A task is a block of output channels by a block of columns.

    Sums that take several blocks of depth grow in the output, or, where ``sum_panels`` says so, in a buffer of that
    many tiles: small planes cut most tiles, and a tile that does not lie in one image takes long to store.
    """
    g = geometry_of(sizes)
    depth_block, row_panels, column_panels, sum_panels = blocks
    width = TILE_VECTORS * (VECTOR_BYTES // x.itemsize)
    rows = g.out_channels // g.groups
    depth = (g.in_channels // g.groups) * product(g.kernel_size)
    plane = product(g.output_size)
    columns = g.batch * plane
    all_row_panels = panel_count(rows, TILE_ROWS)
    all_column_panels = panel_count(columns, width)
    row_blocks = panel_count(all_row_panels, row_panels)
    column_blocks = panel_count(all_column_panels, column_panels)
    tile_size = TILE_ROWS * width
    tiles = buffers[index, : max(1, sum_panels) * tile_size]
    patches = buffers[index, max(1, sum_panels) * tile_size :]
    runs = tables[index]
    for task in range(index, g.groups * row_blocks * column_blocks, workers):
        rest, row_block = divmod(task, row_blocks)
        group, column_block = divmod(rest, column_blocks)
        first_row = row_block * row_panels
        last_row = min(all_row_panels, first_row + row_panels)
        first_panel = column_block * column_panels
        last_panel = min(all_column_panels, first_panel + column_panels)
        for k0 in range(0, depth, depth_block):
            length = min(depth_block, depth - k0)
            adds = k0 > 0
            last = k0 + length == depth
            for j in range(first_panel, last_panel):
                run_count = find_runs(g, j * width, min(width, columns - j * width), runs)
                panel = patches[(j - first_panel) * length * width :]
                pack_patches(x, g, group, (k0, k0 + length), runs, run_count, width, panel)
            for i0 in range(first_row, last_row, WEIGHT_PANELS):
                for j in range(first_panel, last_panel):
                    column = j * width
                    count = min(width, columns - column)
                    image, place = divmod(column, plane)
                    whole = sum_panels == 0 and count == width and place + width <= plane
                    b = (j - first_panel) * length * width
                    for i in range(i0, min(last_row, i0 + WEIGHT_PANELS)):
                        a = ((group * depth + k0) * all_row_panels + i * length) * TILE_ROWS
                        channel = group * rows + i * TILE_ROWS
                        height = min(TILE_ROWS, rows - i * TILE_ROWS)
                        if whole and height == TILE_ROWS:
                            start = (image * g.out_channels + channel) * plane + place
                            multiply_columns(packed, a, patches, b, length, y, start, plane, adds)
                        elif sum_panels == 0:
                            multiply_columns(packed, a, patches, b, length, tiles, 0, width, False)
                            size = (height, count)
                            _store_tile(
                                tiles, 0, width, size, column, channel, g.out_channels, plane, adds, y
                            )
                        else:
                            t = ((i - first_row) * column_panels + j - first_panel) * tile_size
                            multiply_columns(packed, a, patches, b, length, tiles, t, width, adds)
                            if last:
                                size = (height, count)
                                _store_tile(
                                    tiles, t, width, size, column, channel, g.out_channels, plane, False, y
                                )
                        if last and (bias.size > 0 or activation > 0):
                            size = (height, count)
                            _finish_tile(size, column, channel, g.out_channels, plane, bias, activation, y)


@driver
def _forward_dense_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _forward_dense(np.intp(index), workers, *args)


# --- gradient by the input ----------------------------------------------------------------------------------


@inlined
def pointwise(g: ConvGeometry) -> ConvGeometry:
    """The convolution whose patches are the gradient of the output as it is."""
    plane = product(g.output_size)
    one, zero = (1, 1, 1), (0, 0, 0)
    size = (1, 1, plane)
    return ConvGeometry(g.batch, g.out_channels, g.out_channels, g.groups, size, size, one, one, one, zero)


@inlined
def add_patches(
    products: Array,
    stride: int,
    g: ConvGeometry,
    group: int,
    rows: tuple[int, int],
    runs: Sizes,
    run_count: int,
    x: Array,
) -> None:
    """The reverse of `pack_patches`: add each element of these rows to the input element that it was."""
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
                    if d < 0 or d >= size[0] or h < 0 or h >= size[1] or first >= end:
                        continue
                    start = (d * size[1] + h) * size[2] + w + first * step
                    start += ((image * g.groups + group) * channels + first_channel) * plane
                    begin = (first_channel * taps + tap - rows[0]) * stride + offset + first
                    for _ in range(first_channel, last_channel):
                        values = products[begin : begin + end - first]
                        row = x[start : start + (end - first - 1) * step + 1]
                        if step == 1:
                            for i in range(end - first):
                                row[i] += values[i]
                        else:
                            for i in range(end - first):
                                row[i * step] += values[i]
                        start += plane
                        begin += taps * stride
                tap += 1


@worker
def _grad_input_dense(
    index: int,
    workers: int,
    grad_y: Array,
    packed: Array,
    bias: Array,
    activation: int,
    grad_x: Array,
    sizes: Sizes,
    blocks: Sizes,
    buffers: Array,
    tables: Sizes,
) -> None:
    """Transposed weights times output gradient, block by block, each added where its patches came from.

    A task is some images by some input channels, so no two tasks add to the same element, and the order in
    which a task adds does not depend on the number of workers.
    """
    g = geometry_of(sizes)
    outputs = pointwise(g)
    depth_block, column_panels, row_panels, images, channels = blocks
    width = TILE_VECTORS * (VECTOR_BYTES // grad_y.itemsize)
    group_channels = g.in_channels // g.groups
    taps = product(g.kernel_size)
    depth = g.out_channels // g.groups
    all_row_panels = panel_count(group_channels * taps, TILE_ROWS)
    plane = product(g.input_size)
    columns = product(g.output_size)
    stride = column_panels * width
    products = buffers[index, : row_panels * TILE_ROWS * stride]
    gradients = buffers[index, row_panels * TILE_ROWS * stride :]
    runs = tables[index]
    image_blocks = panel_count(g.batch, images)
    channel_blocks = panel_count(group_channels, channels)
    for task in range(index, image_blocks * g.groups * channel_blocks, workers):
        rest, channel_block = divmod(task, channel_blocks)
        image_block, group = divmod(rest, g.groups)
        first_image = image_block * images
        last_image = min(g.batch, first_image + images)
        first_channel = channel_block * channels
        last_channel = min(group_channels, first_channel + channels)
        for image in range(first_image, last_image):
            begin = (image * g.in_channels + group * group_channels + first_channel) * plane
            grad_x[begin : begin + (last_channel - first_channel) * plane] = 0
        first_panel = first_channel * taps // TILE_ROWS
        last_panel = panel_count(last_channel * taps, TILE_ROWS)
        for column in range(first_image * columns, last_image * columns, stride):
            count = min(stride, last_image * columns - column)
            for i0 in range(first_panel, last_panel, row_panels):
                i1 = min(last_panel, i0 + row_panels)
                for k0 in range(0, depth, depth_block):
                    length = min(depth_block, depth - k0)
                    for j in range(panel_count(count, width)):
                        run_count = find_runs(
                            outputs, column + j * width, min(width, count - j * width), runs
                        )
                        panel = gradients[j * length * width :]
                        pack_patches(grad_y, outputs, group, (k0, k0 + length), runs, run_count, width, panel)
                    for j in range(panel_count(count, width)):
                        for i in range(i0, i1):
                            a = ((group * depth + k0) * all_row_panels + i * length) * TILE_ROWS
                            b = j * length * width
                            c = (i - i0) * TILE_ROWS * stride + j * width
                            multiply_columns(packed, a, gradients, b, length, products, c, stride, k0 > 0)
                first_row = max(first_channel * taps, i0 * TILE_ROWS)
                last_row = min(last_channel * taps, i1 * TILE_ROWS)
                run_count = find_runs(g, column, count, runs)
                sums = products[(first_row - i0 * TILE_ROWS) * stride :]
                add_patches(sums, stride, g, group, (first_row, last_row), runs, run_count, grad_x)
        if bias.size > 0 or activation > 0:
            for image in range(first_image, last_image):
                for c in range(first_channel, last_channel):
                    channel = group * group_channels + c
                    begin = (image * g.in_channels + channel) * plane
                    finish(grad_x[begin : begin + plane], bias, channel, activation)


@driver
def _grad_input_dense_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _grad_input_dense(np.intp(index), workers, *args)


# --- gradient by the weight ---------------------------------------------------------------------------------


@inlined
def _pack_transposed(
    grad_y: Array,
    g: ConvGeometry,
    channel: int,
    channels: int,
    column: int,
    count: int,
    width: int,
    target: Array,
) -> None:
    """``target[column, channel]`` in panels of ``width`` channels; a panel has room for `DEPTH` columns."""
    plane = product(g.output_size)
    lanes = VECTOR_BYTES // grad_y.itemsize
    image, place = divmod(column, plane)
    done = 0
    while done < count:
        length = min(count - done, plane - place)
        start = (image * g.out_channels + channel) * plane + place
        for c0 in range(0, channels, lanes):
            begin = (c0 // width * DEPTH + done) * width + c0 % width
            i = 0
            if c0 + lanes <= channels:
                while i + lanes <= length:
                    transpose_square(grad_y, start + c0 * plane + i, plane, target, begin + i * width, width)
                    i += lanes
            for c in range(min(lanes, channels - c0)):
                for k in range(i, length):
                    target[begin + k * width + c] = grad_y[start + (c0 + c) * plane + k]
        done += length
        image += 1
        place = 0


@worker
def _grad_weight_dense(
    index: int,
    workers: int,
    x: Array,
    grad_y: Array,
    sizes: Sizes,
    blocks: Sizes,
    sums: Array,
    buffers: Array,
    tables: Sizes,
) -> None:
    """Patches times the transposed output gradient.

    A task is a slice of the columns by a block of the weight. Each slice has its own sums, which
    `_add_slices` adds up. The number of slices follows from the shapes.
    """
    g = geometry_of(sizes)
    slices, row_block, channel_block = blocks
    width = GRAD_VECTORS * (VECTOR_BYTES // x.itemsize)
    rows = (g.in_channels // g.groups) * product(g.kernel_size)
    channels = g.out_channels // g.groups
    columns = g.batch * product(g.output_size)
    padded_rows = panel_count(rows, GRAD_ROWS) * GRAD_ROWS
    padded_channels = panel_count(channels, width) * width
    row_blocks = panel_count(rows, row_block)
    channel_blocks = panel_count(channels, channel_block)
    slice_columns = panel_count(panel_count(columns, DEPTH), slices) * DEPTH
    patches = buffers[index, : row_block * PATCH_STRIDE]
    gradients = buffers[index, row_block * PATCH_STRIDE :]
    runs = tables[index]
    for task in range(index, slices * g.groups * row_blocks * channel_blocks, workers):
        rest, channel_number = divmod(task, channel_blocks)
        rest, row_number = divmod(rest, row_blocks)
        part, group = divmod(rest, g.groups)
        first_row = row_number * row_block
        last_row = min(rows, first_row + row_block)
        first_channel = channel_number * channel_block
        block_channels = min(channel_block, channels - first_channel)
        target = ((part * g.groups + group) * padded_rows + first_row) * padded_channels + first_channel
        first_column = part * slice_columns
        for column in range(first_column, min(columns, first_column + slice_columns), DEPTH):
            length = min(DEPTH, columns - column)
            run_count = find_runs(g, column, length, runs)
            pack_patches(x, g, group, (first_row, last_row), runs, run_count, PATCH_STRIDE, patches)
            channel = group * channels + first_channel
            _pack_transposed(grad_y, g, channel, block_channels, column, length, width, gradients)
            for j in range(panel_count(block_channels, width)):
                for i in range(panel_count(last_row - first_row, GRAD_ROWS)):
                    a = i * GRAD_ROWS * PATCH_STRIDE
                    b = j * DEPTH * width
                    c = target + i * GRAD_ROWS * padded_channels + j * width
                    multiply_rows(
                        patches, a, gradients, b, length, sums, c, padded_channels, column > first_column
                    )


@driver
def _grad_weight_dense_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _grad_weight_dense(np.intp(index), workers, *args)


@worker
def _add_slices(
    index: int, workers: int, sums: Array, sizes: Sizes, slices: int, grad_weight: Array, finite: Flags
) -> None:
    """The sum of the slices' sums, transposed to where the weights are. A task is a vector's number of rows."""
    g = geometry_of(sizes)
    lanes = VECTOR_BYTES // sums.itemsize
    width = GRAD_VECTORS * lanes
    rows = (g.in_channels // g.groups) * product(g.kernel_size)
    channels = g.out_channels // g.groups
    padded_rows = panel_count(rows, GRAD_ROWS) * GRAD_ROWS
    padded_channels = panel_count(channels, width) * width
    row_blocks = panel_count(rows, lanes)
    good = 0
    for task in range(index, g.groups * row_blocks, workers):
        group, row_block = divmod(task, row_blocks)
        first = row_block * lanes
        count = min(lanes, rows - first)
        for i in range(first, first + count):
            start = (group * padded_rows + i) * padded_channels
            total = sums[start : start + channels]
            for _ in range(1, slices):
                start += g.groups * padded_rows * padded_channels
                addend = sums[start : start + channels]
                for k in range(channels):
                    total[k] += addend[k]
            for k in range(channels):
                good += 1 if total[k] - total[k] == 0 else 0
        source = (group * padded_rows + first) * padded_channels
        target = group * channels * rows + first
        done = 0
        if count == lanes:
            while done + lanes <= channels:
                begin = target + done * rows
                transpose_square(sums, source + done, padded_channels, grad_weight, begin, rows)
                done += lanes
        for k in range(done, channels):
            for i in range(count):
                grad_weight[target + k * rows + i] = sums[source + i * padded_channels + k]
        good -= count * channels
    finite[index] = good == 0


@driver
def _add_slices_parallel(workers: int, *args: Any) -> None:
    for index in prange(workers):
        _add_slices(np.intp(index), workers, *args)


pack_weights = Kernel(_pack_weights, _pack_weights_parallel)
forward_dense = Kernel(_forward_dense, _forward_dense_parallel)
grad_input_dense = Kernel(_grad_input_dense, _grad_input_dense_parallel)
grad_weight_dense = Kernel(_grad_weight_dense, _grad_weight_dense_parallel)
add_slices = Kernel(_add_slices, _add_slices_parallel)
