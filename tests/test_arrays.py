"""What NumPy arrays may look like, coming in and going out."""

import functools

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastconv
from fastconv import ShapeError


def whole_numbers(shape, dtype=np.float64, seed=0):
    return np.random.default_rng([seed, *shape]).integers(-4, 5, shape).astype(dtype)


# --- arrays that come in ---


def readonly(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def strided(a):
    big = np.full([3 * n for n in a.shape], 77).astype(a.dtype)
    view = big[tuple(slice(1, 3 * n, 3) for n in a.shape)]
    view[...] = a
    return view


def reversed_axes(a):
    flip = (slice(None, None, -1),) * a.ndim
    return a[flip].copy()[flip]


def misaligned(a):
    buffer = np.zeros(a.nbytes + 1, np.uint8)
    view = buffer[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    assert not view.flags.aligned or a.itemsize == 1
    return view


class Subclass(np.ndarray):
    """An array with behaviour of its own: results must not inherit it."""


class Duck:
    """Something that is no array and can become one."""

    def __init__(self, a):
        self.a = a

    def __array__(self, dtype=None, copy=None):
        return np.array(self.a, dtype=dtype)


def channels_last(a):
    axis = min(1, a.ndim - 1)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, axis, -1)), -1, axis)


DISGUISES = {
    "list": lambda a: a.tolist(),
    "tuple": lambda a: tuple(a.tolist()),
    "readonly": readonly,
    "strided": strided,
    "negative strides": reversed_axes,
    "fortran order": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "channels last": channels_last,
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "misaligned": misaligned,
    "subclass": lambda a: a.view(Subclass),
    "array protocol": Duck,
}

X, WEIGHT, BIAS = whole_numbers((2, 3, 6, 5)), whole_numbers((4, 3, 3, 2)), whole_numbers((4,))
TRANSPOSED_WEIGHT = whole_numbers((3, 4, 2, 3))
GRAD = whole_numbers((2, 4, 6, 6), seed=1)
POOLED, INDICES = fastconv.max_pool2d(X, 2, return_indices=True, backend="reference")

CALLS = {
    "conv": (fastconv.conv2d, (X, WEIGHT, BIAS), {"padding": 1}),
    "conv-circular": (fastconv.conv2d, (X, WEIGHT, BIAS), {"padding": 1, "padding_mode": "circular"}),
    "conv_backward": (fastconv.conv2d_backward, (GRAD, X, WEIGHT), {"padding": 1}),
    "conv_transpose": (fastconv.conv_transpose2d, (X, TRANSPOSED_WEIGHT, BIAS), {"stride": 2}),
    "conv_transpose_backward": (
        fastconv.conv_transpose2d_backward,
        (whole_numbers((2, 4, 12, 11)), X, TRANSPOSED_WEIGHT),
        {"stride": 2},
    ),
    "max_pool": (fastconv.max_pool2d, (X,), {"kernel_size": 2, "return_indices": True}),
    "max_pool_backward": (fastconv.max_pool2d_backward, (POOLED, INDICES), {"input_size": X.shape}),
    "max_unpool": (fastconv.max_unpool2d, (POOLED, INDICES), {"kernel_size": 2, "output_size": X.shape}),
    "avg_pool": (fastconv.avg_pool2d, (X,), {"kernel_size": (3, 2), "stride": 1}),
    "avg_pool_backward": (fastconv.avg_pool2d_backward, (POOLED,), {"input_size": (6, 5), "kernel_size": 2}),
    "lp_pool": (fastconv.lp_pool2d, (X, 2), {"kernel_size": 2}),
    "lp_pool_backward": (fastconv.lp_pool2d_backward, (POOLED, X, 2), {"kernel_size": 2}),
    "adaptive_max_pool": (
        fastconv.adaptive_max_pool2d,
        (X,),
        {"output_size": (4, 3), "return_indices": True},
    ),
    "adaptive_avg_pool": (fastconv.adaptive_avg_pool2d, (X,), {"output_size": (4, 3)}),
    "unfold": (fastconv.unfold, (X,), {"kernel_size": 2}),
    "fold": (fastconv.fold, (whole_numbers((2, 12, 20)),), {"output_size": (5, 6), "kernel_size": 2}),
}


def results_of(value):
    return value if isinstance(value, tuple) else (value,)


def is_plain(array):
    flags = array.flags
    return type(array) is np.ndarray and array.dtype.isnative and flags.c_contiguous and flags.writeable


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("name", CALLS)
def test_looks_do_not_matter(name, disguise, backend):
    function, arguments, keywords = CALLS[name]
    change = DISGUISES[disguise]
    disguised = [change(a) if isinstance(a, np.ndarray) else a for a in arguments]
    before = [np.array(a, copy=True) for a in disguised]
    expected = results_of(function(*arguments, **keywords, backend=backend))
    actual = results_of(function(*disguised, **keywords, backend=backend))
    for result, plain in zip(actual, expected, strict=True):
        assert is_plain(result)
        assert result.dtype == plain.dtype
        np.testing.assert_array_equal(result, plain)
    for argument, copy in zip(disguised, before, strict=True):
        np.testing.assert_array_equal(np.asarray(argument), copy)


@pytest.mark.parametrize("name", CALLS)
def test_results_are_new(name, backend):
    """No result is a view of an input, or the same memory as an earlier result."""
    function, arguments, keywords = CALLS[name]
    first, second = (results_of(function(*arguments, **keywords, backend=backend)) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        assert not np.may_share_memory(one, two)
        assert not any(isinstance(a, np.ndarray) and np.may_share_memory(one, a) for a in arguments)


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int64", ">f4", ">i2"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_broadcast_arrays(ndim, dtype, backend):
    """Arrays with strides of zero, which stand for more than they hold."""
    shape = (2, 3, *(6, 5, 4)[:ndim])
    x = np.broadcast_to(np.array(2, dtype), shape)
    weight = np.broadcast_to(np.array(3, dtype), (4, 3, *(2,) * ndim))
    bias = np.broadcast_to(np.array(1, dtype), (4,))
    y = getattr(fastconv, f"conv{ndim}d")(x, weight, bias, backend=backend)
    assert (y == 2 * 3 * 3 * 2**ndim + 1).all()
    grads = getattr(fastconv, f"conv{ndim}d_backward")(y[:, :1] * 0 + 1, x, weight[:1], backend=backend)
    assert (grads[1] == 2 * y[0, 0].size * 2).all()
    assert (getattr(fastconv, f"max_pool{ndim}d")(x, 2, backend=backend) == 2).all()


def test_memory_map(tmp_path, backend):
    path = tmp_path / "x.bin"
    X.tofile(path)
    mapped = np.memmap(path, X.dtype, "r", shape=X.shape)
    y = fastconv.conv2d(mapped, WEIGHT, backend=backend)
    assert is_plain(y)
    np.testing.assert_array_equal(y, fastconv.conv2d(X, WEIGHT, backend=backend))


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("where", ["input", "weight", "bias"])
def test_masked_arrays_and_matrices_are_refused(where, backend):
    arguments = {"input": X, "weight": WEIGHT, "bias": BIAS}
    masked = {**arguments, where: np.ma.masked_equal(arguments[where], 1)}
    with pytest.raises(TypeError, match=f"^conv2d: {where} is a masked array, whose mask would be lost"):
        fastconv.conv2d(**masked, backend=backend)
    matrix = {**arguments, where: np.asmatrix(np.ones((2, 2)))}
    with pytest.raises(TypeError, match=rf"^conv2d: {where} is a numpy\.matrix"):
        fastconv.conv2d(**matrix, backend=backend)


def test_masked_arrays_in_lists_are_refused(backend):
    plain, masked = np.ones((2, 5, 5)), np.ma.masked_array(np.ones((2, 5, 5)), mask=True)
    for items in ([masked, plain], [plain, masked], (plain, plain, masked)):
        with pytest.raises(
            TypeError, match=r"^max_pool2d: input holds a masked array, whose mask would be lost"
        ):
            fastconv.max_pool2d(items, 2, backend=backend)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (None, TypeError, "input must be an array, got None"),
        ([[[1.0, 2.0], [3.0]]], ShapeError, "input is not a regular array"),
        (3.0, ShapeError, r"input has 0 dimensions, shape \(\), expected \(N, C, H, W\) or \(C, H, W\)"),
        (np.ones((4, 5)), ShapeError, r"input has 2 dimensions, shape \(4, 5\), expected"),
        ({"a": 1}, TypeError, "input is a dict that cannot become a NumPy array: its dtype would be object"),
        ([[None]], TypeError, "input is a list that cannot become a NumPy array: its dtype would be object"),
        ("image.png", TypeError, "input has dtype <U9"),
    ],
)
def test_what_is_no_array_is_refused(value, error, message, backend):
    with pytest.raises(error, match=f"^conv2d: {message}"):
        fastconv.conv2d(value, WEIGHT, backend=backend)


class Stubborn:
    """As tensors with a gradient, of a dtype that NumPy lacks, or on another device."""

    def __init__(self, error):
        self.error = error

    def __array__(self, dtype=None, copy=None):
        raise self.error("detach it first")


@pytest.mark.parametrize("error", [RuntimeError, TypeError])
def test_arrays_that_numpy_cannot_have_are_refused(error, backend):
    message = "^conv2d: weight is a Stubborn that cannot become a NumPy array: detach it first$"
    with pytest.raises(TypeError, match=message):
        fastconv.conv2d(X, Stubborn(error), backend=backend)


def test_tensors_that_numpy_cannot_have_are_refused(backend):
    torch = pytest.importorskip("torch")
    for tensor in (
        torch.ones((1, 2, 4), requires_grad=True),
        torch.ones((1, 2, 4), dtype=torch.bfloat16),
        torch.ones((1, 2, 4)).to_sparse(),
    ):
        with pytest.raises(
            TypeError, match=r"^max_pool1d: input is a Tensor that cannot become a NumPy array: "
        ):
            fastconv.max_pool1d(tensor, 2, backend=backend)


def test_sparse_matrices_are_refused(backend):
    sparse = pytest.importorskip("scipy.sparse")
    message = "input is a csr_array that cannot become a NumPy array: its dtype would be object$"
    for call in (fastconv.max_pool1d, fastconv.avg_pool1d, fastconv.unfold, fastconv.adaptive_max_pool1d):
        with pytest.raises(TypeError, match=f"^{call.__name__}: {message}"):
            call(sparse.csr_array(np.eye(4)), 2, backend=backend)


# --- arrays that go out ---


def conv_into(out, backend, **changes):
    arguments = {"input": X, "weight": WEIGHT, "bias": BIAS, **changes}
    return fastconv.conv2d(**arguments, out=out, backend=backend)


@pytest.mark.parametrize(
    "make",
    [
        np.copy,
        strided,
        reversed_axes,
        np.asfortranarray,
        misaligned,
        channels_last,
        lambda a: a.copy().view(Subclass),
    ],
    ids=["plain", "strided", "reversed", "fortran", "misaligned", "channels-last", "subclass"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_out_of_any_layout(dtype, make, backend):
    arrays = {"input": X.astype(dtype), "weight": WEIGHT.astype(dtype), "bias": BIAS.astype(dtype)}
    expected = conv_into(None, backend, **arrays)
    out = make(np.full(expected.shape, np.nan, dtype))
    assert conv_into(out, backend, **arrays) is out
    np.testing.assert_array_equal(out, expected)
    pooled = fastconv.max_pool2d(arrays["input"], 2, backend=backend)
    out = make(np.full(pooled.shape, np.nan, dtype))
    assert fastconv.max_pool2d(arrays["input"], 2, out=out, backend=backend) is out
    np.testing.assert_array_equal(out, pooled)


def test_out_touches_nothing_else(backend):
    expected = conv_into(None, backend)
    big = np.full((4, 6, 7, 8), 77.0)
    view = big[1:3, 1:5, 2:6, 3:7]
    conv_into(view, backend)
    np.testing.assert_array_equal(view, expected)
    view[...] = 77
    assert (big == 77).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda a: a[:1], ShapeError, r"out has shape \(1, 4, 4, 4\), expected \(2, 4, 4, 4\)"),
        (lambda a: a[..., None], ShapeError, "out has shape"),
        (lambda a: a.astype("float32"), ValueError, r"out has dtype .*float32.*, expected .*float64"),
        (lambda a: a.astype(">f8"), ValueError, r"out has dtype .*>f8.*, expected .*float64"),
        (readonly, ValueError, "out is read-only"),
        (lambda a: np.broadcast_to(a[:1, :1, :1, :1], a.shape), ValueError, "out is read-only"),
        (
            lambda a: as_strided(a, a.shape, (0, 0, 0, 0)),
            ValueError,
            "out overlaps itself",
        ),
        (lambda a: a.tolist(), TypeError, r"out must be a numpy\.ndarray, got list"),
        (np.ma.array, TypeError, r"out must be a numpy\.ndarray, got MaskedArray"),
    ],
)
def test_unusable_out_is_refused(make, error, message, backend):
    plain = np.full((2, 4, 4, 4), 77.0)
    out = make(plain)
    with pytest.raises(error, match=f"^conv2d: {message}"):
        conv_into(out, backend)
    assert (np.asarray(out) == 77).all()


def test_out_must_not_overlap_an_input(backend):
    square = np.zeros((3, 3, 1, 1))
    square[range(3), range(3)] = 1
    x = whole_numbers((2, 3, 4, 4))
    pool = np.zeros(500)
    inside, shifted = pool[:96].reshape(x.shape), pool[95:191].reshape(x.shape)
    after = pool[96:192].reshape(x.shape)
    inside[...] = x
    for out in (inside, shifted, inside[:, ::-1]):
        with pytest.raises(ValueError, match=r"^conv2d: out shares memory with an input$"):
            fastconv.conv2d(inside, square, out=out, backend=backend)
    bias, one = pool[300:301], square[:1]
    with pytest.raises(ValueError, match=r"^conv2d: out shares memory with an input$"):
        fastconv.conv2d(x, one, bias, out=pool[300:332].reshape(2, 1, 4, 4), backend=backend)
    np.testing.assert_array_equal(inside, x)
    fastconv.conv2d(inside, square, out=after, backend=backend)  # adjacent is not overlapping
    np.testing.assert_array_equal(after, x)
    even, odd = pool[:192:2].reshape(x.shape), pool[1:192:2].reshape(x.shape)
    even[...] = x
    fastconv.conv2d(even, square, out=odd, backend=backend)  # nor is interleaved
    np.testing.assert_array_equal(odd, x)


def test_out_must_not_overlap_in_pooling(backend):
    x = whole_numbers((1, 1, 4, 4))
    indices = np.zeros((1, 1, 4, 4), np.int64)
    calls = [
        functools.partial(fastconv.max_pool2d, x, 1),
        functools.partial(fastconv.avg_pool2d, x, 1),
        functools.partial(fastconv.adaptive_avg_pool2d, x, 4),
        functools.partial(fastconv.lp_pool2d, x, 2, 1),
        functools.partial(fastconv.max_pool2d_backward, x, indices, x.shape),
        functools.partial(fastconv.avg_pool2d_backward, x, x.shape, 1),
        functools.partial(fastconv.lp_pool2d_backward, whole_numbers(x.shape), x, 2, 1),
        functools.partial(fastconv.max_unpool2d, x, indices, 1),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="out shares memory with an input"):
            call(out=x, backend=backend)
    with pytest.raises(ValueError, match="out shares memory with an input"):
        fastconv.max_pool2d_backward(x, indices, x.shape, out=indices.view(np.float64), backend=backend)
