"""Every kernel there is: what is compiled for a GPU, checked without one, and launched is listed here.

A kernel is an instance of a template in `cuda/`; its arguments are in the order of the template's parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DType = np.dtype[Any]

SOURCES = Path(__file__).parent / "cuda"

ELEMENTS = {
    "float32": "float",
    "float64": "double",
    "int8": "signed char",
    "uint8": "unsigned char",
    "int16": "short",
    "uint16": "unsigned short",
    "int32": "int",
    "uint32": "unsigned",
    "int64": "long long",
    "uint64": "unsigned long long",
}
FLOATING = ("float32", "float64")
CONVOLVED = (*FLOATING, "int32", "int64")
INDICES = (
    np.dtype(np.int32),
    np.dtype(np.int64),
)  # of sizes and offsets: the narrower one where all of them fit


class Kernel(NamedTuple):
    """One instance: the template, the file it is in, its arguments, and the threads of a block."""

    template: str
    source: str
    arguments: tuple[str, ...]
    threads: int = 256

    @property
    def expression(self) -> str:
        """Its name in C++."""
        return f"{self.template}<{', '.join(self.arguments)}>"


class Tile(NamedTuple):
    """The results of a block of `conv_gemm`, those of a thread, and the terms that lie in shared memory at a time."""

    rows: int
    columns: int
    terms: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        return (self.rows // self.thread_rows) * (self.columns // self.thread_columns)


LARGE = Tile(128, 128, 8, 8, 8)
MEDIUM = Tile(64, 64, 8, 4, 4)
NARROW = Tile(16, 128, 8, 4, 4)
TILES = {  # by dtype, largest first
    "float32": (LARGE, MEDIUM, NARROW),
    "float64": (MEDIUM, NARROW),
    "int32": (MEDIUM,),
    "int64": (MEDIUM,),
}


def conv_gemm(dtype: DType, index: DType, tile: Tile, grad_weight: bool) -> Kernel:
    """A convolution as a matrix product."""
    sizes = (*map(str, tile), "true" if grad_weight else "false")
    return Kernel("conv_gemm", "conv_gemm.cuh", (*_types(dtype, index), *sizes), tile.threads)


def simple(template: str, source: str, dtype: DType, index: DType) -> Kernel:
    """A kernel that has no parameters but its types."""
    return Kernel(template, source, _types(dtype, index))


def all_kernels() -> Iterator[Kernel]:
    """Every kernel that can ever be launched."""
    for index in INDICES:
        for name in CONVOLVED:
            dtype = np.dtype(name)
            for tile, grad_weight in product(TILES[name], (False, True)):
                yield conv_gemm(dtype, index, tile, grad_weight)
            yield simple("conv_add_parts", "conv_gemm.cuh", dtype, index)
            yield simple("conv_direct", "conv_direct.cuh", dtype, index)
            yield simple("conv_direct_grad_weight", "conv_direct.cuh", dtype, index)
        for name in ELEMENTS:
            yield simple("max_pool", "max_pool.cuh", np.dtype(name), index)
        for name in FLOATING:
            dtype = np.dtype(name)
            yield simple("max_pool_grad_input", "max_pool.cuh", dtype, index)
            yield simple("avg_pool", "avg_pool.cuh", dtype, index)
            yield simple("avg_pool_grad_input", "avg_pool.cuh", dtype, index)


def _types(dtype: DType, index: DType) -> tuple[str, str]:
    return ELEMENTS[dtype.name], ELEMENTS[index.name]
