"""The elementwise functions that a kernel can apply in its last store, in the order that names them to native code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LEAKY_SLOPE = 0.01  # PyTorch's default


def relu(y: Array) -> Array:
    """Zero below zero."""
    result: Array = np.maximum(y, 0)
    return result


def relu6(y: Array) -> Array:
    """As `relu`, and six above six."""
    result: Array = np.clip(y, 0, 6)
    return result


def leaky_relu(y: Array) -> Array:
    """A hundredth of it below zero."""
    result: Array = np.maximum(y, LEAKY_SLOPE * y)
    return result


def elu(y: Array) -> Array:
    """``exp(y) - 1`` below zero."""
    result: Array = np.maximum(y, 0) + np.expm1(np.minimum(y, 0))
    return result


def sigmoid(y: Array) -> Array:
    """``1 / (1 + exp(-y))``."""
    e = np.exp(-np.abs(y))  # never overflows
    result: Array = np.maximum(e, y >= 0) / (1 + e)
    return result


def tanh(y: Array) -> Array:
    """The hyperbolic tangent."""
    result: Array = np.tanh(y)
    return result


def silu(y: Array) -> Array:
    """``y * sigmoid(y)``, also called swish."""
    return y * sigmoid(y)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    f.__name__: f for f in (relu, relu6, leaky_relu, elu, sigmoid, tanh, silu)
}
INTEGER_ACTIVATIONS = ("relu", "relu6")  # those that map integers to integers
# How compiled kernels call them: 0 is none.
ACTIVATION_CODES: dict[str | None, int] = {name: code for code, name in enumerate((None, *ACTIVATIONS))}
