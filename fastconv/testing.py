"""Checks of gradients and of backends, for the tests of this project and of code that builds on it.

`gradcheck` compares a gradient with finite differences. `check_backend` runs every kernel of a backend on
small problems that are hard to get right and compares the results with the reference, element by element,
within the error that a direct sum may have; `make_problem` and `check_kernel` are its parts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastconv import backends
from fastconv.activations import ACTIVATIONS
from fastconv.backends import reference
from fastconv.backends.protocol import KERNELS, Backend
from fastconv.config import config_context
from fastconv.geometry import (
    ConvGeometry,
    PoolGeometry,
    adaptive_pool_geometry,
    conv_geometry,
    conv_transpose_geometry,
    pool_geometry,
)

__all__ = ["Problem", "check_backend", "check_kernel", "gradcheck", "make_problem"]

Array = NDArray[Any]

UNITS = (
    8  # of rounding that a direct sum may be off by, each as large as eps times the sum of absolute values
)
GUARD = 67  # elements around every array that a kernel gets: odd, so that no array begins where a vector does
DATA = ("normal", "positive", "integer", "ties", "nan")
EXACT = ("integer", "ties", "nan")  # kinds of data for which every order of summation gives the same bits
STEEPEST = 1.1  # the largest slope of any activation (silu)


# --- gradients ---


def gradcheck(
    function: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    step: float = 1e-5,
    rtol: float = 1e-6,
    atol: float = 1e-7,
    seed: int = 0,
) -> None:
    """Compare a backward function with central finite differences of its forward function.

    The derivative of ``sum(function(*inputs) * g)`` by every element of every input is measured for one
    random ``g`` and compared with what ``backward(g, *inputs)`` says.

    Parameters
    ----------
    function : callable
        ``function(*inputs)`` returns an array.
    backward : callable
        ``backward(grad_output, *inputs)`` returns one gradient for each input, or the gradient alone where
        there is one input; ``None`` for an input whose gradient is not to be checked.
    inputs : sequence of ndarray of float64
        Small: the function is called twice for each element. No kink may lie within ``step`` of them.
    step : float
        Half the distance over which a difference is taken.
    rtol, atol : float
        The gradient may differ by ``atol`` plus ``rtol`` times the largest gradient of its array.
    seed : int
        Of the random ``g``.

    Raises
    ------
    AssertionError
        If a gradient has another shape than its input, or is wrong: names the input, the element and both
        values. If a finite difference is not finite: names the input and the element.
    TypeError
        If an input is not an array of float64.

    Examples
    --------
    >>> import numpy as np
    >>> gradcheck(lambda x: x**2, lambda g, x: 2 * x * g, [np.array([1.0, -3.0])])
    """
    for position, array in enumerate(inputs):
        if not isinstance(array, np.ndarray) or array.dtype != np.float64:
            raise TypeError(f"gradcheck: input {position} must be an array of float64, got {array!r}")
    points = [array.copy() for array in inputs]
    output = np.asarray(function(*points))
    grad_output = np.random.default_rng(seed).standard_normal(output.shape)
    gradients = backward(grad_output, *points)
    if not isinstance(gradients, tuple | list):
        gradients = (gradients,)
    if len(gradients) != len(points):
        raise AssertionError(
            f"gradcheck: backward returned {len(gradients)} gradients, expected {len(points)}"
        )

    for position, (point, gradient) in enumerate(zip(points, gradients, strict=True)):
        if gradient is None:
            continue
        gradient = np.asarray(gradient)  # of an input without axes it may be a float
        if gradient.shape != point.shape:
            raise AssertionError(
                f"gradcheck: gradient {position} has shape {gradient.shape}, its input has {point.shape}"
            )
        measured = np.empty_like(point)
        for index in np.ndindex(point.shape):
            value = point[index]
            point[index] = value + step
            above = np.array(function(*points))  # copies: results may be views of what changes next
            point[index] = value - step
            below = np.array(function(*points))
            point[index] = value
            with np.errstate(invalid="ignore", over="ignore"):
                measured[index] = np.sum((above - below) * grad_output) / (2 * step)
            if not np.isfinite(measured[index]):  # no gradient would be off by more than this allows
                raise AssertionError(
                    f"gradcheck: the finite difference by input {position} at {index} is {measured[index]}, "
                    "expected a finite number"
                )
        allowed = atol + rtol * np.max(np.abs(measured), initial=0)
        _compare(f"gradcheck: gradient {position}", gradient, measured, np.full(point.shape, allowed))


# --- backends ---


class Problem(NamedTuple):
    """One call of a kernel: what it gets, what it must write, and how far each element may be off."""

    kernel: str
    geometry: ConvGeometry | PoolGeometry
    inputs: tuple[Any, ...]
    expected: tuple[Array, ...]
    bounds: tuple[Array, ...]
    dtypes: tuple[np.dtype[Any], ...]


def make_problem(
    kernel: str,
    geometry: ConvGeometry | PoolGeometry,
    dtype: DTypeLike,
    *,
    data: str = "normal",
    bias: bool = False,
    activation: str | None = None,
) -> Problem:
    """Random inputs for a kernel, with the result and the error bound that the reference computes in float64.

    Parameters
    ----------
    kernel : str
        One of `fastconv.backends.protocol.KERNELS`.
    geometry : ConvGeometry or PoolGeometry
        Without an axis of zero length; its hash seeds the data.
    dtype : dtype
        What the kernel computes in.
    data : {"normal", "positive", "integer", "ties", "nan"}
        Normally distributed; between 1/2 and 3/2; small whole numbers, for which the result must be exact;
        the same, as ties for a maximum; the same with NaN and infinities among them.
    bias : bool
        Whether a convolution has one.
    activation : str, optional

    Returns
    -------
    Problem

    Raises
    ------
    ValueError
        If there is no kernel, kind of data or activation of this name.
    """
    for what, name, known in (
        ("kernel", kernel, KERNELS),
        ("data", data, DATA),
        ("activation", activation, (None, *ACTIVATIONS)),
    ):
        if name not in known:
            raise ValueError(
                f"make_problem: {what} must be one of {', '.join(map(str, known))}, got {name!r}"
            )
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(zlib.crc32(repr((kernel, geometry, dtype.name, data)).encode()))

    def draw(shape: tuple[int, ...]) -> Array:
        if data == "normal" and dtype.kind == "f":
            return rng.standard_normal(shape).astype(dtype)
        if data == "positive":
            return rng.uniform(0.5, 1.5, shape).astype(dtype)
        values = rng.integers(0 if dtype.kind == "u" else -3, 4, shape).astype(dtype)
        if data == "nan":
            for odd in (np.nan, np.inf, -np.inf):
                values[rng.random(shape) < 0.2] = odd
        return values

    inputs: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype[Any], ...] = (dtype,)
    if isinstance(geometry, ConvGeometry):
        x, weight, y = geometry.x_shape, geometry.weight_shape, geometry.y_shape
        if kernel == "conv_grad_weight":
            inputs, shapes = (draw(x), draw(y)), (weight,)
        elif kernel == "conv_forward":
            inputs = (draw(x), draw(weight), draw(y[1:2]) if bias else None, activation)
            shapes = (y,)
        else:
            inputs = (draw(y), draw(weight), draw(x[1:2]) if bias else None, activation)
            shapes = (x,)
    elif kernel == "max_pool":
        inputs, shapes = (draw(geometry.x_shape),), (geometry.y_shape, geometry.y_shape)
        dtypes = (dtype, np.dtype(np.int64))
    elif kernel == "max_pool_grad_input":
        indices = np.empty(geometry.y_shape, np.int64)
        image = rng.integers(0, 4, geometry.x_shape).astype(np.float64)
        reference.max_pool(image, np.empty(geometry.y_shape), indices, geometry)
        inputs, shapes = (draw(geometry.y_shape), indices), (geometry.x_shape,)
    elif kernel == "avg_pool":
        inputs, shapes = (draw(geometry.x_shape),), (geometry.y_shape,)
    else:
        inputs, shapes = (draw(geometry.y_shape),), (geometry.x_shape,)

    expected = tuple(
        np.zeros(shape, np.float64 if t.kind == "f" and kernel != "max_pool" else t)
        for shape, t in zip(shapes, dtypes, strict=True)
    )
    wide = tuple(_map_array(a, lambda a: a.astype(np.float64) if a.dtype.kind == "f" else a) for a in inputs)
    _call(reference, kernel, wide if kernel != "max_pool" else inputs, expected, geometry)
    return Problem(
        kernel, geometry, inputs, expected, _bounds(kernel, geometry, inputs, expected, data), dtypes
    )


def _bounds(
    kernel: str,
    geometry: ConvGeometry | PoolGeometry,
    inputs: tuple[Any, ...],
    expected: tuple[Array, ...],
    data: str,
) -> tuple[Array, ...]:
    """`UNITS` of rounding of the same sums over absolute values; zeros where every order is exact."""
    exact = (
        kernel == "max_pool"
        or inputs[0].dtype.kind != "f"
        or (data in EXACT and not kernel.startswith("avg_pool"))
    )
    activation = inputs[3] if kernel in ("conv_forward", "conv_grad_input") else None
    if exact and activation in (None, "relu", "relu6"):
        return tuple(np.zeros(array.shape) for array in expected)
    size = np.zeros(expected[0].shape)
    absolute = tuple(
        _map_array(a, lambda a: np.abs(a.astype(np.float64)) if a.dtype.kind == "f" else a) for a in inputs
    )
    if activation is not None:
        absolute = (*absolute[:3], None)
    if isinstance(geometry, PoolGeometry) and geometry.divisor_override:
        geometry = geometry._replace(divisor_override=abs(geometry.divisor_override))
    _call(reference, kernel, absolute, (size,), geometry)
    if activation is not None:
        size = STEEPEST * size + np.abs(expected[0])
    return (UNITS * np.finfo(inputs[0].dtype).eps * size,)


def check_kernel(backend: Backend, problem: Problem) -> None:
    """Run one kernel of a backend and compare what it wrote.

    Every array lies between guards: NaN around the inputs (a value read beyond an array shows in the result),
    and marks around the outputs. Outputs are filled with what they must not hold, so that an element that is
    not written shows too.

    Parameters
    ----------
    backend : module
        What `fastconv.backends.load` returns, or any object with the functions of
        `fastconv.backends.protocol`.
    problem : Problem

    Raises
    ------
    AssertionError
        Names the kernel, the geometry, the first wrong element, its value, the expected one and the bound.
    """
    what = f"{problem.kernel} of {problem.geometry} in {problem.inputs[0].dtype}"
    inputs = tuple(_map_array(value, _guarded_input) for value in problem.inputs)
    buffers = [
        _guarded_output(_poison(expected), dtype)
        for expected, dtype in zip(problem.expected, problem.dtypes, strict=True)
    ]
    marks = [buffer.copy() for buffer, _ in buffers]
    outputs = tuple(output for _, output in buffers)
    status = _call(backend, problem.kernel, inputs, outputs, problem.geometry)
    if problem.kernel == "max_pool_grad_input" and status != -1:
        raise AssertionError(f"{what}: returned {status}, expected -1: no index lies outside")
    for before, after in zip(problem.inputs, inputs, strict=True):
        if isinstance(before, np.ndarray) and before.tobytes() != after.tobytes():
            raise AssertionError(f"{what}: an input was modified")
    for mark, (buffer, _) in zip(marks, buffers, strict=True):
        for side in (slice(None, GUARD), slice(-GUARD, None)):
            if mark[side].tobytes() != buffer[side].tobytes():
                raise AssertionError(f"{what}: wrote beyond an output")
    for output, expected, bound in zip(outputs, problem.expected, problem.bounds, strict=True):
        _compare(what, output, expected, bound)


def check_backend(backend: str | Backend) -> None:
    """Check that a backend computes every kernel as `fastconv.backends.protocol` wants it.

    Takes some seconds. What it accepts serves every public operation, forward and backward. Convolutions are checked
    by direct summation: other algorithms have wider bounds.

    Parameters
    ----------
    backend : str or module
        A name of `fastconv.available_backends`, or the module itself.

    Raises
    ------
    AssertionError
        At the first kernel that is wrong; see `check_kernel`.
    BackendUnavailableError, ValueError
        If the named backend cannot run here, or there is none of this name.

    Examples
    --------
    >>> check_backend("reference")
    """
    module = backends.load(backend) if isinstance(backend, str) else backend
    with config_context(algorithm="direct"):
        for problem in _problems():
            check_kernel(module, problem)
    _check_index_range(module)
    if not all(isinstance(text, str) for pair in module.describe().items() for text in pair):
        raise AssertionError("describe() must return a dict of strings")


def _problems() -> Iterator[Problem]:
    for geometry in _conv_geometries():
        for kernel in ("conv_forward", "conv_grad_input", "conv_grad_weight"):
            for dtype in ("float32", "float64"):
                yield make_problem(kernel, geometry, dtype)
                yield make_problem(kernel, geometry, dtype, data="integer", bias=True)
            for dtype in ("int32", "int64"):
                yield make_problem(kernel, geometry, dtype, bias=True)
    plain = conv_geometry("conv2d", 2, (2, 3, 6, 7), (5, 3, 3, 2), 1, 1, 1, 1)
    for kernel in ("conv_forward", "conv_grad_input"):
        for activation in ACTIVATIONS:
            yield make_problem(kernel, plain, "float32", bias=True, activation=activation)
    for windows in _pool_geometries():
        for dtype in ("float32", "float64"):
            yield from (make_problem("max_pool", windows, dtype, data=data) for data in ("ties", "nan"))
            yield make_problem("max_pool_grad_input", windows, dtype)
            yield make_problem("avg_pool", windows, dtype)
            yield make_problem("avg_pool_grad_input", windows, dtype)
        for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
            yield make_problem("max_pool", windows, dtype)


def _conv_geometries() -> Iterator[ConvGeometry]:
    def conv(
        ndim: int,
        x: tuple[int, ...],
        w: tuple[int, ...],
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> ConvGeometry:
        return conv_geometry(f"conv{ndim}d", ndim, x, w, stride, padding, dilation, groups)

    yield conv(1, (2, 3, 37), (5, 3, 4), 2, ((3, 1),))
    yield conv(2, (1, 1, 1, 1), (1, 1, 1, 1))
    yield conv(2, (2, 7, 5, 9), (19, 7, 1, 1))  # pointwise
    yield conv(2, (2, 16, 9, 18), (33, 16, 3, 3), 1, 1)
    yield conv(2, (1, 3, 23, 25), (17, 3, 7, 5), (2, 3), (3, 2))
    yield conv(2, (2, 6, 8, 11), (9, 2, 3, 2), (3, 1), ((0, 2), (1, 0)), (1, 3), 3)  # groups
    yield conv(2, (2, 13, 7, 17), (13, 1, 3, 3), 1, 1, 1, 13)  # depthwise
    yield conv(2, (1, 4, 6, 10), (8, 1, 3, 5), (1, 2), 2, 1, 4)  # depthwise with a multiplier
    yield conv(2, (1, 2, 9, 8), (3, 2, 2, 2), (5, 4))  # stride beyond the kernel: unread input
    yield conv(2, (1, 2, 3, 2), (3, 2, 3, 2), 1, (5, 4))  # whole windows in the padding
    yield conv(3, (2, 3, 4, 5, 6), (4, 3, 2, 3, 1), (1, 2, 1), (1, 0, 0), (2, 1, 1))
    yield conv_transpose_geometry("conv_transpose2d", 2, (1, 3, 4, 3), (3, 4, 2, 3), 3, 0, (2, 1), 1, 1, None)


def _pool_geometries() -> Iterator[PoolGeometry]:
    def pool(
        ndim: int,
        shape: tuple[int, ...],
        kernel: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil: bool = False,
        **options: Any,
    ) -> PoolGeometry:
        return pool_geometry(f"pool{ndim}d", ndim, shape, kernel, stride, padding, dilation, ceil, **options)

    yield pool(1, (2, 3, 21), 4, 3, ((3, 1),))
    yield pool(2, (2, 3, 8, 34), 2)
    yield pool(2, (1, 3, 19, 21), 3, 2, 1)
    yield pool(2, (1, 2, 9, 11), (3, 2), (2, 1), ((2, 1), (0, 1)), (1, 3), True)
    yield pool(2, (1, 2, 9, 11), 3, 2, 1, 1, True, count_include_pad=False)
    yield pool(2, (1, 2, 5, 7), 2, 3, 0, 1, True, divisor_override=-3)
    yield pool(2, (1, 2, 1, 2), 2, 1, 2, 2)  # windows without any element
    yield pool(3, (1, 2, 4, 5, 6), (2, 3, 2), (2, 1, 2), 1)
    yield adaptive_pool_geometry("adaptive_pool2d", 2, (1, 2, 5, 7), (3, 11))
    yield adaptive_pool_geometry("adaptive_pool2d", 2, (2, 2, 6, 7), 1)


def _check_index_range(module: Backend) -> None:
    """An index beyond the plane must be reported, not written to; one that looks valid in 32 bits too."""
    for bad in (-2, 12, 2**32 + 3, -(2**32), np.iinfo(np.int64).max, np.iinfo(np.int64).min):
        indices = np.zeros((2, 1, 2, 2), np.int64)
        indices[1, 0, 1, 0] = bad
        buffer, grad_x = _guarded_output(np.zeros((2, 1, 3, 4)), np.dtype(np.float32))
        status = module.max_pool_grad_input(np.ones((2, 1, 2, 2), np.float32), indices, grad_x)
        if status != 6:
            raise AssertionError(
                f"max_pool_grad_input: returned {status} for index {bad} at 6 in a plane of 12"
            )
        if not (np.isnan(buffer[:GUARD]).all() and np.isnan(buffer[-GUARD:]).all()):
            raise AssertionError(f"max_pool_grad_input: wrote beyond its output for index {bad}")


# --- arrays ---


def _call(
    backend: Any,
    kernel: str,
    inputs: tuple[Any, ...],
    outputs: tuple[Array, ...],
    geometry: ConvGeometry | PoolGeometry,
) -> Any:
    tail = () if kernel == "max_pool_grad_input" else (geometry,)
    return getattr(backend, kernel)(*inputs, *outputs, *tail)


def _map_array(value: Any, function: Callable[[Array], Array]) -> Any:
    """Kernel arguments are arrays, None and names; only arrays are mapped."""
    return function(value) if isinstance(value, np.ndarray) else value


def _guarded_input(array: Array) -> Array:
    buffer = np.full(array.size + 2 * GUARD, np.nan if array.dtype.kind == "f" else -1).astype(array.dtype)
    inner = buffer[GUARD:-GUARD].reshape(array.shape)
    inner[...] = array
    return inner


def _guarded_output(content: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    buffer = np.full(content.size + 2 * GUARD, np.nan if dtype.kind == "f" else 85).astype(dtype)
    inner = buffer[GUARD:-GUARD].reshape(content.shape)
    inner[...] = content
    return buffer, inner


def _poison(expected: Array) -> Array:
    """Something else at every element: NaN, unless that is what is expected."""
    if expected.dtype.kind == "f":
        return np.where(np.isnan(expected), 1, np.nan).astype(expected.dtype)
    return ~expected


def _compare(what: str, actual: Array, expected: Array, bound: Array) -> None:
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shape {actual.shape}, expected {expected.shape}")
    with np.errstate(invalid="ignore"):  # infinities less each other
        error = np.abs(actual - expected.astype(actual.dtype if actual.dtype.kind != "f" else np.float64))
        same = (actual == expected) | ((actual != actual) & (expected != expected))
        wrong = np.flatnonzero(~(same | (error <= bound)))
    if wrong.size:
        first = np.unravel_index(wrong[0], actual.shape)
        raise AssertionError(
            f"{what}: {wrong.size} of {actual.size} elements are wrong, first {tuple(map(int, first))}: "
            f"got {actual[first]!r}, expected {expected[first]!r}, allowed difference {bound[first]:.3g}"
        )
