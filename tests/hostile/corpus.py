"""Hostile inputs: those of corpus.txt, those made of parameters times values, and the names of both.

A case is an expression and what must come of it, in the words that corpus.txt explains.
"""

import array
import enum
import itertools
import mmap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import fastconv as fc

BIG = 2**40  # beyond 32 bits, harmless in 64
HUGE = 2**59  # legal; sixteen of them overflow 64 bits
VAST = 2**50  # elements that no machine can hold


class Case(NamedTuple):
    expression: str
    expected: str


# --- arrays ---


def data(*shape: int) -> np.ndarray:
    """Integers from -4 to 4 as float32, so that sums are exact; different for each shape."""
    return np.random.default_rng(shape).integers(-4, 5, shape).astype(np.float32)


X1, W1, Y1 = data(2, 4, 9), data(6, 4, 3), data(2, 6, 7)  # input, weight and a gradient of the result
X2, W2, Y2 = data(2, 4, 6, 5), data(6, 4, 3, 2), data(2, 6, 4, 4)
X3, W3, Y3 = data(1, 2, 4, 5, 3), data(3, 2, 2, 2, 2), data(1, 3, 3, 4, 2)
XT, T2 = data(2, 6, 6, 5), data(2, 4, 8, 6)  # input and gradient of the transposed convolution by W2
P2 = data(2, 4, 3, 2)  # a gradient of X2 pooled by 2, and where its maxima are
WHERE = fc.max_pool2d(X2, 2, return_indices=True, backend="reference")[1]
LINE = data(1, 1, 5)
B = data(6)


def at(index: int, dtype: Any = np.int64) -> np.ndarray:
    """``WHERE`` with one index replaced."""
    indices = WHERE.astype(dtype)
    indices.flat[7] = index
    return indices


def spread(*shape: int) -> np.ndarray:
    """One element, seen as many."""
    return np.broadcast_to(np.float32(1), shape)


def strided(values: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(values, shape, strides)


def read_only(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flags.writeable = False
    return values


def misaligned(values: np.ndarray) -> np.ndarray:
    result = np.zeros(values.nbytes + 1, np.uint8)[1:].view(values.dtype).reshape(values.shape)
    result[...] = values
    return result


def long_line(size: int) -> np.ndarray:
    """Zeros that end with a seven: pages that nobody touches take no memory."""
    line = np.frombuffer(mmap.mmap(-1, size), np.int8)
    line[-1] = 7
    return line.reshape(1, 1, size)


def matrix(rows: int, columns: int) -> np.matrix:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.asmatrix(np.zeros((rows, columns), np.float32))


class Tagged(np.ndarray):
    """A harmless subclass, such as `numpy.memmap`."""


# --- parameters ---


class Level(enum.IntEnum):
    TWO = 2


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def endless() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


def deep() -> list[Any]:
    items: list[Any] = []
    for _ in range(100_000):
        items = [items]
    return items


# --- calls of several steps ---


def into_input(call: Callable[..., Any], view: Any = slice(None)) -> Any:
    """``call`` with an ``out`` that is a view of its input."""
    x = X2.copy()
    return call(x, x[..., view])


def conv2d_into_gaps() -> np.ndarray:
    """An ``out`` between the elements of the input: they share a span, but no element."""
    both = np.zeros((2, 12, 6, 6), np.float32)
    x, out = both[:, :8:2, :, :5], both[:, 1::2, :4, :4]
    x[...] = X2
    return fc.conv2d(x, W2, out=out)


def center_tap_gradients() -> tuple[Any, ...]:
    """The gradients of a convolution whose dilation is so large that only the central tap meets the input."""
    grad_input, grad_center, grad_bias = fc.conv1d_backward(data(2, 6, 9), X1, W1[..., 1:2])
    return grad_input, np.pad(grad_center, ((0, 0), (0, 0), (1, 1))), grad_bias


def many_threads(count: int) -> np.ndarray:
    with fc.config_context(threads=count):
        return fc.conv2d(X2, W2)


NAMES: dict[str, Any] = {
    **{name: getattr(fc, name) for name in fc.__all__},
    **{name: value for name, value in globals().items() if not name.startswith("_")},
    "array": array,
    "itertools": itertools,
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


# --- the cases ---


def written_cases() -> Iterator[Case]:
    lines = Path(__file__).with_name("corpus.txt").read_text().splitlines()
    cases = [line for line in lines if line and not line.startswith("#")]
    for expression, expected in zip(cases[::2], cases[1::2], strict=True):
        assert expected.startswith("    "), f"expected an indented line below {expression}, got {expected}"
        yield Case(expression, expected.strip())


# Every int parameter of every operation with its lowest legal value.
WINDOW = {"stride": 1, "padding": 0, "dilation": 1}
POOL = {"kernel_size": 1, **WINDOW}
INT_PARAMETERS: dict[str, dict[str, int]] = {
    "conv1d(X1, W1, {})": {**WINDOW, "groups": 1},
    "conv2d(X2, W2, {})": {**WINDOW, "groups": 1},
    "conv3d(X3, W3, {})": {**WINDOW, "groups": 1},
    "conv_transpose2d(XT, W2, {})": {**WINDOW, "groups": 1, "output_padding": 0},
    "conv2d_backward(Y2, X2, W2, {})": {**WINDOW, "groups": 1},
    "conv_transpose2d_backward(T2, XT, W2, {})": {**WINDOW, "groups": 1, "output_padding": 0},
    "grad.conv2d_input(X2.shape, W2, Y2, {})": {**WINDOW, "groups": 1},
    "grad.conv2d_weight(X2, W2.shape, Y2, {})": {**WINDOW, "groups": 1},
    "max_pool2d(X2, **{{'kernel_size': 2}} | dict({}))": POOL,
    "avg_pool2d(X2, **{{'kernel_size': 2}} | dict({}))": POOL,
    "avg_pool2d_backward(P2, X2.shape, **{{'kernel_size': 2}} | dict({}))": POOL,
    "lp_pool2d(X2, 2, **{{'kernel_size': 2}} | dict({}))": POOL,
    "lp_pool2d_backward(P2, X2, 2, **{{'kernel_size': 2}} | dict({}))": POOL,
    "max_unpool2d(P2, WHERE, **{{'kernel_size': 2}} | dict({}))": {
        "kernel_size": 1,
        "stride": 1,
        "padding": 0,
    },
    "adaptive_avg_pool2d(X2, {})": {"output_size": 0},
    "adaptive_max_pool2d(X2, {})": {"output_size": 0},
    "unfold(X2, **{{'kernel_size': 2}} | dict({}))": POOL,
    "fold(data(2, 8, 20), **{{'output_size': (6, 5), 'kernel_size': 2}} | dict({}))": {
        "output_size": 0,
        **POOL,
    },
}
SWITCHES = {
    "max_pool2d(X2, 2, {})": ("ceil_mode", "return_indices"),
    "avg_pool2d(X2, 2, {})": ("ceil_mode", "count_include_pad"),
    "avg_pool2d_backward(P2, X2.shape, 2, {})": ("count_include_pad",),
    "lp_pool2d(X2, 2, 2, {})": ("ceil_mode",),
    "adaptive_max_pool2d(X2, 2, {})": ("return_indices",),
}

# Tried on every int parameter, beside one below the lowest.
BAD_INTS = {
    "1.5": "TypeError: {op}: {name} must be an int, got 1.5",
    "True": "TypeError: {op}: {name} must be an int, got True",
    "2**62": "ShapeError: {op}: {name} must not exceed 2**61, got 4611686018427387904",
}
# Tried on one parameter of each kind.
ODD_INTS = {
    "-2**63": "ShapeError: ... must be at least {low}, got -9223372036854775808",
    "2**64 + 1": "ShapeError: ... must not exceed 2**61, got 18446744073709551617",
    "10**5000": "ShapeError: ... must not exceed 2**61, got <int of 16610 bits>",
    "-10**5000": "ShapeError: ... must be at least {low}, got <int of 16610 bits>",
    "np.uint64(2**64 - 1)": "ShapeError: ... must not exceed 2**61, got 18446744073709551615",
    "1.0": "TypeError: ... must be an int, got 1.0",
    "float('nan')": "TypeError: ... must be an int, got nan",
    "float('inf')": "TypeError: ... must be an int, got inf",
    "1j": "TypeError: ... must be an int, got 1j",
    "np.float64(1)": "TypeError: ... must be an int, got np.float64(1.0)",
    "np.True_": "TypeError: ... must be an int, got np.True_",
    "np.array(1.0)": "TypeError: ... must be an int, got array(1.)",
    "np.ones(2)": "TypeError: ... must be an int, got np.float64(1.0)",
    "'1' * 500": "TypeError: ... must be an int, got '11111...",
    "b'same'": "TypeError: ... must be an int, got b'same'",
    "{1}": "TypeError: ... must be an int, got {1}",
    "{1: 1}": "TypeError: ... must be an int, got {1: 1}",
    "range(1, 3)": "TypeError: ... must be an int, got range(1, 3)",
    "(i for i in (1, 1))": "TypeError: ... must be an int, got <generator ...",
    "itertools.count(1)": "TypeError: ... must be an int, got count(1)",
    "slice(1)": "TypeError: ... must be an int, got slice(None, 1, None)",
    "Unprintable()": "TypeError: ... must be an int, got <Unprintable instance at ...",
    "int": "TypeError: ... must be an int, got <class 'int'>",
    "()": "ShapeError: ... has 0 values, expected one int or 2, got ()",
    "np.array([], int)": "ShapeError: ... has 0 values, expected one int or 2, got array([], dtype=int64)",
    "[1, 1, 1]": "ShapeError: ... has 3 values, expected one int or 2, got [1, 1, 1]",
    "np.ones(10**6, int)": "ShapeError: ... has 1000000 values, expected one int or 2, got array([...",
    "[1, 1.5]": "TypeError: ... must be an int, got 1.5",
    "[1, True]": "TypeError: ... must be an int, got True",
    "[1, -1]": "ShapeError: ... must be at least {low}, got -1",
    "[1, 10**5000]": "ShapeError: ... must not exceed 2**61, got <int of 16610 bits>",
    "[[1, 1], [1, 1]]": "TypeError: ... must be an int, got [1, 1]",
    "[1, [1, 1]]": "TypeError: ... must be an int, got [1, 1]",
    "np.ones((2, 2), int)": "TypeError: ... must be an int, got array([1, 1])",
    "endless()": "TypeError: ... must be an int, got [[[[...",
    "deep()": "TypeError: ... must be an int, got [[[[...",
}
ODD_PARAMETERS = {
    "conv2d(X2, W2, stride={})": 1,
    "max_pool2d(X2, {})": 1,
    "adaptive_avg_pool2d(X2, {})": 0,
}
GOOD_INTS = (
    "np.int64(2)",
    "np.uint8(2)",
    "np.array(2)",
    "[2, 2]",
    "(2,)",
    "np.array([2, 2], np.int8)",
    "np.array([2, 2], '>i4')",
    "[np.array(2), 2]",
    "Level.TWO",
    "(Level.TWO, Level.TWO)",
)
BAD_SWITCHES = {
    "'no'": "'no'",
    "2": "2",
    "1.0": "1.0",
    "None": "None",
    "[True]": "[True]",
    "np.ones(2)": "array([1., 1.])",
}


def multiplied_cases() -> Iterator[Case]:
    for call, parameters in INT_PARAMETERS.items():
        op = call.removeprefix("grad.").partition("(")[0]
        for name, low in parameters.items():
            below = {str(low - 1): f"ShapeError: {op}: {name} must be at least {low}, got {low - 1}"}
            for value, expected in {**below, **BAD_INTS}.items():
                yield Case(call.format(f"{name}={value}"), expected.format(op=op, name=name))
    for call, low in ODD_PARAMETERS.items():
        for value, expected in ODD_INTS.items():
            yield Case(call.format(value), expected.replace("{low}", str(low)))
    for value in GOOD_INTS:
        yield Case(
            f"conv2d(X2, W2[:, :, :2], stride={value}, dilation={value})",
            "= conv2d(X2, W2[:, :, :2], stride=2, dilation=2)",
        )
        yield Case(f"max_pool2d(X2, {value})", "= max_pool2d(X2, 2)")
        yield Case(f"adaptive_avg_pool2d(X2, {value})", "= adaptive_avg_pool2d(X2, 2)")
    for call, names in SWITCHES.items():
        op = call.partition("(")[0]
        for name in names:
            for value, shown in BAD_SWITCHES.items():
                yield Case(
                    call.format(f"{name}={value}"),
                    f"TypeError: {op}: {name} must be True or False, got {shown}",
                )
            for value, plain in {"np.True_": True, "0": False}.items():
                yield Case(call.format(f"{name}={value}"), "= " + call.format(f"{name}={plain}"))


CASES = (*written_cases(), *multiplied_cases())
