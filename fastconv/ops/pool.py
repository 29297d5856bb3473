"""Pooling: maximum, average, Lp norm, adaptive; their gradients; unpooling."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastconv.backends.reference import lowest
from fastconv.errors import ShapeError
from fastconv.geometry import (
    IntOrInts,
    Padding,
    PoolGeometry,
    Shape,
    adaptive_pool_geometry,
    check_shape,
    full_shape,
    one_bool,
    pool_geometry,
    show,
    split_shape,
    three,
    unpool_size,
)
from fastconv.ops._arrays import (
    Array,
    ArrayLike,
    Call,
    Precision,
    as_kernel_input,
    begin,
    max_precision,
    mean_precision,
)
from fastconv.ops._calls import Run, Settled, operation, per_dimension, quiet, settled

INDEX, WIDE = np.dtype(np.int64), np.dtype(np.float64)
LP_BITS = 256  # what powers in the gradient of Lp pooling may reach: a quarter of float64's exponents


@operation
def max_pool_nd(
    ndim: int,
    input: ArrayLike,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Any]:
    """Maximum of each window, with arguments in the order of ``torch.nn.functional.max_poolNd``.

    Parameters
    ----------
    input : array_like, shape (N, C, *spatial) or (C, *spatial)
        Keeps its dtype, integers and bool too.
    kernel_size : int or one int per axis
    stride : int or one int per axis, optional
        By default the kernel size.
    padding : int, one int per axis, one (low, high) pair per axis, or a name
        As in `convNd`; smaller than the dilated kernel on each side. Padding is never read.
    dilation : int or one int per axis
    ceil_mode : bool
        Keep windows that overhang the end, if they start inside the input or its low padding.
    return_indices : bool
        Also return where each maximum was.
    out : ndarray, optional
        For the values; only without ``return_indices``.
    backend : str, optional

    Returns
    -------
    values : ndarray, shape (N, C, *out) or (C, *out)
        Of equal elements the first in row-major order wins; NaN wins over everything, the last NaN over other NaNs.
        A window without any element gives minus infinity (the smallest value of an integer type).
    indices : ndarray of int64, same shape
        Flat position in the spatial plane of each (n, c); -1 for a window without any element.

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"max_pool{ndim}d"
    call, (x,) = begin(op, backend, input=input)
    geometry = pool_geometry(op, ndim, x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool(call, ndim, x, geometry, return_indices, out)


@operation
def adaptive_max_pool_nd(
    ndim: int,
    input: ArrayLike,
    output_size: int | Sequence[int | None] | None,
    return_indices: bool = False,
    *,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Any]:
    """Maximum of windows that divide the input into ``output_size`` parts.

    Parameters
    ----------
    input : array_like, shape (N, C, *spatial) or (C, *spatial)
        Keeps its dtype, integers and bool too.
    output_size : int, None, or one of them per axis
        ``None`` keeps the size of an axis. Window ``i`` covers ``floor(i*L/o)`` up to ``ceil((i+1)*L/o)``.
    return_indices : bool
    out, backend
        As in `max_poolNd`, and so are the results; the gradient is `max_poolNd_backward`.

    Returns
    -------
    values : ndarray, and indices : ndarray of int64 where asked for

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"adaptive_max_pool{ndim}d"
    call, (x,) = begin(op, backend, input=input)
    return _max_pool(
        call, ndim, x, adaptive_pool_geometry(op, ndim, x.shape, output_size), return_indices, out
    )


@operation
def max_pool_nd_backward(
    ndim: int,
    grad_output: ArrayLike,
    indices: ArrayLike,
    input_size: Sequence[int],
    *,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Gradient of `max_poolNd` and `adaptive_max_poolNd` with respect to their input.

    Parameters
    ----------
    grad_output : array_like, shape (N, C, *out) or (C, *out)
        Floating types stay; integers become float64.
    indices : array_like of ints, same shape
        As `max_poolNd` returned them; -1 receives no gradient.
    input_size : sequence of ints
        The input's whole shape, or its spatial part.
    out, backend
        As in `max_poolNd`.

    Returns
    -------
    ndarray of the input's shape

    Raises
    ------
    IndexError
        If an index lies outside the input's plane.
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"max_pool{ndim}d_backward"
    call, (gy, given) = begin(op, backend, grad_output=grad_output, indices=indices)
    precision = mean_precision(op, grad_output=gy)
    shape, planes, plane = _pooled_input(op, ndim, gy, input_size)
    where = _as_indices(call, given, gy.shape, plane)
    x_shape, y_shape = (planes, *three(plane)), (planes, *three(gy.shape[-ndim:]))
    empty = 0 in x_shape or 0 in y_shape
    kernel = call.backend.max_pool_grad_input

    def run(grad_y: Array, indices: Array, out: Array | None = None) -> Array:
        grad_x = call.empty(shape, precision.compute) if out is None else out
        if empty:
            grad_x[...] = 0
            bad = next(iter(np.flatnonzero(indices != -1)), -1)
        else:
            bad = kernel(grad_y.reshape(y_shape), indices.reshape(y_shape), grad_x.reshape(x_shape))
        if bad >= 0:
            _refuse_index(op, indices, int(bad), plane)
        return grad_x

    return settled(
        call, run, precision, shape, out, unread=("grad_output",) * empty, grad_output=gy, indices=where
    )


@operation
def max_unpool_nd(
    ndim: int,
    input: ArrayLike,
    indices: ArrayLike,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    output_size: IntOrInts | None = None,
    *,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Puts pooled values back to where they came from; everything else is zero.

    Parameters
    ----------
    input : array_like, shape (N, C, *spatial) or (C, *spatial)
        Keeps its dtype, integers and bool too.
    indices : array_like of ints, same shape
        As `max_poolNd` returned them; -1 is skipped. Of equal indices the last value stays.
    kernel_size, stride, padding
        As they were given to `max_poolNd`.
    output_size : int, one int per axis, or a whole shape, optional
        By default ``(in - 1) * stride - low - high + kernel`` on each axis; it may differ by less than the stride.
    out, backend
        As in `max_poolNd`.

    Returns
    -------
    ndarray, shape (N, C, *out) or (C, *out)

    Raises
    ------
    IndexError
        If an index lies outside the output's plane.
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"max_unpool{ndim}d"
    call, (x, given) = begin(op, backend, input=input, indices=indices)
    precision = max_precision(op, input=x)
    plane = unpool_size(op, ndim, x.shape, kernel_size, stride, padding, output_size)
    batch, channels, _ = split_shape(op, "input", x.shape, ndim)
    where = _as_indices(call, given, x.shape, plane)
    elements = math.prod(plane)
    planes, pooled = batch * channels, math.prod(x.shape[-ndim:])
    shape = (*x.shape[:-ndim], *plane)

    def run(values: Array, indices: Array, out: Array | None = None) -> Array:
        outside = np.flatnonzero((indices < -1) | (indices >= elements))
        if outside.size:
            _refuse_index(op, indices, int(outside[0]), plane)
        restored = call.full(shape, 0, precision.compute, out)
        values, indices = values.reshape(planes, pooled), indices.reshape(planes, pooled)
        row, column = call.xp.nonzero(indices >= 0)
        restored.reshape(planes, elements)[row, indices[row, column]] = values[row, column]
        return restored

    return settled(call, run, precision, shape, out, input=x, indices=where)


@operation
def avg_pool_nd(
    ndim: int,
    input: ArrayLike,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: IntOrInts = 1,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Mean of each window, with arguments in the order of ``torch.nn.functional.avg_poolNd``.

    Parameters
    ----------
    input : array_like, shape (N, C, *spatial) or (C, *spatial)
        Integers become float64, as in NumPy's mean.
    kernel_size, stride, padding, ceil_mode, dilation
        As in `max_poolNd`.
    count_include_pad : bool
        Whether elements in the padding count in the divisor. Those of a window that overhangs the padding never do.
    divisor_override : int, optional
        Divide by this instead; not 0.
    out, backend
        As in `max_poolNd`.

    Returns
    -------
    ndarray, shape (N, C, *out) or (C, *out)
        0 for a window without any element.

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"avg_pool{ndim}d"
    call, (x,) = begin(op, backend, input=input)
    geometry = pool_geometry(
        op, ndim, x.shape, kernel_size, stride, padding, dilation, ceil_mode,
        count_include_pad=count_include_pad, divisor_override=divisor_override,
    )  # fmt: skip
    return _avg_pool(call, ndim, x, geometry, out)


@operation
def adaptive_avg_pool_nd(
    ndim: int,
    input: ArrayLike,
    output_size: int | Sequence[int | None] | None,
    *,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Mean of windows that divide the input into ``output_size`` parts.

    Parameters
    ----------
    input : array_like, shape (N, C, *spatial) or (C, *spatial)
        Integers become float64, as in NumPy's mean.
    output_size : int, None, or one of them per axis
        As in `adaptive_max_poolNd`; 1 is global pooling.
    out, backend
        As in `max_poolNd`.

    Returns
    -------
    ndarray, shape (N, C, *output_size) or (C, *output_size)

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"adaptive_avg_pool{ndim}d"
    call, (x,) = begin(op, backend, input=input)
    return _avg_pool(call, ndim, x, adaptive_pool_geometry(op, ndim, x.shape, output_size), out)


@operation
def avg_pool_nd_backward(
    ndim: int,
    grad_output: ArrayLike,
    input_size: Sequence[int],
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: IntOrInts = 1,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Gradient of `avg_poolNd` with respect to its input.

    Parameters
    ----------
    grad_output : array_like, shape of the pooling's result
        Floating types stay; integers become float64.
    input_size : sequence of ints
        The input's whole shape, or its spatial part.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation
        As they were given to `avg_poolNd`.
    out, backend
        As in `max_poolNd`.

    Returns
    -------
    ndarray of the input's shape

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"avg_pool{ndim}d_backward"
    call, (gy,) = begin(op, backend, grad_output=grad_output)
    shape, _, _ = _pooled_input(op, ndim, gy, input_size)
    geometry = pool_geometry(
        op, ndim, shape, kernel_size, stride, padding, dilation, ceil_mode,
        count_include_pad=count_include_pad, divisor_override=divisor_override,
    )  # fmt: skip
    return _avg_pool_backward(call, ndim, gy, shape, geometry, out)


@operation
def adaptive_avg_pool_nd_backward(
    ndim: int,
    grad_output: ArrayLike,
    input_size: Sequence[int],
    *,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Gradient of `adaptive_avg_poolNd` with respect to its input.

    Parameters
    ----------
    grad_output : array_like, shape of the pooling's result
        Floating types stay; integers become float64.
    input_size : sequence of ints
        The input's whole shape, or its spatial part.
    out, backend
        As in `max_poolNd`.

    Returns
    -------
    ndarray of the input's shape

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"adaptive_avg_pool{ndim}d_backward"
    call, (gy,) = begin(op, backend, grad_output=grad_output)
    shape, _, _ = _pooled_input(op, ndim, gy, input_size)
    return _avg_pool_backward(
        call, ndim, gy, shape, adaptive_pool_geometry(op, ndim, shape, gy.shape[-ndim:]), out
    )


@operation
def lp_pool_nd(
    ndim: int,
    input: ArrayLike,
    norm_type: float,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Norm of each window, ``sum(|x| ** p) ** (1 / p)``.

    Parameters
    ----------
    input : array_like, shape (N, C, *spatial) or (C, *spatial)
        Integers become float64.
    norm_type : float
        The exponent ``p``, finite and positive.
    kernel_size, stride, ceil_mode, padding, dilation
        As in `max_poolNd`.
    out, backend
        As in `max_poolNd`.

    Returns
    -------
    ndarray, shape (N, C, *out) or (C, *out)

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"lp_pool{ndim}d"
    p = _norm_type(op, norm_type)
    call, (x,) = begin(op, backend, input=input)
    precision = mean_precision(op, input=x)
    geometry = pool_geometry(
        op, ndim, x.shape, kernel_size, stride, padding, dilation, ceil_mode, divisor_override=1
    )
    shape = _pooled_shape(x, ndim, geometry)

    @quiet
    def run(x: Array, out: Array | None = None) -> Array:
        y = call.empty(shape, precision.compute) if out is None else out
        if geometry.is_empty:
            y[...] = 0
        else:
            _lp_norm(call, call.xp.abs(x.reshape(geometry.x_shape)), p, y.reshape(geometry.y_shape), geometry)
        return y

    return settled(call, run, precision, shape, out, unread=("input",) * geometry.is_empty, input=x)


@operation
def lp_pool_nd_backward(
    ndim: int,
    grad_output: ArrayLike,
    input: ArrayLike,
    norm_type: float,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    out: Array | None = None,
    backend: str | None = None,
) -> Settled[Array]:
    """Gradient of `lp_poolNd` with respect to its input: ``sign(x) |x|**(p-1) * sum over windows of g * y**(1-p)``.

    Parameters
    ----------
    grad_output : array_like, shape of the pooling's result
        Floating types of grad_output and input promote as in NumPy; if both are integers the result is float64.
    input, norm_type, kernel_size, stride, ceil_mode, padding, dilation
        As they were given to `lp_poolNd`.
    out, backend
        As in `max_poolNd`.

    Returns
    -------
    ndarray of the input's shape
        A window whose norm is 0 contributes 0.

    Raises
    ------
    ShapeError, TypeError, ValueError, BackendUnavailableError
        As `convNd` does.
    """
    op = f"lp_pool{ndim}d_backward"
    p = _norm_type(op, norm_type)
    call, (gy, x) = begin(op, backend, grad_output=grad_output, input=input)
    precision = Precision(mean_precision(op, grad_output=gy, input=x).result, WIDE)
    geometry = pool_geometry(
        op, ndim, x.shape, kernel_size, stride, padding, dilation, ceil_mode, divisor_override=1
    )
    check_shape(op, "grad_output", gy.shape, _pooled_shape(x, ndim, geometry))
    shape = x.shape

    @quiet
    def run(grad_y: Array, x: Array, out: Array | None = None) -> Array:
        grad_x = call.empty(shape, WIDE) if out is None else out
        if geometry.is_empty:
            grad_x[...] = 0
        else:
            grad_y, size = grad_y.reshape(geometry.y_shape), call.xp.abs(x.reshape(geometry.x_shape))
            _lp_grad_size(call, grad_y, size, p, grad_x.reshape(geometry.x_shape), geometry)
            grad_x *= call.xp.sign(x)
        return grad_x

    unread = ("grad_output", "input") * geometry.is_empty
    return settled(call, run, precision, shape, out, unread=unread, grad_output=gy, input=x)


# --- the way to the kernels ------------------------------------------------------------------------------------------


def _max_pool(
    call: Call, ndim: int, x: Array, geometry: PoolGeometry, return_indices: bool, out: Array | None
) -> Settled[Any]:
    return_indices = one_bool(call.op, "return_indices", return_indices)
    precision = max_precision(call.op, input=x)
    shape = _pooled_shape(x, ndim, geometry)
    if return_indices and out is not None:
        raise ValueError(f"{call.op}: out cannot be combined with return_indices=True")
    x_shape, y_shape, empty = geometry.x_shape, geometry.y_shape, geometry.is_empty
    dtype, kernel = precision.compute, call.backend.max_pool

    def run(x: Array, out: Array | None = None) -> Any:
        y = call.empty(shape, dtype) if out is None else out
        indices = call.empty(shape, INDEX) if return_indices else None
        if empty:
            y[...] = lowest(dtype)
            if indices is not None:
                indices[...] = -1
        else:
            where = None if indices is None else indices.reshape(y_shape)
            kernel(x.reshape(x_shape), y.reshape(y_shape), where, geometry)
        return y if indices is None else (y, indices)

    return settled(call, run, precision, shape, out, unread=("input",) * geometry.is_empty, input=x)


def _avg_pool(call: Call, ndim: int, x: Array, geometry: PoolGeometry, out: Array | None) -> Settled[Array]:
    shape = _pooled_shape(x, ndim, geometry)
    precision = mean_precision(call.op, input=x)
    sides = geometry.x_shape, geometry.y_shape
    run = _mean(call, call.backend.avg_pool, geometry, *sides, shape, precision)
    return settled(call, run, precision, shape, out, unread=("input",) * geometry.is_empty, input=x)


def _avg_pool_backward(
    call: Call, ndim: int, gy: Array, shape: Shape, geometry: PoolGeometry, out: Array | None
) -> Settled[Array]:
    precision = mean_precision(call.op, grad_output=gy)
    check_shape(call.op, "grad_output", gy.shape, (*shape[:-ndim], *geometry.output_size[3 - ndim :]))
    sides = geometry.y_shape, geometry.x_shape
    run = _mean(call, call.backend.avg_pool_grad_input, geometry, *sides, shape, precision)
    unread = ("grad_output",) * geometry.is_empty
    return settled(call, run, precision, shape, out, unread=unread, grad_output=gy)


def _mean(
    call: Call,
    kernel: Callable[[Array, Array, PoolGeometry], None],
    geometry: PoolGeometry,
    source_shape: Shape,
    result_shape: Shape,
    shape: Shape,
    precision: Precision,
) -> Run[Array]:
    """`avg_pool` or its adjoint, of what the user passes to what the user expects."""
    if geometry.is_empty:
        return lambda _source, out=None: call.full(shape, 0, precision.compute, out)

    def run(source: Array, out: Array | None = None) -> Array:
        result = call.empty(shape, precision.compute) if out is None else out
        kernel(source.reshape(source_shape), result.reshape(result_shape), geometry)
        return result

    return run


def _lp_norm(call: Call, size: Array, p: float, norm: Array, geometry: PoolGeometry) -> None:
    """``norm`` becomes the p-norm of each window of absolute values: a sum pooling between two powers."""
    call.backend.avg_pool((size**p).astype(size.dtype, copy=False), norm, geometry)
    norm **= 1 / p


def _lp_grad_size(
    call: Call, grad_y: Array, size: Array, p: float, grad_size: Array, geometry: PoolGeometry
) -> None:
    """``grad_size`` becomes the gradient by the absolute values, the windows of each magnitude together.

    It depends on ``size / norm`` alone, while ``size ** p`` and ``norm ** (1 - p)`` may leave the range of float64:
    not so where both are divided by a power of two near the window's maximum.
    """
    xp = call.xp
    peak, norm = call.empty(geometry.y_shape, WIDE), call.empty(geometry.y_shape, WIDE)
    call.backend.max_pool(size, peak, None, geometry)
    reach = LP_BITS / max(p, 1)
    reach = math.floor(reach) if reach >= 1 else max(reach, 2**-6)  # not less: there shall be few magnitudes
    level = xp.trunc(xp.log2(peak) / reach)
    level[~xp.isfinite(level)] = 0  # windows of zeros, without any element, or with what is not finite
    grad_size[...] = 0
    part = call.empty(size.shape, WIDE)
    for step in (0.0, *map(float, xp.unique(level[level != 0]))):
        scaled = size / 2 ** (step * reach)
        beyond = scaled > 2 ** (2 * reach)  # every maximum of this magnitude: in other windows only
        scaled[beyond & xp.isfinite(size)] = 0
        _lp_norm(call, scaled, p, norm, geometry)
        chosen = (level == step) & (norm != 0)
        norm[~chosen] = 1
        call.backend.avg_pool_grad_input(xp.where(chosen, grad_y * norm ** (1 - p), 0), part, geometry)
        zero = scaled == 0
        scaled[zero] = 1
        part *= scaled ** (p - 1)
        part[zero] = 0
        grad_size += part


def _pooled_shape(x: Array, ndim: int, geometry: PoolGeometry) -> Shape:
    return (*x.shape[:-ndim], *geometry.output_size[3 - ndim :])


def _pooled_input(op: str, ndim: int, gy: Array, input_size: Sequence[int]) -> tuple[Shape, int, Shape]:
    """The input's shape, number of planes and plane size for a gradient of pooled shape."""
    batch, channels, _ = split_shape(op, "grad_output", gy.shape, ndim)
    shape = full_shape(op, "input_size", input_size, gy.shape, ndim)
    check_shape(op, "grad_output", gy.shape[:-ndim], shape[:-ndim])
    return shape, batch * channels, shape[-ndim:]


def _as_indices(call: Call, indices: Array, shape: Shape, plane: Shape) -> Array:
    if indices.dtype.kind not in "iu":
        raise TypeError(f"{call.op}: indices must be integers, got dtype {indices.dtype}")
    check_shape(call.op, "indices", indices.shape, shape)
    if (
        indices.dtype.kind == "u" and indices.dtype.itemsize == INDEX.itemsize
    ):  # large ones would turn negative
        outside = np.flatnonzero(indices >= math.prod(plane))
        if outside.size:
            _refuse_index(call.op, indices, int(outside[0]), plane)
    return as_kernel_input(call, indices, INDEX)


def _refuse_index(op: str, indices: Array, position: int, plane: Shape) -> None:
    elements = math.prod(plane)
    raise IndexError(
        f"{op}: indices holds {int(indices.reshape(-1)[position])} at flat position {position}, "
        f"expected -1{f' or 0..{elements - 1}' * (elements > 0)} (a plane of {plane})"
    )


def _norm_type(op: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{op}: norm_type must be a number, got {show(value)}")
    if not 0 < value <= sys.float_info.max:
        raise ShapeError(f"{op}: norm_type must be finite and positive, got {show(value)}")
    return float(value)


max_pool1d, max_pool2d, max_pool3d = per_dimension(max_pool_nd)
max_pool1d_backward, max_pool2d_backward, max_pool3d_backward = per_dimension(max_pool_nd_backward)
max_unpool1d, max_unpool2d, max_unpool3d = per_dimension(max_unpool_nd)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = per_dimension(adaptive_max_pool_nd)
avg_pool1d, avg_pool2d, avg_pool3d = per_dimension(avg_pool_nd)
avg_pool1d_backward, avg_pool2d_backward, avg_pool3d_backward = per_dimension(avg_pool_nd_backward)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = per_dimension(adaptive_avg_pool_nd)
adaptive_avg_pool1d_backward, adaptive_avg_pool2d_backward, adaptive_avg_pool3d_backward = per_dimension(
    adaptive_avg_pool_nd_backward
)
lp_pool1d, lp_pool2d, lp_pool3d = per_dimension(lp_pool_nd)
lp_pool1d_backward, lp_pool2d_backward, lp_pool3d_backward = per_dimension(lp_pool_nd_backward)
