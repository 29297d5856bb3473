"""The CUDA backend on a GPU, by one command: ``make gpu``. First whether it is right, then how fast.

Needs CuPy; where PyTorch is installed, cuDNN is timed beside and compared with, in its own layout and in ours. Nothing
else, no network, and no build: kernels are compiled when they are first launched. It prints as it goes, and writes
``gpu.json`` and ``gpu.png`` into the folder that ``--output`` names (default ``$OUT``, or ``benchmarks/results``).

The exit code is that of the verification. It has been run without a GPU only, as far as that goes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, NamedTuple

import numpy as np

import fastconv
from fastconv.backends.cupy import conv, registry
from fastconv.backends.protocol import KERNELS
from fastconv.bench.workloads import WORKLOADS, ConvLayer, Layer, PoolLayer
from fastconv.testing import Problem, check_backend, check_kernel, make_problem

RESULTS = Path(__file__).parent / "results"
NETWORKS = (
    "resnet50",
    "vgg16",
    "mobilenet_v2",
    "depthwise",
    "first_layers",
    "transposed",
    "pool",
    "adaptive_pool",
)
BATCHES = (32, 256)
AGREE = 1e-4  # relative difference from cuDNN's float32 result, in the norm
COPIES = 5  # of a graph, the median of which counts
GRAPH_SECONDS = 2e-3  # a graph holds calls for about so long


# --- is it right ---


class Moved:
    """A backend of NumPy's arrays that computes on a device: what `fastconv.testing` checks."""

    def __init__(self, kernels: Any, put: Callable[[Any], Any], get: Callable[[Any], Any]) -> None:
        self.kernels, self.put, self.get = kernels, put, get
        self.results: list[bytes] = []  # of the last call

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.kernels, name)
        return self.moved(kernel, name) if name in KERNELS else kernel

    def moved(self, kernel: Callable[..., Any], name: str) -> Callable[..., Any]:
        outputs = {
            "max_pool": (1, 2),
            "max_pool_grad_input": (2,),
            "avg_pool": (1,),
            "avg_pool_grad_input": (1,),
        }
        written = outputs.get(name, (2,) if name == "conv_grad_weight" else (4,))

        def call(*arguments: Any) -> Any:
            there = [self.put(a) if isinstance(a, np.ndarray) else a for a in arguments]
            status = kernel(*there)
            self.results = []
            for i in written:
                if arguments[i] is not None:
                    arguments[i][...] = self.get(there[i])
                    self.results.append(arguments[i].tobytes())
            return status

        return call


class Tiled:
    """The convolutions with one tile, and weights' gradients in so many parts."""

    def __init__(self, device: Any, tile: registry.Tile, parts: int) -> None:
        self.device, self.tile, self.parts = device, tile, parts

    def conv_forward(self, x: Any, weight: Any, bias: Any, activation: Any, y: Any, geometry: Any) -> None:
        plan = conv.gather_plan(geometry, x.dtype, activation, True, self.tile)
        conv.run_gather(self.device, plan, x, weight, bias, y)

    def conv_grad_input(
        self, gy: Any, weight: Any, bias: Any, activation: Any, gx: Any, geometry: Any
    ) -> None:
        plan = conv.gather_plan(geometry, gy.dtype, activation, False, self.tile)
        conv.run_gather(self.device, plan, gy, weight, bias, gx)

    def conv_grad_weight(self, x: Any, gy: Any, gw: Any, geometry: Any) -> None:
        plan = conv.grad_weight_plan(geometry, x.dtype, self.tile, self.parts)
        conv.run_grad_weight(self.device, plan, x, gy, gw)


def problems() -> Iterator[Problem]:
    """The named geometries of the tests in both floating types; every activation once."""
    from cases import ADAPTIVE, CONVS, POOLS, TRANSPOSED

    for dtype in registry.FLOATING:
        for case in (*CONVS, *TRANSPOSED):
            for kernel in ("conv_forward", "conv_grad_input", "conv_grad_weight"):
                yield make_problem(kernel, case.geometry, dtype, bias=kernel != "conv_grad_weight")
        for case in (*POOLS, *ADAPTIVE):
            for kernel in KERNELS[3:]:
                yield make_problem(kernel, case.geometry, dtype)
        for activation in fastconv.activations.ACTIVATIONS:
            yield make_problem("conv_forward", CONVS[0].geometry, dtype, bias=True, activation=activation)


def verify(
    kernels: Any, device: Any, put: Callable[[Any], Any], get: Callable[[Any], Any]
) -> tuple[int, list[str]]:
    """How many checks passed, and what the others say: against the reference, with poisoned outputs, and again."""
    passed, failed = 0, []

    def attempt(check: Callable[[], None]) -> None:
        nonlocal passed
        try:
            check()
            passed += 1
        except AssertionError as error:
            failed.append(str(error)[:400])

    def twice(backend: Moved, problem: Problem) -> None:
        check_kernel(backend, problem)
        first = backend.results
        check_kernel(backend, problem)
        if backend.results != first:
            raise AssertionError(f"{problem.kernel} of {problem.geometry}: other bits in the second run")

    backend = Moved(kernels, put, get)
    attempt(lambda: check_backend(backend))
    listed = list(problems())
    for problem in listed:
        attempt(lambda problem=problem: twice(backend, problem))
    for dtype, tiles in registry.TILES.items():
        for tile in tiles:
            tiled = Moved(Tiled(device, tile, 3), put, get)
            for problem in listed:
                if problem.kernel.startswith("conv") and problem.dtypes[0] == dtype:
                    attempt(lambda tiled=tiled, problem=problem: twice(tiled, problem))
    return passed, failed


# --- how fast ---


class Times(NamedTuple):
    """Seconds of a layer: the least that memory or arithmetic need, ours, and cuDNN's by layout."""

    name: str
    batch: int
    direction: str
    floor: float
    own: float
    nchw: float | None
    nhwc: float | None


def elements(layer: Layer, batch: int) -> tuple[int, int, int]:
    """Of input, weights and result."""
    if isinstance(layer, PoolLayer):
        return batch * layer.channels * layer.size**2, 0, batch * layer.channels * layer.output**2
    return (
        batch * layer.in_channels * math.prod(layer.size),
        math.prod(layer.weight_shape),
        batch * layer.out_channels * math.prod(layer.output),
    )


def floor(layer: Layer, batch: int, copy_rate: float, product_rate: float) -> float:
    """Every array once at the rate of a copy, or all products at that of a matrix product; indices are not counted."""
    return max(4 * sum(elements(layer, batch)) / copy_rate, layer.flops(batch) / product_rate)


def own_call(xp: Any, layer: Layer, batch: int, direction: str) -> tuple[Callable[[], Any], tuple[Any, ...]]:
    """Our call of a layer in two dimensions, and its input, weight and result's gradient."""
    draw = xp.random.default_rng(0).standard_normal

    def array(*shape: int) -> Any:
        return draw(shape, dtype=xp.float32)

    if isinstance(layer, PoolLayer):
        x = array(batch, layer.channels, layer.size, layer.size)
        gy = array(batch, layer.channels, layer.output, layer.output)
        return pool_call(layer, direction, x, gy), (x, None, gy)
    x, w = array(batch, layer.in_channels, *layer.size), array(*layer.weight_shape)
    w /= math.sqrt(w[0].size)
    gy = array(batch, layer.out_channels, *layer.output)
    window: dict[str, Any] = {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }
    if layer.transposed:
        window["output_padding"] = layer.output_padding
    forward = fastconv.conv_transpose2d if layer.transposed else fastconv.conv2d
    backward = fastconv.conv_transpose2d_backward if layer.transposed else fastconv.conv2d_backward
    if direction == "forward":
        return lambda: forward(x, w, **window), (x, w, gy)
    mask = (direction == "grad_input", direction == "grad_weight", False)
    which = mask.index(True)
    return lambda: backward(gy, x, w, output_mask=mask, **window)[which], (x, w, gy)


def pool_call(layer: PoolLayer, direction: str, x: Any, gy: Any) -> Callable[[], Any]:
    """Maximum pooling returns indices, and its gradient needs them."""
    window = (layer.kernel, layer.stride, layer.padding)
    if layer.adaptive is not None:
        if direction == "forward":
            return lambda: fastconv.adaptive_avg_pool2d(x, layer.adaptive)
        return lambda: fastconv.adaptive_avg_pool2d_backward(gy, x.shape)
    if layer.kind == "avg":
        if direction == "forward":
            return lambda: fastconv.avg_pool2d(x, *window)
        return lambda: fastconv.avg_pool2d_backward(gy, x.shape, *window)
    if direction == "forward":
        return lambda: fastconv.max_pool2d(x, *window, return_indices=True)[0]
    _, indices = fastconv.max_pool2d(x, *window, return_indices=True)
    return lambda: fastconv.max_pool2d_backward(gy, indices, x.shape)


def torch_call(
    torch: Any, layer: Layer, direction: str, arrays: tuple[Any, ...], nhwc: bool
) -> Callable[[], Any] | None:
    """PyTorch's call of the same, of the same memory where the layout is ours; ``None`` where it has none."""
    layout = torch.channels_last if nhwc else torch.contiguous_format

    def tensor(array: Any) -> Any:
        return torch.from_dlpack(array).contiguous(memory_format=layout)

    functions = torch.nn.functional
    if isinstance(layer, PoolLayer):
        x, gy = tensor(arrays[0]), tensor(arrays[2])
        if direction == "forward":
            if layer.adaptive is not None:
                return lambda: functions.adaptive_avg_pool2d(x, layer.adaptive)
            window = (layer.kernel, layer.stride, layer.padding)
            if layer.kind == "avg":
                return lambda: functions.avg_pool2d(x, *window)
            return lambda: functions.max_pool2d(x, *window, return_indices=True)[0]
        aten = torch.ops.aten
        if layer.adaptive is not None:
            return lambda: aten._adaptive_avg_pool2d_backward(gy, x)
        sizes = [[n, n] for n in (layer.kernel, layer.stride, layer.padding)]
        if layer.kind == "avg":
            return lambda: aten.avg_pool2d_backward(gy, x, *sizes, False, True, None)
        _, where = functions.max_pool2d(x, layer.kernel, layer.stride, layer.padding, return_indices=True)
        return lambda: aten.max_pool2d_with_indices_backward(gy, x, *sizes, [1, 1], False, where)
    x, w, gy = map(tensor, arrays)
    extra = list(layer.output_padding) or [0] * layer.ndim
    window = (
        list(layer.stride),
        list(layer.padding),
        list(layer.dilation),
        layer.transposed,
        extra,
        layer.groups,
    )
    if direction == "forward":
        return lambda: torch.ops.aten.convolution(x, w, None, *window)
    mask = [direction == "grad_input", direction == "grad_weight", False]
    which = mask.index(True)
    return lambda: torch.ops.aten.convolution_backward(gy, x, w, None, *window, mask)[which]


def graph_seconds(
    stream: Any,
    begin: Callable[[], Any],
    end: Callable[[], Any],
    event: Callable[[], Any],
    call: Callable[[], Any],
) -> float:
    """The median time of a call among many in a graph, so that no launch is waited for."""

    def timed(run: Callable[[], Any]) -> float:
        first, last = event(), event()
        first.record(stream)
        run()
        last.record(stream)
        last.synchronize()
        return float(elapsed(first, last))

    call()
    stream.synchronize()
    count = min(200, max(1, math.ceil(GRAPH_SECONDS / max(timed(call), 1e-6))))
    begin()
    for _ in range(count):
        call()
    launch = end()
    launch()
    return median(timed(launch) for _ in range(COPIES)) / count


def elapsed(first: Any, last: Any) -> float:
    """Seconds between two events of CuPy or of PyTorch."""
    if hasattr(first, "elapsed_time"):
        return first.elapsed_time(last) / 1e3
    import cupy

    return cupy.cuda.get_elapsed_time(first, last) / 1e3


def own_seconds(cupy: Any, call: Callable[[], Any]) -> float:
    """Of our call, on a stream of its own."""
    with cupy.cuda.Stream(non_blocking=True) as stream:

        def end() -> Callable[[], None]:
            graph = stream.end_capture()
            return lambda: graph.launch(stream)

        return graph_seconds(stream, stream.begin_capture, end, cupy.cuda.Event, call)


def torch_seconds(torch: Any, call: Callable[[], Any]) -> float:
    """Of PyTorch's call, on a stream of its own."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for _ in range(3):  # cuDNN looks for its quickest algorithm
            call()
        stream.synchronize()

        def end() -> Callable[[], None]:
            graph.capture_end()
            return graph.replay

        def event() -> Any:
            return torch.cuda.Event(enable_timing=True)

        return graph_seconds(stream, graph.capture_begin, end, event, call)


def ceilings(cupy: Any, torch: Any) -> tuple[float, float]:
    """Measured: bytes per second of a copy, and float32 operations per second of a matrix product."""
    source = cupy.zeros(2**28, cupy.float32)
    target = cupy.empty_like(source)
    copied = own_seconds(cupy, lambda: cupy.copyto(target, source))
    n = 4096
    if torch is None:
        a = cupy.ones((n, n), cupy.float32)
        multiplied = own_seconds(cupy, lambda: a @ a)
    else:
        t = torch.ones((n, n), device="cuda")
        multiplied = torch_seconds(torch, lambda: t @ t)
    return 2 * source.nbytes / copied, 2 * n**3 / multiplied


def layers(names: Sequence[str]) -> Iterator[tuple[str, Layer]]:
    """What is timed: each layer of two dimensions once."""
    seen = set()
    for name in names:
        for layer in WORKLOADS[name]:
            key = layer._replace(name="", repeats=1)
            if key not in seen and not (isinstance(layer, ConvLayer) and layer.ndim != 2):
                seen.add(key)
                yield name, layer


def measure(cupy: Any, torch: Any, rates: tuple[float, float], names: Sequence[str], batches: Sequence[int],
            seconds: float) -> tuple[list[Times], list[str]]:  # fmt: skip
    """Times of all layers, as far as there is time, and where cuDNN's results differ from ours."""
    rows, wrong = [], []
    end = time.monotonic() + seconds
    print(
        f"{'layer':40} {'batch':>5} {'direction':11} {'floor':>8} {'own':>8} {'NCHW':>8} {'NHWC':>8}  µs, ratio"
    )
    for batch in batches:
        for _, layer in layers(names):
            for direction in layer.directions:
                if time.monotonic() > end:
                    print("no time is left for the rest")
                    return rows, wrong
                call, arrays = own_call(cupy, layer, batch, direction)
                own = own_seconds(cupy, call)
                theirs: list[float | None] = [None, None]
                for i, nhwc in enumerate((False, True) if torch is not None else ()):
                    peer = torch_call(torch, layer, direction, arrays, nhwc)
                    theirs[i] = torch_seconds(torch, peer)
                    if not nhwc:
                        expected, actual = cupy.from_dlpack(peer().contiguous()), call()
                        off = float(
                            cupy.linalg.norm((actual - expected).ravel()) / cupy.linalg.norm(expected.ravel())
                        )
                        if not off <= AGREE:
                            wrong.append(
                                f"{layer.name} {direction}, batch {batch}: off by {off:.1e} from cuDNN's"
                            )
                row = Times(layer.name, batch, direction, floor(layer, batch, *rates), own, *theirs)
                rows.append(row)
                print(shown(row), flush=True)
    return rows, wrong


def shown(row: Times) -> str:
    """A line of the table."""
    cells = (f"{1e6 * t:8.1f}" if t is not None else f"{'-':>8}" for t in row[3:])
    ratio = f"{row.nchw / row.own:6.2f}" if row.nchw else ""
    return f"{row.name:40} {row.batch:5} {row.direction:11} {' '.join(cells)}  {ratio}"


def means(rows: Sequence[Times]) -> dict[str, float]:
    """Geometric means of the ratio of cuDNN's time to ours, by direction and layout; larger than 1: ours is less."""
    found = {}
    for layout in ("nchw", "nhwc"):
        for direction in ("forward", "grad_input", "grad_weight"):
            ratios = [
                getattr(row, layout) / row.own
                for row in rows
                if row.direction == direction and getattr(row, layout)
            ]
            if ratios:
                found[f"{direction}, {layout.upper()}"] = geometric_mean(ratios)
    return found


def draw(rows: Sequence[Times], path: Path) -> None:
    """The share of the floor's rate that we and cuDNN reach, a bar for each row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1 + 0.18 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    axes.barh(places - 0.2, [row.floor / row.own for row in rows], 0.4, label="fastconv")
    if any(row.nchw for row in rows):
        axes.barh(
            places + 0.2, [row.floor / (row.nchw or math.inf) for row in rows], 0.4, label="cuDNN, NCHW"
        )
    axes.set_yticks(places, [f"{row.name} {row.direction} n{row.batch}" for row in rows], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("share of what memory or arithmetic allow")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    """Verify, measure, write; returns the number of failed checks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=os.environ.get("OUT") or RESULTS)
    parser.add_argument("--seconds", type=float, default=300, help="for the times (default: %(default)g)")
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--workloads", nargs="*", default=NETWORKS, choices=sorted(WORKLOADS))
    options = parser.parse_args()

    import cupy

    from fastconv.backends.cupy import backend

    torch = None
    with suppress(ImportError):
        import torch

        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    about = backend.describe()
    if torch is not None:
        about |= {"torch": torch.__version__, "cuDNN": str(torch.backends.cudnn.version())}
    print(*(f"{name}: {text}" for name, text in about.items()), sep="\n", flush=True)

    start = time.monotonic()
    passed, failed = verify(backend, backend._device, cupy.asarray, cupy.asnumpy)
    print(
        f"verified in {time.monotonic() - start:.0f} s: {passed} checks passed, {len(failed)} failed",
        flush=True,
    )
    rates = ceilings(cupy, torch)
    print(
        f"ceilings: copy {rates[0] / 1e12:.2f} TB/s, matrix product {rates[1] / 1e12:.1f} TFLOP/s", flush=True
    )
    rows, wrong = measure(cupy, torch, rates, options.workloads, options.batches, options.seconds)
    failed += wrong
    for name, mean in means(rows).items():
        print(f"cuDNN's time by ours, geometric mean, {name}: {mean:.2f}")
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "ceilings": rates, "failed": failed, "rows": [row._asdict() for row in rows]}
    (options.output / "gpu.json").write_text(json.dumps(content, indent=1))
    if rows:
        draw(rows, options.output / "gpu.png")
    for text in failed:
        print(f"failed: {text}")
    print(f"{passed} checks passed, {len(failed)} failed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main() > 0)
