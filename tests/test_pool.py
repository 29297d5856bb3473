"""Pooling, its gradients and unpooling: against the reference, and against windows in plain Python."""

import functools
import itertools
import math
import time

import numpy as np
import pytest
from cases import ADAPTIVE, POOLS, Adaptive, params, problem

import fastconv
from fastconv import ShapeError
from fastconv.backends import load
from fastconv.geometry import adaptive_pool_geometry, pool_geometry
from fastconv.testing import check_kernel, gradcheck

EVERY = (*POOLS, *(case._replace(name=f"adaptive-{case.name}") for case in ADAPTIVE))
BY_NAME = {case.name: case for case in EVERY}
# Everything that plain Python can enumerate.
SMALL = params(tuple(case for case in POOLS if "vast" not in case.name and "beyond" not in case.name
                     and case.name not in ("many-planes", "stride-exceeds-input")))  # fmt: skip
LP_CASES = ("halve", "nothing-is-square", "audio-1d", "video-3d", "ceil-overhang", "same")

float_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def some(*names):
    return params(tuple(BY_NAME[name] for name in names))


def image(shape, dtype=np.float64, seed=0):
    return np.random.default_rng([seed, *shape]).integers(-3, 4, shape).astype(dtype)


# --- kernels against the reference ---


@pytest.mark.parametrize("data", ["normal", "ties", "nan"])
@float_dtypes
@pytest.mark.parametrize("case", params(EVERY))
def test_max_kernel(case, dtype, data, backend):
    check_kernel(load(backend), problem("max_pool", case.geometry, dtype, data=data))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize(
    "case", some("nothing-is-square", "halve", "no-element-in-window", "adaptive-uneven")
)
def test_max_kernel_of_integers(case, dtype, backend):
    check_kernel(load(backend), problem("max_pool", case.geometry, dtype))


@float_dtypes
@pytest.mark.parametrize("case", params(EVERY))
@pytest.mark.parametrize("kernel", ["max_pool_grad_input", "avg_pool", "avg_pool_grad_input"])
def test_kernel(kernel, case, dtype, backend):
    check_kernel(load(backend), problem(kernel, case.geometry, dtype))


@float_dtypes
@pytest.mark.parametrize("kernel", ["max_pool", "max_pool_grad_input", "avg_pool", "avg_pool_grad_input"])
class TestTails:
    """Every remainder after whole vectors, in the width and in the number of planes."""

    def check(self, backend, kernel, dtype, geometries):
        module = load(backend)
        for geometry in geometries:
            check_kernel(module, problem(kernel, geometry, dtype))

    @pytest.mark.smoke
    @pytest.mark.parametrize(
        ("size", "stride", "padding"), [(2, 2, 0), (2, 2, 1), (3, 2, 0), (3, 2, 1), (3, 1, 1)]
    )
    def test_widths(self, size, stride, padding, kernel, dtype, backend):
        self.check(backend, kernel, dtype, (
            pool_geometry("pool", 2, (1, 2, 5, width), size, stride, padding, 1, False)
            for width in range(3, 51)
        ))  # fmt: skip

    def test_planes(self, kernel, dtype, backend):
        self.check(backend, kernel, dtype, (
            pool_geometry("pool", 2, (1, planes, 3, 4), 2, 1, 1, 1, True) for planes in range(1, 40)
        ))  # fmt: skip

    @pytest.mark.parametrize("ceil_mode", [False, True])
    def test_windows_apart(self, ceil_mode, kernel, dtype, backend):
        self.check(backend, kernel, dtype, (
            pool_geometry("pool", 3, (1, 2, 5, 6, width), (1, 2, 2), (2, 4, 2), (0, 1, 0), 1, ceil_mode)
            for width in (2, 3, 8, 17, 33, 66)
        ))  # fmt: skip

    @pytest.mark.parametrize("kernel_size", [(3, 1, 1), (1, 3, 1), (2, 3, 1)])
    def test_windows_of_whole_rows(self, kernel_size, kernel, dtype, backend):
        depth, height, _ = kernel_size
        self.check(backend, kernel, dtype, (
            pool_geometry("pool", 3, (1, 3, 4, 3, size), (depth, height, size), (2, 3, 1), (pad, 0, 0), 1, True)
            for size in (1, 2, 7, 40) for pad in (0, depth // 2)
        ))  # fmt: skip

    def test_adaptive_widths(self, kernel, dtype, backend):
        self.check(backend, kernel, dtype, (
            adaptive_pool_geometry("pool", 1, (1, 2, width), outputs)
            for width in range(1, 36) for outputs in (1, 4, 7)
        ))  # fmt: skip


@pytest.mark.parametrize("kernel", ["max_pool", "max_pool_grad_input", "avg_pool", "avg_pool_grad_input"])
def test_beyond_the_caches(kernel, backend):
    """Results too large to be found in a cache again."""
    geometry = pool_geometry("pool", 2, (1, 9, 601, 603), 2, 1, 0, 1, False)
    check_kernel(load(backend), problem(kernel, geometry, "float32"))


def test_long_averages_keep_the_bound(backend):
    """Thousands of positive numbers: a plain running sum in float32 would break the bound."""
    geometry = pool_geometry("avg_pool2d", 2, (1, 3, 112, 113), (112, 113), None, 0, 1, False)
    check_kernel(load(backend), problem("avg_pool", geometry, "float32", data="positive"))


# --- windows in plain Python ---


def axis_windows(size, kernel, stride, low, high, dilation, ceil_mode):
    """For each window, where its taps lie in the padded input; what is not in 0..size-1 is padding."""
    extent = dilation * (kernel - 1) + 1
    windows, start = [], -low
    while start + extent <= size + high or (
        ceil_mode and start < size and windows and windows[-1][0] + extent < size + high
    ):
        windows.append((start, [start + t * dilation for t in range(kernel)]))
        start += stride
    return [[tap for tap in taps if tap < size + high] for _, taps in windows]


def pairs(case):
    per_axis = case.padding if isinstance(case.padding, tuple) else (case.padding,) * case.ndim
    return [value if isinstance(value, tuple) else (value, value) for value in per_axis]


def per_axis(value, ndim):
    return value if isinstance(value, tuple) else (value,) * ndim


@functools.cache
def windows_of(case):
    """The taps of each window on each axis; named padding is turned into numbers by its own rule."""
    ndim = case.ndim
    kernel, dilation = per_axis(case.kernel_size, ndim), per_axis(case.dilation, ndim)
    stride = kernel if case.stride is None else per_axis(case.stride, ndim)
    if isinstance(case.padding, str):
        pads = []
        for size, k, s, d in zip(case.x[2:], kernel, stride, dilation, strict=True):
            outputs = math.ceil(size / s)
            total = max(0, (outputs - 1) * s + d * (k - 1) + 1 - size)
            half = total // 2
            pads.append(
                {
                    "same": (half, total - half),
                    "same_lower": (total - half, half),
                    "causal": (d * (k - 1), 0),
                }[case.padding]
            )
    else:
        pads = pairs(case)
    return [
        axis_windows(size, k, s, low, high, d, case.ceil_mode)
        for size, k, s, (low, high), d in zip(case.x[2:], kernel, stride, pads, dilation, strict=True)
    ]


def positions(case, o):
    """The positions of one window, in row-major order, padding included."""
    return itertools.product(*(axis[index] for axis, index in zip(windows_of(case), o, strict=True)))


def is_inside(case, position):
    return all(0 <= p < size for p, size in zip(position, case.x[2:], strict=True))


@functools.cache
def max_definition(case):
    x = image(case.x)
    values = np.full((*case.x[:2], *map(len, windows_of(case))), -np.inf)
    indices = np.full(values.shape, -1, np.int64)
    for n, c, *o in np.ndindex(values.shape):
        for position in positions(case, o):
            if is_inside(case, position) and x[(n, c, *position)] > values[(n, c, *o)]:
                values[(n, c, *o)] = x[(n, c, *position)]
                indices[(n, c, *o)] = np.ravel_multi_index(position, case.x[2:])
    return values, indices


@functools.cache
def avg_definition(case):
    x = image(case.x)
    values = np.zeros((*case.x[:2], *map(len, windows_of(case))))
    for n, c, *o in np.ndindex(values.shape):
        window = list(positions(case, o))
        inside = [position for position in window if is_inside(case, position)]
        count = len(window) if case.count_include_pad else len(inside)
        divisor = count if case.divisor_override is None else case.divisor_override
        total = sum(x[(n, c, *position)] for position in inside)
        values[(n, c, *o)] = total / divisor if divisor else 0
    return values


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("case", SMALL)
def test_max_definition(case, dtype, backend):
    x = image(case.x, dtype)
    pool = functools.partial(getattr(fastconv, f"max_pool{case.ndim}d"), x, **case.window, backend=backend)
    expected, where = max_definition(case)
    if dtype == "int32":
        expected = np.where(where < 0, np.iinfo(np.int32).min, expected)
    values, indices = pool(return_indices=True)
    assert values.dtype == dtype
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(indices, where)
    np.testing.assert_array_equal(pool(), expected)


@float_dtypes
@pytest.mark.parametrize("case", SMALL)
def test_avg_definition(case, dtype, backend):
    x = image(case.x, dtype)
    pool = getattr(fastconv, f"avg_pool{case.ndim}d")
    y = pool(x, **case.window, **case.divisor, backend=backend)
    assert y.dtype == dtype
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(y, avg_definition(case), rtol=8 * eps, atol=8 * 3 * eps)


def test_avg_of_vast_windows(backend):
    x = np.array([[[2.0, 3.0]]])
    window = {"kernel_size": 2**40, "stride": 2**40, "padding": 2**40 - 1, "backend": backend}
    y = fastconv.avg_pool1d(x, **window)
    assert y.tolist() == [[[2 / 2**40, 3 / 2**40]]]
    y = fastconv.avg_pool1d(x, **window, count_include_pad=False)
    assert y.tolist() == [[[2.0, 3.0]]]
    plane = fastconv.avg_pool2d(np.full((1, 1, 1, 1), 2.0**80), **window)  # 2**80 elements
    assert plane.tolist() == [[[[1.0]]]]


# --- gradients ---


@float_dtypes
@pytest.mark.parametrize("case", SMALL)
def test_max_gradient(case, dtype, backend):
    ndim = case.ndim
    x = image(case.x, dtype)
    values, indices = getattr(fastconv, f"max_pool{ndim}d")(
        x, **case.window, return_indices=True, backend=backend
    )
    grad = image(values.shape, dtype, 1)
    expected = np.zeros((x.shape[0] * x.shape[1], math.prod(x.shape[2:])))
    for plane, places, gradients in zip(
        expected, indices.reshape(len(expected), -1), grad.reshape(len(expected), -1), strict=True
    ):
        for place, gradient in zip(places, gradients, strict=True):
            if place >= 0:
                plane[place] += gradient
    backward = getattr(fastconv, f"max_pool{ndim}d_backward")
    for size in (x.shape, x.shape[2:]):
        actual = backward(grad, indices, size, backend=backend)
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual, expected.reshape(x.shape))
    narrow = backward(grad, indices.astype(np.int32), x.shape, backend=backend)
    np.testing.assert_array_equal(narrow, expected.reshape(x.shape))


@float_dtypes
@pytest.mark.parametrize("case", SMALL)
def test_avg_gradient_is_adjoint(case, dtype, backend):
    """⟨avg x, g⟩ = ⟨x, gradient⟩: between them the two sums hold every coefficient."""
    ndim = case.ndim
    x = image(case.x, dtype)
    window = {**case.window, **case.divisor, "backend": backend}
    y = getattr(fastconv, f"avg_pool{ndim}d")(x, **window)
    grad = image(y.shape, dtype, 1)
    for size in (x.shape, x.shape[2:]):
        grad_x = getattr(fastconv, f"avg_pool{ndim}d_backward")(grad, size, **window)
        assert grad_x.dtype == dtype
        left, right = (np.vdot(a.astype(float), b.astype(float)) for a, b in ((y, grad), (x, grad_x)))
        scale = np.vdot(np.abs(y).astype(float), np.abs(grad).astype(float)) + 1
        assert abs(left - right) <= 16 * np.finfo(dtype).eps * scale * 9


GRADIENT_WINDOWS = [
    {"kernel_size": 2, "stride": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 2, "padding": "same", "dilation": 2, "stride": 3},
]


def distinct(shape, seed=0):
    """Values that differ by much more than the step of a finite difference."""
    return np.random.default_rng(seed).permutation(math.prod(shape)).reshape(shape) * 0.01 - 0.2 + 1 / 300


@pytest.mark.parametrize("window", GRADIENT_WINDOWS, ids=["overlapping", "ceil", "same"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
class TestGradcheck:
    def functions(self, name, ndim, backend):
        return tuple(
            functools.partial(getattr(fastconv, f"{name}{ndim}d{suffix}"), backend=backend)
            for suffix in ("", "_backward")
        )

    def shape(self, ndim):
        return (2, 1, *(5, 4, 4)[:ndim])

    def test_max(self, ndim, window, backend):
        forward, backward = self.functions("max_pool", ndim, backend)

        def gradient(grad, x):
            _, indices = forward(x, **window, return_indices=True)
            return backward(grad, indices, x.shape)

        gradcheck(lambda x: forward(x, **window), gradient, [distinct(self.shape(ndim))])

    @pytest.mark.parametrize("divisor", [{}, {"count_include_pad": False}, {"divisor_override": -5}], ids=str)
    def test_avg(self, ndim, window, divisor, backend):
        forward, backward = self.functions("avg_pool", ndim, backend)
        window = {**window, **divisor}
        gradcheck(
            lambda x: forward(x, **window),
            lambda grad, x: backward(grad, x.shape, **window),
            [distinct(self.shape(ndim))],
        )

    @pytest.mark.parametrize("norm_type", [1, 2, 3, 1.5])
    def test_lp(self, ndim, window, norm_type, backend):
        forward, backward = self.functions("lp_pool", ndim, backend)
        gradcheck(
            lambda x: forward(x, norm_type, **window),
            lambda grad, x: backward(grad, x, norm_type, **window),
            [distinct(self.shape(ndim))],
            step=1e-6,
            rtol=1e-5,
        )


@pytest.mark.parametrize("case", params(ADAPTIVE))
def test_gradcheck_of_adaptive_pools(case, backend):
    ndim, size = case.ndim, case.output_size
    shape = (1, 2, *case.x[2:])
    avg, avg_backward, maximum, max_backward = (
        functools.partial(getattr(fastconv, f"{name}"), backend=backend)
        for name in (
            f"adaptive_avg_pool{ndim}d",
            f"adaptive_avg_pool{ndim}d_backward",
            f"adaptive_max_pool{ndim}d",
            f"max_pool{ndim}d_backward",
        )
    )
    gradcheck(lambda x: avg(x, size), lambda grad, x: avg_backward(grad, x.shape), [distinct(shape)])
    gradcheck(
        lambda x: maximum(x, size),
        lambda grad, x: max_backward(grad, maximum(x, size, return_indices=True)[1], x.shape),
        [distinct(shape)],
    )


# --- adaptive pooling ---


@float_dtypes
@pytest.mark.parametrize("case", params(ADAPTIVE))
def test_adaptive_definition(case: Adaptive, dtype, backend):
    x = image(case.x, dtype)
    wanted = case.output_size if isinstance(case.output_size, tuple) else (case.output_size,) * case.ndim
    size = [length if o is None else o for o, length in zip(wanted, x.shape[2:], strict=True)]
    means, maxima = (np.zeros((*x.shape[:2], *size)) for _ in range(2))
    indices = np.zeros(means.shape, np.int64)
    flat = np.arange(math.prod(x.shape[2:])).reshape(x.shape[2:])
    for o in np.ndindex(*size):
        window = tuple(
            slice(math.floor(i * length / out), math.ceil((i + 1) * length / out))
            for i, length, out in zip(o, x.shape[2:], size, strict=True)
        )
        elements = x[(..., *window)].reshape(*x.shape[:2], -1)
        means[(..., *o)] = elements.mean(axis=2, dtype=np.float64)
        maxima[(..., *o)] = elements.max(axis=2)
        indices[(..., *o)] = flat[window].ravel()[elements.argmax(axis=2)]
    eps = np.finfo(dtype).eps
    actual = getattr(fastconv, f"adaptive_avg_pool{case.ndim}d")(x, case.output_size, backend=backend)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, means, rtol=8 * eps, atol=24 * eps)
    values, where = getattr(fastconv, f"adaptive_max_pool{case.ndim}d")(
        x, case.output_size, True, backend=backend
    )
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, maxima)
    np.testing.assert_array_equal(where, indices)


def test_adaptive_output_sizes(backend):
    x = image((2, 3, 6, 8))
    pool = functools.partial(fastconv.adaptive_avg_pool2d, x, backend=backend)
    np.testing.assert_array_equal(pool(None), x)
    np.testing.assert_array_equal(pool(2), pool((2, 2)))
    np.testing.assert_array_equal(pool(np.int64(2)), pool(np.array([2, 2])))
    np.testing.assert_array_equal(pool([None, 4]), pool((6, 4)))
    np.testing.assert_allclose(pool(1), x.mean(axis=(2, 3), keepdims=True), rtol=1e-15, atol=1e-15)
    assert pool((0, 3)).shape == (2, 3, 0, 3)
    with pytest.raises(ShapeError, match="adaptive_avg_pool2d: output_size has 3 values"):
        pool((1, 2, 3))
    with pytest.raises(ShapeError, match="adaptive_avg_pool2d: output_size must be at least 0, got -1"):
        pool(-1)
    with pytest.raises(TypeError, match=r"adaptive_avg_pool2d: output_size must be an int, got 2\.5"):
        pool(2.5)


# --- Lp pooling ---


@float_dtypes
@pytest.mark.parametrize("norm_type", [1, 2, 3.5])
@pytest.mark.parametrize("case", some(*LP_CASES))
def test_lp_definition(case, norm_type, dtype, backend):
    x = image(case.x, dtype)
    expected = np.zeros((*case.x[:2], *map(len, windows_of(case))))
    for n, c, *o in np.ndindex(expected.shape):
        inside = (p for p in positions(case, o) if is_inside(case, p))
        expected[(n, c, *o)] = sum(abs(float(x[(n, c, *p)])) ** norm_type for p in inside) ** (1 / norm_type)
    pool = getattr(fastconv, f"lp_pool{case.ndim}d")
    actual = pool(x, norm_type, **case.window, backend=backend)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, expected, rtol=32 * np.finfo(dtype).eps)


@pytest.mark.parametrize("norm_type", [0, -1, np.inf, np.nan])
def test_lp_exponents(norm_type, backend):
    with pytest.raises(ShapeError, match=r"lp_pool2d: norm_type must be finite and positive"):
        fastconv.lp_pool2d(np.ones((1, 1, 4, 4)), norm_type, 2, backend=backend)


def test_lp_gradient_of_a_window_of_zeros(backend):
    x = np.zeros((1, 1, 2, 4))
    x[0, 0, 0, 3] = -2
    grad_x = fastconv.lp_pool2d_backward(np.ones((1, 1, 1, 2)), x, 2, 2, backend=backend)
    expected = np.zeros_like(x)
    expected[0, 0, 0, 3] = -1
    np.testing.assert_array_equal(grad_x, expected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("norm_type", [0.5, 1, 2, 11, 200, 3000])
def test_lp_gradient_beyond_the_range_of_powers(norm_type, dtype, backend):
    """The gradient depends on ratios alone, but few of these numbers have powers that are floating numbers."""
    info = np.finfo(dtype)
    big, small = np.sqrt(info.max), np.sqrt(info.tiny)
    row = [
        1,
        1,
        0.75,
        0.875,
        big,
        -0.75 * big,
        0,
        0,
        small,
        0.9 * small,
        info.tiny,
        2 * info.tiny,
        info.max / 2,
    ]
    x = np.array([[*row, -info.max / 3]], dtype)
    # Below 1, the gradient of an element that is small beside its neighbour is no floating number either.
    for stride in (2, 1)[: 1 + (norm_type >= 1)]:
        starts = range(0, x.size - 1, stride)
        expected = np.zeros(x.size)
        for start in starts:
            window = np.abs(x[0, start : start + 2].astype(np.float64))
            if window.any():
                ratios = window / window.max()
                norm = (ratios**norm_type).sum() ** (1 / norm_type)
                expected[start : start + 2] += (ratios / norm) ** (norm_type - 1) * (ratios > 0)
        grad = np.ones((1, len(starts)), dtype)
        grad_x = fastconv.lp_pool1d_backward(grad, x, norm_type, 2, stride, backend=backend)
        assert grad_x.dtype == dtype
        rtol = 2 * info.eps + 8 * norm_type * np.finfo(np.float64).eps
        np.testing.assert_allclose(grad_x[0], np.sign(x[0]) * expected, rtol=rtol, atol=info.tiny)


# --- unpooling ---


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8"])
@pytest.mark.parametrize("case", some("halve", "halve-odd", "audio-1d", "video-3d", "stride-exceeds-kernel"))
def test_unpool_puts_values_back(case, dtype, backend):
    x = image(case.x).astype(dtype)
    ndim = case.ndim
    values, indices = getattr(fastconv, f"max_pool{ndim}d")(
        x, **case.window, return_indices=True, backend=backend
    )
    unpool = getattr(fastconv, f"max_unpool{ndim}d")
    window = (case.kernel_size, case.stride, case.padding)
    restored = unpool(values, indices, *window, output_size=x.shape, backend=backend)
    assert restored.dtype == dtype
    planes = restored.reshape(-1, math.prod(x.shape[2:]))
    expected = np.zeros_like(planes)
    for plane, places, row in zip(
        expected, indices.reshape(len(planes), -1), values.reshape(len(planes), -1), strict=True
    ):
        plane[places] = row
    np.testing.assert_array_equal(planes, expected)
    np.testing.assert_array_equal(
        unpool(values, indices, *window, output_size=x.shape[2:], backend=backend), restored
    )


def test_unpool_sizes(backend):
    x, indices = np.array([[[1.0, 2.0]]]), np.array([[[0, 3]]])
    unpool = functools.partial(fastconv.max_unpool1d, x, indices, backend=backend)
    assert unpool(2).tolist() == [[[1, 0, 0, 2]]]
    assert unpool(4, 3, 1).shape == (1, 1, 5)
    assert unpool(2, output_size=5).tolist() == [[[1, 0, 0, 2, 0]]]
    for size in (2, 6):
        with pytest.raises(ShapeError, match=r"max_unpool1d: output size .* is out of reach, expected 3..5"):
            unpool(2, output_size=size)
    with pytest.raises(IndexError, match="max_unpool1d: indices holds 3 at flat position 1"):
        unpool(2, output_size=3)
    assert unpool(2, output_size=(1, 5)).shape == unpool(2, output_size=(1, 1, 5)).shape == (1, 1, 5)
    for size in ((2, 5), (2, 1, 5), (1, 2, 5)):
        with pytest.raises(
            ShapeError, match=r"max_unpool1d: output_size=.* does not fit, the result has shape \(1, 1, 5\)"
        ):
            unpool(2, output_size=size)


@pytest.mark.parametrize("name", ["same", "same_lower"])
def test_unpool_of_named_padding(name, backend):
    x = image((2, 3, 8, 9))
    values, indices = fastconv.max_pool2d(x, (3, 2), (2, 3), name, return_indices=True, backend=backend)
    restored = fastconv.max_unpool2d(values, indices, (3, 2), (2, 3), name, backend=backend)
    np.testing.assert_array_equal(
        restored, fastconv.max_unpool2d(values, indices, (3, 2), (2, 3), output_size=x.shape, backend=backend)
    )
    assert restored.shape == x.shape


def test_unpool_skips_empty_windows_and_keeps_the_last_of_equal_places(backend):
    x, indices = np.array([[[1.0, 2.0, 3.0]]]), np.array([[[1, -1, 1]]])
    assert fastconv.max_unpool1d(x, indices, 2, backend=backend).tolist() == [[[0, 3, 0, 0, 0, 0]]]


# --- arguments ---


@float_dtypes
@pytest.mark.parametrize("case", some("nothing-is-square", "audio-1d", "video-3d", "no-element-in-window"))
def test_out_is_written_completely(case, dtype, backend):
    ndim, x = case.ndim, image(case.x, dtype)
    names = ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool")
    max_pool, avg_pool, lp_pool, *adaptive = (getattr(fastconv, f"{name}{ndim}d") for name in names)
    values, indices = max_pool(x, **case.window, return_indices=True, backend=backend)
    grad = image(values.shape, dtype, 1)
    max_backward, avg_backward, lp_backward, adaptive_backward = (
        getattr(fastconv, f"{name}{ndim}d_backward") for name in names[:4]
    )
    calls = [
        functools.partial(max_pool, x, **case.window),
        functools.partial(avg_pool, x, **case.window),
        functools.partial(lp_pool, x, 2, **case.window),
        functools.partial(max_backward, grad, indices, x.shape),
        functools.partial(avg_backward, grad, x.shape, **case.window),
        functools.partial(lp_backward, grad, x, 2, **case.window),
        functools.partial(adaptive_backward, grad, x.shape),
        *(functools.partial(pool, x, 2) for pool in adaptive),
    ]
    for call in calls:
        expected = call(backend=backend)
        out = np.full(expected.shape, np.nan, dtype)
        assert call(out=out, backend=backend) is out
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("case", some("nothing-is-square", "audio-1d", "video-3d"))
def test_unbatched(case, backend):
    ndim, x = case.ndim, image(case.x)
    window = {**case.window, "backend": backend}
    max_pool, avg_pool = (getattr(fastconv, f"{name}_pool{ndim}d") for name in ("max", "avg"))
    values, indices = max_pool(x, **window, return_indices=True)
    value, index = max_pool(x[0], **window, return_indices=True)
    np.testing.assert_array_equal(value, values[0])
    np.testing.assert_array_equal(index, indices[0])
    np.testing.assert_array_equal(avg_pool(x[0], **window), avg_pool(x, **window)[0])
    grad = image(values.shape, seed=1)
    max_backward, avg_backward = (
        getattr(fastconv, f"{name}_pool{ndim}d_backward") for name in ("max", "avg")
    )
    for size in (x.shape[1:], x.shape[2:]):
        np.testing.assert_array_equal(
            max_backward(grad[0], index, size, backend=backend),
            max_backward(grad, indices, x.shape, backend=backend)[0],
        )
        np.testing.assert_array_equal(
            avg_backward(grad[0], size, **window), avg_backward(grad, x.shape, **window)[0]
        )


def test_out_beside_indices_is_refused(backend):
    with pytest.raises(ValueError, match="max_pool1d: out cannot be combined with return_indices=True"):
        fastconv.max_pool1d(
            np.ones((1, 1, 4)), 2, return_indices=True, out=np.ones((1, 1, 2)), backend=backend
        )


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_narrow_types(name, backend):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    ones = np.ones((1, 1, 64, 64), dtype)
    total = fastconv.avg_pool2d(ones, 64, divisor_override=1, backend=backend)
    assert total.dtype == dtype
    assert total.item() == 4096  # a running sum in float16 stops at 2048
    assert fastconv.lp_pool2d(ones, 1, 64, backend=backend).item() == 4096
    x = np.random.default_rng(0).standard_normal((2, 3, 7, 8)).astype(dtype)
    values, indices = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True, backend=backend)
    wide, same = fastconv.max_pool2d(x.astype("f4"), 3, 2, 1, return_indices=True, backend=backend)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values.astype("f4"), wide)
    np.testing.assert_array_equal(indices, same)
    many = np.zeros((1, 1, 4096), np.int64)
    grad = fastconv.max_pool1d_backward(np.ones((1, 1, 4096), dtype), many, (1, 1, 2), backend=backend)
    assert grad.dtype == dtype
    assert grad.astype("f4").tolist() == [[[4096, 0]]]


def test_bool_and_integers(backend):
    x = np.array([[[False, True, False, False, True, True]]])
    values, indices = fastconv.max_pool1d(x, 2, return_indices=True, backend=backend)
    assert values.dtype == bool
    assert values.tolist() == [[[True, False, True]]]
    assert indices.tolist() == [[[1, 2, 4]]]
    for dtype in ("int8", "uint16", "int64", "uint64"):
        info = np.iinfo(dtype)
        x = np.array([[[info.min, info.max, info.max, info.min, info.min, info.min]]], dtype)
        values, indices = fastconv.max_pool1d(x, 2, return_indices=True, backend=backend)
        assert values.dtype == dtype
        assert values.tolist() == [[[info.max, info.max, info.min]]]
        assert indices.tolist() == [[[1, 2, 4]]]
    mean = fastconv.avg_pool1d(np.array([[[1, 2, 3, 5]]], np.int8), 2, backend=backend)
    assert mean.dtype == np.float64
    assert mean.tolist() == [[[1.5, 4]]]


@pytest.mark.parametrize("dtype", ["complex128", "object"])
def test_other_types_are_refused(dtype, backend):
    x = np.ones((1, 1, 4, 4), dtype)
    for call in (fastconv.max_pool2d, fastconv.avg_pool2d):
        with pytest.raises(TypeError, match=f"{call.__name__}: input has dtype {dtype}"):
            call(x, 2, backend=backend)


def test_averages_of_huge_windows(threaded_backend):
    """A running sum in float32 would stop at 2**24, or drift away long before."""
    backend = threaded_backend  # the reference sums in float64 by definition
    ones = np.ones((1, 1, 2**24 + 5, 1), np.float32)
    assert fastconv.avg_pool2d(ones, (2**24 + 4, 1), 1, backend=backend).tolist() == [[[[1.0], [1.0]]]]
    tenths = np.full((1, 1, 20_000, 3), 0.1, np.float32)
    mean = fastconv.avg_pool2d(tenths, (20_000, 3), 1, backend=backend).item()
    assert abs(mean - tenths.flat[0]) <= 8 * np.finfo(np.float32).eps * 0.1


@pytest.mark.usefixtures("isa")
def test_tall_windows_cost_what_their_elements_do():
    """Rows that neighbouring windows share are not computed for each of them."""
    x = np.random.default_rng(0).random((1, 1, 8000, 64), np.float32)
    began = time.perf_counter()
    y = fastconv.max_pool2d(x, (2, 1), 1, dilation=(4000, 1), backend="cpp")
    assert time.perf_counter() - began < 0.1  # 0.4 milliseconds, once 180
    np.testing.assert_array_equal(y, np.maximum(x[:, :, :4000], x[:, :, 4000:]))
