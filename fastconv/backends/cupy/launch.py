"""What kernels are launched with, and on what: kept apart from CuPy, so that tests can run the same on a CPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastconv.backends.cupy.registry import INDICES, Kernel

Array = Any  # of the device
DType = np.dtype[Any]

SLACK = 2**16  # by which offsets may exceed the elements that they count: blocks are whole


class Launch(NamedTuple):
    """A kernel, how many blocks of it, and the struct of its parameters."""

    kernel: Kernel
    blocks: int
    parameters: np.void


class Device(Protocol):
    """Where arrays lie and kernels run, in the order in which they are launched."""

    def launch(self, kernel: Kernel, blocks: int, *arguments: np.generic | Array | None) -> None:
        """Start a kernel. NumPy's scalars are passed by value, arrays by address, ``None`` as a null pointer."""

    def empty(self, size: int, dtype: DType) -> Array:
        """An uninitialised array of one axis, to be used by the kernels launched from here on."""


def index_type(extents: Iterable[int]) -> DType:
    """The narrower type of sizes and offsets if it holds all of ``extents``, the largest that are computed."""
    return INDICES[int(max(extents) >= 2**31 - SLACK)]


def packed(fields: Sequence[int | bool | Sequence[int]], index: DType) -> np.void:
    """A C struct whose fields are all of the type ``index``, or arrays of it."""
    flat: list[int] = []
    for field in fields:
        if isinstance(field, int):
            flat.append(field)
        else:
            flat.extend(field)
    values = np.array(flat, index)
    struct: np.void = values.view(np.dtype((np.void, values.nbytes)))[0]
    return struct


def blocks_of(elements: int, kernel: Kernel) -> int:
    """How many blocks have a thread for every element."""
    return -(-elements // kernel.threads)
