"""`Linear` and `Flatten`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastconv.errors import ShapeError
from fastconv.geometry import one_int
from fastconv.nn import init
from fastconv.nn._arrays import (
    Array,
    Rng,
    as_array,
    as_axis,
    as_generator,
    as_gradient,
    compute_dtype,
    floating_dtype,
)
from fastconv.nn.module import Module, Parameter


class Linear(Module):
    """``y = x @ weight.T + bias``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    rng : numpy.random.Generator, int or None
        Draws the initial weights, uniform on ``±1/sqrt(in_features)``.
    dtype : floating-point dtype

    Notes
    -----
    Input ``(*, in_features)`` with any leading axes, output ``(*, out_features)``.
    ``weight`` is ``(out_features, in_features)``, ``bias`` ``(out_features,)`` or ``None``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rng: Rng = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.in_features = one_int("Linear", "in_features", in_features, low=0)
        self.out_features = one_int("Linear", "out_features", out_features, low=0)
        dtype = floating_dtype("Linear", dtype)
        generator = as_generator("Linear", rng)
        self.weight = Parameter(np.empty((self.out_features, self.in_features), dtype))
        self.bias = Parameter(np.empty(self.out_features, dtype)) if bias else None
        draw_weights(self.weight, self.bias, generator)

    def forward(self, x: Any) -> Array:
        x = as_array("Linear", "input", x)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ShapeError(f"Linear: input has shape {x.shape}, expected (..., {self.in_features})")
        y = _matmul(x, self.weight.data.T)
        if self.bias is not None:
            y = _add_in_place(y, self.bias.data)
        self.save_for_backward(x, y.shape)
        return y

    def backward(self, grad_output: Any) -> Array | None:
        """The gradient of the input; adds to those of ``weight`` and ``bias``."""
        x, shape = self.saved_for_backward()
        grad = as_gradient("Linear", grad_output, shape)
        rows = grad.reshape(math.prod(shape[:-1]), self.out_features)
        if self.weight.requires_grad:
            self.weight.accumulate(_matmul(rows.T, x.reshape(len(rows), self.in_features)))
        if self.bias is not None and self.bias.requires_grad:
            self.bias.accumulate(rows.sum(axis=0, dtype=compute_dtype(rows.dtype)))
        return _matmul(grad, self.weight.data) if self.needs_input_grad else None

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class Flatten(Module):
    """Joins the axes ``start_dim`` to ``end_dim`` into one; by default all but the first."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, x: Any) -> Array:
        x = as_array("Flatten", "input", x)
        ndim = max(1, x.ndim)  # a scalar flattens to one element
        start = as_axis("Flatten", "start_dim", self.start_dim, ndim)
        end = as_axis("Flatten", "end_dim", self.end_dim, ndim)
        if start > end:
            raise ShapeError(
                f"Flatten: start_dim={self.start_dim} lies behind end_dim={self.end_dim} for shape {x.shape}"
            )
        self.save_for_backward(x.shape)
        return x.reshape(*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :])

    def backward(self, grad_output: Any) -> Array:
        (shape,) = self.saved_for_backward()
        grad = as_array("Flatten.backward", "grad_output", grad_output)
        if grad.size != math.prod(shape):
            raise ShapeError(
                f"Flatten.backward: grad_output has shape {grad.shape}, the input had shape {shape}"
            )
        return grad.reshape(shape)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


def draw_weights(weight: Parameter, bias: Parameter | None, rng: np.random.Generator) -> None:
    """PyTorch's default for linear and convolution layers: both uniform on ``±1/sqrt(fan_in)``."""
    init.kaiming_uniform_(weight, a=math.sqrt(5), rng=rng)
    if bias is not None:
        fan_in, _ = init.fan_in_and_out(weight)
        bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
        init.uniform_(bias, -bound, bound, rng=rng)


def _matmul(a: Array, b: Array) -> Array:
    """The product in the dtype that both promote to; float16 and bfloat16 are summed in float32."""
    result = np.result_type(a.dtype, b.dtype)
    wide = compute_dtype(result)
    return (a.astype(wide, copy=False) @ b.astype(wide, copy=False)).astype(result, copy=False)


def _add_in_place(y: Array, bias: Array) -> Array:
    """``y + bias`` in the memory of ``y`` where the types allow it."""
    if np.result_type(y.dtype, bias.dtype) != y.dtype or y.ndim == 0:
        return y + bias
    y += bias
    return y
