"""What the layers share about arrays: the namespace they belong to, and the checks at their doors."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastconv.errors import ShapeError
from fastconv.ops._arrays import FLOATING, checked_dtype, is_floating, plain_array

Array = Any  # numpy.ndarray or cupy.ndarray
Rng = int | np.random.Generator | None


def namespace(array: object) -> Any:
    """The module whose functions work on ``array``: ``cupy`` for a CuPy array, otherwise ``numpy``.

    CuPy is never imported for it: whoever holds a CuPy array has imported CuPy already.
    """
    if type(array).__module__.partition(".")[0] == "cupy":
        return sys.modules["cupy"]
    return np


def as_array(who: str, name: str, value: object) -> Array:
    """``value`` as a numeric array; arrays pass through untouched, what operations refuse is refused."""
    array = plain_array(who, name, value, namespace(value))
    checked_dtype(who, name, array)
    return array


def as_float(array: Array) -> Array:
    """Integers and booleans as float64, what NumPy's own functions make of them; floating types unchanged."""
    return array.astype(np.float64) if array.dtype.kind in "biu" else array


def compute_dtype(*dtypes: DTypeLike) -> np.dtype[Any]:
    """The dtype to calculate in: what the arguments promote to, but float32 where that is narrower."""
    return np.result_type(*dtypes, np.float32)


def floating_dtype(who: str, dtype: DTypeLike) -> np.dtype[Any]:
    """``dtype`` as a dtype that parameters can have."""
    try:
        chosen = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{who}: dtype must be one of {', '.join(FLOATING)}, got {dtype!r}") from None
    if not is_floating(chosen):
        raise TypeError(f"{who}: dtype must be one of {', '.join(FLOATING)}, got {chosen}")
    return chosen


def as_gradient(who: str, grad_output: object, shape: tuple[int, ...]) -> Array:
    """``grad_output`` as an array of exactly ``shape``, the shape of the output that it belongs to."""
    grad = as_array(f"{who}.backward", "grad_output", grad_output)
    if grad.shape != shape:
        raise ShapeError(
            f"{who}.backward: grad_output has shape {grad.shape}, expected {shape}, the shape of the output"
        )
    return grad


def as_generator(who: str, rng: Rng) -> np.random.Generator:
    """``rng`` as a generator: itself, one seeded with an int, or a fresh one."""
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool | np.bool_) or not (rng is None or isinstance(rng, int | np.integer)):
        raise TypeError(
            f"{who}: rng must be a numpy.random.Generator, an int seed or None, got {type(rng).__name__}"
        )
    if rng is not None and rng < 0:
        raise ValueError(f"{who}: the seed rng must not be negative, got {rng}")
    return np.random.default_rng(rng)


def as_axis(who: str, name: str, axis: int, ndim: int) -> int:
    """``axis`` counted from the front; raises `ShapeError` where the input has no such axis."""
    if not -ndim <= axis < ndim:
        raise ShapeError(f"{who}: {name}={axis} is out of range for an input with {ndim} dimensions")
    return axis % ndim


def as_real(
    who: str,
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float | None = None,
) -> float:
    """``value`` as a finite float in ``[low, high]`` and, where given, strictly greater than ``above``."""
    if isinstance(value, bool | np.bool_ | str) or not hasattr(value, "__float__") or np.ndim(value):
        raise TypeError(f"{who}: {name} must be a number, got {value!r}")
    number = float(value)
    if math.isfinite(number) and low <= number <= high and (above is None or number > above):
        return number
    bounds = []
    if above is not None:
        bounds.append(f"greater than {above:g}")
    elif low > -math.inf:
        bounds.append(f"at least {low:g}")
    if high < math.inf:
        bounds.append(f"at most {high:g}")
    raise ValueError(f"{who}: {name} must be {' and '.join(bounds) or 'finite'}, got {value!r}")


def as_choice(who: str, name: str, value: object, choices: tuple[str, ...]) -> str:
    """``value`` if it is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{who}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value)
