"""Transposed convolution: the kernels on its geometries, the definition by scattering, its gradients."""

import functools
import itertools

import numpy as np
import pytest
from cases import TRANSPOSED, check_direct, params, problem

import fastconv
from fastconv import ShapeError
from fastconv.activations import ACTIVATIONS
from fastconv.testing import gradcheck

BY_NAME = {case.name: case for case in TRANSPOSED}
NUMERIC = params(tuple(case for case in TRANSPOSED if not isinstance(case.padding, str)))
SHAPED = params(tuple(BY_NAME[name] for name in ("decoder-1d", "nothing-is-square", "decoder-3d")))

float_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def whole_numbers(shape, dtype=np.float64, seed=0):
    return np.random.default_rng([seed, *shape]).integers(-4, 5, shape).astype(dtype)


def operands(case, dtype=np.float64):
    channels = case.weight[1] * case.groups
    return (
        whole_numbers(case.x, dtype, 1),
        whole_numbers(case.weight, dtype, 2),
        whole_numbers((channels,), dtype, 3),
    )


@float_dtypes
@pytest.mark.parametrize("case", params(TRANSPOSED))
@pytest.mark.parametrize("kernel", ["conv_forward", "conv_grad_input", "conv_grad_weight"])
def test_kernel(kernel, case, dtype, backend):
    check_direct(backend, problem(kernel, case.geometry, dtype))


@pytest.mark.parametrize("case", params(TRANSPOSED))
@pytest.mark.parametrize("kernel", ["conv_forward", "conv_grad_input", "conv_grad_weight"])
def test_whole_numbers_are_exact(kernel, case, backend):
    bias = kernel != "conv_grad_weight"
    check_direct(backend, problem(kernel, case.geometry, "float32", data="integer", bias=bias))


def pairs(case):
    per_axis = case.padding if isinstance(case.padding, tuple) else (case.padding,) * case.ndim
    return [value if isinstance(value, tuple) else (value, value) for value in per_axis]


def per_axis(value, ndim):
    return value if isinstance(value, tuple) else (value,) * ndim


@functools.cache
def definition(case):
    """Every input element spreads the kernel over the output, which then loses its padding."""
    x, weight, bias = operands(case)
    ndim = case.ndim
    stride, dilation = per_axis(case.stride, ndim), per_axis(case.dilation, ndim)
    extra = per_axis(case.output_padding, ndim)
    out_group, in_group = case.weight[1], case.x[1] // case.groups
    low = [pad for pad, _ in pairs(case)]
    size = [
        (length - 1) * s - sum(pads) + d * (k - 1) + e + 1
        for length, s, pads, d, k, e in zip(
            case.x[2:], stride, pairs(case), dilation, case.weight[2:], extra, strict=True
        )
    ]
    if case.output_size is not None:
        size = list(case.output_size)
    y = np.zeros((case.x[0], out_group * case.groups, *size)) + bias.reshape(-1, *(1,) * ndim)
    for n, c, *i in np.ndindex(case.x):
        for k, *t in np.ndindex(out_group, *case.weight[2:]):
            at = [i[a] * stride[a] - low[a] + t[a] * dilation[a] for a in range(ndim)]
            if all(0 <= p < length for p, length in zip(at, size, strict=True)):
                y[(n, c // in_group * out_group + k, *at)] += x[(n, c, *i)] * weight[(c, k, *t)]
    return y


@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
@pytest.mark.parametrize("case", NUMERIC)
def test_definition(case, dtype, backend):
    y = getattr(fastconv, case.op)(*operands(case, dtype), **case.window, backend=backend)
    np.testing.assert_array_equal(y, definition(case))


@pytest.mark.parametrize(
    "case", [*SHAPED, *params((BY_NAME["gaps"], BY_NAME["output-padding-up-to-dilation"]))]
)
def test_convolution_of_the_input_with_zeros_between(case, backend):
    """The same by a convolution of the input with ``stride - 1`` zeros between its elements."""
    x, weight, bias = operands(case)
    ndim = case.ndim
    stride, dilation = per_axis(case.stride, ndim), per_axis(case.dilation, ndim)
    sizes = [(length - 1) * s + 1 for length, s in zip(x.shape[2:], stride, strict=True)]
    spread = np.zeros((*x.shape[:2], *sizes))
    spread[(..., *(slice(None, None, s) for s in stride))] = x
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    extra = per_axis(case.output_padding, ndim)
    spread = np.pad(spread, [(0, 0), (0, 0), *((r, r + e) for r, e in zip(reach, extra, strict=True))])
    grouped = weight.reshape(case.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    flipped = grouped.reshape(-1, *grouped.shape[2:])[(..., *(slice(None, None, -1),) * ndim)]
    conv = getattr(fastconv, f"conv{ndim}d")
    full = conv(spread, flipped, bias, dilation=case.dilation, groups=case.groups, backend=backend)
    cut = [slice(low, size - high) for (low, high), size in zip(pairs(case), full.shape[2:], strict=True)]
    actual = getattr(fastconv, case.op)(x, weight, bias, **case.window, backend=backend)
    np.testing.assert_array_equal(actual, full[(..., *cut)])


@float_dtypes
@pytest.mark.parametrize("case", params(TRANSPOSED))
def test_adjoint(case, dtype, backend):
    x, weight, _ = operands(case, dtype)
    y = getattr(fastconv, case.op)(x, weight, **case.window, backend=backend)
    grad = whole_numbers(y.shape, dtype, 4)
    backward = getattr(fastconv, f"{case.op}_backward")
    grad_x, grad_weight, grad_bias = backward(grad, x, weight, **case.window, backend=backend)
    product = np.vdot(y.astype(np.int64), grad.astype(np.int64))
    assert np.vdot(x.astype(np.int64), grad_x.astype(np.int64)) == product
    assert np.vdot(weight.astype(np.int64), grad_weight.astype(np.int64)) == product
    np.testing.assert_array_equal(grad_bias, grad.sum(axis=(0, *range(2, grad.ndim))))


@pytest.mark.parametrize(
    ("padding", "output_padding"), [(((1, 0), (0, 2), (1, 1)), (1, 0, 0)), ("same", 0), ("same_lower", 0)]
)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gradcheck(ndim, padding, output_padding, backend):
    rng = np.random.default_rng(ndim)
    inputs = [
        rng.standard_normal((2, 4, *(4, 3, 2)[:ndim])),
        rng.standard_normal((4, 3, *(3, 2, 3)[:ndim])),
        rng.standard_normal(6),
    ]
    window = {
        "stride": (2, 1, 2)[:ndim],
        "padding": padding if isinstance(padding, str) else padding[:ndim],
        "output_padding": output_padding if output_padding == 0 else output_padding[:ndim],
        "dilation": (1, 2, 1)[:ndim],
        "groups": 2,
        "backend": backend,
    }
    forward = getattr(fastconv, f"conv_transpose{ndim}d")
    backward = getattr(fastconv, f"conv_transpose{ndim}d_backward")
    gradcheck(
        lambda x, weight, bias: forward(x, weight, bias, **window),
        lambda grad, x, weight, bias: backward(grad, x, weight, **window),
        inputs,
    )


@pytest.mark.parametrize("name", ["valid", "same", "same_lower"])
@pytest.mark.parametrize("stride", [1, 2, (3, 2)])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (4, 5)])
def test_undoes_the_size_of_a_convolution(kernel, stride, name, backend):
    """The gradient of a convolution by its input is a transposed convolution with the same arguments."""
    x, weight = whole_numbers((1, 2, 12, 18)), whole_numbers((3, 2, *kernel))
    window = {"stride": stride, "padding": name, "backend": backend}
    y = fastconv.conv2d(x, weight, **window)
    up = fastconv.conv_transpose2d(y, weight, output_size=x.shape, **window)
    grad_x, _, _ = fastconv.conv2d_backward(y, x, weight, **window)
    np.testing.assert_array_equal(up, grad_x)
    if name != "valid":
        assert fastconv.conv_transpose2d(y, weight, **window).shape == x.shape


def test_output_size_forms(backend):
    x, weight = whole_numbers((2, 3, 4, 5)), whole_numbers((3, 2, 3, 3))
    up = functools.partial(fastconv.conv_transpose2d, x, weight, stride=3, backend=backend)
    for height, width in itertools.product((12, 13, 14), (15, 16, 17)):
        expected = up(output_padding=(height - 12, width - 15))
        assert expected.shape == (2, 2, height, width)
        for size in ((height, width), [height, width], (2, height, width), (2, 2, height, width)):
            np.testing.assert_array_equal(up(output_size=size), expected)
    for size in ((11, 15), (15, 15), (12, 14), (12, 18)):
        with pytest.raises(
            ShapeError, match=r"^conv_transpose2d: output_size=.* is out of reach, expected 12..14 x 15..17$"
        ):
            up(output_size=size)
    with pytest.raises(ShapeError, match=r"output_padding=.* and output_size=.* exclude each other"):
        up(output_size=(12, 15), output_padding=1)
    for size in ((3, 12, 15), (2, 3, 12, 15), (1, 2, 12, 15)):
        with pytest.raises(
            ShapeError,
            match=r"^conv_transpose2d: output_size=.* does not fit, the result has shape \(2, 2, 12, 15\)$",
        ):
            up(output_size=size)
    with pytest.raises(ShapeError, match=r"the result has shape \(2, 12, 15\)$"):
        fastconv.conv_transpose2d(x[0], weight, stride=3, output_size=(1, 2, 12, 15), backend=backend)


@pytest.mark.parametrize("case", SHAPED)
def test_unbatched(case, backend):
    x, weight, bias = operands(case)
    window = {**case.window, "backend": backend}
    forward, backward = getattr(fastconv, case.op), getattr(fastconv, f"{case.op}_backward")
    y = forward(x, weight, bias, **window)
    np.testing.assert_array_equal(forward(x[-1], weight, bias, **window), y[-1])
    grad = whole_numbers(y.shape, seed=4)
    one = backward(grad[-1], x[-1], weight, **window)
    batch_of_one = backward(grad[-1:], x[-1:], weight, **window)
    for actual, expected in zip(one, batch_of_one, strict=True):
        np.testing.assert_array_equal(actual, expected.reshape(actual.shape))
    assert one[0].shape == x[-1].shape


@float_dtypes
@pytest.mark.parametrize("case", params(TRANSPOSED))
def test_out_is_written_completely(case, dtype, backend):
    """In "gaps" no element of the input reaches most of the output."""
    x, weight, bias = operands(case, dtype)
    forward = getattr(fastconv, case.op)
    expected = forward(x, weight, bias, **case.window, backend=backend)
    out = np.full(expected.shape, np.nan, dtype)
    assert forward(x, weight, bias, **case.window, out=out, backend=backend) is out
    np.testing.assert_array_equal(out, expected)


def test_output_mask(backend):
    case = BY_NAME["nothing-is-square"]
    x, weight, _ = operands(case)
    grad = whole_numbers(case.geometry.x_shape, seed=4).reshape(2, 15, 10, 15)
    backward = functools.partial(fastconv.conv_transpose2d_backward, grad, x, weight, **case.window)
    everything = backward(backend=backend)
    for mask in itertools.product((False, True), repeat=3):
        for wanted, gradient, expected in zip(
            mask, backward(output_mask=mask, backend=backend), everything, strict=True
        ):
            if wanted:
                np.testing.assert_array_equal(gradient, expected)
            else:
                assert gradient is None


@float_dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_what_follows(activation, dtype, backend):
    case = BY_NAME["nothing-is-square"]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(a.shape).astype(dtype) for a in operands(case)]
    plain = fastconv.conv_transpose2d(*arrays, **case.window, backend=backend)
    actual = fastconv.conv_transpose2d(*arrays, **case.window, activation=activation, backend=backend)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(actual, ACTIVATIONS[activation](plain), rtol=64 * eps, atol=64 * eps)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_narrow_types_accumulate_in_float32(name, backend):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    ones = np.ones((1, 4096, 1, 2), dtype)
    y = fastconv.conv_transpose2d(ones, np.ones((4096, 1, 1, 1), dtype), backend=backend)
    assert y.dtype == dtype
    assert y.ravel().tolist() == [4096, 4096]
    case = BY_NAME["nothing-is-square"]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(a.shape).astype(dtype) for a in operands(case)]
    narrow = fastconv.conv_transpose2d(*arrays, **case.window, backend=backend)
    wide = fastconv.conv_transpose2d(*(a.astype("f4") for a in arrays), **case.window, backend=backend)
    assert narrow.tobytes() == wide.astype(dtype).tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.ones((4, 2, 3, 3))}, "weight has 4 input channels, input has 3 channels"),
        (
            {"weight": np.ones((3, 2, 3))},
            r"weight has 3 dimensions, .* expected 4: \(C_in, C_out / groups, kH, kW\)",
        ),
        ({"groups": 2}, "input has 3 channels, expected a multiple of groups=2"),
        ({"bias": np.ones(3)}, r"bias has shape \(3,\), expected \(2,\)"),
        ({"padding": 7}, "output size .* is not positive"),
        ({"stride": 2, "output_padding": 2}, "output_padding=.* must be smaller than stride=.* or dilation="),
        ({"output_padding": -1}, "output_padding must be at least 0, got -1"),
        ({"padding": "same", "output_padding": 1, "stride": 2}, "padding='same' sets the output size"),
    ],
)
def test_refusals(change, message, backend):
    arguments = {"input": np.ones((1, 3, 4, 5)), "weight": np.ones((3, 2, 3, 3)), **change}
    with pytest.raises(ShapeError, match=f"^conv_transpose2d: {message}"):
        fastconv.conv_transpose2d(**arguments, backend=backend)
