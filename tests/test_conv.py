"""Convolution and its gradients: kernels against the reference, the public functions against definitions."""

import functools
import itertools
import math

import numpy as np
import pytest
from cases import CONVS, check_direct, params, problem

import fastconv
from fastconv import ShapeError
from fastconv.activations import ACTIVATIONS
from fastconv.geometry import conv_geometry
from fastconv.testing import gradcheck

KERNELS = ("conv_forward", "conv_grad_input", "conv_grad_weight")
MODES = ("zeros", "reflect", "replicate", "circular")
DIMENSIONS = (1, 2, 3)
BY_NAME = {case.name: case for case in CONVS}

float_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def some(*names):
    return params(tuple(BY_NAME[name] for name in names))


def whole_numbers(shape, dtype=np.float64, seed=0):
    return np.random.default_rng([seed, *shape]).integers(-4, 5, shape).astype(dtype)


def operands(case, dtype=np.float64, bias=True):
    x, weight = whole_numbers(case.x, dtype, 1), whole_numbers(case.weight, dtype, 2)
    return x, weight, whole_numbers(case.weight[:1], dtype, 3) if bias else None


# --- kernels against the reference ---


@float_dtypes
@pytest.mark.parametrize("case", params(CONVS))
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel(kernel, case, dtype, backend):
    check_direct(backend, problem(kernel, case.geometry, dtype))


@pytest.mark.parametrize("case", params(CONVS))
@pytest.mark.parametrize("kernel", KERNELS)
def test_whole_numbers_are_exact(kernel, case, backend):
    bias = kernel != "conv_grad_weight"
    check_direct(backend, problem(kernel, case.geometry, "float32", data="integer", bias=bias))


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize(
    "case", some("nothing-is-square", "depthwise-multiplier", "resnext-grouped", "vgg-early", "one-element")
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_integers_are_exact(kernel, case, dtype, backend):
    bias = kernel != "conv_grad_weight"
    check_direct(backend, problem(kernel, case.geometry, dtype, bias=bias))


@float_dtypes
@pytest.mark.parametrize("kernel", KERNELS)
class TestTails:
    """Every remainder after whole vectors and whole tiles, on each axis that a kernel may vectorize."""

    def check(self, backend, kernel, dtype, geometries):
        for geometry in geometries:
            check_direct(backend, problem(kernel, geometry, dtype))

    @pytest.mark.smoke
    def test_widths(self, kernel, dtype, backend):
        self.check(backend, kernel, dtype, (
            conv_geometry("conv2d", 2, (1, 2, 3, width), (3, 2, 3, 3), 1, 1, 1, 1) for width in range(1, 51)
        ))  # fmt: skip

    def test_strided_widths(self, kernel, dtype, backend):
        self.check(backend, kernel, dtype, (
            conv_geometry("conv1d", 1, (2, 3, width), (2, 3, 3), 2, 2, 1, 1) for width in range(1, 51)
        ))  # fmt: skip

    def test_pointwise_sizes(self, kernel, dtype, backend):
        self.check(backend, kernel, dtype, (
            conv_geometry("conv1d", 1, (1, 3, width), (4, 3, 1), 1, 0, 1, 1) for width in range(1, 70)
        ))  # fmt: skip

    @pytest.mark.smoke
    def test_input_channels(self, kernel, dtype, backend):
        self.check(backend, kernel, dtype, (
            conv_geometry("conv2d", 2, (1, c, 4, 5), (3, c, 2, 3), 1, 1, 1, 1) for c in range(1, 71)
        ))  # fmt: skip

    @pytest.mark.smoke
    def test_output_channels(self, kernel, dtype, backend):
        self.check(backend, kernel, dtype, (
            conv_geometry("conv2d", 2, (1, 3, 4, 5), (k, 3, 2, 3), 1, 1, 1, 1) for k in range(1, 71)
        ))  # fmt: skip

    def test_depthwise_channels_and_widths(self, kernel, dtype, backend):
        self.check(backend, kernel, dtype, (
            conv_geometry("conv2d", 2, (1, n, 3, n), (n, 1, 3, 3), stride, 1, 1, n)
            for n in range(1, 35) for stride in (1, 2)
        ))  # fmt: skip

    @pytest.mark.parametrize("stride", [1, 2, 3, 4])
    def test_depthwise_kernels(self, stride, kernel, dtype, backend):
        self.check(backend, kernel, dtype, (
            conv_geometry(
                "conv2d", 2, (1, 2, 7 + height, 2 * width + 9), (2, 1, height, width), stride,
                (height // 2, width - 1), dilation, 2
            )
            for height, width in itertools.product(range(1, 9), repeat=2)
            for dilation in (1, (1 + height % 3, 1 + width % 2))
            if dilation == 1 or (height + width) % 3 == 0
        ))  # fmt: skip

    def test_depthwise_heights(self, kernel, dtype, backend):
        self.check(backend, kernel, dtype, (
            conv_geometry("conv2d", 2, (2, 2, height, 5), (2, 1, 3, 3), stride, 1, 1, 2)
            for height in range(1, 31) for stride in (1, 2, (2, 1), (1, 2))
        ))  # fmt: skip

    def test_group_sizes(self, kernel, dtype, backend):
        self.check(backend, kernel, dtype, (
            conv_geometry("conv2d", 2, (1, 3 * c, 4, 5), (3 * k, c, 2, 2), 1, 0, 1, 3)
            for c, k in itertools.product((1, 2, 5, 8, 9, 17), repeat=2)
        ))  # fmt: skip


LONG_SUMS = {
    "forward-deep": ("conv_forward", ((1, 512, 4, 5), (5, 512, 3, 3), 1, 1, 1, 1)),
    "forward-grouped": ("conv_forward", ((1, 64, 12, 13), (4, 32, 5, 5), 1, 2, 1, 2)),
    "input-deep": ("conv_grad_input", ((1, 5, 4, 5), (512, 5, 3, 3), 1, 1, 1, 1)),
    "input-wide": ("conv_grad_input", ((2, 192, 7, 6), (64, 192, 3, 3), 1, 1, 1, 1)),
    "weight-few-channels": ("conv_grad_weight", ((8, 2, 57, 59), (3, 2, 3, 2), 1, 1, 1, 1)),
    "weight-first-layer": ("conv_grad_weight", ((4, 3, 112, 112), (8, 3, 3, 3), 1, 1, 1, 1)),
    "weight-grouped": ("conv_grad_weight", ((8, 8, 56, 55), (8, 4, 3, 3), 1, 1, 1, 2)),
    "weight-pointwise": ("conv_grad_weight", ((16, 7, 28, 28), (9, 7, 1, 1), 1, 0, 1, 1)),
    "weight-depthwise": ("conv_grad_weight", ((8, 2, 57, 59), (2, 1, 3, 3), 1, 1, 1, 2)),
    "weight-depthwise-many-images": ("conv_grad_weight", ((512, 3, 7, 7), (3, 1, 3, 3), 1, 1, 1, 3)),
    "weight-depthwise-strided": ("conv_grad_weight", ((4, 2, 225, 223), (2, 1, 3, 3), 2, 1, 1, 2)),
}


@pytest.mark.parametrize("name", LONG_SUMS)
def test_long_sums_keep_the_bound(name, backend):
    """Thousands of positive products: the error of a plain running sum in float32 would break the bound."""
    kernel, arguments = LONG_SUMS[name]
    geometry = conv_geometry("conv2d", 2, *arguments)
    check_direct(backend, problem(kernel, geometry, "float32", data="positive"))


@pytest.mark.parametrize("shape", [(64, 2, 40, 45), (4096, 2, 1, 1), (65536, 1, 1, 2)], ids=str)
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_long_bias_gradients_keep_the_bound(name, shape, backend):
    grad = np.random.default_rng(0).uniform(0.5, 1.5, shape).astype(np.float32)
    x, channels = np.zeros((shape[0], 1, *shape[2:]), np.float32), shape[1]
    weight = np.zeros((channels, 1, 1, 1) if name == "conv2d" else (1, channels, 1, 1), np.float32)
    backward = getattr(fastconv, f"{name}_backward")
    actual = backward(grad, x, weight, output_mask=(False, False, True), backend=backend)[2]
    assert actual.dtype == np.float32
    exact = grad.sum(axis=(0, 2, 3), dtype=np.float64)
    assert np.all(np.abs(actual - exact) <= 8 * np.finfo(np.float32).eps * exact)


def test_long_sums_in_float64(backend):
    rng = np.random.default_rng(0)
    x, weight = (
        rng.uniform(0.5, 1.5, shape).astype(np.float32).astype(np.float64)  # products are exact
        for shape in ((1, 512, 3, 3), (3, 512, 3, 3))
    )
    actual = fastconv.conv2d(x, weight, backend=backend).ravel()
    for value, w in zip(actual, weight, strict=True):
        exact = math.fsum((x[0] * w).ravel())
        assert abs(value - exact) <= 8 * np.finfo(np.float64).eps * exact


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "case",
    some(
        "nothing-is-square", "depthwise-multiplier", "mobilenet-depthwise", "resnet-bottleneck", "vgg-early"
    ),
)
@pytest.mark.parametrize("kernel", KERNELS[:2])
def test_kernel_with_activation(kernel, case, activation, backend):
    check_direct(backend, problem(kernel, case.geometry, "float32", bias=True, activation=activation))


@float_dtypes
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("case", some("nothing-is-square", "stride-exceeds-kernel", "windows-in-padding"))
@pytest.mark.parametrize("kernel", KERNELS[:2])
def test_bias_reaches_every_element(kernel, case, bias, dtype, backend):
    check_direct(backend, problem(kernel, case.geometry, dtype, data="integer", bias=bias, activation="relu"))


# --- the definition, one product at a time ---


def starts(size, low, high, extent, stride):
    """Where windows begin: all places that leave them inside the padded input."""
    return [start for start in range(-low, size + high, stride) if start + extent <= size + high]


@functools.cache
def definition(case):
    """The convolution of `operands(case)`, from nothing but the words of the documentation."""
    x, weight, bias = operands(case)
    ndim = case.ndim
    stride, dilation, padding = (
        value if isinstance(value, tuple) else (value,) * ndim
        for value in (case.stride, case.dilation, case.padding)
    )
    pads = [value if isinstance(value, tuple) else (value, value) for value in padding]
    kernel = case.weight[2:]
    windows = [
        starts(*parameters)
        for parameters in zip(
            case.x[2:],
            (low for low, _ in pads),
            (high for _, high in pads),
            (d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)),
            stride,
            strict=True,
        )
    ]
    in_group, out_group = case.weight[1], case.weight[0] // case.groups
    y = np.zeros((case.x[0], case.weight[0], *map(len, windows)))
    for n, k, *o in np.ndindex(y.shape):
        total = bias[k]
        for c, *t in np.ndindex(in_group, *kernel):
            at = tuple(windows[a][o[a]] + t[a] * dilation[a] for a in range(ndim))
            if all(0 <= p < size for p, size in zip(at, case.x[2:], strict=True)):
                total += weight[(k, c, *t)] * x[(n, k // out_group * in_group + c, *at)]
        y[(n, k, *o)] = total
    return y


DEFINED = some(
    "one-element", "nothing-is-square", "nothing-is-square-1d", "nothing-is-square-3d", "windows-in-padding",
    "stride-exceeds-kernel", "unread-end", "dilation-exceeds-input", "dilation-and-stride",
    "depthwise-multiplier", "kernel-is-padded-input",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["int8", "int64", "float32", "float64"])
@pytest.mark.parametrize("case", DEFINED)
def test_definition(case, dtype, backend):
    x, weight, bias = operands(case, dtype)
    y = getattr(fastconv, case.op)(x, weight, bias, **case.window, backend=backend)
    np.testing.assert_array_equal(y, definition(case))


@pytest.mark.smoke
def test_worked_examples(backend):
    image = [[3, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1]]
    kernel = [[0, 1, 2], [2, 2, 0], [0, 1, 2]]
    for dtype in ("float32", "float64", "int64"):
        x, weight = np.array([[image]], dtype), np.array([[kernel]], dtype)
        y = fastconv.conv2d(x, weight, backend=backend)
        assert y.dtype == dtype
        assert y[0, 0].tolist() == [[12, 12, 17], [10, 17, 19], [9, 6, 14]]
    assert fastconv.conv2d(np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)), backend=backend).shape == (
        1,
        1,
        2,
        2,
    )


def test_no_kernel_is_flipped(backend):
    y = fastconv.conv1d(np.array([[[1.0, 2, 3, 4]]]), np.array([[[10.0, 1]]]), backend=backend)
    assert y.tolist() == [[[12, 23, 34]]]


# --- gradients ---


@float_dtypes
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "case",
    some("nothing-is-square", "nothing-is-square-3d", "wavenet-1d", "vgg-early", "depthwise-multiplier"),
)
@fastconv.config_context(algorithm="direct")
def test_adjoint(case, mode, dtype, backend):
    """⟨conv x, g⟩ = ⟨x, gradient by x⟩ = ⟨weight, gradient by weight⟩, exactly for whole numbers."""
    x, weight, _ = operands(case, dtype, bias=False)
    window = {**case.window, "padding_mode": mode}
    y = getattr(fastconv, case.op)(x, weight, **window, backend=backend)
    grad = whole_numbers(y.shape, dtype, 4)
    backward = getattr(fastconv, f"{case.op}_backward")
    grad_x, grad_weight, grad_bias = backward(grad, x, weight, **window, backend=backend)
    assert grad_x.dtype == grad_weight.dtype == grad_bias.dtype == dtype
    product = np.vdot(y.astype(np.int64), grad.astype(np.int64))
    assert np.vdot(x.astype(np.int64), grad_x.astype(np.int64)) == product
    assert np.vdot(weight.astype(np.int64), grad_weight.astype(np.int64)) == product
    np.testing.assert_array_equal(grad_bias, grad.sum(axis=(0, *range(2, grad.ndim))))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ndim", DIMENSIONS)
def test_gradcheck(ndim, mode, backend):
    rng = np.random.default_rng(ndim)
    x = rng.standard_normal((2, 4, *(5, 4, 3)[:ndim]))
    weight = rng.standard_normal((6, 2, *(3, 2, 2)[:ndim]))
    bias = rng.standard_normal(6)
    window = {
        "stride": (2, 1, 1)[:ndim],
        "padding": ((1, 2), (2, 0), (1, 1))[:ndim],
        "dilation": (1, 2, 1)[:ndim],
        "groups": 2,
        "padding_mode": mode,
        "backend": backend,
    }
    forward, backward = getattr(fastconv, f"conv{ndim}d"), getattr(fastconv, f"conv{ndim}d_backward")
    gradcheck(
        lambda x, weight, bias: forward(x, weight, bias, **window),
        lambda grad, x, weight, bias: backward(grad, x, weight, **window),
        [x, weight, bias],
    )


def test_output_mask(backend):
    x, weight = whole_numbers((2, 3, 5, 6), seed=1), whole_numbers((4, 3, 2, 3), seed=2)
    grad = whole_numbers((2, 4, 4, 4), seed=3)
    everything = fastconv.conv2d_backward(grad, x, weight, backend=backend)
    for mask in itertools.product((False, True), repeat=3):
        found = fastconv.conv2d_backward(grad, x, weight, output_mask=mask, backend=backend)
        for wanted, gradient, expected in zip(mask, found, everything, strict=True):
            if wanted:
                np.testing.assert_array_equal(gradient, expected)
            else:
                assert gradient is None


@pytest.mark.parametrize(
    "case",
    some("nothing-is-square-1d", "nothing-is-square", "nothing-is-square-3d", "wavenet-1d", "same-strided"),
)
def test_grad_module(case, backend):
    x, weight, _ = operands(case, bias=False)
    y = getattr(fastconv, case.op)(x, weight, **case.window, backend=backend)
    grad = whole_numbers(y.shape, seed=4)
    window = {**case.window, "backend": backend}
    expected = getattr(fastconv, f"{case.op}_backward")(grad, x, weight, **window)
    by_input, by_weight = (getattr(fastconv.grad, f"{case.op}_{name}") for name in ("input", "weight"))
    np.testing.assert_array_equal(by_input(x.shape, weight, grad, **window), expected[0])
    np.testing.assert_array_equal(by_weight(x, weight.shape, grad, **window), expected[1])
    out = np.full(weight.shape, np.nan)
    assert by_weight(x, weight.shape, grad, **window, out=out) is out
    np.testing.assert_array_equal(out, expected[1])
    unbatched = by_input(x.shape[1:], weight, grad[0], **window)
    np.testing.assert_array_equal(unbatched, expected[0][0])


# --- the public functions' arguments ---


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize(
    "case",
    some("nothing-is-square-1d", "nothing-is-square", "nothing-is-square-3d", "same-strided", "wavenet-1d"),
)
def test_padding_modes_copy_values(case, mode, backend):
    x, weight, bias = operands(case)
    geometry = case.geometry
    pads = [(0, 0), (0, 0)]
    for axis in range(3 - case.ndim, 3):
        reach = (geometry.output_size[axis] - 1) * geometry.stride[axis] - geometry.pad_low[axis]
        last = reach + geometry.dilation[axis] * (geometry.kernel_size[axis] - 1)
        pads.append((geometry.pad_low[axis], max(0, last + 1 - geometry.input_size[axis])))
    padded = np.pad(x, pads, {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode])
    conv = functools.partial(getattr(fastconv, case.op), backend=backend)
    actual = conv(x, weight, bias, **case.window, padding_mode=mode)
    expected = conv(padded, weight, bias, **{**case.window, "padding": 0})
    np.testing.assert_array_equal(actual, expected)


def test_padding_modes_need_enough_to_copy(backend):
    x, weight = np.ones((1, 1, 3, 4)), np.ones((1, 1, 2, 2))
    grad = np.ones((1, 1, 8, 9))
    for mode in ("reflect", "circular"):
        limit = 2 if mode == "reflect" else 3
        fastconv.conv2d(x, weight, padding=limit, padding_mode=mode, backend=backend)
        message = (
            f"conv2d: padding_mode='{mode}' .* needs an axis of at least 4 elements, input has one of 3 "
        )
        with pytest.raises(ShapeError, match=message):
            fastconv.conv2d(x, weight, padding=limit + 1, padding_mode=mode, backend=backend)
        with pytest.raises(ShapeError, match=f"conv2d_backward: padding_mode='{mode}'"):
            fastconv.conv2d_backward(
                grad[..., : 4 + 2 * limit, : 5 + 2 * limit], x, weight, padding=limit + 1, padding_mode=mode,
                output_mask=(True, False, False), backend=backend,
            )  # fmt: skip
    y = fastconv.conv2d(x, weight, padding=7, padding_mode="replicate", backend=backend)
    assert y.shape == (1, 1, 16, 17)
    assert (y == 4).all()


@pytest.mark.timeout(8)  # ten times what it takes; one addition for each padded element took fifteen seconds
@pytest.mark.parametrize("mode", MODES[1:])
def test_gradient_of_long_padding(mode):
    padding = 5_000_000
    size = 1 if mode == "replicate" else padding + 1
    grad = np.full((1, 1, size + 2 * padding), 0.1, np.float32)
    x, weight = np.zeros((1, 1, size), np.float32), np.ones((1, 1, 1), np.float32)
    window = {"padding": padding, "padding_mode": mode, "output_mask": (True, False, False)}
    grad_x, _, _ = fastconv.conv1d_backward(grad, x, weight, **window, backend="reference")
    source = np.pad(
        np.arange(size), padding, {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    )
    np.testing.assert_allclose(grad_x[0, 0], 0.1 * np.bincount(source), rtol=1e-6)


@pytest.mark.parametrize("case", some("nothing-is-square-1d", "nothing-is-square", "nothing-is-square-3d"))
def test_unbatched(case, backend):
    x, weight, bias = operands(case)
    window = {**case.window, "backend": backend}
    forward, backward = getattr(fastconv, case.op), getattr(fastconv, f"{case.op}_backward")
    y = forward(x, weight, bias, **window)
    np.testing.assert_array_equal(forward(x[1], weight, bias, **window), y[1])
    grad = whole_numbers(y.shape, seed=4)
    one = backward(grad[1], x[1], weight, **window)
    batch_of_one = backward(grad[1:2], x[1:2], weight, **window)
    for actual, expected in zip(one, batch_of_one, strict=True):
        np.testing.assert_array_equal(actual, expected.reshape(actual.shape))
    assert one[0].shape == x[1].shape


@pytest.mark.parametrize("mode", MODES)
@float_dtypes
def test_out_is_written_completely(dtype, mode, backend):
    case = BY_NAME["nothing-is-square"]
    x, weight, bias = operands(case, dtype)
    expected = fastconv.conv2d(x, weight, bias, **case.window, padding_mode=mode, backend=backend)
    out = np.full(expected.shape, np.nan, dtype)
    result = fastconv.conv2d(x, weight, bias, **case.window, padding_mode=mode, out=out, backend=backend)
    assert result is out
    np.testing.assert_array_equal(out, expected)


SEPARATE = {
    "relu": lambda y: np.maximum(y, 0),
    "relu6": lambda y: np.minimum(np.maximum(y, 0), 6),
    "leaky_relu": lambda y: np.where(y > 0, y, 0.01 * y),
    "elu": lambda y: np.where(y > 0, y, np.exp(np.minimum(y, 0)) - 1),
    "sigmoid": lambda y: 1 / (1 + np.exp(-y)),
    "tanh": np.tanh,
    "silu": lambda y: y / (1 + np.exp(-y)),
}


@float_dtypes
@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_what_follows(activation, scale, dtype, backend):
    rng = np.random.default_rng(0)
    x = (scale * rng.standard_normal((2, 3, 6, 7))).astype(dtype)
    weight, bias = (rng.standard_normal(shape).astype(dtype) for shape in ((5, 3, 3, 2), (5,)))
    plain = fastconv.conv2d(x, weight, bias, padding=1, backend=backend)
    actual = fastconv.conv2d(x, weight, bias, padding=1, activation=activation, backend=backend)
    with np.errstate(over="ignore"):
        expected = SEPARATE[activation](plain.astype(np.float64))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(actual, expected, rtol=64 * eps, atol=64 * eps * scale)
    assert actual.dtype == dtype


def test_activation_of_integers(backend):
    x, weight = whole_numbers((1, 2, 4, 5), np.int8), whole_numbers((3, 2, 2, 2), np.int8)
    plain = fastconv.conv2d(x, weight, backend=backend)
    np.testing.assert_array_equal(
        fastconv.conv2d(x, weight, activation="relu6", backend=backend), np.clip(plain, 0, 6)
    )
    with pytest.raises(TypeError, match="conv2d: activation 'silu' needs a floating dtype, got int32"):
        fastconv.conv2d(x, weight, activation="silu", backend=backend)


def test_unknown_names_are_refused(backend):
    x, weight = np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"conv2d: activation must be None or one of relu, .*, got 'gelu'"):
        fastconv.conv2d(x, weight, activation="gelu", backend=backend)
    with pytest.raises(ValueError, match=r"conv2d: padding_mode must be one of zeros, .*, got 'constant'"):
        fastconv.conv2d(x, weight, padding_mode="constant", backend=backend)


@pytest.mark.parametrize("mask", [(1, 2, 0), (True, None, True), ("yes", True, True)])
def test_output_mask_of_other_values(mask, backend):
    x, weight = np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2))
    with pytest.raises(TypeError, match=r"^conv2d_backward: output_mask must be three bools, got \("):
        fastconv.conv2d_backward(np.ones((1, 1, 3, 3)), x, weight, output_mask=mask, backend=backend)


def test_message_of_the_contract(backend):
    expected = "^conv2d: weight has 4 input channels per group, input has 3 channels in 1 group$"
    with pytest.raises(ShapeError, match=expected):
        fastconv.conv2d(np.ones((1, 3, 5, 5)), np.ones((2, 4, 3, 3)), backend=backend)


# --- values that are no numbers ---


@float_dtypes
@pytest.mark.parametrize(
    "case",
    some("vgg-early", "mobilenet-depthwise", "nothing-is-square", "resnet-bottleneck", "dilation-and-stride"),
)
def test_nan_reaches_exactly_its_windows(case, dtype, backend):
    x, weight, bias = operands(case, dtype)
    weight[:, :, 0] = 0  # even where the weight is zero
    odd = np.zeros(case.x)
    odd[0, case.x[1] // 2, case.x[2] // 2, case.x[3] // 3] = 1
    odd[-1, 0, -1, 0] = 1
    touched = fastconv.conv2d(odd, np.ones(case.weight), **case.window, backend="reference") > 0
    assert touched.any()
    assert not touched.all()
    with fastconv.config_context(algorithm="direct"):  # what others round differs where they give up
        clean = fastconv.conv2d(x, weight, bias, **case.window, backend=backend)
        x[odd > 0] = np.nan
        y = fastconv.conv2d(x, weight, bias, **case.window, backend=backend)
    np.testing.assert_array_equal(np.isnan(y), touched)
    np.testing.assert_array_equal(y[~touched], clean[~touched])


def test_infinity_stays_infinite(backend):
    x, weight = np.zeros((1, 3, 6, 7), np.float32), np.ones((2, 3, 3, 3), np.float32)
    x[0, 1, 3, 3] = np.inf
    y = fastconv.conv2d(x, weight, padding=1, backend=backend)
    expected = np.zeros((1, 2, 6, 7))
    expected[..., 2:5, 2:5] = np.inf
    np.testing.assert_array_equal(y, expected)
    grad_x, grad_weight, _ = fastconv.conv2d_backward(np.ones_like(y), x, weight, padding=1, backend=backend)
    assert np.isfinite(grad_x).all()
    assert np.isposinf(grad_weight[:, 1]).all()
    assert (grad_weight[:, [0, 2]] == 0).all()


@float_dtypes
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(15, 33), (8, 14), (7, 6)], ids=str)
def test_infinity_meets_no_padding(size, stride, dtype, backend):
    """Of depthwise layers: an infinite weight or gradient times the zeros around the input would be NaN."""
    window = {"stride": stride, "padding": 1, "groups": 3}
    x, weight = whole_numbers((2, 3, *size), dtype, 1), whole_numbers((3, 1, 3, 3), dtype, 2)
    grad = np.ones_like(fastconv.conv2d(x, weight, **window))
    x += 5  # no zero
    for side in itertools.product((0, 2), repeat=2):
        weight[(0, 0, *side)] = np.inf
    for row, column in itertools.product((0, -1), repeat=2):
        grad[0, 1, row, column] = np.inf
    y, expected_y = (fastconv.conv2d(x, weight, **window, backend=b) for b in (backend, "reference"))
    np.testing.assert_array_equal(y, expected_y)
    assert not np.isnan(y).any()
    grads, expected = (
        fastconv.conv2d_backward(grad, x, weight, **window, backend=b)[:2] for b in (backend, "reference")
    )
    for actual, reference in zip(grads, expected, strict=True):
        np.testing.assert_array_equal(actual, reference)


# --- depthwise ---


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS[:2])
def test_depthwise_beyond_the_caches(kernel, stride, threads, backend):
    """More than fits into caches, in planes of several blocks."""
    geometry = conv_geometry("conv2d", 2, (stride, 41, 257, 263), (41, 1, 3, 3), stride, 1, 1, 41)
    with fastconv.config_context(threads=threads):
        check_direct(backend, problem(kernel, geometry, "float32", data="integer"))


@float_dtypes
@pytest.mark.parametrize("shape", [(9, 40, 14, 15), (5, 3, 61, 40)], ids=str)
def test_depthwise_does_not_depend_on_threads(shape, dtype, backend):
    rng = np.random.default_rng(0)
    x, weight = (
        rng.standard_normal(shape).astype(dtype),
        rng.standard_normal((shape[1], 1, 5, 3)).astype(dtype),
    )
    window = {"padding": (2, 1), "groups": shape[1], "backend": backend}
    results = set()
    for threads in (1, 2, 5):
        with fastconv.config_context(threads=threads):
            y = fastconv.conv2d(x, weight, **window)
            gradients = fastconv.conv2d_backward(y, x, weight, **window)[:2]
        results.add(b"".join(array.tobytes() for array in (y, *gradients)))
    assert len(results) == 1


# --- matrix products ---


@float_dtypes
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 2)], ids=str)
def test_gemm_does_not_depend_on_threads(kernel, stride, dtype, isa):
    """Threads share the weights where there are too few pixels to go round, and the pixels where not."""
    rng = np.random.default_rng(0)
    window = {"stride": stride, "padding": kernel // 2, "backend": "cpp"}
    for shape in [(3, 300, 7, 7), (2, 40, 31, 33)]:
        x = rng.standard_normal(shape).astype(dtype)
        weight = rng.standard_normal((150, shape[1], kernel, kernel)).astype(dtype)
        results = set()
        for threads in (1, 2, 5):
            with fastconv.config_context(threads=threads, algorithm="gemm"):
                y = fastconv.conv2d(x, weight, **window)
                gradient = fastconv.conv2d_backward(y, x, weight, **window)[0]
            results.add(y.tobytes() + gradient.tobytes())
        assert len(results) == 1


# --- types ---


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_narrow_types_accumulate_in_float32(name, backend):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    ones = np.ones((1, 1, 64, 64), dtype)
    whole = fastconv.conv2d(ones, ones, backend=backend)  # 4096 ones: a running sum in float16 stops at 2048
    assert whole.dtype == dtype
    assert whole.item() == 4096
    gradients = fastconv.conv2d_backward(ones, ones, np.ones((1, 1, 1, 1), dtype), backend=backend)
    assert [g.dtype for g in gradients] == [dtype] * 3
    assert gradients[1].item() == gradients[2].item() == 4096

    rng = np.random.default_rng(0)
    case = BY_NAME["nothing-is-square"]
    x, weight, bias = (rng.standard_normal(s).astype(dtype) for s in (case.x, case.weight, case.weight[:1]))
    for mode in MODES:
        window = {**case.window, "padding_mode": mode, "backend": backend}
        narrow = fastconv.conv2d(x, weight, bias, activation="silu", **window)
        wide = fastconv.conv2d(*(a.astype("f4") for a in (x, weight, bias)), activation="silu", **window)
        assert narrow.tobytes() == wide.astype(dtype).tobytes()
        grad = rng.standard_normal(narrow.shape).astype(dtype)
        narrow = fastconv.conv2d_backward(grad, x, weight, **window)
        wide = fastconv.conv2d_backward(*(a.astype("f4") for a in (grad, x, weight)), **window)
        for a, b in zip(narrow, wide, strict=True):
            assert a.tobytes() == b.astype(dtype).tobytes()


INTEGERS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@pytest.mark.parametrize("first", INTEGERS)
def test_integer_types(first, backend):
    def extreme(shape, dtype):
        if dtype == "bool":
            return np.ones(shape, bool)
        info = np.iinfo(dtype)  # wide types stay where the sum of 18 products fits 64 bits
        low, high = max(info.min, -(2**28)), min(info.max, 2**28)
        return np.random.default_rng(0).choice([low, high], shape).astype(dtype)

    for second in INTEGERS:
        x, weight = extreme((2, 2, 4, 5), first), extreme((3, 2, 3, 3), second)
        y = fastconv.conv2d(x, weight, padding=1, backend=backend)
        wide = max(x.itemsize, weight.itemsize) > 2
        assert y.dtype == (np.int64 if wide else np.int32), (first, second)
        expected = fastconv.conv2d(x.astype(float), weight.astype(float), padding=1, backend="reference")
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(y, expected.astype(np.int64).astype(y.dtype), err_msg=second)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "result"),
    [
        ("float32", "float64", None, "float64"),
        ("float64", "float32", None, "float64"),
        ("float32", "float32", "float64", "float64"),
        ("float16", "float32", None, "float32"),
        ("float16", "float64", "float16", "float64"),
        ("uint8", "float32", None, "float32"),
        ("int16", "float32", "float32", "float32"),
        ("int32", "float32", None, "float64"),
        ("int64", "float64", "float64", "float64"),
        ("bool", "float32", None, "float32"),
        ("bool", "float16", None, "float16"),
        ("int8", "float16", None, "float16"),
        ("float32", "int8", "int8", "float32"),
        ("int8", "int8", "float32", "float32"),
        ("int8", "uint8", "int64", "int64"),
        ("int8", "int8", "bool", "int32"),
    ],
)
def test_mixed_types_promote_as_in_numpy(x, weight, bias, result, backend):
    arrays = [
        None if dtype is None else np.abs(whole_numbers(shape)).astype(dtype)
        for shape, dtype in (((2, 3, 4, 5), x), ((4, 3, 2, 2), weight), ((4,), bias))
    ]
    y = fastconv.conv2d(*arrays, backend=backend)
    assert y.dtype == result
    expected = fastconv.conv2d(
        *(None if a is None else a.astype(np.float64) for a in arrays), backend=backend
    )
    np.testing.assert_array_equal(y, expected)
    if y.dtype.kind == "f":
        grad_x, grad_weight, _ = fastconv.conv2d_backward(y, *arrays[:2], backend=backend)
        assert grad_x.dtype == grad_weight.dtype == result


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "object", "longdouble", "U3", "M8[s]"])
def test_other_types_are_refused(dtype, backend):
    good, bad = np.ones((1, 1, 4, 4)), np.zeros((1, 1, 4, 4), dtype)
    for arrays, name in (((bad, good), "input"), ((good, bad), "weight")):
        with pytest.raises(TypeError, match=f"conv2d: {name} has dtype .*, expected float16, bfloat16"):
            fastconv.conv2d(*arrays, backend=backend)
