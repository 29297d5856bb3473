"""unfold and fold: against loops over windows, and as what makes a matrix product of a convolution."""

import itertools
import math

import numpy as np
import pytest
from cases import CONVS, params

import fastconv
from fastconv import ShapeError
from fastconv.testing import gradcheck

SMALL = 40_000  # elements of the unfolded input
CASES = params(
    tuple(
        case for case in CONVS if case.groups == 1 and math.prod(case.x) * math.prod(case.weight[2:]) < SMALL
    )
)
BY_NAME = {case.name: case for case in CONVS}
DEFINED = params((
    BY_NAME["one-element"], BY_NAME["windows-in-padding"], BY_NAME["stride-exceeds-kernel"],
    BY_NAME["dilation-and-stride"], BY_NAME["text-1d"], BY_NAME["video-3d-strided"],
    BY_NAME["kernel-is-padded-input"], BY_NAME["unread-end"],
))  # fmt: skip


def arguments(case):
    kernel = case.weight[2:] if case.ndim != 2 or case.weight[2] != case.weight[3] else case.weight[2]
    return {
        "kernel_size": kernel,
        "dilation": case.dilation,
        "padding": case.padding,
        "stride": case.stride,
    }


def whole_numbers(shape, dtype=np.float64, seed=0):
    return np.random.default_rng([seed, *shape]).integers(-4, 5, shape).astype(dtype)


@pytest.mark.parametrize("case", DEFINED)
def test_unfold_definition(case, backend):
    x = whole_numbers(case.x)
    ndim = case.ndim
    stride, dilation, padding = (
        value if isinstance(value, tuple) else (value,) * ndim
        for value in (case.stride, case.dilation, case.padding)
    )
    pads = [value if isinstance(value, tuple) else (value, value) for value in padding]
    kernel = case.weight[2:]
    windows = list(itertools.product(*(
        range(-low, size + high - d * (k - 1), s)
        for size, (low, high), d, k, s in zip(case.x[2:], pads, dilation, kernel, stride, strict=True)
    )))  # fmt: skip
    expected = np.zeros((case.x[0], case.x[1] * math.prod(kernel), len(windows)))
    for n, c in np.ndindex(case.x[:2]):
        for row, tap in enumerate(np.ndindex(kernel), c * math.prod(kernel)):
            for column, start in enumerate(windows):
                at = [first + t * d for first, t, d in zip(start, tap, dilation, strict=True)]
                if all(0 <= p < size for p, size in zip(at, case.x[2:], strict=True)):
                    expected[n, row, column] = x[(n, c, *at)]
    np.testing.assert_array_equal(fastconv.unfold(x, **arguments(case), backend=backend), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
@pytest.mark.parametrize("case", CASES)
@fastconv.config_context(algorithm="direct")
def test_convolution_is_a_product_of_unfolded_windows(case, dtype, backend):
    x, weight = whole_numbers(case.x, dtype, 1), whole_numbers(case.weight, dtype, 2)
    columns = fastconv.unfold(x, **arguments(case), backend=backend)
    assert columns.dtype == dtype
    y = getattr(fastconv, case.op)(x, weight, **case.window, backend=backend)
    product = weight.reshape(len(weight), -1).astype(float) @ columns.astype(float)
    np.testing.assert_array_equal(product.reshape(y.shape), y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_fold_is_adjoint(case, dtype, backend):
    x = whole_numbers(case.x, dtype)
    columns = fastconv.unfold(x, **arguments(case), backend=backend)
    grad = whole_numbers(columns.shape, dtype, 1)
    folded = fastconv.fold(grad, case.x[2:], **arguments(case), backend=backend)
    assert folded.shape == x.shape
    assert folded.dtype == dtype
    assert np.vdot(columns.astype(float), grad.astype(float)) == np.vdot(
        x.astype(float), folded.astype(float)
    )


@pytest.mark.parametrize("case", CASES)
def test_fold_counts_how_often_each_element_is_read(case, backend):
    columns = fastconv.unfold(np.ones(case.x), **arguments(case), backend=backend)
    counts = fastconv.fold(columns, case.x[2:], **arguments(case), backend=backend)
    ones = np.ones((1, 1, *case.weight[2:]))
    windows = np.ones((1, 1, *case.geometry.output_size[3 - case.ndim :]))
    size = (1, 1, *case.x[2:])
    by_input = getattr(fastconv.grad, f"{case.op}_input")
    expected = by_input(size, ones, windows, case.stride, case.padding, case.dilation, backend=backend)
    np.testing.assert_array_equal(counts, np.broadcast_to(expected, counts.shape))


def test_gradcheck(backend):
    window = {"kernel_size": (2, 3), "dilation": (2, 1), "padding": ((1, 0), (2, 1)), "stride": (1, 2)}
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 5))
    columns = fastconv.unfold(x, **window, backend=backend)
    gradcheck(
        lambda x: fastconv.unfold(x, **window, backend=backend),
        lambda grad, x: fastconv.fold(grad, x.shape[2:], **window, backend=backend),
        [x],
    )
    gradcheck(
        lambda columns: fastconv.fold(columns, (4, 5), **window, backend=backend),
        lambda grad, columns: fastconv.unfold(grad, **window, backend=backend),
        [columns],
    )


def test_axes_follow_the_kernel(backend):
    x = whole_numbers((2, 3, 4, 5))
    np.testing.assert_array_equal(
        fastconv.unfold(x, 2, backend=backend), fastconv.unfold(x, (2, 2), backend=backend)
    )
    assert fastconv.unfold(x[0], 2, backend=backend).shape == (12, 12)
    assert fastconv.unfold(x[0], (2,), backend=backend).shape == (3, 8, 4)
    assert fastconv.unfold(x[:, None], [2, 2, 2], backend=backend).shape == (2, 8, 24)
    assert fastconv.unfold(x, np.array([2, 2]), backend=backend).shape == (2, 12, 12)
    with pytest.raises(ShapeError, match=r"unfold: kernel_size has 4 values, expected one to three"):
        fastconv.unfold(x, (1, 1, 1, 1), backend=backend)


def test_unbatched_and_out(backend):
    x = whole_numbers((2, 3, 4, 5))
    columns = fastconv.unfold(x, 2, backend=backend)
    np.testing.assert_array_equal(fastconv.unfold(x[1], 2, backend=backend), columns[1])
    image = fastconv.fold(columns, (4, 5), 2, backend=backend)
    np.testing.assert_array_equal(fastconv.fold(columns[1], (4, 5), 2, backend=backend), image[1])
    out = np.full(columns.shape, np.nan)
    assert fastconv.unfold(x, 2, out=out, backend=backend) is out
    np.testing.assert_array_equal(out, columns)
    out = np.full(image.shape, np.nan)
    assert fastconv.fold(columns, (4, 5), 2, out=out, backend=backend) is out
    np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize("shape", [(2, 7, 12), (2, 12, 11), (12,), (1, 2, 12, 12)])
def test_fold_refuses_other_shapes(shape, backend):
    with pytest.raises(ShapeError, match=r"^fold: input has "):
        fastconv.fold(np.ones(shape), (4, 5), 2, backend=backend)
