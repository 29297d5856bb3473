"""Who is measured: a table of contenders, each of which prepares one call outside the clock.

A contender maps (layer, direction, arrays) to a function without arguments that returns the result, channels
first, or to ``None`` where it does not offer the operation. Results are compared before the clock runs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from workloads import ConvLayer, PoolLayer

import fastconv as fc

Array = NDArray[Any]
Call = Callable[[], Array]
CONV_DIRECTIONS = ("forward", "grad_input", "grad_weight")
POOL_DIRECTIONS = ("forward", "backward")


class ConvArrays(NamedTuple):
    x: Array
    weight: Array
    grad_y: Array


class PoolArrays(NamedTuple):
    x: Array
    grad_y: Array


def conv_arrays(layer: ConvLayer, batch: int, dtype: Any) -> ConvArrays:
    """Random operands; the weights are scaled so that results have unit variance."""
    rng = np.random.default_rng(0)
    fan_in = layer.in_channels // layer.groups * layer.kernel**2
    x = rng.standard_normal((batch, layer.in_channels, layer.size, layer.size), dtype)
    weight_shape = (layer.out_channels, layer.in_channels // layer.groups, layer.kernel, layer.kernel)
    weight = rng.standard_normal(weight_shape, dtype) / np.sqrt(fan_in).astype(dtype)
    grad_y = rng.standard_normal((batch, layer.out_channels, layer.output, layer.output), dtype)
    return ConvArrays(x, weight, grad_y)


def pool_arrays(layer: PoolLayer, batch: int, dtype: Any) -> PoolArrays:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, layer.channels, layer.size, layer.size), dtype)
    return PoolArrays(x, rng.standard_normal((batch, layer.channels, layer.output, layer.output), dtype))


# --- fastconv --------------------------------------------------------------------------------------------


def fastconv_conv(backend: str) -> Callable[[ConvLayer, str, ConvArrays], Call | None]:
    def prepare(layer: ConvLayer, direction: str, a: ConvArrays) -> Call:
        window = {
            "stride": layer.stride,
            "padding": layer.padding,
            "groups": layer.groups,
            "backend": backend,
        }
        if direction == "forward":
            return lambda: fc.conv2d(a.x, a.weight, **window)
        if direction == "grad_input":
            return lambda: fc.grad.conv2d_input(a.x.shape, a.weight, a.grad_y, **window)
        return lambda: fc.grad.conv2d_weight(a.x, a.weight.shape, a.grad_y, **window)

    return prepare


def fastconv_pool(backend: str) -> Callable[[PoolLayer, str, PoolArrays], Call | None]:
    def prepare(layer: PoolLayer, direction: str, a: PoolArrays) -> Call:
        window = (layer.kernel, layer.stride, layer.padding)
        if layer.kind == "avg":
            if direction == "forward":
                return lambda: fc.avg_pool2d(a.x, *window, backend=backend)
            return lambda: fc.avg_pool2d_backward(a.grad_y, a.x.shape, *window, backend=backend)
        if direction == "forward":
            return lambda: fc.max_pool2d(a.x, *window, return_indices=True, backend=backend)[0]
        _, indices = fc.max_pool2d(a.x, *window, return_indices=True, backend=backend)
        return lambda: fc.max_pool2d_backward(a.grad_y, indices, a.x.shape, backend=backend)

    return prepare


# --- NumPy: im2col and BLAS ------------------------------------------------------------------------------


def _columns(layer: ConvLayer, x: Array) -> Array:
    """(groups, C/groups * k * k, N * pixels): the matrix that textbooks multiply with the weights."""
    p, s, k = layer.padding, layer.stride, layer.kernel
    padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p))) if p else x
    windows = sliding_window_view(padded, (k, k), axis=(2, 3))[:, :, ::s, ::s]  # N, C, H, W, k, k
    return windows.transpose(1, 4, 5, 0, 2, 3).reshape(layer.groups, -1, x.shape[0] * layer.output**2)


def im2col_conv(layer: ConvLayer, direction: str, a: ConvArrays) -> Call:
    n, g, out = a.x.shape[0], layer.groups, layer.output
    weight = a.weight.reshape(g, layer.out_channels // g, -1)

    def pixels_last(grad_y: Array) -> Array:
        return grad_y.transpose(1, 0, 2, 3).reshape(g, layer.out_channels // g, -1)

    def forward() -> Array:
        y = weight @ _columns(layer, a.x)
        return y.reshape(layer.out_channels, n, out, out).transpose(1, 0, 2, 3)

    def grad_weight() -> Array:
        return (pixels_last(a.grad_y) @ _columns(layer, a.x).transpose(0, 2, 1)).reshape(a.weight.shape)

    def grad_input() -> Array:
        k, s, p = layer.kernel, layer.stride, layer.padding
        columns = (weight.transpose(0, 2, 1) @ pixels_last(a.grad_y)).reshape(
            layer.in_channels, k, k, n, out, out
        )
        padded = np.zeros((layer.in_channels, n, layer.size + 2 * p, layer.size + 2 * p), a.x.dtype)
        for i in range(k):
            for j in range(k):
                padded[:, :, i : i + s * out : s, j : j + s * out : s][:, :, :out, :out] += columns[:, i, j]
        return padded[:, :, p : p + layer.size, p : p + layer.size].transpose(1, 0, 2, 3)

    return {"forward": forward, "grad_input": grad_input, "grad_weight": grad_weight}[direction]


def windows_pool(layer: PoolLayer, direction: str, a: PoolArrays) -> Call:
    """Pooling over a strided view of all windows; its gradients one kernel position, or one maximum, at a time."""
    k, s, p = layer.kernel, layer.stride, layer.padding
    side, out = layer.size + 2 * p, layer.output
    planes = a.x.shape[0] * layer.channels
    fill = -np.inf if layer.kind == "max" else 0

    def windows() -> Array:
        padded = np.pad(a.x, ((0, 0), (0, 0), (p, p), (p, p)), constant_values=fill) if p else a.x
        return sliding_window_view(padded, (k, k), axis=(2, 3))[:, :, ::s, ::s]

    def forward() -> Array:
        if layer.kind == "avg":
            return windows().mean(axis=(4, 5), dtype=a.x.dtype)
        flat = windows().reshape(*a.grad_y.shape, k * k)
        best = flat.argmax(axis=4)
        return np.take_along_axis(flat, best[..., None], axis=4)[..., 0]

    def inner(padded: Array) -> Array:
        return padded.reshape(*a.x.shape[:2], side, side)[:, :, p : p + layer.size, p : p + layer.size]

    def avg_backward() -> Array:
        padded = np.zeros((*a.x.shape[:2], side, side), a.x.dtype)
        share = a.grad_y / a.x.dtype.type(k * k)
        for i in range(k):
            for j in range(k):
                padded[:, :, i : i + s * out : s, j : j + s * out : s][:, :, :out, :out] += share
        return inner(padded)

    if direction == "forward":
        return forward
    if layer.kind == "avg":
        return avg_backward

    row, column = np.divmod(windows().reshape(*a.grad_y.shape, k * k).argmax(axis=4), k)
    row += s * np.arange(out)[:, None]
    column += s * np.arange(out)
    where = ((row * side + column).reshape(planes, -1) + side**2 * np.arange(planes)[:, None]).reshape(-1)

    def max_backward() -> Array:
        padded = np.zeros(planes * side**2, a.x.dtype)
        np.add.at(padded, where, a.grad_y.reshape(-1))
        return inner(padded)

    return max_backward


# --- PyTorch ---------------------------------------------------------------------------------------------


def torch_conv(channels_last: bool) -> Callable[[ConvLayer, str, ConvArrays], Call | None]:
    def prepare(layer: ConvLayer, direction: str, a: ConvArrays) -> Call:
        import torch

        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, weight, grad_y = (torch.from_numpy(array).contiguous(memory_format=layout) for array in a)
        stride, padding, dilation = [layer.stride] * 2, [layer.padding] * 2, [1, 1]
        if direction == "forward":
            return lambda: torch.nn.functional.conv2d(
                x, weight, None, stride, padding, dilation, layer.groups
            ).numpy()
        mask = [direction == "grad_input", direction == "grad_weight", False]
        which = mask.index(True)
        return lambda: torch.ops.aten.convolution_backward(
            grad_y, x, weight, None, stride, padding, dilation, False, [0, 0], layer.groups, mask
        )[which].numpy()

    return prepare


def torch_pool(channels_last: bool) -> Callable[[PoolLayer, str, PoolArrays], Call | None]:
    def prepare(layer: PoolLayer, direction: str, a: PoolArrays) -> Call:
        import torch
        from torch.nn import functional

        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, grad_y = (torch.from_numpy(array).contiguous(memory_format=layout) for array in a)
        k, s, p = layer.kernel, layer.stride, layer.padding
        aten = torch.ops.aten
        if layer.kind == "avg":
            if direction == "forward":
                return lambda: functional.avg_pool2d(x, k, s, p).numpy()
            args = ([k, k], [s, s], [p, p], False, True, None)
            return lambda: aten.avg_pool2d_backward(grad_y, x, *args).numpy()
        if direction == "forward":
            return lambda: functional.max_pool2d(x, k, s, p, return_indices=True)[0].numpy()
        _, indices = functional.max_pool2d(x, k, s, p, return_indices=True)
        args = ([k, k], [s, s], [p, p], [1, 1], False, indices)
        return lambda: aten.max_pool2d_with_indices_backward(grad_y, x, *args).numpy()

    return prepare


# --- ONNX Runtime ----------------------------------------------------------------------------------------


def onnxruntime_conv(layer: ConvLayer, direction: str, a: ConvArrays) -> Call | None:
    """Weights are packed when the session is made, outside the clock."""
    if direction != "forward" or a.x.dtype != np.float32:
        return None
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=[layer.stride] * 2, pads=[layer.padding] * 4, group=layer.groups
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, a.x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, a.grad_y.shape)],
        [numpy_helper.from_array(a.weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = fc.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": a.x})[0]


class Peer(NamedTuple):
    """A contender and the modules it needs."""

    needs: tuple[str, ...]
    conv: Callable[[ConvLayer, str, ConvArrays], Call | None]
    pool: Callable[[PoolLayer, str, PoolArrays], Call | None]

    def missing(self) -> str | None:
        """The first module that is not installed."""
        return next((name for name in self.needs if importlib.util.find_spec(name) is None), None)


def _no_pool(_layer: PoolLayer, _direction: str, _arrays: PoolArrays) -> None:
    return None


PEERS: dict[str, Peer] = {
    "numpy": Peer((), im2col_conv, windows_pool),
    "torch": Peer(("torch",), torch_conv(False), torch_pool(False)),
    "torch_cl": Peer(("torch",), torch_conv(True), torch_pool(True)),
    "ort": Peer(("onnx", "onnxruntime"), onnxruntime_conv, _no_pool),
}


def set_threads(count: int) -> None:
    """The same number of threads for every contender that has a switch; BLAS has environment variables."""
    fc.set_num_threads(count)
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(count)
        torch.set_grad_enabled(False)
