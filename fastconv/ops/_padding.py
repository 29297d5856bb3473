"""Explicit padding for the modes that copy values: reflect, replicate and circular, and its adjoint."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastconv.errors import ShapeError
from fastconv.geometry import Pairs, Shape

Array = Any


def pad(op: str, x: Array, pads: Pairs, mode: str) -> Array:
    """``x`` with its last axes extended; raises `ShapeError` where an axis has too few elements to copy from."""
    for axis, (low, high) in zip(range(-len(pads), 0), pads, strict=True):
        size = x.shape[axis]
        limit = {"reflect": size - 1, "circular": size, "replicate": size and max(low, high)}[mode]
        if max(low, high) > limit:
            raise ShapeError(
                f"{op}: padding_mode={mode!r} with padding ({low}, {high}) needs an axis of more elements, "
                f"input has shape {x.shape}"
            )
        if low or high:
            x = x.take(_source(size, low, high, mode), axis=axis)
    return x


def pad_backward(grad: Array, shape: Shape, pads: Pairs, mode: str) -> Array:
    """The adjoint of `pad`: every padded element's gradient returns to the element that it copied."""
    for axis, (low, high) in zip(range(-len(pads), 0), pads, strict=True):
        if not (low or high):
            continue
        size = shape[axis]
        source = _source(size, low, high, mode)
        grad = grad.swapaxes(axis, 0)
        total = grad[low : low + size].copy()
        for border in (*range(low), *range(low + size, low + size + high)):
            total[int(source[border])] += grad[border]
        grad = total.swapaxes(axis, 0)
    return grad


def _source(size: int, low: int, high: int, mode: str) -> NDArray[np.int64]:
    """For each position of the padded axis, the input position that it copies."""
    position = np.arange(-low, size + high)
    if mode == "replicate":
        return np.clip(position, 0, size - 1)
    if mode == "circular":
        return position % size
    # Mirrored at both ends, without repeating them.
    return np.asarray((size - 1) - np.abs((size - 1) - np.abs(position)))
