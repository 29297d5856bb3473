"""Shapes and parameters that nobody thought of: backends against the reference, geometry against counting."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import fastconv
from fastconv import ShapeError
from fastconv.backends import load
from fastconv.geometry import (
    adaptive_pool_geometry,
    conv_geometry,
    conv_transpose_geometry,
    pool_geometry,
)
from fastconv.testing import check_kernel, make_problem


def examples(count):
    """The same examples in every run; the `backend` fixture may serve many of them."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def per_axis(ndim, low, high):
    return st.tuples(*(st.integers(low, high) for _ in range(ndim)))


@st.composite
def conv_arguments(draw, widest=24):
    """Shapes of input and weight, and the window: every combination that is legal, up to some size."""
    ndim = draw(st.integers(1, 3))
    kernel = draw(per_axis(ndim, 1, 4))
    stride, dilation = draw(per_axis(ndim, 1, 4)), draw(per_axis(ndim, 1, 3))
    pads = tuple(zip(draw(per_axis(ndim, 0, 4)), draw(per_axis(ndim, 0, 4)), strict=True))
    least = [max(1, d * (k - 1) + 1 - sum(p)) for d, k, p in zip(dilation, kernel, pads, strict=True)]
    size = tuple(m + draw(st.integers(0, widest if axis == 0 else 6)) for axis, m in enumerate(least))[::-1]
    kernel, stride, dilation, pads = (values[::-1] for values in (kernel, stride, dilation, pads))
    groups = draw(st.sampled_from((1, 1, 1, 2, 3, 7)))
    in_group = draw(st.one_of(st.just(1), st.integers(1, 20 // groups)))
    out_group = draw(st.one_of(st.just(1), st.integers(1, 40 // groups)))
    batch = draw(st.integers(1, 3))
    return {
        "x": (batch, in_group * groups, *size),
        "weight": (out_group * groups, in_group, *kernel),
        "stride": stride,
        "padding": pads,
        "dilation": dilation,
        "groups": groups,
    }


@st.composite
def pool_arguments(draw):
    ndim = draw(st.integers(1, 3))
    kernel, dilation = draw(per_axis(ndim, 1, 4)), draw(per_axis(ndim, 1, 3))
    stride = draw(st.one_of(st.none(), per_axis(ndim, 1, 5)))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    pads = tuple((draw(st.integers(0, r)), draw(st.integers(0, r))) for r in reach)
    least = [max(1, r + 1 - sum(p)) for r, p in zip(reach, pads, strict=True)]
    size = tuple(m + draw(st.integers(0, 40 if axis == ndim - 1 else 8)) for axis, m in enumerate(least))
    return {
        "x": (draw(st.integers(1, 2)), draw(st.integers(1, 5)), *size),
        "kernel_size": kernel,
        "stride": stride,
        "padding": pads,
        "dilation": dilation,
        "ceil_mode": draw(st.booleans()),
    }


divisors = st.fixed_dictionaries({
    "count_include_pad": st.booleans(),
    "divisor_override": st.one_of(st.none(), st.sampled_from((1, 7, -2))),
})  # fmt: skip
float_dtypes = st.sampled_from(("float32", "float64"))
activations = st.sampled_from((None, None, "relu", "leaky_relu", "silu"))
data = st.sampled_from(("normal", "integer", "positive"))


# --- backends against the reference ---


@examples(60)
@given(arguments=conv_arguments(), dtype=float_dtypes, data=data, bias=st.booleans(), activation=activations)
def test_conv_kernels(backend, arguments, dtype, data, bias, activation):
    arguments = dict(arguments)
    x, weight = arguments.pop("x"), arguments.pop("weight")
    geometry = conv_geometry("conv", len(x) - 2, x, weight, **arguments)
    module = load(backend)
    for kernel in ("conv_forward", "conv_grad_input"):
        problem = make_problem(kernel, geometry, dtype, data=data, bias=bias, activation=activation)
        check_kernel(module, problem)
    check_kernel(module, make_problem("conv_grad_weight", geometry, dtype, data=data))


@examples(40)
@given(arguments=conv_arguments(widest=9), extra=st.integers(0, 3), dtype=float_dtypes)
def test_transposed_kernels(backend, arguments, extra, dtype):
    x, (out, _, *kernel) = arguments["x"], arguments["weight"]
    groups, stride, dilation = arguments["groups"], arguments["stride"], arguments["dilation"]
    output_padding = tuple(min(extra, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
    weight = (x[1], out // groups, *kernel)
    try:
        geometry = conv_transpose_geometry(
            "t", len(x) - 2, x, weight, stride, arguments["padding"], output_padding, groups, dilation, None
        )
    except ShapeError:
        assume(False)  # more padding than there is output
    module = load(backend)
    for kernel_name in ("conv_forward", "conv_grad_input", "conv_grad_weight"):
        check_kernel(module, make_problem(kernel_name, geometry, dtype))


@examples(60)
@given(
    arguments=pool_arguments(), divisor=divisors, dtype=float_dtypes, ties=st.sampled_from(("ties", "nan"))
)
def test_pool_kernels(backend, arguments, divisor, dtype, ties):
    arguments = dict(arguments)
    x = arguments.pop("x")
    geometry = pool_geometry("pool", len(x) - 2, x, **arguments, **divisor)
    module = load(backend)
    check_kernel(module, make_problem("max_pool", geometry, dtype, data=ties))
    for kernel in ("max_pool_grad_input", "avg_pool", "avg_pool_grad_input"):
        check_kernel(module, make_problem(kernel, geometry, dtype))


@examples(40)
@given(st.data())
def test_adaptive_kernels(backend, data):
    ndim = data.draw(st.integers(1, 3))
    size, outputs = data.draw(per_axis(ndim, 1, 12)), data.draw(per_axis(ndim, 1, 8))
    geometry = adaptive_pool_geometry("pool", ndim, (data.draw(st.integers(1, 3)), 2, *size), outputs)
    module = load(backend)
    check_kernel(module, make_problem("max_pool", geometry, "float32", data="ties"))
    for kernel in ("max_pool_grad_input", "avg_pool", "avg_pool_grad_input"):
        check_kernel(module, make_problem(kernel, geometry, "float32"))


@examples(40)
@given(
    arguments=conv_arguments(widest=9),
    mode=st.sampled_from(("zeros", "reflect", "replicate", "circular")),
    named=st.sampled_from((None, None, "same", "same_lower", "valid")),
    dtypes=st.tuples(*[st.sampled_from(("float32", "float64", "int8", "int32"))] * 2),
    batched=st.booleans(),
)
def test_public_convolution(backend, arguments, mode, named, dtypes, batched):
    """What a user calls gives what it gives on the reference: values, types, or the same refusal."""
    arguments = dict(arguments)
    x_shape, weight_shape = arguments.pop("x"), arguments.pop("weight")
    ndim = len(x_shape) - 2
    x, weight = (
        np.random.default_rng(0).integers(-3, 4, shape).astype(dtype)
        for shape, dtype in zip((x_shape, weight_shape), dtypes, strict=True)
    )
    if not batched:
        x = x[0]
    if named is not None:
        arguments["padding"] = named
    arguments["padding_mode"] = mode
    forward, backward = (getattr(fastconv, f"conv{ndim}d{suffix}") for suffix in ("", "_backward"))

    def run(name):
        try:
            y = forward(x, weight, **arguments, backend=name)
        except ShapeError as error:
            return str(error)
        return [y, *backward(np.sign(y), x, weight, **arguments, backend=name)]

    expected, actual = run("reference"), run(backend)
    if isinstance(expected, str):
        assert actual == expected
        return
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)  # whole numbers: exact in every type


# --- geometry against counting ---

# length, kernel, stride, low and high padding, dilation
axis_arguments = st.tuples(
    st.integers(1, 60),
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(1, 9),
)


@examples(500)
@given(axis_arguments)
def test_conv_size(axis):
    length, kernel, stride, low, high, dilation = axis
    taps = [t * dilation for t in range(kernel)]
    count = sum(start + taps[-1] < length + high for start in range(-low, length + high, stride))
    arguments = ((1, 1, length), (1, 1, kernel), stride, ((low, high),), dilation, 1)
    if count == 0:
        with pytest.raises(ShapeError):
            conv_geometry("conv", 1, *arguments)
    else:
        assert conv_geometry("conv", 1, *arguments).output_size[2] == count


@examples(500)
@given(axis_arguments, st.booleans())
def test_pool_size(axis, ceil_mode):
    length, kernel, stride, low, high, dilation = axis
    reach = dilation * (kernel - 1)
    assume(max(low, high) <= reach and reach < length + low + high)
    found = pool_geometry(
        "pool", 1, (1, 1, length), kernel, stride, ((low, high),), dilation, ceil_mode
    ).output_size[2]
    begun = itertools.takewhile(
        lambda start: start + reach < length + high + (stride - 1 if ceil_mode else 0),
        itertools.count(-low, stride),
    )
    assert found == sum(start < length or not ceil_mode for start in begun)
