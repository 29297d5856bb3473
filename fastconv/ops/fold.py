"""Sliding windows as columns and back.

Both are copies of strided slices, one for each kernel position, which an array library does at memory speed: they
are written once for all backends.
"""

from __future__ import annotations

import math

from fastconv.errors import ShapeError
from fastconv.geometry import (
    ConvGeometry,
    IntOrInts,
    Padding,
    Shape,
    axis_ints,
    check_shape,
    conv_geometry,
    is_sequence,
    split_shape,
    taps,
)
from fastconv.ops._arrays import (
    Array,
    ArrayLike,
    begin,
    conv_precision,
    max_precision,
)
from fastconv.ops._calls import Settled, operation, quiet, settled


@operation
def unfold(
    input: ArrayLike,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    padding: Padding = 0,
    stride: IntOrInts = 1,
    *,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Every window of the input as a column, as ``torch.nn.functional.unfold`` (im2col).

    Parameters
    ----------
    input : array_like, shape (N, C, *spatial) or (C, *spatial)
        Keeps its dtype.
    kernel_size : int or ints
        As many axes as it has values, from one to three; an int means two axes.
    dilation, padding, stride
        As in `conv2d`; padding holds zeros.
    out, backend
        As in `conv2d`.

    Returns
    -------
    ndarray, shape (N, C * prod(kernel_size), L) or (C * prod(kernel_size), L)
        ``L`` windows in row-major order.

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `conv2d` does.
    """
    op = "unfold"
    call, (x,) = begin(op, backend, input=input)
    precision = max_precision(op, input=x)
    ndim = _axes(op, kernel_size)
    batch, channels, _ = split_shape(op, "input", x.shape, ndim)
    geometry = _windows(op, ndim, x.shape, kernel_size, stride, padding, dilation)
    shape = (
        *x.shape[: -ndim - 1],
        channels * math.prod(geometry.kernel_size),
        math.prod(geometry.output_size),
    )
    columns_shape = (batch, channels, *geometry.kernel_size, *geometry.output_size)

    def run(x: Array, out: Array | None = None) -> Array:
        target = None if out is None else out.reshape(columns_shape)
        columns = call.full(columns_shape, 0, precision.compute, target)
        if not geometry.is_empty:
            values = x.reshape(geometry.x_shape)
            for tap in taps(geometry):
                columns[(slice(None), slice(None), *tap.position, *tap.outputs)] = values[(..., *tap.inputs)]
        return columns.reshape(shape) if out is None else out

    return settled(call, run, precision, shape, out, unread=("input",) * geometry.is_empty, input=x)


@operation
def fold(
    input: ArrayLike,
    output_size: IntOrInts,
    kernel_size: IntOrInts,
    dilation: IntOrInts = 1,
    padding: Padding = 0,
    stride: IntOrInts = 1,
    *,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Adds the columns back to where `unfold` took them from, as ``torch.nn.functional.fold`` (col2im).

    Parameters
    ----------
    input : array_like, shape (N, C * prod(kernel_size), L) or (C * prod(kernel_size), L)
        Floating types stay, accumulated as in `conv2d`; integers become int32 or int64 as there.
    output_size : int or one int per axis
        The spatial size of the result.
    kernel_size, dilation, padding, stride
        As in `unfold`.
    out, backend
        As in `conv2d`.

    Returns
    -------
    ndarray, shape (N, C, *output_size) or (C, *output_size)

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `conv2d` does.
    """
    op = "fold"
    call, (columns,) = begin(op, backend, input=input)
    precision = conv_precision(op, input=columns)
    ndim = _axes(op, kernel_size)
    size = axis_ints(op, "output_size", output_size, ndim, low=0)
    if columns.ndim not in (2, 3):
        raise ShapeError(
            f"{op}: input has {columns.ndim} dimensions, shape {columns.shape}, "
            "expected (N, C*kernel, L) or (C*kernel, L)"
        )
    rows = columns.shape[-2]
    lead = columns.shape[:-2]
    probe = _windows(op, ndim, (*lead, 1, *size), kernel_size, stride, padding, dilation)
    kernel = math.prod(probe.kernel_size)
    if rows % kernel:
        raise ShapeError(
            f"{op}: input has {rows} rows, expected a multiple of the kernel's {kernel} elements"
        )
    check_shape(op, "input", columns.shape, (*lead, rows, math.prod(probe.output_size)))
    geometry = probe._replace(in_channels=rows // kernel)
    shape = (*lead, rows // kernel, *size)
    columns_shape = (geometry.batch, geometry.in_channels, *geometry.kernel_size, *geometry.output_size)

    @quiet
    def run(columns: Array, out: Array | None = None) -> Array:
        result = call.full(shape, 0, precision.compute, out)
        if not geometry.is_empty:
            values, image = columns.reshape(columns_shape), result.reshape(geometry.x_shape)
            for tap in taps(geometry):
                image[(..., *tap.inputs)] += values[(slice(None), slice(None), *tap.position, *tap.outputs)]
        return result

    return settled(call, run, precision, shape, out, unread=("input",) * geometry.is_empty, input=columns)


def _axes(op: str, kernel_size: IntOrInts) -> int:
    if is_sequence(kernel_size):
        if not 1 <= len(kernel_size) <= 3:
            raise ShapeError(f"{op}: kernel_size has {len(kernel_size)} values, expected one to three")
        return len(kernel_size)
    return 2


def _windows(
    op: str,
    ndim: int,
    shape: Shape,
    kernel_size: IntOrInts,
    stride: IntOrInts,
    padding: Padding,
    dilation: IntOrInts,
) -> ConvGeometry:
    """The geometry of a convolution with such windows; channels do not matter to it."""
    channels = split_shape(op, "input", shape, ndim)[1]
    kernel = axis_ints(op, "kernel_size", kernel_size, ndim, low=1)
    return conv_geometry(op, ndim, shape, (1, channels, *kernel), stride, padding, dilation, 1)
