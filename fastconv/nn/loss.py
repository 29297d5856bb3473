"""Losses: ``criterion(output, target)`` is a number, ``criterion.backward()`` its gradient by ``output``."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastconv.errors import ShapeError
from fastconv.geometry import one_int
from fastconv.nn._arrays import (
    Array,
    as_array,
    as_choice,
    as_float,
    as_gradient,
    as_real,
    compute_dtype,
    namespace,
)
from fastconv.nn.module import Module
from fastconv.ops._arrays import is_floating

_REDUCTIONS = ("mean", "sum", "none")


class _Wanted(NamedTuple):
    """What a sample wants of its log-probabilities: ``right`` of the ``chosen`` class, ``even`` of each."""

    chosen: Array | None
    right: Array | None
    even: Array | None


class _Loss(Module):
    def __init__(self, reduction: str) -> None:
        self.reduction = as_choice(type(self).__name__, "reduction", reduction, _REDUCTIONS)

    def _reduce(self, terms: Array, divisor: float) -> Any:
        """The terms, their sum, or their sum over ``divisor``: NaN where there is nothing to average."""
        if self.reduction == "none":
            return namespace(terms).asarray(terms)
        total = float(terms.sum(dtype=np.float64))
        if self.reduction == "sum":
            return total
        return total / divisor if divisor else math.nan

    def _scale(self, grad_output: Any, divisor: float, shape: tuple[int, ...]) -> Any:
        """The factor of each term's gradient: an array of ``shape`` for ``"none"``, otherwise a float."""
        if self.reduction == "none":
            return as_gradient(type(self).__name__, grad_output, shape)
        factor = float(as_gradient(type(self).__name__, grad_output, ()))
        if self.reduction == "sum":
            return factor
        return factor / divisor if divisor else 0.0

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class MSELoss(_Loss):
    """The square of the difference.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        Over all elements; ``"none"`` returns an array.

    Notes
    -----
    ``forward(input, target)`` takes arrays of one shape (nothing is broadcast) and returns a float;
    ``backward(grad_output=1.0)`` the gradient of ``input`` in its dtype.
    """

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__(reduction)

    def forward(self, input: Any, target: Any) -> Any:
        """The loss, a float unless ``reduction="none"``."""
        x = as_float(as_array("MSELoss", "input", input))
        target = as_array("MSELoss", "target", target)
        if x.shape != target.shape:
            raise ShapeError(
                f"MSELoss: target has shape {target.shape}, expected {x.shape}, the shape of input"
            )
        difference = x.astype(compute_dtype(x.dtype, target.dtype), copy=False) - target
        self.save_for_backward(difference, x.dtype)
        return self._reduce(difference * difference, x.size)

    def backward(self, grad_output: Any = 1.0) -> Array:
        """The gradient of ``input``, times ``grad_output``."""
        difference, dtype = self.saved_for_backward()
        scale = self._scale(grad_output, difference.size, difference.shape)
        return (2 * scale * difference).astype(dtype, copy=False)


class CrossEntropyLoss(_Loss):
    """Minus the log-probability of the right class, from logits.

    Parameters
    ----------
    weight : array_like (C,), optional
        A factor for each class; the mean is then a weighted one.
    ignore_index : int
        Targets of this value count nothing.
    reduction : {"mean", "sum", "none"}
        ``"none"`` returns an array.
    label_smoothing : float
        The part of each target, in [0, 1], that is spread evenly over all classes.

    Notes
    -----
    ``forward(input, target)`` takes logits ``(N, C)``, ``(N, C, d1, ...)`` or, unbatched, ``(C,)``, and class
    numbers of the same shape without the class axis (any integer type), or class probabilities (floating
    point) of the same shape. It returns a float; ``backward(grad_output=1.0)`` the gradient of the logits in
    their dtype.

    Raises
    ------
    IndexError
        A target is no class and not ``ignore_index``.
    ShapeError, TypeError
        Targets do not fit the logits, or are neither class numbers nor probabilities.
    """

    def __init__(
        self,
        weight: Any = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction)
        if weight is not None:
            weight = as_float(as_array("CrossEntropyLoss", "weight", weight))
            if weight.ndim != 1:
                raise ShapeError(
                    f"CrossEntropyLoss: weight has shape {weight.shape}, expected one number per class"
                )
        self.weight: Array | None
        self.register_buffer("weight", weight)
        self.ignore_index = one_int("CrossEntropyLoss", "ignore_index", ignore_index)
        self.label_smoothing = as_real("CrossEntropyLoss", "label_smoothing", label_smoothing, 0.0, 1.0)

    def forward(self, input: Any, target: Any) -> Any:
        """The loss, a float unless ``reduction="none"``."""
        x = as_float(as_array("CrossEntropyLoss", "input", input))
        target = as_array("CrossEntropyLoss", "target", target)
        if x.ndim == 0:
            raise ShapeError(
                "CrossEntropyLoss: input is a scalar, expected logits of shape (C,), (N, C) or "
                "(N, C, d1, ...)"
            )
        axis = min(1, x.ndim - 1)
        classes = x.shape[axis]
        if classes == 0 or (self.weight is not None and self.weight.shape != (classes,)):
            wanted = (
                "at least one class"
                if self.weight is None
                else f"{self.weight.size}, the number of class weights"
            )
            raise ShapeError(
                f"CrossEntropyLoss: input of shape {x.shape} has {classes} classes, expected {wanted}"
            )
        xp = namespace(x)
        logits = x.astype(compute_dtype(x.dtype), copy=False)
        log_p = logits - logits.max(axis=axis, keepdims=True)
        log_p -= xp.log(xp.exp(log_p).sum(axis=axis, keepdims=True))
        if target.shape == x.shape and is_floating(target.dtype):
            terms, divisor, asked = self._with_probabilities(log_p, target, axis)
        else:
            terms, divisor, asked = self._with_classes(log_p, target, axis)
        self.save_for_backward(log_p, axis, x.dtype, terms.shape, divisor, asked)
        return self._reduce(terms, divisor)

    def _with_classes(self, log_p: Array, target: Array, axis: int) -> tuple[Array, float, _Wanted]:
        classes = log_p.shape[axis]
        expected = log_p.shape[:axis] + log_p.shape[axis + 1 :]
        if target.dtype.kind not in "iu":
            raise TypeError(
                f"CrossEntropyLoss: target has dtype {target.dtype} and shape {target.shape}; "
                f"expected class numbers of shape {expected} or probabilities of shape {log_p.shape}"
            )
        if target.shape != expected:
            raise ShapeError(
                f"CrossEntropyLoss: target has shape {target.shape}, expected {expected} "
                f"for logits of shape {log_p.shape}"
            )
        xp = namespace(log_p)
        target = target.astype(np.int64, copy=False)
        valid = target != self.ignore_index
        wrong = valid & ((target < 0) | (target >= classes))
        if wrong.any():
            raise IndexError(
                f"CrossEntropyLoss: target {int(target[wrong][0])} is out of range for {classes} classes"
            )
        chosen = xp.expand_dims(xp.where(valid, target, 0), axis)
        picked = xp.take_along_axis(log_p, chosen, axis=axis).squeeze(axis)
        factor = valid.astype(log_p.dtype)
        if self.weight is not None:
            factor *= self.weight.astype(log_p.dtype, copy=False)[chosen.squeeze(axis)]
        right = (1 - self.label_smoothing) * factor
        terms = xp.where(valid, -picked, 0) * right
        even = None
        if self.label_smoothing:
            share = valid.astype(log_p.dtype) * (self.label_smoothing / classes)
            even = self._class_factors(log_p, axis) * xp.expand_dims(share, axis)
            terms -= xp.where(xp.expand_dims(valid, axis), log_p * even, 0).sum(axis=axis)
        return terms, float(factor.sum(dtype=np.float64)), _Wanted(chosen, xp.expand_dims(right, axis), even)

    def _with_probabilities(self, log_p: Array, target: Array, axis: int) -> tuple[Array, float, _Wanted]:
        classes = log_p.shape[axis]
        even = target.astype(log_p.dtype, copy=False)
        if self.label_smoothing:
            even = even * (1 - self.label_smoothing) + self.label_smoothing / classes
        if self.weight is not None:
            even = even * self._class_factors(log_p, axis)
        return -(even * log_p).sum(axis=axis), log_p.size / classes, _Wanted(None, None, even)

    def _class_factors(self, log_p: Array, axis: int) -> Array:
        """The class weights in the shape of one sample, to be broadcast."""
        classes = log_p.shape[axis]
        weight = namespace(log_p).ones(classes) if self.weight is None else self.weight
        return weight.astype(log_p.dtype, copy=False).reshape(classes, *(1,) * (log_p.ndim - axis - 1))

    def backward(self, grad_output: Any = 1.0) -> Array:
        """The gradient of the logits, times ``grad_output``."""
        log_p, axis, dtype, shape, divisor, wanted = self.saved_for_backward()
        xp = namespace(log_p)
        scale = self._scale(grad_output, divisor, shape)
        if self.reduction == "none":
            scale = xp.expand_dims(scale, axis)
        # With q the factors that the log-probabilities have in the loss, the gradient is p * sum(q) - q.
        total = 0 if wanted.even is None else wanted.even.sum(axis=axis, keepdims=True)
        grad = xp.exp(log_p)
        grad *= total if wanted.right is None else total + wanted.right
        if wanted.even is not None:
            grad -= wanted.even
        if wanted.chosen is not None:
            right = xp.take_along_axis(grad, wanted.chosen, axis=axis) - wanted.right
            xp.put_along_axis(grad, wanted.chosen, right, axis=axis)
        grad *= scale
        return grad.astype(dtype, copy=False)

    def extra_repr(self) -> str:
        parts = [super().extra_repr(), f"ignore_index={self.ignore_index}"]
        return ", ".join([*parts, f"label_smoothing={self.label_smoothing}"])
