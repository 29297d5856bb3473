"""Explicit padding for the modes that copy values: reflect, replicate and circular, and its adjoint."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastconv.errors import ShapeError
from fastconv.geometry import Pairs, Shape

Array = Any


def check_padding(op: str, shape: Shape, pads: Pairs, mode: str) -> None:
    """Raises `ShapeError` where one of the last axes of ``shape`` has too few elements to copy from."""
    for size, (low, high) in zip(shape[-len(pads) :], pads, strict=True):
        limit = {"reflect": size - 1, "circular": size, "replicate": size and max(low, high)}[mode]
        if max(low, high) > limit:
            raise ShapeError(
                f"{op}: padding_mode={mode!r} with padding ({low}, {high}) needs an axis of more elements, "
                f"input has shape {shape}"
            )


def pad(op: str, x: Array, pads: Pairs, mode: str) -> Array:
    """``x`` with its last axes extended."""
    for axis, (low, high) in zip(range(-len(pads), 0), pads, strict=True):
        if low or high:
            try:
                source = _source(x.shape[axis], low, high, mode)
            except ValueError as error:  # beyond the address space
                raise MemoryError(f"{op}: padding ({low}, {high}) is too large to copy") from error
            x = x.take(source, axis=axis)
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
