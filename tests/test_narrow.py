"""Convolutions of numbers of 16 bits in the compiled backend: computed in float32, converted as NumPy does."""

import ml_dtypes
import numpy as np
import pytest
from cases import CONVS, TRANSPOSED, Conv, params
from conftest import TESTED
from guard import SIDES, guarded

import fastconv
from fastconv import grad

pytestmark = pytest.mark.skipif("cpp" not in TESTED, reason="the compiled backend is not tested")

TYPES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
types = pytest.mark.parametrize("dtype", TYPES, ids=str)

# Several parts of the batch, the last of them smaller.
MANY_PARTS = Conv("many-parts", (7, 17, 96, 100), (18, 17, 3, 3), 1, 1)
STRIDED_PARTS = Conv("strided-parts", (5, 8, 180, 171), (12, 8, 3, 2), 2, 1)


def bits(array):
    return array.view(np.uint16)


def numbers(array):
    """Its bits, but for the sign of zeros, which a sum loses."""
    return np.where(bits(array) == 1 << 15, 0, bits(array))


def random(shape, dtype, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def times(x, factor):
    """A 1x1 convolution of one channel: nothing but the product, rounded once from float32."""
    return fastconv.conv1d(x[None, None], np.full((1, 1, 1), factor, x.dtype), backend="cpp")[0, 0]


@pytest.mark.smoke
@types
def test_every_number(dtype, isa):
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    same = times(every, 1)
    number = ~np.isnan(every.astype(np.float32))
    np.testing.assert_array_equal(numbers(same)[number], numbers(every)[number])
    assert np.isnan(same[~number].astype(np.float32)).all()


@types
@pytest.mark.parametrize("factor", [1.0009765625, 0.3333, 3e-5, -7.7e-8, 0.5, 1e4, 0.001])
def test_rounding(factor, dtype, isa):
    """To nearest, ties to even, to subnormal numbers and infinity, as NumPy's and ml_dtypes' conversions."""
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    every = every[np.isfinite(every.astype(np.float32))]
    with np.errstate(over="ignore"):
        expected = (every.astype(np.float32) * np.asarray(factor, dtype).astype(np.float32)).astype(dtype)
    np.testing.assert_array_equal(numbers(times(every, factor)), numbers(expected))


@types
@pytest.mark.parametrize("count", [1, 2, 3, 7, 15, 16, 17, 31, 33, 1000])
def test_tails(count, dtype, isa):
    x = random((count,), dtype)
    np.testing.assert_array_equal(bits(times(x, 1)), bits(x))


@types
@pytest.mark.parametrize("case", params((*CONVS, MANY_PARTS, STRIDED_PARTS)))
def test_convolution(case, dtype):
    """The bits of float32, rounded: the batch is cut, but no sum is."""
    x, weight = random(case.x, dtype), random(case.weight, dtype, 1)
    bias, wide = random(case.weight[:1], dtype, 2), np.float32
    conv = getattr(fastconv, case.op)
    how = {**case.window, "activation": "silu", "backend": "cpp"}
    with fastconv.config_context(algorithm="gemm"):
        y = conv(x, weight, bias, **how)
        expected = conv(x.astype(wide), weight.astype(wide), bias.astype(wide), **how)
        assert y.dtype == dtype
        np.testing.assert_array_equal(bits(y), bits(expected.astype(dtype)))
        out = np.empty_like(y)
        assert conv(x, weight, bias, out=out, **how) is out
        np.testing.assert_array_equal(bits(out), bits(y))

        grad_y = random(y.shape, dtype, 3)
        gradients = getattr(fastconv, f"{case.op}_backward")(grad_y, x, weight, **case.window, backend="cpp")
        expected = getattr(fastconv, f"{case.op}_backward")(
            *(a.astype(wide) for a in (grad_y, x, weight)), **case.window, backend="cpp"
        )
    np.testing.assert_array_equal(bits(gradients[0]), bits(expected[0].astype(dtype)))
    np.testing.assert_array_equal(bits(gradients[2]), bits(expected[2].astype(dtype)))
    unit = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(
        gradients[1].astype(wide), expected[1], rtol=unit, atol=1e-5 * np.abs(expected[1]).max()
    )


@types
@pytest.mark.parametrize("case", params(TRANSPOSED))
def test_transposed_convolution(case, dtype):
    x, weight, wide = random(case.x, dtype), random(case.weight, dtype, 1), np.float32
    conv = getattr(fastconv, case.op)
    with fastconv.config_context(algorithm="gemm"):
        y = conv(x, weight, **case.window, backend="cpp")
        expected = conv(x.astype(wide), weight.astype(wide), **case.window, backend="cpp")
    np.testing.assert_array_equal(bits(y), bits(expected.astype(dtype)))


@types
@pytest.mark.parametrize("algorithm", ["auto", "winograd", "tune"])
def test_algorithms(algorithm, dtype):
    x, weight = random(MANY_PARTS.x, dtype), random(MANY_PARTS.weight, dtype, 1)
    with fastconv.config_context(algorithm=algorithm):
        y = fastconv.conv2d(x, weight, padding=1, backend="cpp")
    expected = fastconv.conv2d(x.astype(np.float64), weight.astype(np.float64), padding=1, backend="cpp")
    unit = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=unit, atol=1e-4)


@types
def test_threads(dtype):
    x, weight = random(MANY_PARTS.x, dtype), random(MANY_PARTS.weight, dtype, 1)
    grad_y = random((7, 18, 96, 100), dtype, 2)
    results = set()
    for threads in (1, 2, 5):
        with fastconv.config_context(threads=threads):
            y = fastconv.conv2d(x, weight, padding=1, backend="cpp")
            gradients = fastconv.conv2d_backward(grad_y, x, weight, padding=1, backend="cpp")
        results.add(b"".join(bits(a).tobytes() for a in (y, *gradients)))
    assert len(results) == 1


@types
def test_infinity_and_nan(dtype):
    x, weight = random((2, 20, 12, 13), dtype), random((18, 20, 3, 3), dtype, 1)
    x[0, 3, 4, 5], x[1, 2, 3, 4] = np.inf, np.nan
    y = fastconv.conv2d(x, weight, backend="cpp").astype(np.float32)
    expected = fastconv.conv2d(x.astype(np.float32), weight.astype(np.float32), backend="reference")
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(expected))


@types
@pytest.mark.parametrize("side", SIDES)
def test_guard_pages(side, dtype, isa):
    native = pytest.importorskip("fastconv._native")
    for case in (MANY_PARTS._replace(x=(3, 17, 9, 11)), STRIDED_PARTS._replace(x=(2, 8, 5, 7))):
        g = case.geometry
        x = guarded(bits(random(g.x_shape, dtype)), side).array
        weight = guarded(bits(random(g.weight_shape, dtype)), side).array
        bias = guarded(bits(random((g.out_channels,), dtype)), side).array
        y = guarded(np.zeros(g.y_shape, np.uint16), side)
        native.narrow_conv_forward(dtype.name, x, weight, bias, 0, y.array, g, 0, 2, None)
        assert y.margin_is_whole()
        grad_x = guarded(np.zeros(g.x_shape, np.uint16), side)
        native.narrow_conv_grad_input(dtype.name, y.array, weight, None, 0, grad_x.array, g, 0, 2, None)
        assert grad_x.margin_is_whole()
        grad_weight = guarded(np.zeros(g.weight_shape, np.uint16), side)
        native.narrow_conv_grad_weight(dtype.name, x, y.array, grad_weight.array, g, 0, 2, None)
        assert grad_weight.margin_is_whole()


def test_arguments_are_checked():
    native = pytest.importorskip("fastconv._native")
    g = MANY_PARTS._replace(x=(1, 17, 5, 6)).geometry
    x, weight, y = (np.zeros(shape, np.uint16) for shape in (g.x_shape, g.weight_shape, g.y_shape))
    with pytest.raises(ValueError, match="type must be 'float16' or 'bfloat16', got 'float32'"):
        native.narrow_conv_forward("float32", x, weight, None, 0, y, g, 0, 1, None)
    with pytest.raises(TypeError, match="x differs in dtype"):
        native.narrow_conv_forward("float16", x.view(np.float16), weight, None, 0, y, g, 0, 1, None)
    with pytest.raises(ValueError, match="y has shape"):
        native.narrow_conv_forward("float16", x, weight, None, 0, x, g, 0, 1, None)
    with pytest.raises(ValueError, match="bias has shape"):
        native.narrow_conv_grad_input("float16", y, weight, np.zeros(3, np.uint16), 0, x, g, 0, 1, None)
    with pytest.raises(ValueError, match="grad_weight has shape"):
        native.narrow_conv_grad_weight("float16", x, y, y, g, 0, 1, None)


@types
def test_explained(dtype):
    shapes = (MANY_PARTS.x, MANY_PARTS.weight)
    told = fastconv.explain("conv2d", *shapes, padding=1, dtype=dtype, backend="cpp")
    wide = fastconv.explain("conv2d", *shapes, padding=1, backend="cpp")
    assert told.algorithm == wide.algorithm
    assert (told.flops, told.bytes) == (wide.flops, wide.bytes // 2)
    x, weight = random(MANY_PARTS.x, dtype), random(MANY_PARTS.weight, dtype, 1)
    fastconv.clear_cache()
    fastconv.conv2d(x, weight, padding=1, backend="cpp")
    native = pytest.importorskip("fastconv._native")
    assert told.workspace is not None
    assert native.workspace_bytes() <= 1.3 * told.workspace + (1 << 20)


@types
def test_workspace_limit(dtype):
    x, weight = random((2, 20, 12, 13), dtype), random((18, 20, 3, 3), dtype, 1)
    grad_y = random((2, 18, 10, 11), dtype)
    with fastconv.config_context(workspace_limit=1000):
        with pytest.raises(MemoryError, match=r"conv2d: workspace_limit is 1000 bytes, converting .* takes"):
            fastconv.conv2d(x, weight, backend="cpp")
        with pytest.raises(MemoryError, match="conv2d_weight: workspace_limit is 1000 bytes, converting"):
            grad.conv2d_weight(x, weight.shape, grad_y, backend="cpp")
        with pytest.raises(MemoryError, match=r"conv2d: workspace_limit is 1000 bytes, converting .* takes"):
            fastconv.explain("conv2d", x.shape, weight.shape, dtype=dtype, backend="cpp")
