"""Calls that look the same are settled once: that must be quick, and nobody may notice it otherwise."""

import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastconv
from fastconv import ShapeError
from fastconv.ops import _calls

X = np.arange(1, 37, dtype=np.float32).reshape(1, 1, 6, 6)
WEIGHT = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
BIAS = np.ones(1, np.float32)
GRAD = np.ones((1, 1, 4, 4), np.float32)
POOLED, INDICES = fastconv.max_pool2d(X, 2, return_indices=True, backend="reference")

CALLS = {
    "conv2d": (fastconv.conv2d, (X, WEIGHT, BIAS), {"padding": 1, "activation": "relu"}),
    "conv2d circular": (fastconv.conv2d, (X, WEIGHT), {"padding": 1, "padding_mode": "circular"}),
    "conv2d keywords": (fastconv.conv2d, (), {"weight": WEIGHT, "input": X, "padding": ((0, 1), [1, 0])}),
    "conv2d_backward": (fastconv.conv2d_backward, (GRAD, X, WEIGHT), {"output_mask": (True, True, False)}),
    "conv2d_backward reflect": (
        fastconv.conv2d_backward,
        (np.ones((1, 1, 6, 6), np.float32), X, WEIGHT),
        {"padding": 1, "padding_mode": "reflect"},
    ),
    "conv_transpose2d": (fastconv.conv_transpose2d, (X, WEIGHT), {"stride": (2, 1)}),
    "conv_transpose2d_backward": (fastconv.conv_transpose2d_backward, (X, GRAD, WEIGHT), {}),
    "conv2d_input": (fastconv.grad.conv2d_input, (X.shape, WEIGHT, GRAD), {}),
    "conv2d_weight": (fastconv.grad.conv2d_weight, (X, WEIGHT.shape, GRAD), {}),
    "max_pool2d": (fastconv.max_pool2d, (X, 2), {"return_indices": True}),
    "max_pool2d_backward": (fastconv.max_pool2d_backward, (POOLED, INDICES, X.shape), {}),
    "max_unpool2d": (fastconv.max_unpool2d, (POOLED, INDICES, 2), {}),
    "adaptive_max_pool2d": (fastconv.adaptive_max_pool2d, (X, (4, None)), {}),
    "avg_pool2d": (fastconv.avg_pool2d, (X, 2), {"ceil_mode": True}),
    "avg_pool2d_backward": (fastconv.avg_pool2d_backward, (POOLED, X.shape, 2), {}),
    "adaptive_avg_pool2d_backward": (fastconv.adaptive_avg_pool2d_backward, (POOLED, X.shape), {}),
    "lp_pool2d": (fastconv.lp_pool2d, (X, 2.0, 2), {}),
    "unfold": (fastconv.unfold, (X, 2), {}),
    "fold": (fastconv.fold, (np.ones((1, 4, 9), np.float32), 4, 2), {}),
}
# Where a call is one kernel: the public function, its looks (and two functions for the settings), what to run, the
# array that it writes, the backend's function (and the settings again). The backward pass of a convolution is two.
QUICK = {
    "conv2d": 10,
    "conv_transpose2d": 10,
    "conv2d_input": 12,
    "conv2d_weight": 10,
    "max_pool2d": 10,
    "max_pool2d_backward": 10,
    "adaptive_max_pool2d": 12,
    "avg_pool2d": 10,
    "avg_pool2d_backward": 11,
    "conv2d_backward": 17,
}


@pytest.fixture(autouse=True)
def nothing_remembered():
    _calls.forget()
    yield
    _calls.forget()


def remembered():
    return sum(map(len, _calls._memories))


def copied(value):
    return value.copy() if isinstance(value, np.ndarray) else value


def assert_same(actual, expected):
    actual, expected = (value if isinstance(value, tuple) else (value,) for value in (actual, expected))
    for one, other in zip(actual, expected, strict=True):
        if other is None:
            assert one is None
        else:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def python_calls(call):
    """How many functions written in Python are entered."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count - 1  # `call` itself


@pytest.mark.smoke
@pytest.mark.parametrize("name", QUICK)
def test_few_functions_are_entered_the_second_time(name):
    if fastconv.available_backends()["cpp"] is not True:
        pytest.skip("there is no compiled backend here")
    function, args, kwargs = CALLS[name]

    def call():
        return function(*args, **kwargs, backend="cpp")

    first = python_calls(call)
    assert python_calls(call) <= QUICK[name] < first / 2


@pytest.mark.smoke
@pytest.mark.parametrize("name", CALLS)
def test_the_second_call_computes_the_same_of_other_values(name, backend):
    function, args, kwargs = CALLS[name]
    function(*args, **kwargs, backend=backend)
    assert remembered() == 1

    def other(value):
        return value[..., ::-1].copy() if isinstance(value, np.ndarray) else value

    args, kwargs = [*map(other, args)], {key: other(value) for key, value in kwargs.items()}
    actual = function(*args, **kwargs, backend=backend)
    assert remembered() == 1
    _calls.forget()
    assert_same(actual, function(*args, **kwargs, backend=backend))


def test_nothing_is_kept_alive(backend):
    for function, args, kwargs in CALLS.values():
        args, kwargs = [*map(copied, args)], {key: copied(value) for key, value in kwargs.items()}
        results = function(*args, **kwargs, backend=backend)
        results = results if isinstance(results, tuple) else (results,)
        arrays = [a for a in (*args, *kwargs.values(), *results) if isinstance(a, np.ndarray)]
        alive = [weakref.ref(array) for array in arrays]
        del args, kwargs, results, arrays
        gc.collect()
        assert not any(reference() is not None for reference in alive), function.__name__
    assert remembered() == len(CALLS)


def test_what_is_remembered_is_bounded():
    x = np.ones((1, 1, 3, 3), np.float32)
    for height in range(_calls.CAPACITY + 10):
        fastconv.max_pool2d(np.ones((1, 1, 2 + height, 2), np.float32), 2)
        assert remembered() <= _calls.CAPACITY
    assert fastconv.max_pool2d(x, 2).shape == (1, 1, 1, 1)


@pytest.mark.parametrize("good", [1, (1, 1)])
@pytest.mark.parametrize(
    "bad", [True, 1.0, "1", (True, 1), (1, 1.0), [1, 1.0], np.float64(1), np.array([1.0, 1.0])]
)
def test_equal_is_not_the_same(good, bad, backend):
    for parameter in ("stride", "dilation"):
        fastconv.conv2d(X, WEIGHT, **{parameter: good}, backend=backend)
        with pytest.raises(TypeError, match=f"^conv2d: {parameter} must be an int, got"):
            fastconv.conv2d(X, WEIGHT, **{parameter: bad}, backend=backend)


def test_positions_and_names_are_not_confused():
    fastconv.max_pool2d(X, 2, stride=3)
    with pytest.raises(TypeError, match="stride must be an int"):
        fastconv.max_pool2d(X, 2, "stride", 3)


@pytest.mark.parametrize("step", [np.array([1, 1]), np.array([2, 2]), np.int64(2), np.array(2)])
def test_parameters_in_arrays_are_read_each_time(step):
    first = fastconv.conv2d(X, WEIGHT, stride=np.ones_like(step))
    assert first.shape == (1, 1, 4, 4)
    expected = fastconv.conv2d(X, WEIGHT, stride=int(np.max(step)))
    assert_same(fastconv.conv2d(X, WEIGHT, stride=step), expected)


def test_one_array_for_two_parameters():
    square, other = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3), np.ones((1, 1, 3, 3), np.float32)
    assert fastconv.conv2d(square, square).item() == (square**2).sum()
    assert fastconv.conv2d(square, other).item() == square.sum()
    assert fastconv.conv2d(weight=other, input=square).item() == square.sum()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": np.ones((1, 2, 3, 3), np.float32)}, ShapeError, "weight has 2 input channels per group"),
        ({"weight": np.ma.ones((1, 1, 3, 3))}, TypeError, "weight is a masked array"),
        ({"weight": WEIGHT.astype(np.complex64)}, TypeError, "weight has dtype complex64"),
        ({"bias": np.ones(2, np.float32)}, ShapeError, r"bias has shape \(2,\), expected \(1,\)"),
        ({"padding": -1}, ShapeError, "padding must be at least 0, got -1"),
        ({"out": np.ones((1, 1, 4, 4))}, ValueError, "out has dtype .*float64.*, expected .*float32"),
        ({"out": np.ones((1, 1, 4, 5), np.float32)}, ShapeError, "out has shape"),
        ({"groups": 2}, ShapeError, "weight has 1 output channels, expected a multiple of groups=2"),
        ({"backend": "torch"}, ValueError, "backend must be one of"),
    ],
)
def test_errors_come_every_time(arguments, error, message):
    for _ in range(2):
        assert_same(fastconv.conv2d(X, WEIGHT), fastconv.conv2d(X, WEIGHT, None, 1, 0))
        with pytest.raises(error, match=f"^conv2d: {message}"):
            fastconv.conv2d(**{"input": X, "weight": WEIGHT, **arguments})


def test_out_is_checked_every_time(backend):
    weight = np.ones((1, 1, 1, 1), np.float32)
    memory = np.zeros(80, np.float32)
    x, out = memory[:36].reshape(X.shape), memory[40:76].reshape(X.shape)
    x[...] = X
    for _ in range(2):
        assert fastconv.conv2d(x, weight, out=out, backend=backend) is out
        np.testing.assert_array_equal(out, X)
    assert remembered() == 1
    for overlapping in (x, memory[4:40].reshape(X.shape)):
        with pytest.raises(ValueError, match=r"^conv2d: out shares memory with an input$"):
            fastconv.conv2d(x, weight, out=overlapping, backend=backend)
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"^conv2d: out is read-only$"):
        fastconv.conv2d(x, weight, out=out, backend=backend)
    np.testing.assert_array_equal(x, X)


def test_indices_are_checked_every_time(backend):
    for _ in range(2):
        fastconv.max_pool2d_backward(POOLED, INDICES, X.shape, backend=backend)
        for bad in (36, -2):
            indices = INDICES.copy()
            indices.flat[5] = bad
            with pytest.raises(IndexError, match=f"indices holds {bad} at flat position 5"):
                fastconv.max_pool2d_backward(POOLED, indices, X.shape, backend=backend)


def test_settings_count_every_time(monkeypatch):
    def backend_of_call():
        try:
            with fastconv.config_context(algorithm="winograd"):
                fastconv.conv2d(X, WEIGHT)
        except ValueError as error:
            return str(error)
        return "accepted"

    for _ in range(2):
        fastconv.conv2d(X, WEIGHT)
        for setting in (fastconv.use_backend("reference"), fastconv.config_context(threads=1)):
            with setting:
                fastconv.conv2d(X, WEIGHT)
        with fastconv.use_backend("reference"):
            assert "backend 'reference' has no algorithm 'winograd'" in backend_of_call()
        fastconv.set_backend("reference")
        assert "backend 'reference' has no algorithm 'winograd'" in backend_of_call()
        fastconv.set_backend(None)
        monkeypatch.setenv("FASTCONV_BACKEND", "reference")
        assert "backend 'reference' has no algorithm 'winograd'" in backend_of_call()
        monkeypatch.setenv("FASTCONV_BACKEND", "nonsense")
        with pytest.raises(ValueError, match="FASTCONV_BACKEND: backend must be one of"):
            fastconv.conv2d(X, WEIGHT)
        monkeypatch.delenv("FASTCONV_BACKEND")


def test_an_environment_of_another_kind(monkeypatch):
    """What os.environ keeps its variables in is its own business."""
    monkeypatch.setattr("os.environ", {"FASTCONV_BACKEND": "nonsense"})
    with pytest.raises(ValueError, match="FASTCONV_BACKEND: backend must be one of"):
        fastconv.conv2d(X, WEIGHT)


@pytest.mark.parametrize("name", CALLS)
def test_no_warnings(name, backend):
    """Infinities and NaN propagate silently, remembered or not, however NumPy is set."""
    function, args, kwargs = CALLS[name]

    def spoilt(value):
        if isinstance(value, np.ndarray) and value.dtype == np.float32:
            value = value.copy()
            value.flat[::2], value.flat[1::3] = np.inf, -np.inf
        return value

    args, kwargs = [*map(spoilt, args)], {key: spoilt(value) for key, value in kwargs.items()}
    with np.errstate(all="raise"):
        first, second = (function(*args, **kwargs, backend=backend) for _ in range(2))
    assert_same(second, first)


def test_threads_share_what_is_remembered(backend):
    sizes = range(3, 19)
    inputs = {n: np.arange(n * 5, dtype=np.float32).reshape(1, 1, n, 5) for n in sizes}
    expected = {n: fastconv.conv2d(x, WEIGHT, backend=backend) for n, x in inputs.items()}

    def work(seed):
        for n in np.random.default_rng(seed).choice(sizes, 200):
            if n == 3:
                _calls.forget()
            assert_same(fastconv.conv2d(inputs[n], WEIGHT, backend=backend), expected[n])
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_arrays_that_no_gradient_needs_are_not_copied(backend):
    vast = (1, 2**40, 3, 3)
    x = weight = np.broadcast_to(np.float32(1), vast)
    grad = np.ones((1, 1, 1, 1), np.float32)
    mask = (False, False, True)
    gradients = fastconv.conv2d_backward(grad, x, weight, output_mask=mask, backend=backend)
    assert_same(gradients, (None, None, np.ones(1, np.float32)))
