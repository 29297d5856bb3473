"""Activation functions as layers.

``inplace`` is accepted where PyTorch's constructors have it and changes nothing: a layer never writes into
its input. Where one of two values is to be chosen, masked bits take a tenth of the time of ``where``, and so do
products with comparisons, which serve for finite values alone: 0 times infinity is NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastconv.activations import sigmoid
from fastconv.errors import ShapeError
from fastconv.geometry import one_int
from fastconv.nn._arrays import (
    Array,
    as_array,
    as_axis,
    as_float,
    as_gradient,
    as_real,
    compute_dtype,
    floating_dtype,
    namespace,
)
from fastconv.nn.module import Module, Parameter

_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946


class ReLU(Module):
    """``max(x, 0)``; the gradient at 0 is 0. NaN stays NaN."""

    def __init__(self, inplace: bool = False) -> None:
        self.inplace = inplace

    def forward(self, x: Any) -> Array:
        """Elementwise; keeps the dtype."""
        x = as_array("ReLU", "input", x)
        y: Array = namespace(x).maximum(x, 0)
        self.save_for_backward(y)  # the next layer keeps it too, so it costs no memory
        return y

    def backward(self, grad_output: Any) -> Array:
        (y,) = self.saved_for_backward()
        grad = as_gradient("ReLU", grad_output, y.shape)
        return _masked(grad, ~(y <= 0))  # NaN lets its gradient pass


class LeakyReLU(Module):
    """``x`` where positive, otherwise ``negative_slope * x``."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        self.negative_slope = as_real("LeakyReLU", "negative_slope", negative_slope)
        self.inplace = inplace

    def forward(self, x: Any) -> Array:
        x = as_float(as_array("LeakyReLU", "input", x))
        self.save_for_backward(x)
        xp = namespace(x)
        return xp.maximum(x, 0) + xp.minimum(x, 0) * x.dtype.type(self.negative_slope)

    def backward(self, grad_output: Any) -> Array:
        (x,) = self.saved_for_backward()
        grad = as_gradient("LeakyReLU", grad_output, x.shape)
        positive = x > 0
        return grad * (positive + ~positive * x.dtype.type(self.negative_slope))

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class PReLU(Module):
    """``x`` where positive, otherwise ``weight * x``: one trained slope, or one for each channel (axis 1)."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25, *, dtype: DTypeLike = np.float32) -> None:
        self.num_parameters = one_int("PReLU", "num_parameters", num_parameters, low=1)
        value = as_real("PReLU", "init", init)
        self.weight = Parameter(np.full(self.num_parameters, value, floating_dtype("PReLU", dtype)))

    def forward(self, x: Any) -> Array:
        x = as_array("PReLU", "input", x)
        channels = x.shape[1] if x.ndim > 1 else 1
        if self.num_parameters not in (1, channels):
            raise ShapeError(
                f"PReLU: input of shape {x.shape} has {channels} channels, expected {self.num_parameters}"
            )
        self.save_for_backward(x)
        return x * self._factor(x, x > 0)

    def backward(self, grad_output: Any) -> Array | None:
        """The gradient of the input; adds to that of ``weight``."""
        (x,) = self.saved_for_backward()
        grad = as_gradient("PReLU", grad_output, x.shape)
        positive = x > 0
        if self.weight.requires_grad:
            products = _masked(grad, ~positive) * namespace(x).minimum(x, 0)
            others = tuple(i for i in range(x.ndim) if i != 1) if self.num_parameters > 1 else None
            self.weight.accumulate(products.sum(axis=others).reshape(self.weight.shape))
        if not self.needs_input_grad:
            return None
        return grad * self._factor(x, positive)

    def _factor(self, x: Array, positive: Array) -> Array:
        """1 where ``positive``, otherwise the weight."""
        slope = self.weight.data.reshape((-1, *(1,) * (x.ndim - 2)) if x.ndim > 1 else (1,) * x.ndim)
        return positive + _masked(slope, ~positive)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class ELU(Module):
    """``x`` where positive, otherwise ``alpha * (exp(x) - 1)``."""

    _scale = 1.0

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        self.alpha = as_real("ELU", "alpha", alpha)
        self.inplace = inplace

    def forward(self, x: Any) -> Array:
        x = as_float(as_array(type(self).__name__, "input", x))
        xp = namespace(x)
        self.save_for_backward(x)
        low = xp.expm1(xp.minimum(x, 0))  # the minimum keeps exp from overflowing
        low = low * x.dtype.type(self.alpha * self._scale)
        return low + xp.maximum(x, 0) * x.dtype.type(self._scale)

    def backward(self, grad_output: Any) -> Array:
        (x,) = self.saved_for_backward()
        xp = namespace(x)
        grad = as_gradient(type(self).__name__, grad_output, x.shape)
        positive = x > 0
        low = xp.exp(xp.minimum(x, 0)) * ~positive * x.dtype.type(self.alpha * self._scale)
        return grad * (low + positive * x.dtype.type(self._scale))

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class SELU(ELU):
    """`ELU` scaled so that activations normalise themselves (Klambauer et al., 2017)."""

    _scale = _SELU_SCALE

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(_SELU_ALPHA, inplace)

    def extra_repr(self) -> str:
        return ""


class Sigmoid(Module):
    """``1 / (1 + exp(-x))``, without overflow."""

    def forward(self, x: Any) -> Array:
        y = _sigmoid(as_float(as_array("Sigmoid", "input", x)))
        self.save_for_backward(y)
        return y

    def backward(self, grad_output: Any) -> Array:
        (y,) = self.saved_for_backward()
        return as_gradient("Sigmoid", grad_output, y.shape) * (y * (1 - y))


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Any) -> Array:
        x = as_array("Tanh", "input", x)
        y: Array = namespace(x).tanh(x)
        self.save_for_backward(y)
        return y

    def backward(self, grad_output: Any) -> Array:
        (y,) = self.saved_for_backward()
        return as_gradient("Tanh", grad_output, y.shape) * (1 - y * y)


class SiLU(Module):
    """``x * sigmoid(x)``, also known as Swish."""

    def __init__(self, inplace: bool = False) -> None:
        self.inplace = inplace

    def forward(self, x: Any) -> Array:
        x = as_float(as_array("SiLU", "input", x))
        gate = _sigmoid(x)
        self.save_for_backward(x, gate)
        return x * gate

    def backward(self, grad_output: Any) -> Array:
        x, gate = self.saved_for_backward()
        return as_gradient("SiLU", grad_output, x.shape) * (gate * (1 + x * (1 - gate)))


Swish = SiLU


class Maxout(Module):
    """The maximum over each group of ``pool_size`` neighbouring channels (Goodfellow et al., 2013).

    Parameters
    ----------
    pool_size : int
        Channels per group; must divide the number of channels, which becomes ``pool_size`` times smaller.
    dim : int
        The channel axis, by default that of a batch.

    Notes
    -----
    Where channels tie, the first takes the whole gradient. NaN wins, as in pooling.
    """

    def __init__(self, pool_size: int, dim: int = 1) -> None:
        self.pool_size = one_int("Maxout", "pool_size", pool_size, low=1)
        self.dim = dim

    def forward(self, x: Any) -> Array:
        x = as_array("Maxout", "input", x)
        axis = as_axis("Maxout", "dim", self.dim, x.ndim)
        channels = x.shape[axis]
        if channels % self.pool_size:
            raise ShapeError(
                f"Maxout: axis {axis} of shape {x.shape} has size {channels}, "
                f"expected a multiple of {self.pool_size}"
            )
        groups = x.reshape(*x.shape[:axis], channels // self.pool_size, self.pool_size, *x.shape[axis + 1 :])
        xp = namespace(x)
        winners = xp.expand_dims(groups.argmax(axis=axis + 1), axis + 1)
        self.save_for_backward(winners, axis, groups.shape, x.shape)
        return xp.take_along_axis(groups, winners, axis=axis + 1).squeeze(axis + 1)

    def backward(self, grad_output: Any) -> Array:
        winners, axis, groups, shape = self.saved_for_backward()
        grad = as_gradient("Maxout", grad_output, winners.squeeze(axis + 1).shape)
        xp = namespace(grad)
        taken = xp.arange(self.pool_size).reshape(-1, *(1,) * (len(groups) - axis - 2)) == winners
        return xp.where(taken, xp.expand_dims(grad, axis + 1), grad.dtype.type(0)).reshape(shape)

    def extra_repr(self) -> str:
        return f"pool_size={self.pool_size}, dim={self.dim}"


class Softmax(Module):
    """``exp(x) / sum(exp(x))`` along ``dim``.

    ``dim=None`` means, as in PyTorch, axis 0 for inputs of 0, 1 or 3 dimensions and axis 1 otherwise. For
    training a classifier use `CrossEntropyLoss` on the logits instead: it is exact where this rounds to 0.
    """

    def __init__(self, dim: int | None = None) -> None:
        self.dim = dim

    def axis(self, ndim: int) -> int:
        """The axis that sums to 1 for an input of ``ndim`` dimensions."""
        dim = self.dim if self.dim is not None else 0 if ndim in (0, 1, 3) else 1
        return as_axis("Softmax", "dim", dim, max(1, ndim))

    def forward(self, x: Any) -> Array:
        """Probabilities that sum to 1 along ``dim``."""
        x = as_float(as_array("Softmax", "input", x))
        axis = self.axis(x.ndim)
        xp = namespace(x)
        row = x.reshape(x.shape or (1,))  # a scalar is one element
        y: Array = xp.exp(row - row.max(axis=axis, keepdims=True, initial=-xp.inf))
        y /= y.sum(axis=axis, keepdims=True)
        self.save_for_backward(y, axis, x.shape)
        return y.reshape(x.shape)

    def backward(self, grad_output: Any) -> Array:
        y, axis, shape = self.saved_for_backward()
        grad = as_gradient("Softmax", grad_output, shape).reshape(y.shape)
        return (y * (grad - (grad * y).sum(axis=axis, keepdims=True))).reshape(shape)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def _masked(values: Array, mask: Array) -> Array:
    """``values``, which are broadcast, where ``mask`` is true and 0 elsewhere, also for infinities and NaN."""
    bits = mask.astype(f"i{values.dtype.itemsize}")
    bits *= -1  # all ones where true
    bits &= values.view(bits.dtype)
    return bits.view(values.dtype)


def _sigmoid(x: Array) -> Array:
    """The sigmoid, calculated in float32 at least."""
    return sigmoid(x.astype(compute_dtype(x.dtype), copy=False)).astype(x.dtype, copy=False)
