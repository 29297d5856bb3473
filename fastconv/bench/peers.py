"""Who is measured: fastconv on its backends, and `PEERS`, the one table of other libraries.

A contender maps (layer, direction, arrays) to a call that returns the result, channels first. It prepares what may be
prepared outside the clock, and raises `NotOffered` where it has no such operation. Libraries are imported when their
contender is first asked.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

import fastconv
from fastconv.bench import numpy_peer
from fastconv.bench.contender import (
    Array,
    Arrays,
    Call,
    ConvContender,
    NotOffered,
    PoolContender,
)
from fastconv.bench.workloads import ConvLayer, Layer, PoolLayer


class Peer(NamedTuple):
    """A contender, the modules it needs, and the environment that its process must be started with, if any."""

    title: str
    needs: tuple[str, ...]
    convolution: ConvContender
    pooling: PoolContender
    environment: Mapping[str, str] = {}

    def missing(self) -> str | None:
        """The first module that is not installed."""
        return next((name for name in self.needs if importlib.util.find_spec(name) is None), None)

    def versions(self) -> dict[str, str]:
        """Those of the modules it needs."""
        return {name: metadata.version(name) for name in self.needs}

    def prepare(self, layer: Layer, direction: str, a: Arrays) -> Call:
        """The call that is timed; raises `NotOffered`."""
        if isinstance(layer, PoolLayer):
            return self.pooling(layer, direction, a)
        return self.convolution(layer, direction, a)


def not_offered(*_: Any) -> Call:
    """For what a contender lacks altogether."""
    raise NotOffered("-")


# --- fastconv --------------------------------------------------------------------------------------------


def ours(backend: str) -> str:
    """The name of our contender on one of the backends."""
    return f"fastconv[{backend}]"


def fastconv_on(backend: str) -> Peer:
    """Our own contender on one of the backends."""

    def convolution(layer: ConvLayer, direction: str, a: Arrays) -> Call:
        name = f"conv{'_transpose' * layer.transposed}{layer.ndim}d"
        window = {
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
            "backend": backend,
        }
        if layer.transposed:
            window["output_padding"] = layer.output_padding
        if direction == "forward":
            forward = getattr(fastconv, name)
            return lambda: forward(a.x, a.weight, **window)
        backward = getattr(fastconv, f"{name}_backward")
        mask, which = _mask(direction)
        return lambda: backward(a.grad_y, a.x, a.weight, output_mask=mask, **window)[which]

    def pooling(layer: PoolLayer, direction: str, a: Arrays) -> Call:
        adaptive = layer.adaptive is not None
        prefix = "adaptive_" * adaptive + layer.kind
        forward = getattr(fastconv, f"{prefix}_pool2d")
        window: tuple[Any, ...] = (layer.kernel, layer.stride, layer.padding)
        if adaptive:
            window = (layer.adaptive,)
        if layer.kind == "max":
            if direction == "forward":
                return lambda: forward(a.x, *window, return_indices=True, backend=backend)[0]
            _, indices = forward(a.x, *window, return_indices=True, backend=backend)
            return lambda: fastconv.max_pool2d_backward(a.grad_y, indices, a.x.shape, backend=backend)
        if direction == "forward":
            return lambda: forward(a.x, *window, backend=backend)
        backward = getattr(fastconv, f"{prefix}_pool2d_backward")
        window = () if adaptive else window
        return lambda: backward(a.grad_y, a.x.shape, *window, backend=backend)

    return Peer(ours(backend), (), convolution, pooling)


def _mask(direction: str) -> tuple[tuple[bool, bool, bool], int]:
    """Which of the three gradients (input, weight, bias) to compute, and its position."""
    which = ("grad_input", "grad_weight").index(direction)
    return (which == 0, which == 1, False), which


# --- PyTorch ---------------------------------------------------------------------------------------------


def _torch_layout(channels_last: bool, ndim: int) -> Any:
    import torch

    if not channels_last:
        return torch.contiguous_format
    if ndim == 1:  # has no such memory format
        raise NotOffered("-")
    return torch.channels_last if ndim == 2 else torch.channels_last_3d


def torch_convolution(channels_last: bool) -> ConvContender:
    """PyTorch; the arrays are arranged outside the clock, also where channels go last."""

    def prepare(layer: ConvLayer, direction: str, a: Arrays) -> Call:
        import torch

        layout = _torch_layout(channels_last, layer.ndim)
        x, weight, grad_y = (torch.from_numpy(array).contiguous(memory_format=layout) for array in a)
        extra = layer.output_padding or (0,) * layer.ndim
        window = (layer.stride, layer.padding, layer.dilation, layer.transposed, extra, layer.groups)
        if direction == "forward":
            return lambda: torch.convolution(x, weight, None, *window).numpy()
        mask, which = _mask(direction)
        backward = torch.ops.aten.convolution_backward
        return lambda: backward(grad_y, x, weight, None, *window, mask)[which].numpy()

    return prepare


def torch_pooling(channels_last: bool) -> PoolContender:
    """PyTorch; the arrays are arranged outside the clock, also where channels go last."""

    def prepare(layer: PoolLayer, direction: str, a: Arrays) -> Call:
        import torch
        from torch.nn import functional

        aten = torch.ops.aten
        layout = _torch_layout(channels_last, 2)
        x, grad_y = (torch.from_numpy(array).contiguous(memory_format=layout) for array in (a.x, a.grad_y))
        if layer.adaptive is not None:
            out = layer.adaptive
            if layer.kind == "avg":
                if direction == "forward":
                    return lambda: functional.adaptive_avg_pool2d(x, out).numpy()
                return lambda: aten._adaptive_avg_pool2d_backward(grad_y, x).numpy()
            if direction == "forward":
                return lambda: functional.adaptive_max_pool2d(x, out, return_indices=True)[0].numpy()
            _, where = functional.adaptive_max_pool2d(x, out, return_indices=True)
            return lambda: aten.adaptive_max_pool2d_backward(grad_y, x, where).numpy()
        window = [[extent] * 2 for extent in (layer.kernel, layer.stride, layer.padding)]
        if layer.kind == "avg":
            if direction == "forward":
                return lambda: functional.avg_pool2d(x, *window).numpy()
            return lambda: aten.avg_pool2d_backward(grad_y, x, *window, False, True, None).numpy()
        if direction == "forward":
            return lambda: functional.max_pool2d(x, *window, return_indices=True)[0].numpy()
        _, where = functional.max_pool2d(x, *window, return_indices=True)
        args = (*window, [1, 1], False, where)
        return lambda: aten.max_pool2d_with_indices_backward(grad_y, x, *args).numpy()

    return prepare


# --- ONNX Runtime ----------------------------------------------------------------------------------------


def onnxruntime_convolution(layer: ConvLayer, direction: str, a: Arrays) -> Call:
    """Inference only; weights are packed when the session is made, outside the clock."""
    if direction != "forward" or a.x.dtype != np.float32:
        raise NotOffered("-")
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "ConvTranspose" if layer.transposed else "Conv",
        ["x", "w"],
        ["y"],
        kernel_shape=layer.kernel,
        strides=layer.stride,
        pads=layer.padding * 2,
        dilations=layer.dilation,
        group=layer.groups,
        **({"output_padding": layer.output_padding} if layer.transposed else {}),
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
    options.intra_op_num_threads = fastconv.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: np.asarray(session.run(None, {"x": a.x})[0])


# --- SciPy -----------------------------------------------------------------------------------------------

SCIPY_LIMIT = 5e7  # floating-point operations of a call; it computes a strided layer at stride 1, too


def scipy_convolution(layer: ConvLayer, direction: str, a: Arrays) -> Call:
    """`scipy.signal.correlate` for each image and output channel, as long as that takes no minutes."""
    if direction != "forward" or layer.transposed:
        raise NotOffered("-")
    if layer.flops(a.x.shape[0]) * math.prod(layer.stride) > SCIPY_LIMIT:
        raise NotOffered("too slow")
    from scipy import signal

    per_group = layer.in_channels // layer.groups
    spread = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel, strict=True)]
    kernels = np.zeros((*a.weight.shape[:2], *spread), a.weight.dtype)
    kernels[:, :, *(slice(None, None, d) for d in layer.dilation)] = a.weight
    pads = ((0, 0), (0, 0), *((p, p) for p in layer.padding))
    steps = tuple(slice(None, None, s) for s in layer.stride)

    def call() -> Array:
        x = np.pad(a.x, pads)
        y = np.empty_like(a.grad_y)
        for image, k in np.ndindex(y.shape[:2]):
            first = k // (layer.out_channels // layer.groups) * per_group
            y[image, k] = signal.correlate(x[image, first : first + per_group], kernels[k], "valid")[0][steps]
        return y

    return call


# --- the table -------------------------------------------------------------------------------------------

# Read by PyTorch and by malloc when a process starts: memory is mapped once, on huge pages, and kept.
HUGE_PAGES = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
}

PEERS: dict[str, Peer] = {
    "torch": Peer("PyTorch", ("torch",), torch_convolution(False), torch_pooling(False)),
    "torch_cl": Peer("PyTorch channels_last", ("torch",), torch_convolution(True), torch_pooling(True)),
    "torch_thp": Peer(
        "PyTorch on huge pages", ("torch",), torch_convolution(False), torch_pooling(False), HUGE_PAGES
    ),
    "ort": Peer("ONNX Runtime", ("onnx", "onnxruntime"), onnxruntime_convolution, not_offered),
    "numpy": Peer("NumPy im2col + BLAS", (), numpy_peer.convolution, numpy_peer.pooling),
    "scipy": Peer("SciPy correlate", ("scipy",), scipy_convolution, not_offered),
}


def can_limit_blas() -> bool:
    """Whether there is a switch for the threads of NumPy's BLAS."""
    return importlib.util.find_spec("threadpoolctl") is not None


@contextmanager
def set_up(peers: Collection[Peer], threads: int) -> Iterator[None]:
    """Inside, everyone has the same number of threads, as far as there is a switch, and PyTorch no autograd."""
    with ExitStack() as stack:
        stack.enter_context(fastconv.config_context(threads=threads))
        if can_limit_blas():
            import threadpoolctl

            stack.enter_context(threadpoolctl.threadpool_limits(threads, "blas"))
        if any("torch" in peer.needs for peer in peers):
            import torch

            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
            stack.enter_context(torch.no_grad())
        yield
