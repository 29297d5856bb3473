"""What `explain` says is what happens: the algorithm by its bits, counts by hand, the limit by the memory in use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TARGETS, TESTED, chosen

import fastconv
from fastconv import ShapeError, config_context, explain
from fastconv.backends import load
from fastconv.config import ALGORITHMS

# The operation, its arguments with shapes in the place of arrays, and its parameters: each algorithm is the best of
# one at least.
CONVOLUTIONS = {
    "3x3": ("conv2d", [(4, 64, 56, 56), (64, 64, 3, 3)], {"padding": 1}),
    "small 3x3": ("conv2d", [(1, 16, 5, 5), (16, 16, 3, 3)], {"padding": 1}),
    "strided": ("conv2d", [(2, 24, 20, 20), (40, 24, 3, 3), (40,)], {"stride": 2, "padding": 1}),
    "depthwise": ("conv2d", [(2, 32, 28, 28), (32, 1, 3, 3)], {"padding": 1, "groups": 32}),
    "first layer": ("conv2d", [(2, 3, 48, 48), (32, 3, 7, 7)], {"stride": 2, "padding": "same"}),
    "last layer": ("conv2d", [(2, 256, 14, 14), (4, 256, 1, 1)], {}),
    "unbatched": ("conv2d", [(20, 12, 12), (20, 20, 3, 3)], {"padding_mode": "reflect", "padding": 1}),
    "5x5": ("conv2d", [(2, 32, 28, 28), (48, 32, 5, 5)], {"padding": 2}),
    "dilated": ("conv2d", [(2, 32, 28, 28), (48, 32, 3, 3)], {"padding": 2, "dilation": 2}),
    "one axis": ("conv1d", [(2, 16, 200), (24, 16, 5)], {"dilation": 2}),
    "three axes": ("conv3d", [(1, 16, 6, 9, 9), (16, 16, 3, 3, 3)], {"padding": 1}),
    "transposed": ("conv_transpose2d", [(2, 24, 12, 12), (24, 20, 4, 4)], {"stride": 2, "padding": 1}),
    "transposed 1": ("conv_transpose1d", [(2, 3, 40), (3, 2, 4)], {"stride": 2}),
    "gradient": ("conv2d_input", [(2, 32, 30, 30), (48, 32, 3, 3), (2, 48, 28, 28)], {}),
    "gradient of few": ("conv2d_input", [(2, 3, 30, 30), (48, 3, 3, 3), (2, 48, 28, 28)], {}),
    "weights": ("conv2d_weight", [(4, 64, 56, 56), (64, 64, 3, 3), (4, 64, 54, 54)], {}),
    "weights of few": ("conv2d_weight", [(2, 3, 30, 30), (5, 3, 3, 3), (2, 5, 28, 28)], {}),
    "weights strided": ("conv2d_weight", [(2, 40, 14, 14), (72, 40, 1, 1), (2, 72, 7, 7)], {"stride": 2}),
    "weights 1x1": ("conv2d_weight", [(2, 40, 14, 14), (72, 40, 1, 1), (2, 72, 14, 14)], {}),
}
DIRECT = {"gemm", "window", "depthwise"}


@pytest.fixture(params=[target for target in TARGETS if target.backend == "cpp"], ids=str)
def cpp(request):
    with chosen(request.param) as target:
        yield target


def run(name, **settings):
    """The bytes of a convolution's result, by `explain`'s own arguments."""
    op, shapes, parameters = CONVOLUTIONS[name]
    rng = np.random.default_rng(0)
    sizes = {"conv2d_input": 0, "conv2d_weight": 1}
    arrays = [
        shape if sizes.get(op) == i else rng.standard_normal(shape, np.float32)
        for i, shape in enumerate(shapes)
    ]
    function = getattr(fastconv.grad if op in sizes else fastconv, op)
    with config_context(threads=2, **settings):
        return function(*arrays, **parameters, backend="cpp").tobytes()


def told(name, backend="cpp", **settings):
    op, shapes, parameters = CONVOLUTIONS[name]
    with config_context(threads=2, **settings):
        return explain(op, *shapes, **parameters, backend=backend)


@pytest.mark.smoke
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_what_is_told_runs(name, cpp):
    """By its bits: they are those of the algorithm that is named; the others' differ, or they raise."""
    for asked in ("auto", "direct"):
        found = told(name, algorithm=asked)
        assert (found.backend, found.isa) == ("cpp", cpp.isa)
        assert run(name, algorithm=asked) == run(name, algorithm=found.algorithm)
        assert found.algorithm in found.candidates
        allowed = DIRECT if asked == "direct" else set(ALGORITHMS)
        times = {key: row.time for key, row in found.candidates.items() if key in allowed}
        assert found.algorithm == min(times, key=times.get)
    for algorithm in ("gemm", "window", "depthwise", "winograd"):
        if algorithm in found.candidates:
            named = told(name, algorithm=algorithm)
            assert named.algorithm == algorithm
            assert "asked for by name" in named.why
            if algorithm == "winograd":
                assert run(name, algorithm=algorithm) != run(name, algorithm="direct")
        else:
            for call in (run, told):
                with pytest.raises(
                    ValueError, match=f"{CONVOLUTIONS[name][0]}: algorithm '{algorithm}' needs "
                ):
                    call(name, algorithm=algorithm)


def test_every_algorithm_is_the_best_of_something():
    if "cpp" not in TESTED:
        pytest.skip("the compiled module is not tested here")
    assert {told(name).algorithm for name in CONVOLUTIONS} == {*DIRECT, "winograd"}
    assert set(load("cpp").ALGORITHMS) == set(ALGORITHMS)
    assert set(load("reference").ALGORITHMS) < set(ALGORITHMS)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_backend_explains(name, backend):
    found = told(name, backend)
    assert found.backend == backend
    assert found.threads in (1, 2)
    assert found.op in str(found)
    if backend != "cpp":
        assert found.algorithm == "direct"
        assert found.why == f"backend '{backend}' has one algorithm"
        assert found.workspace is None


def test_counts():
    found = explain("conv2d", (2, 3, 10, 12), (8, 3, 3, 3), (8,), padding=1, backend="reference")
    products = 2 * 8 * 3 * 9 * 120
    assert found.flops == 2 * found.multiplications == 2 * products
    assert found.bytes == 4 * (2 * 3 * 120 + 8 * 27 + 8 + 2 * 8 * 120)
    assert found.intensity == found.flops / found.bytes
    assert found.kernel == "conv_forward"
    double = explain("conv2d", (2, 3, 10, 12), (8, 3, 3, 3), padding=1, dtype=float, backend="reference")
    assert double.bytes == 8 * (2 * 3 * 120 + 8 * 27 + 2 * 8 * 120)


def test_multiplications_made(cpp):
    """Winograd's 36 for 16 results of 9 products each; no product with the zeros between strides."""
    found = told("3x3")
    assert (found.algorithm, found.multiplications) == ("winograd", found.flops // 2 * 36 // 144)
    found = explain("conv_transpose2d", (1, 8, 10, 10), (8, 8, 2, 2), stride=2, backend="cpp")
    assert found.multiplications == found.flops // 2 == 8 * 8 * 100 * 4


def test_bound():
    """A matrix product of many channels is bound by arithmetic, one product per element by memory."""
    dense = explain("conv2d", (8, 256, 28, 28), (256, 256, 1, 1), backend="reference")
    depthwise = explain("conv2d", (8, 256, 28, 28), (256, 1, 1, 1), groups=256, backend="reference")
    assert (dense.bound, depthwise.bound) == ("compute", "memory")
    assert "bound by memory" in str(depthwise)


POOLING = {
    "max_pool2d": ([(2, 3, 8, 8), 2], 2 * 3 * 64, 4 * 6 * (64 + 16)),
    "max_pool2d_backward": ([(2, 3, 4, 4), (2, 3, 4, 4), (8, 8)], 6 * 16, 6 * (4 * 16 + 8 * 16 + 4 * 64)),
    "avg_pool1d": ([(2, 3, 8), 3, 1], 6 * 18, 4 * 6 * (8 + 6)),
    "avg_pool2d_backward": ([(2, 3, 4, 4), (8, 8), 2], 6 * 64, 4 * 6 * (64 + 16)),
    "adaptive_avg_pool3d": ([(2, 3, 4, 4, 4), 1], 6 * 64, 4 * 6 * (64 + 1)),
    "adaptive_max_pool2d": ([(3, 8, 8), 4], 3 * 64, 4 * 3 * (64 + 16)),
    "lp_pool2d": ([(2, 3, 8, 8), 2, 2], 6 * 64, 4 * 6 * (64 + 16)),
}


@pytest.mark.parametrize("op", POOLING)
def test_pooling(op, backend):
    arguments, flops, size = POOLING[op]
    found = explain(op, *arguments, backend=backend)
    assert (found.op, found.backend, found.algorithm, found.multiplications) == (op, backend, None, None)
    assert (found.flops, found.bytes, found.bound) == (flops, size, "memory")
    assert found.why == "pooling has one algorithm"
    assert "multiplications" not in str(found)


def test_measured(backend):
    found = explain("conv2d", (2, 8, 16, 16), (8, 8, 3, 3), backend=backend, measure=True)
    assert found.measured.seconds > 0
    assert found.measured.gflops == pytest.approx(found.flops / found.measured.seconds / 1e9)
    if "cpp" in TESTED:
        assert found.measured.fraction == pytest.approx(found.measured.gflops / found.measured.ceiling)
    assert "GFLOP/s" in str(found)
    assert explain("max_pool2d_backward", (2, 4, 4), (2, 4, 4), (8, 8), measure=True).measured.seconds > 0
    exact = explain("conv2d", (2, 8, 16, 16), (8, 8, 3, 3), dtype="int32", backend=backend, measure=True)
    assert exact.measured.fraction is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says of a process")
def test_nothing_runs_unless_measured():
    """Arrays of shapes that take seconds to compute are explained at once, and little memory is touched."""
    script = (
        "import pathlib, fastconv as f;"
        "e = f.explain('conv2d', (64, 512, 256, 256), (512, 512, 3, 3), padding=1);"
        "assert e.flops > 10**13;"
        "status = pathlib.Path('/proc/self/status').read_text();"
        "print(status.partition('VmHWM:')[2].split()[0])"  # of this program alone, unlike ru_maxrss
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert int(done.stdout) < 500_000  # KiB, of arrays that hold 17 GB


@pytest.mark.parametrize(
    ("arguments", "parameters", "error", "message"),
    [
        (["conv4d", (1,)], {}, ValueError, "explain: there is no operation 'conv4d'; there are conv1d, "),
        (["conv_nd", (1,)], {}, ValueError, "explain: there is no operation 'conv_nd'"),
        (["conv2d", (1, 3, 8, 8)], {}, TypeError, "explain: conv2d: missing a required argument: 'weight'"),
        (["conv2d", 3, (1, 3, 3, 3)], {}, TypeError, "conv2d: input must be a sequence of ints, got 3"),
        (["conv2d", (1, 3, 8, 8), (4, 2, 3, 3)], {}, ShapeError, "conv2d: weight has 2 input channels"),
        (
            ["conv2d", (1, 3, 8, 8), (4, 3, 3, 3)],
            {"backend": "torch"},
            ValueError,
            "conv2d: backend must be one of",
        ),
        (
            ["conv2d", (1, 3, 8, 8), (4, 3, 3, 3)],
            {"dtype": complex},
            TypeError,
            "conv2d: input has dtype complex128",
        ),
        (
            ["conv2d_backward", (1, 4, 6, 6), (1, 3, 8, 8), (4, 3, 3, 3)],
            {},
            ValueError,
            r"explain: .* runs 2 kernels \(.*\): explain its parts, conv2d_input and conv2d_weight$",
        ),
        (
            ["conv_transpose1d_backward", (1, 4, 10), (1, 3, 8), (3, 4, 3)],
            {},
            ValueError,
            ".*: explain conv1d and conv1d_weight, which are its parts",
        ),
        (["unfold", (1, 3, 8, 8), 2], {}, ValueError, "explain: unfold runs no kernel"),
        (["conv2d", (0, 3, 8, 8), (4, 3, 3, 3)], {}, ValueError, "explain: conv2d runs no kernel"),
    ],
)
def test_what_cannot_be_explained(arguments, parameters, error, message):
    with pytest.raises(error, match=f"^{message}"):
        explain(*arguments, **parameters)


def test_real_calls_are_not_touched():
    """The stand-in for the backend is gone when `explain` returns or raises."""
    x, weight = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
    with pytest.raises(ShapeError):
        explain("conv2d", (1, 1, 2, 2), (1, 1, 3, 3))
    explain("conv2d", x.shape, weight.shape)
    assert fastconv.conv2d(x, weight).tolist() == [[[[9, 9], [9, 9]]]]


# --- the limit of workspace ---


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_limit_of_workspace(name, cpp):
    """What fits is taken, though it be slower; where nothing fits, the error says what is needed."""
    rows = told(name).candidates
    op = CONVOLUTIONS[name][0]
    for limit in sorted({int(row.workspace) + 1 for row in rows.values()} | {0}):
        fitting = {key: row.time for key, row in rows.items() if row.workspace <= limit}
        if not fitting:
            for call in (run, told):
                with pytest.raises(
                    MemoryError, match=rf"^{op}: workspace_limit is {limit} bytes, .* need: '"
                ):
                    call(name, workspace_limit=limit)
            continue
        found = told(name, workspace_limit=limit)
        assert found.algorithm == min(fitting, key=fitting.get)
        assert run(name, workspace_limit=limit) == run(name, algorithm=found.algorithm)
        for left_out in rows.keys() - fitting.keys():
            assert f"rules out {left_out}" in found.why or f" and {left_out}" in found.why
            with pytest.raises(MemoryError, match=rf"^{op}: workspace_limit is {limit} bytes"):
                run(name, algorithm=left_out, workspace_limit=limit)


def test_without_a_limit_speed_is_not_bought_with_much_memory(cpp):
    """36 transformed weights for each 9, of 2048 x 2048 channels in 5 slices: 3 GB."""
    shapes = (1, 2048, 12, 24, 24), (2048, 2048, 5, 3, 3)
    found = explain("conv3d", *shapes, backend="cpp")
    assert found.algorithm == "gemm"
    assert found.candidates["winograd"].workspace > 2**31
    assert "its workspace rules out winograd" in found.why
    for threads in (1, 1000):
        with config_context(threads=threads):
            assert explain("conv3d", *shapes, backend="cpp").algorithm == "gemm"
    with config_context(workspace_limit=2**40):
        assert explain("conv3d", *shapes, backend="cpp").algorithm == "winograd"
    with config_context(algorithm="winograd"):
        assert explain("conv3d", *shapes, backend="cpp").algorithm == "winograd"


def test_the_number_of_threads_does_not_decide(cpp):
    """Each takes some memory, here beyond 256 MiB together: the result would depend on them."""
    shapes = (8, 256, 56, 56), (256, 256, 3, 3)
    found = set()
    for threads in (1, 2, 64, 1000):
        with config_context(threads=threads):
            told = explain("conv2d", *shapes, padding=1, backend="cpp")
            found.add((told.algorithm, told.candidates["winograd"].workspace > 2**28))
    assert found == {("winograd", False), ("winograd", True)}


MEMORY = """
import json, numpy as np, fastconv
from fastconv import config_context, grad
rng, found = np.random.default_rng(0), []
def used():
    return fastconv.show_config("dicts")["cache"]["workspaces"]
cases = [
    ((8, 64, 56, 56), (64, 64, 3, 3)), ((1, 512, 7, 7), (512, 512, 3, 3)), ((2, 3, 64, 64), (32, 3, 3, 3)),
    ((2, 256, 28, 28), (256, 256, 1, 1)), ((8, 32, 30, 30), (32, 32, 3, 3)), ((4, 4, 100, 100), (4, 4, 5, 5)),
    ((1, 100, 20, 300), (30, 100, 3, 3)), ((8, 16, 40, 40), (200, 16, 3, 3)), ((4, 40, 40, 40), (60, 40, 5, 5)),
]
windows = [{}] * len(cases) + [{"stride": 2}, {"stride": 4}, {"dilation": 2}]
cases += [((8, 64, 57, 57), (256, 64, 1, 1)), ((2, 3, 227, 227), (32, 3, 11, 11)), ((4, 64, 40, 40), (64, 64, 3, 3))]
for (x_shape, w_shape), window in zip(cases, windows, strict=True):
    step, spread = window.get("stride", 1), window.get("dilation", 1)
    size = [(x - spread * (k - 1) - 1) // step + 1 for x, k in zip(x_shape[2:], w_shape[2:], strict=True)]
    y_shape = (x_shape[0], w_shape[0], *size)
    x, w, gy = (rng.standard_normal(shape, np.float32) for shape in (x_shape, w_shape, y_shape))
    calls = {
        "conv2d": ((x_shape, w_shape), lambda: fastconv.conv2d(x, w, **window)),
        "conv2d_input": ((x_shape, w_shape, y_shape), lambda: grad.conv2d_input(x_shape, w, gy, **window)),
        "conv2d_weight": ((x_shape, w_shape, y_shape), lambda: grad.conv2d_weight(x, w_shape, gy, **window)),
    }
    for op, (shapes, call) in calls.items():
        with config_context(threads=1):
            for algorithm in fastconv.explain(op, *shapes, **window).candidates:
                with config_context(algorithm=algorithm):
                    told = fastconv.explain(op, *shapes, **window)
                    fastconv.clear_cache()
                    before = used()
                    call()
                    found.append((op, algorithm, *x_shape, *w_shape, told.workspace, used() - before))
print(json.dumps(found))
"""
ROUNDING = 5 * 2**21  # workspaces are whole huge pages


def test_workspace_is_what_is_told():
    """The memory that one thread keeps after a call is at most what the model says, and not much less."""
    if "cpp" not in TESTED:
        pytest.skip("the compiled module is not tested here")
    environment = {**os.environ, "FASTCONV_NUM_THREADS": "1", "FASTCONV_BACKEND": "cpp"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    rows = json.loads(done.stdout)
    assert len(rows) > 40
    wrong = [row for row in rows if not row[-1] - ROUNDING <= 1.1 * row[-2] <= 3 * row[-1] + 2**20]
    assert not wrong, "\n".join(map(str, wrong))
