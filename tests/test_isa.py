"""The compiled backend's instruction sets: which there are, how one is chosen, that all agree."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from guard import SIDES, guarded, guarded_all

import fastconv
import fastconv.grad
from fastconv import backends
from fastconv.geometry import conv_geometry, pool_geometry
from fastconv.testing import make_problem

_native = pytest.importorskip("fastconv._native", exc_type=ImportError)

FLAGS = {"avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
GEOMETRY = conv_geometry("conv2d", 2, (2, 5, 7, 19), (11, 5, 3, 3), 1, 1, 1, 1)


def run_python(code, **environment):
    environment = {**os.environ, "FASTCONV_BACKEND": "", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


WHICH = """
import fastconv, numpy
from fastconv import _native
fastconv.conv2d(numpy.ones((1, 1, 3, 3)), numpy.ones((1, 1, 2, 2)))
print(_native.get_isa())
"""


def test_available():
    available = _native.available_isas()
    assert len(set(available)) == len(available)
    assert available[-1] == "baseline"  # best first
    assert set(available) <= {"baseline", "avx2", "avx512", "neon"}
    assert _native.get_isa() in available


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(),
    reason="reads what Linux says of x86-64",
)
def test_available_is_what_the_processor_has():
    line = next(text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("flags"))
    flags = set(line.split(":")[1].split())
    for isa, needed in FLAGS.items():
        assert (isa in _native.available_isas()) == (needed <= flags), isa


def test_the_best_is_the_default():
    code, out, err = run_python(WHICH, FASTCONV_ISA="")
    assert (code, out) == (0, _native.available_isas()[0]), err


@pytest.mark.parametrize("name", _native.available_isas())
def test_environment_chooses(name):
    code, out, err = run_python(WHICH, FASTCONV_ISA=name)
    assert (code, out) == (0, name), err


@pytest.mark.parametrize("name", ["avx1024", "AVX2", "neon" if platform.machine() == "x86_64" else "avx2"])
def test_environment_cannot_choose_what_is_not_there(name):
    """Not even where another backend could serve the call."""
    code, _, err = run_python(WHICH, FASTCONV_ISA=name)
    assert code == 1
    last = err.splitlines()[-1]
    assert "BackendUnavailableError" in last
    assert "FASTCONV_ISA" in last
    assert name in last


def test_unknown_names_are_refused():
    before = _native.get_isa()
    with pytest.raises(ValueError, match=r"sse9.*baseline"):
        _native.set_isa("sse9")
    assert _native.get_isa() == before


def test_the_chosen_one_is_reported(isa):
    assert _native.get_isa() == isa
    described = fastconv.show_config("dicts")["backends"]["cpp"]["instruction set"]
    assert described.startswith(isa)


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_may_begin_anywhere(dtype, isa):
    """No kernel relies on more alignment than an element's own."""
    module = backends.load("cpp")
    conv = make_problem("conv_forward", GEOMETRY, dtype, data="integer")
    pool = make_problem("max_pool", pool_geometry("pool", 2, (1, 3, 7, 35), 2, 2, 0, 1, False), dtype)
    for problem in (conv, pool):
        for offset in range(17):
            inputs = [shifted(a, offset) if isinstance(a, np.ndarray) else a for a in problem.inputs]
            outputs = [
                shifted(np.zeros(e.shape, t), 16 - offset)
                for e, t in zip(problem.expected, problem.dtypes, strict=True)
            ]
            getattr(module, problem.kernel)(*inputs, *outputs, problem.geometry)
            for output, expected in zip(outputs, problem.expected, strict=True):
                np.testing.assert_array_equal(output, expected)


def shifted(array, offset):
    buffer = np.zeros(array.size + offset, array.dtype)
    inner = buffer[offset:].reshape(array.shape)
    inner[...] = array
    return inner


@pytest.mark.parametrize("kernel", ["conv_forward", "conv_grad_input", "conv_grad_weight"])
def test_repeatable(kernel, isa):
    """The same bits in every run: no result depends on what memory held before."""
    module = backends.load("cpp")
    problem = make_problem(kernel, GEOMETRY, "float32")
    results = set()
    for garbage in (0, np.nan, 1e30):
        output = np.full(problem.expected[0].shape, garbage, np.float32)
        getattr(module, kernel)(*problem.inputs, output, GEOMETRY)
        results.add(output.tobytes())
    assert len(results) == 1


EXPLICIT = """
import fastconv, numpy
x = numpy.ones((1, 1, 2, 2))
try:
    fastconv.conv2d(x, x, backend="cpp")
except fastconv.BackendUnavailableError as error:
    print(error)
"""


def test_explicit_backend_with_an_impossible_instruction_set():
    _, out, err = run_python(EXPLICIT, FASTCONV_ISA="avx1024")
    assert out.startswith("backend 'cpp' is not available: FASTCONV_ISA"), err
    assert "avx1024" in out


@pytest.mark.parametrize(
    ("channels", "outputs", "groups", "size", "kernel", "stride"),
    [
        (1, 1, 1, (5, 7), (3, 3), 1),  # a single result and less than a vector
        (3, 7, 1, (19, 33), (7, 7), 2),  # results and places that are left over from whole tiles
        (6, 10, 2, (23, 67), (3, 5), 4),
        (4, 5, 1, (70, 41), (2, 3), 1),  # several blocks of rows
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_weight_gradient_by_windows(channels, outputs, groups, size, kernel, stride, dtype, isa):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (2, channels, *size)).astype(dtype)
    weight_size = (outputs, channels // groups, *kernel)
    options = {"stride": stride, "padding": 1, "groups": groups}
    y = fastconv.conv2d(x, np.zeros(weight_size, dtype), **options, backend="reference")
    grad_y = rng.integers(-3, 4, y.shape).astype(dtype)
    expected = fastconv.grad.conv2d_weight(x, weight_size, grad_y, **options, backend="reference")
    for threads in 1, 3:
        with fastconv.config_context(algorithm="window", threads=threads):
            given = fastconv.grad.conv2d_weight(x, weight_size, grad_y, **options, backend="cpp")
        np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "channels"),
    [
        ((7, 7), (3, 3), 1, 1, 8),  # rows that are summed as one
        ((9, 28), (3, 3), (2, 1), 1, 7),
        ((13, 35), (3, 4), 2, 1, 8),  # two phases that take turns
        ((6, 33), (1, 1), 2, 1, 3),  # one of two phases
        ((20, 41), (7, 5), (3, 4), 1, 5),
        ((11, 18), (2, 2), 3, 5, 9),
        ((1, 1100), (1, 5), (1, 2), 1, 2),  # one row, two blocks
    ],
)
def test_windows_of_small_groups(isa, dtype, size, kernel, stride, dilation, channels):
    rng = np.random.default_rng(1)
    x = rng.integers(-3, 4, (2, 2 * channels, *size)).astype(dtype)
    w = rng.integers(-3, 4, (2 * channels, channels, *kernel)).astype(dtype)
    options = {"stride": stride, "dilation": dilation, "padding": 1, "groups": 2}
    results = []
    for backend, algorithm in [("reference", "auto"), ("cpp", "window")]:
        with fastconv.config_context(algorithm=algorithm):
            y = fastconv.conv2d(x, w, backend=backend, **options)
            results.append((y, fastconv.conv_transpose2d(y % 5, w, backend=backend, **options)))
    for expected, got in zip(*results, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("channels", "size", "kernel", "stride", "dilation"),
    [
        (2, (7, 7), (3, 3), 1, 1),
        (183, (7, 7), (3, 3), 1, 1),  # two blocks of channels, one of them odd
        (5, (14, 14), (3, 3), 2, 1),
        (5, (9, 13), (3, 3), 2, 1),
        (3, (7, 7), (5, 5), 1, 1),
        (3, (13, 14), (5, 5), 2, 1),
        (3, (12, 7), (3, 3), (2, 1), 1),
        (4, (11, 6), (7, 6), 1, (2, 1)),
        (3, (11, 9), (3, 3), 1, 2),
        (3, (17, 3), (3, 2), (3, 2), 1),
        (3, (300, 7), (3, 3), 1, 1),
    ],
)
def test_depthwise_short_rows(isa, dtype, channels, size, kernel, stride, dilation, side):
    """Several channels may share a vector."""
    rng = np.random.default_rng(2)
    x = rng.integers(-3, 4, (2, channels, *size)).astype(dtype)
    w = rng.integers(-3, 4, (channels, 1, *kernel)).astype(dtype)
    bias = rng.integers(-3, 4, channels).astype(dtype)
    padding = tuple(k // 2 for k in kernel)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": channels}
    expected = fastconv.conv2d(x, w, bias, **options, activation="relu", backend="reference")
    grad = rng.integers(-3, 4, expected.shape).astype(dtype)
    expected_grads = fastconv.conv2d_backward(grad, x, w, **options, backend="reference")
    x, w, bias, grad = guarded_all((x, w, bias, grad), side)
    out = guarded(np.zeros_like(expected), side)
    with fastconv.config_context(algorithm="depthwise", threads=2):
        fastconv.conv2d(x, w, bias, **options, activation="relu", out=out.array, backend="cpp")
        grads = fastconv.conv2d_backward(grad, x, w, **options, backend="cpp")
    assert out.margin_is_whole()
    for got, wanted in zip((out.array, *grads), (expected, *expected_grads), strict=True):
        np.testing.assert_array_equal(got, wanted)
