"""The definition of every kernel in plain NumPy: slow, readable, accumulating floating point in float64.

A convolution is a sum over kernel positions; each connects a strided slice of the input with a slice of the output
(`fastconv.geometry.taps`). The three kernels are that one sentence read in three directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastconv.activations import ACTIVATIONS
from fastconv.backends.protocol import Choice, Planned, planned
from fastconv.geometry import AxisWindows, ConvGeometry, PoolGeometry, pool_windows, taps

Array = NDArray[Any]

ALGORITHMS = ("auto", "direct")
TAKES_NARROW = False
SILENT = False

# Infinities and NaN are values like others to a compiled kernel; NumPy's warnings would tell the backends apart.
quiet = np.errstate(over="ignore", invalid="ignore")


@quiet
def conv_forward(
    x: Array, weight: Array, bias: Array | None, activation: str | None, y: Array, geometry: ConvGeometry
) -> None:
    """y[n,k,o] = activation(bias[k] + sum over c, t of weight[k,c,t] * x[n,c,o*stride - pad + t*dilation])."""
    xs, ws, total = _grouped(x, 1, geometry), _grouped(weight, 0, geometry), _accumulator(y, 1, geometry)
    for tap in taps(geometry):
        total[(..., *tap.outputs)] += np.einsum(
            "gkc,ngc...->ngk...", ws[(..., *tap.position)], xs[(..., *tap.inputs)]
        )
    y[...] = _finish(total.reshape(y.shape), bias, activation)


@quiet
def conv_grad_input(
    grad_y: Array,
    weight: Array,
    bias: Array | None,
    activation: str | None,
    grad_x: Array,
    geometry: ConvGeometry,
) -> None:
    """The adjoint of `conv_forward`: each tap sends what it read back to where it read it."""
    gys, ws, total = (
        _grouped(grad_y, 1, geometry),
        _grouped(weight, 0, geometry),
        _accumulator(grad_x, 1, geometry),
    )
    for tap in taps(geometry):
        total[(..., *tap.inputs)] += np.einsum(
            "gkc,ngk...->ngc...", ws[(..., *tap.position)], gys[(..., *tap.outputs)]
        )
    grad_x[...] = _finish(total.reshape(grad_x.shape), bias, activation)


@quiet
def conv_grad_weight(x: Array, grad_y: Array, grad_weight: Array, geometry: ConvGeometry) -> None:
    """The derivative by each weight: the outputs it took part in, times the inputs it multiplied."""
    xs, gys, total = (
        _grouped(x, 1, geometry),
        _grouped(grad_y, 1, geometry),
        _accumulator(grad_weight, 0, geometry),
    )
    for tap in taps(geometry):
        total[(..., *tap.position)] = np.einsum(
            "ngkdhw,ngcdhw->gkc", gys[(..., *tap.outputs)], xs[(..., *tap.inputs)], optimize=True
        )
    grad_weight[...] = total.reshape(grad_weight.shape)


def conv_plan(
    kernel: str, weight: Array, bias: Array | None, activation: str | None, geometry: ConvGeometry
) -> Planned:
    """A kernel with copies of the weights."""
    kernels = {"conv_forward": conv_forward, "conv_grad_input": conv_grad_input}
    return planned(kernels[kernel], weight, bias, activation, geometry)


def max_pool(x: Array, y: Array, indices: Array | None, geometry: PoolGeometry) -> None:
    """The largest element of each window; the first of equals wins, NaN wins over all, the last NaN over others."""
    best = np.full(y.shape, lowest(y.dtype), y.dtype)
    where = np.full(y.shape, -1, np.int64)
    _, height, width = geometry.input_size
    for (d, h, w), inside in _window_elements(geometry):
        candidate = x[:, d, h, w]
        better = inside & ((where < 0) | (candidate > best) | (candidate != candidate))
        best = np.where(better, candidate, best)
        where = np.where(better, (d * height + h) * width + w, where)
    y[...] = best
    if indices is not None:
        indices[...] = where


@quiet
def max_pool_grad_input(grad_y: Array, indices: Array, grad_x: Array) -> int:
    """Each gradient goes to the element that won its window."""
    planes, plane = grad_x.shape[0], grad_x[0].size
    outside = np.flatnonzero((indices < -1) | (indices >= plane))
    if outside.size:
        return int(outside[0])
    total = np.zeros((planes, plane))
    plane_of, position = np.nonzero(indices.reshape(planes, -1) >= 0)
    np.add.at(
        total,
        (plane_of, indices.reshape(planes, -1)[plane_of, position]),
        grad_y.reshape(planes, -1)[plane_of, position],
    )
    grad_x[...] = total.reshape(grad_x.shape)
    return -1


@quiet
def avg_pool(x: Array, y: Array, geometry: PoolGeometry) -> None:
    """The sum of each window over its divisor."""
    total = np.zeros(y.shape)
    for (d, h, w), inside in _window_elements(geometry):
        total += np.where(inside, x[:, d, h, w], 0)
    y[...] = total / _divisors(geometry)


@quiet
def avg_pool_grad_input(grad_y: Array, grad_x: Array, geometry: PoolGeometry) -> None:
    """The adjoint of `avg_pool`: every element of a window gets an equal share."""
    total = np.zeros(grad_x.shape)
    share = grad_y / _divisors(geometry)
    for (d, h, w), inside in _window_elements(geometry):
        element: Any = (slice(None), d, h, w)
        np.add.at(total, element, np.where(inside, share, 0))
    grad_x[...] = total


def choice(_kernel: str, _dtype: np.dtype[Any], geometry: ConvGeometry | None) -> Choice:
    """One thread and one algorithm serve everything."""
    return Choice(threads=1, algorithm=None if geometry is None else "direct")


def describe() -> dict[str, str]:
    """What `fastconv.show_config` prints of this backend."""
    return {"numpy": np.__version__, "accumulation": "float64"}


def lowest(dtype: np.dtype[Any]) -> Any:
    """What the maximum of no element is: minus infinity, or the smallest integer."""
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def _grouped(array: Array, axis: int, geometry: ConvGeometry) -> Array:
    """The channel axis split into (groups, channels of a group), in the type that sums are made in."""
    return array.reshape(_grouped_shape(array, axis, geometry)).astype(_sum_type(array), copy=False)


def _accumulator(array: Array, axis: int, geometry: ConvGeometry) -> Array:
    return np.zeros(_grouped_shape(array, axis, geometry), _sum_type(array))


def _grouped_shape(array: Array, axis: int, geometry: ConvGeometry) -> tuple[int, ...]:
    shape = array.shape
    return (*shape[:axis], geometry.groups, shape[axis] // geometry.groups, *shape[axis + 1 :])


def _sum_type(array: Array) -> np.dtype[Any]:
    return np.dtype(np.float64) if array.dtype.kind == "f" else array.dtype


def _finish(total: Array, bias: Array | None, activation: str | None) -> Array:
    if bias is not None:
        total += bias.reshape(-1, 1, 1, 1)
    return total if activation is None else ACTIVATIONS[activation](total)


def _window_elements(geometry: PoolGeometry) -> Iterator[tuple[tuple[Array, Array, Array], Array]]:
    """For the first, second, ... element of all windows in row-major order: where it lies, and which windows have it.

    Windows differ in how many elements lie inside the input; positions are clipped where a window has no such element.
    """
    axes = [
        list(_axis_elements(windows, geometry.dilation[axis], axis))
        for axis, windows in enumerate(pool_windows(geometry))
    ]
    for d, h, w in product(*axes):
        yield (d[0], h[0], w[0]), d[1] & h[1] & w[1]


def _axis_elements(windows: AxisWindows, step: int, axis: int) -> Iterator[tuple[Array, Array]]:
    column = tuple(-1 if a == axis else 1 for a in range(3))
    for j in range(int(windows.inside.max())):
        inside = j < windows.inside
        position = np.where(inside, windows.first + j * step, 0)
        yield position.reshape(column), inside.reshape(column)


def _divisors(geometry: PoolGeometry) -> Array:
    """The divisor of every output position; 1 where nothing would be divided."""
    if geometry.divisor_override:
        return np.array(geometry.divisor_override)
    # In floating point, since padding may make a window longer than its count fits an integer.
    sides = [
        (w.length if geometry.count_include_pad else w.inside).astype(np.float64)
        for w in pool_windows(geometry)
    ]
    return np.asarray(np.maximum(1, sides[0].reshape(-1, 1, 1) * sides[1].reshape(-1, 1) * sides[2]))
