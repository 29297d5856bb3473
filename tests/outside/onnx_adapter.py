"""ONNX's convolution and pooling operators, expressed as calls of fastconv's public functions.

Each class below replaces one operator of ONNX's reference evaluator, which runs the rest of a graph. The
adapter only translates conventions: attribute names, ``pads`` in ``(all lows, all highs)`` order, indices
counted over the whole tensor instead of one plane, zero points. Every number that ONNX checks is fastconv's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import fastconv

Ints = Sequence[int]
Array = np.ndarray[Any, Any]

AUTO_PAD = {"VALID": "valid", "SAME_UPPER": "same", "SAME_LOWER": "same_lower"}


def run_model(model: onnx.ModelProto, inputs: Sequence[Array], backend: str) -> list[Array]:
    """Evaluate `model` with fastconv's operators on `backend`, the others being ONNX's own."""
    evaluator = ReferenceEvaluator(model, new_ops=list(OPERATORS.values()))
    feeds = dict(zip(evaluator.input_names, inputs, strict=True))
    with fastconv.use_backend(backend):
        return evaluator.run(None, feeds)


def function(name: str, rank: int) -> Any:
    """Return the public function for `rank` spatial axes, such as ``conv2d`` for ``("conv", 2)``."""
    return getattr(fastconv, f"{name}{rank}d")


def padding(auto_pad: str, pads: Ints | None) -> Any:
    """Translate ONNX's padding attributes into fastconv's ``padding`` argument."""
    if auto_pad != "NOTSET":
        return AUTO_PAD[auto_pad]
    return pairs(pads) if pads else 0


def pairs(pads: Ints) -> list[tuple[int, int]]:
    """Regroup ``[low_0, low_1, ..., high_0, high_1, ...]`` as one ``(low, high)`` pair per axis."""
    axes = len(pads) // 2
    return list(zip(pads[:axes], pads[axes:], strict=True))


class Conv(OpRun):
    def _run(
        self, x, w, bias=None, *, auto_pad, group, dilations=None, kernel_shape=None, pads=None, strides=None
    ):  # fmt: skip
        assert kernel_shape is None or tuple(kernel_shape) == w.shape[2:]
        conv = function("conv", x.ndim - 2)
        return (conv(x, w, bias, strides or 1, padding(auto_pad, pads), dilations or 1, group),)


class ConvInteger(OpRun):
    def _run(self, x, w, x_zero_point=0, w_zero_point=0, *, auto_pad, group, **geometry):
        # Differences of 8-bit numbers fit int16, which is accumulated exactly in int32, ONNX's result type.
        x = x.astype(np.int16) - np.int16(x_zero_point)
        w_zero_point = np.asarray(w_zero_point, np.int16)  # a scalar, or one per output channel
        w = w.astype(np.int16) - w_zero_point.reshape(-1, *[1] * (w.ndim - 1))
        return Conv._run(self, x, w, auto_pad=auto_pad, group=group, **geometry)


class ConvTranspose(OpRun):
    def _run(
        self, x, w, bias=None, *, auto_pad, group, dilations=None, kernel_shape=None, output_padding=None,
        output_shape=None, pads=None, strides=None,
    ):  # fmt: skip
        rank = x.ndim - 2
        assert kernel_shape is None or tuple(kernel_shape) == w.shape[2:]
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        output_padding = list(output_padding or [0] * rank)
        pad = padding(auto_pad, pads)
        if output_shape:
            # ONNX derives the padding from the size it asks for: what is too much is cut, what is missing is
            # added at the end. The odd element goes to the end for SAME_UPPER and to the beginning otherwise.
            pad = []
            for axis in range(rank):
                full = strides[axis] * (x.shape[2 + axis] - 1) + dilations[axis] * (w.shape[2 + axis] - 1) + 1
                surplus = full + output_padding[axis] - output_shape[axis]
                output_padding[axis] += max(-surplus, 0)
                less, more = max(surplus, 0) // 2, (max(surplus, 0) + 1) // 2
                pad.append((less, more) if auto_pad == "SAME_UPPER" else (more, less))
        conv_transpose = function("conv_transpose", rank)
        return (conv_transpose(x, w, bias, strides, pad, output_padding, group, dilations),)


class MaxPool(OpRun):
    def _run(
        self, x, *, auto_pad, ceil_mode, kernel_shape, storage_order, dilations=None, pads=None, strides=None
    ):  # fmt: skip
        max_pool = function("max_pool", x.ndim - 2)
        window = (kernel_shape, strides or 1, padding(auto_pad, pads), dilations or 1, bool(ceil_mode))
        if len(self.onnx_node.output) == 1:
            return (max_pool(x, *window),)
        values, indices = max_pool(x, *window, return_indices=True)
        if storage_order:  # column-major within a plane
            plane = x.shape[2:]
            indices = np.ravel_multi_index(np.unravel_index(indices, plane), plane, order="F")
        return values, indices + plane_offsets(x.shape)


class MaxUnpool(OpRun):
    def _run(self, x, indices, output_shape=None, *, kernel_shape, pads=None, strides=None):
        strides = strides or [1] * len(kernel_shape)
        pad = pairs(pads) if pads else [(0, 0)] * len(kernel_shape)
        # The indices count in the tensor that the pooling attributes imply, whatever `output_shape` says.
        axes = zip(x.shape[2:], kernel_shape, strides, pad, strict=True)
        plane = [(length - 1) * stride + kernel - low - high for length, kernel, stride, (low, high) in axes]
        indices = indices - plane_offsets((*x.shape[:2], *plane))
        unpooled = function("max_unpool", len(kernel_shape))(x, indices, kernel_shape, strides, pad, plane)
        if output_shape is None:
            return (unpooled,)
        result = np.zeros(output_shape, unpooled.dtype)
        result[tuple(slice(length) for length in unpooled.shape)] = unpooled
        return (result,)


def plane_offsets(shape: Ints) -> Array:
    """Return where each ``(n, c)`` plane of an array of `shape` begins in its flat form."""
    planes = np.arange(shape[0] * shape[1], dtype=np.int64) * int(np.prod(shape[2:]))
    return planes.reshape(shape[0], shape[1], *[1] * (len(shape) - 2))


class AveragePool(OpRun):
    def _run(
        self, x, *, auto_pad, ceil_mode, count_include_pad, kernel_shape, dilations=None, pads=None,
        strides=None,
    ):  # fmt: skip
        window = (
            kernel_shape,
            strides or 1,
            padding(auto_pad, pads),
            bool(ceil_mode),
            bool(count_include_pad),
        )
        return (function("avg_pool", x.ndim - 2)(x, *window, dilation=dilations or 1),)


class LpPool(OpRun):
    def _run(self, x, *, auto_pad, ceil_mode, kernel_shape, p, dilations=None, pads=None, strides=None):
        window = (kernel_shape, strides or 1, bool(ceil_mode))
        pad = padding(auto_pad, pads)
        return (function("lp_pool", x.ndim - 2)(x, p, *window, padding=pad, dilation=dilations or 1),)


class GlobalAveragePool(OpRun):
    def _run(self, x):
        return (function("adaptive_avg_pool", x.ndim - 2)(x, 1),)


class GlobalMaxPool(OpRun):
    def _run(self, x):
        return (function("adaptive_max_pool", x.ndim - 2)(x, 1),)


class Col2Im(OpRun):
    def _run(self, x, image_shape, block_shape, *, dilations=None, pads=None, strides=None):
        window = (block_shape.tolist(), dilations or 1, pairs(pads) if pads else 0, strides or 1)
        return (fastconv.fold(x, image_shape.tolist(), *window),)


OPERATORS: dict[str, type[OpRun]] = {
    operator.__name__: operator
    for operator in (
        Conv, ConvInteger, ConvTranspose, MaxPool, MaxUnpool, AveragePool, LpPool, GlobalAveragePool,
        GlobalMaxPool, Col2Im,
    )
}  # fmt: skip
