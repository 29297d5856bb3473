"""Explicit padding for the modes that copy values: reflect, replicate and circular, and its adjoint."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from fastconv.errors import ShapeError
from fastconv.geometry import Pairs, Shape
from fastconv.ops._arrays import Array, sum_dtype


def check_padding(op: str, shape: Shape, pads: Pairs, mode: str) -> None:
    """Raises `ShapeError` where one of the last axes of ``shape`` has too few elements to copy from."""
    for size, (low, high) in zip(shape[-len(pads) :], pads, strict=True):
        most = max(low, high)
        needed = most and {"reflect": most + 1, "circular": most, "replicate": 1}[mode]
        if size < needed:
            raise ShapeError(
                f"{op}: padding_mode={mode!r} with padding ({low}, {high}) needs an axis of at least {needed} "
                f"elements, input has one of {size} (shape {shape})"
            )


def pad(op: str, x: Array, pads: Pairs, mode: str) -> Array:
    """``x`` with its last axes extended."""
    for axis, (low, high) in zip(range(-len(pads), 0), pads, strict=True):
        if low or high:
            try:
                source = _source(x.shape[axis], low, high, mode)
            except ValueError as error:  # beyond the address space
                raise MemoryError(f"{op}: padding ({low}, {high}) is too large to copy") from error
            library = sys.modules[type(x).__module__.partition(".")[0]]  # which takes indices of its own
            x = x.take(library.asarray(source), axis=axis)
    return x


def pad_backward(grad: Array, shape: Shape, pads: Pairs, mode: str) -> Array:
    """The adjoint of `pad`: every padded element's gradient returns to the element that it copied."""
    for axis, (low, high) in zip(range(-len(pads), 0), pads, strict=True):
        if not (low or high):
            continue
        size = shape[axis]
        grad = grad.swapaxes(axis, 0)
        before, total, after = grad[:low], grad[low : low + size].copy(), grad[low + size :]
        if mode == "replicate":
            total[0] += before.sum(axis=0, dtype=sum_dtype(grad.dtype))
            total[-1] += after.sum(axis=0, dtype=sum_dtype(grad.dtype))
        elif mode == "circular":
            total[size - low :] += before
            total[:high] += after
        else:  # mirrored: what lies next to the border comes from next to the last element, and so on
            total[1 : low + 1] += before[::-1]
            total[size - 1 - high : size - 1] += after[::-1]
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
