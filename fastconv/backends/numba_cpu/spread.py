"""Spread planes: padded copies in which a kernel position reads one contiguous run for all outputs.

Rows that are equal modulo the stride lie together (a "phase"), so that the rows one kernel position reads
follow each other. Outputs are computed as far apart as what they read, with values between them that nobody
needs.
"""

from __future__ import annotations

from fastconv.backends.numba_cpu.common import Array, Sizes, panel_count
from fastconv.backends.numba_cpu.launch import inlined
from fastconv.backends.numba_cpu.vectors import copy_each
from fastconv.geometry import ConvGeometry


def spread_axis(g: ConvGeometry, axis: int) -> tuple[int, int, int]:
    """Phases, padding in front (a multiple of the phases) and length of a phase of a spread plane's axis."""
    phases = g.stride[axis] if axis < 2 else 1
    lowest = -g.pad_low[axis] // phases
    reach = (g.output_size[axis] - 1) * g.stride[axis] + (g.kernel_size[axis] - 1) * g.dilation[axis]
    return phases, -lowest * phases, (reach - g.pad_low[axis]) // phases - lowest + 1


_spread_axis = inlined(spread_axis)


@inlined
def spread_row(g: ConvGeometry, d: int, h: int) -> int:
    """Where row (d, h) of the padded input begins in a spread plane; -1 if no kernel position reads it."""
    _, front_d, length_d = _spread_axis(g, 0)
    _, front_h, length_h = _spread_axis(g, 1)
    _, _, width = _spread_axis(g, 2)
    depth, phase_d = divmod(d + front_d, g.stride[0])
    height, phase_h = divmod(h + front_h, g.stride[1])
    if depth >= length_d or height >= length_h:
        return -1
    return (((phase_d * g.stride[1] + phase_h) * length_d + depth) * length_h + height) * width


@inlined
def find_places(g: ConvGeometry, channel_stride: int, table: Sizes) -> tuple[Sizes, Sizes]:
    """Where each channel and kernel position reads for the first output, and where each input row goes."""
    _, front, _ = _spread_axis(g, 2)
    found = 0
    for c in range(g.in_channels // g.groups):
        for kd in range(g.kernel_size[0]):
            for kh in range(g.kernel_size[1]):
                row = spread_row(g, kd * g.dilation[0] - g.pad_low[0], kh * g.dilation[1] - g.pad_low[1])
                for kw in range(g.kernel_size[2]):
                    table[found] = c * channel_stride + row + kw * g.dilation[2] - g.pad_low[2] + front
                    found += 1
    rows = table[found:]
    for d in range(g.input_size[0]):
        for h in range(g.input_size[1]):
            rows[d * g.input_size[1] + h] = spread_row(g, d, h)
    return table[:found], rows


@inlined
def _row_in_plane(g: ConvGeometry) -> tuple[int, int]:
    """Padding in front of an input row and how much of the row is read."""
    _, front, length = _spread_axis(g, 2)
    return front, max(0, min(g.input_size[2], length - front))


@inlined
def spread_plane(x: Array, start: int, g: ConvGeometry, rows: Sizes, spread: Array, begin: int) -> None:
    """Copy an input plane to ``begin``; the padding around it is there already."""
    front, count = _row_in_plane(g)
    width = g.input_size[2]
    for i in range(rows.size):
        if rows[i] >= 0:
            copy_each(x, start + i * width, spread, begin + rows[i] + front, count)


@inlined
def gather_plane(spread: Array, g: ConvGeometry, rows: Sizes, x: Array, start: int) -> None:
    """The reverse of `spread_plane`: what no kernel position reads becomes zero."""
    front, count = _row_in_plane(g)
    width = g.input_size[2]
    for i in range(rows.size):
        begin = start + i * width
        used = 0 if rows[i] < 0 else count
        copy_each(spread, rows[i] + front, x, begin, used)
        x[begin + used : begin + width] = 0


@inlined
def pitches(g: ConvGeometry) -> tuple[int, int]:
    """How far apart the outputs of two depths and of two rows are, which is as far as what they read."""
    _, _, height = _spread_axis(g, 1)
    _, _, width = _spread_axis(g, 2)
    return height * width, width


@inlined
def flat_length(g: ConvGeometry, step: int) -> int:
    """From the first output to the last, at these distances; a multiple of ``step``."""
    depth_pitch, pitch = pitches(g)
    depth, height, width = g.output_size
    length = (depth - 1) * depth_pitch + (height - 1) * pitch + (width - 1) * g.stride[2] + 1
    return panel_count(length, step) * step
