"""What NumPy code does without fastconv: im2col and BLAS for convolution, strided views for pooling.

It offers every layer and direction, so it is also the referee against which results are checked.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastconv.bench.contender import Array, Arrays, Call
from fastconv.bench.workloads import ConvLayer, PoolLayer

# A transposed convolution's directions in terms of the convolution whose input gradient it is.
_TRANSPOSED = {"forward": "grad_input", "grad_input": "forward", "grad_weight": "grad_weight"}


def convolution(layer: ConvLayer, direction: str, a: Arrays) -> Call:
    """Patches as columns of a matrix, and a product."""
    if layer.transposed:
        exchanged = Arrays(a.grad_y, a.weight, a.x)
        return convolution(layer.convolution(), _TRANSPOSED[direction], exchanged)
    n, groups, out_channels, output = a.x.shape[0], layer.groups, layer.out_channels, layer.output
    weight = a.weight.reshape(groups, out_channels // groups, -1)

    def pixels_last(grad_y: Array) -> Array:
        return np.moveaxis(grad_y, 0, 1).reshape(groups, out_channels // groups, -1)

    def forward() -> Array:
        y = weight @ _columns(layer, a.x)
        return np.moveaxis(y.reshape(out_channels, n, *output), 0, 1)

    def grad_weight() -> Array:
        return (pixels_last(a.grad_y) @ _columns(layer, a.x).transpose(0, 2, 1)).reshape(a.weight.shape)

    def grad_input() -> Array:
        columns = weight.transpose(0, 2, 1) @ pixels_last(a.grad_y)
        return _scattered(layer, columns.reshape(layer.in_channels, *layer.kernel, n, *output))

    return {"forward": forward, "grad_input": grad_input, "grad_weight": grad_weight}[direction]


def _columns(layer: ConvLayer, x: Array) -> Array:
    """(groups, C / groups * taps, N * pixels): the matrix that textbooks multiply with the weights."""
    axes = range(2, 2 + layer.ndim)
    if any(layer.padding):
        x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in layer.padding)))
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel, strict=True)]
    steps = [slice(None, None, step) for step in (*layer.stride, *layer.dilation)]
    windows = sliding_window_view(x, reach, axis=tuple(axes))[:, :, *steps]  # N, C, positions, taps
    taps = [axis + layer.ndim for axis in axes]
    rows = layer.in_channels // layer.groups * math.prod(layer.kernel)
    return windows.transpose(1, *taps, 0, *axes).reshape(layer.groups, rows, -1)


def _scattered(layer: ConvLayer, columns: Array) -> Array:
    """The adjoint of `_columns`, whose (C, taps, N, positions) these are: each product is added where its tap read."""
    n, *output = columns.shape[1 + layer.ndim :]
    size = [length + 2 * p for length, p in zip(layer.size, layer.padding, strict=True)]
    padded = np.zeros((layer.in_channels, n, *size), columns.dtype)
    for tap in np.ndindex(*layer.kernel):
        read = [
            slice(d * t, d * t + s * (o - 1) + 1, s)
            for d, t, s, o in zip(layer.dilation, tap, layer.stride, output, strict=True)
        ]
        padded[:, :, *read] += columns[:, *tap]
    inner = [slice(p, p + length) for p, length in zip(layer.padding, layer.size, strict=True)]
    return np.moveaxis(padded[:, :, *inner], 0, 1)


def pooling(layer: PoolLayer, direction: str, a: Arrays) -> Call:
    """Windows as a strided view; adaptive ones, which differ in size, one by one."""
    if layer.adaptive is not None:
        return _adaptive_pooling(layer, direction, a)
    k, s, p, out = layer.kernel, layer.stride, layer.padding, layer.output
    side = layer.size + 2 * p
    fill = -np.inf if layer.kind == "max" else 0

    def windows() -> Array:
        padded = np.pad(a.x, ((0, 0), (0, 0), (p, p), (p, p)), constant_values=fill) if p else a.x
        return sliding_window_view(padded, (k, k), axis=(2, 3))[:, :, ::s, ::s]

    def forward() -> Array:
        if layer.kind == "avg":
            return np.asarray(windows().mean(axis=(4, 5), dtype=a.x.dtype))
        flat = windows().reshape(*a.grad_y.shape, k * k)
        best = flat.argmax(axis=4)
        return np.take_along_axis(flat, best[..., None], axis=4)[..., 0]

    def inner(padded: Array) -> Array:
        return padded.reshape(*a.x.shape[:2], side, side)[:, :, p : p + layer.size, p : p + layer.size]

    def avg_grad_input() -> Array:
        padded = np.zeros((*a.x.shape[:2], side, side), a.x.dtype)
        share = a.grad_y / a.x.dtype.type(k * k)
        for i, j in np.ndindex(k, k):
            padded[:, :, i : i + s * out : s, j : j + s * out : s][:, :, :out, :out] += share
        return inner(padded)

    if direction == "forward":
        return forward
    if layer.kind == "avg":
        return avg_grad_input
    row, column = np.divmod(windows().reshape(*a.grad_y.shape, k * k).argmax(axis=4), k)
    positions = (row + s * np.arange(out)[:, None]) * side + column + s * np.arange(out)
    scatter = _add_at(positions, side**2, a.grad_y)
    return lambda: inner(scatter())


def _adaptive_pooling(layer: PoolLayer, direction: str, a: Arrays) -> Call:
    out = layer.output
    spans = [slice(i * layer.size // out, -(-(i + 1) * layer.size // out)) for i in range(out)]
    cells = [(i, j, np.s_[:, :, spans[i], spans[j]]) for i, j in itertools.product(range(out), repeat=2)]

    def forward() -> Array:
        y = np.empty_like(a.grad_y)
        for i, j, window in cells:
            y[:, :, i, j] = a.x[window].max((2, 3)) if layer.kind == "max" else a.x[window].mean((2, 3))
        return y

    def avg_grad_input() -> Array:
        grad_x = np.zeros_like(a.x)
        for i, j, window in cells:
            view = grad_x[window]
            view += a.grad_y[:, :, i, j, None, None] / a.x.dtype.type(view.shape[2] * view.shape[3])
        return grad_x

    if direction == "forward":
        return forward
    if layer.kind == "avg":
        return avg_grad_input
    positions = np.empty(a.grad_y.shape, np.int64)
    for i, j, window in cells:
        view = a.x[window]
        row, column = np.divmod(view.reshape(*view.shape[:2], -1).argmax(axis=2), view.shape[3])
        positions[:, :, i, j] = (row + spans[i].start) * layer.size + column + spans[j].start
    scatter = _add_at(positions, layer.size**2, a.grad_y)
    return lambda: scatter().reshape(a.x.shape)


def _add_at(positions: Array, plane: int, grad_y: Array) -> Call:
    """Each gradient goes to its position in its plane."""
    planes = grad_y.shape[0] * grad_y.shape[1]
    where = (positions.reshape(planes, -1) + plane * np.arange(planes)[:, None]).reshape(-1)

    def scatter() -> Array:
        grad_x = np.zeros(planes * plane, grad_y.dtype)
        np.add.at(grad_x, where, grad_y.reshape(-1))
        return grad_x

    return scatter
