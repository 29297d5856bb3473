"""From what users pass to what kernels take: array libraries, dtypes, memory layout, and outputs."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from fastconv import backends, memory
from fastconv.backends.protocol import Backend
from fastconv.errors import ShapeError
from fastconv.geometry import Shape, check_shape

Array = Any  # numpy.ndarray or cupy.ndarray
ArrayLike = Any
DType = np.dtype[Any]

_OPTIONAL = ("bias",)
_NARROW = ("float16", "bfloat16")  # stored as such, computed in float32
FLOATING = (*_NARROW, "float32", "float64")
_OVERLAP_WORK: Any = 10_000  # candidates to try before two strided arrays count as overlapping
_SMALL_INTEGERS = 2  # bytes: wider ones need 64-bit sums


class Call(NamedTuple):
    """One public call: its name for messages, the settled backend, and the module of its arrays."""

    op: str
    backend_name: str
    backend: Backend
    xp: Any

    def empty(self, shape: Shape, dtype: DType) -> Array:
        """An uninitialised array; sizes beyond the address space give `MemoryError` like any other that do not fit."""
        try:
            if self.xp is np and math.prod(shape) * dtype.itemsize < memory.SMALLEST:
                return np.empty(shape, dtype)
            return (memory if self.xp is np else self.xp).empty(shape, dtype)
        except ValueError as error:
            raise MemoryError(
                f"{self.op}: an array of shape {shape} and dtype {dtype} is too large"
            ) from error

    def full(self, shape: Shape, value: Any, dtype: DType, out: Array | None = None) -> Array:
        """As `empty`, filled; or ``out``, filled."""
        array = self.empty(shape, dtype) if out is None else out
        array[...] = value
        return array


def begin(op: str, backend: str | None, **arrays: ArrayLike) -> tuple[Call, list[Array]]:
    """Settles the array library and the backend of a call and converts its inputs to plain arrays.

    Raises
    ------
    TypeError
        For masked arrays, matrices, sparse or otherwise foreign arrays, and arrays of different libraries.
    """
    library = "numpy"
    for value in arrays.values():
        if type(value) is not np.ndarray and type(value).__module__.partition(".")[0] == "cupy":
            library = "cupy"
    xp = sys.modules[library]
    name, module = backends.resolve(op, backend, library)
    plain = [
        None if value is None and argument in _OPTIONAL else plain_array(op, argument, value, xp)
        for argument, value in arrays.items()
    ]
    return Call(op, name, module, xp), plain


def plain_array(op: str, argument: str, value: ArrayLike, xp: Any) -> Array:
    """``value`` as an array of the library ``xp``; its arrays pass through untouched, subclasses lose theirs.

    Raises
    ------
    TypeError
        For ``None``, masked arrays (dropping the mask would give a wrong answer), matrices, and what is not of
        CuPy where ``xp`` is.
    ShapeError
        For ragged lists.
    """
    if type(value) is xp.ndarray:
        return value
    if value is None:
        raise TypeError(f"{op}: {argument} must be an array, got None")
    if xp is not np:
        raise TypeError(
            f"{op}: {argument} is a {type(value).__name__}, other arguments are cupy arrays: move it first"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{op}: {argument} is a masked array, whose mask would be lost: pass {argument}.filled(...)"
        )
    if isinstance(value, list | tuple) and any(isinstance(item, np.ma.MaskedArray) for item in value):
        raise TypeError(f"{op}: {argument} holds a masked array, whose mask would be lost: fill it first")
    if isinstance(value, np.matrix):
        raise TypeError(f"{op}: {argument} is a numpy.matrix: pass numpy.asarray({argument})")
    refusal = f"{op}: {argument} is a {type(value).__name__} that cannot become a NumPy array"
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged nested sequences
        raise ShapeError(f"{op}: {argument} is not a regular array: {error}") from error
    except (TypeError, RuntimeError) as error:  # tensors on another device, with a gradient, of another dtype
        raise TypeError(f"{refusal}: {error}") from error
    if array.dtype == object:  # whatever NumPy takes for a scalar, such as a sparse matrix
        raise TypeError(f"{refusal}: its dtype would be object")
    return array


class Precision(NamedTuple):
    """The dtype that a call returns and the one that its kernel computes in."""

    result: DType
    compute: DType


def is_floating(dtype: DType) -> bool:
    """Whether ``dtype`` is one of the floating-point types that fastconv computes with."""
    return dtype.char in "efd" or (dtype.kind == "V" and dtype.name in FLOATING)  # the name is slow to get


def checked_dtype(op: str, argument: str, array: Array) -> DType:
    """The dtype of ``array``; raises `TypeError` for complex numbers, strings, objects and other floating types."""
    dtype: DType = array.dtype
    if dtype.kind in "biu" or is_floating(dtype):
        return dtype
    raise TypeError(
        f"{op}: {argument} has dtype {dtype}, expected {', '.join(FLOATING)}, an integer type or bool"
    )


def conv_precision(op: str, **arrays: Array | None) -> Precision:
    """Floating types promote as in NumPy; an all-integer convolution sums exactly in int32 or int64."""
    dtypes = [checked_dtype(op, argument, array) for argument, array in arrays.items() if array is not None]
    if all(dtype.kind in "biu" for dtype in dtypes):
        wide = max(dtype.itemsize for dtype in dtypes) > _SMALL_INTEGERS
        exact = np.dtype(np.int64 if wide else np.int32)
        return Precision(exact, exact)
    return _floating(op, dtypes)


def for_kernel(precision: Precision, backend: Backend) -> Precision:
    """``precision`` with the result's dtype for the kernel, if that is narrow and the kernel takes it as it is."""
    if backend.TAKES_NARROW and precision.result.name in _NARROW:
        return Precision(precision.result, precision.result)
    return precision


def mean_precision(op: str, **arrays: Array) -> Precision:
    """As NumPy's mean: floating types stay, integers become float64."""
    dtypes = [checked_dtype(op, argument, array) for argument, array in arrays.items()]
    if all(dtype.kind in "biu" for dtype in dtypes):
        return Precision(np.dtype(np.float64), np.dtype(np.float64))
    return _floating(op, dtypes)


def max_precision(op: str, **arrays: Array) -> Precision:
    """Comparison keeps the type; a kernel sees bool as uint8 and narrow floating types as float32, both exact."""
    (dtype,) = (checked_dtype(op, argument, array) for argument, array in arrays.items())
    native = dtype.newbyteorder("=")
    if native.kind == "b":
        return Precision(native, np.dtype(np.uint8))
    return Precision(native, np.dtype(np.float32) if native.name in _NARROW else native)


def sum_dtype(dtype: DType) -> DType:
    """What NumPy's own sums of ``dtype`` add in: it adds one after the other along all but the contiguous axis."""
    return np.dtype(np.float64) if dtype.kind == "f" else dtype


def _floating(op: str, dtypes: list[DType]) -> Precision:
    first = dtypes[0]
    if all(dtype is first for dtype in dtypes) and first.isnative:
        result = first
    else:
        try:
            result = np.result_type(*dtypes).newbyteorder("=")
        except TypeError as error:  # bfloat16 beside float16 or wide integers
            raise TypeError(
                f"{op}: dtypes {', '.join(map(str, dtypes))} have no common type: convert one of the arrays"
            ) from error
    return Precision(result, np.dtype(np.float32) if result.name in _NARROW else result)


def as_kernel_input(call: Call, array: Array, dtype: DType) -> Array:
    """``array`` in the kernel's dtype: C-contiguous, aligned, native; itself where it is that. Never modified."""
    if array.dtype != dtype or not array.dtype.isnative:
        array = array.astype(dtype, order="C")
    if is_plain(array):
        return array
    return call.xp.ascontiguousarray(array) if not array.flags.c_contiguous else array.copy(order="C")


def check_out(call: Call, out: Array, shape: Shape, dtype: DType, inputs: Iterable[Array | None]) -> None:
    """Raises `ShapeError`, `ValueError` or `TypeError` where a result of this shape and dtype cannot go to ``out``."""
    op = call.op
    if not isinstance(out, call.xp.ndarray) or isinstance(out, np.ma.MaskedArray | np.matrix):
        raise TypeError(f"{op}: out must be a {call.xp.__name__}.ndarray, got {type(out).__name__}")
    check_shape(op, "out", out.shape, shape)
    if out.dtype != dtype or not out.dtype.isnative:
        raise ValueError(f"{op}: out has dtype {out.dtype!r}, expected {dtype!r}")
    if not getattr(out.flags, "writeable", True):
        raise ValueError(f"{op}: out is read-only")
    if _overlaps_itself(out):
        raise ValueError(f"{op}: out overlaps itself (shape {out.shape}, strides {out.strides})")
    check_overlap(call, out, inputs)


def check_overlap(call: Call, out: Array, inputs: Iterable[Array | None]) -> None:
    """Raises `ValueError` where ``out`` shares memory with an input."""
    if any(array is not None and _overlap(call, out, array) for array in inputs):
        raise ValueError(f"{call.op}: out shares memory with an input")


def is_plain(array: Array) -> bool:
    """Whether kernels can read and write ``array`` where it is, if its dtype is theirs."""
    flags = array.flags
    return bool(flags.c_contiguous and getattr(flags, "aligned", True))


def _overlaps_itself(a: Array) -> bool:
    """Whether two elements may share memory: not so if every axis steps over all that lies within the axes below it."""
    if a.size == 0:
        return False
    inside = a.itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(a.strides, a.shape, strict=True)):
        if size > 1:
            if stride < inside:
                return True
            inside += stride * (size - 1)
    return False


def _overlap(call: Call, a: Array, b: Array) -> bool:
    if not call.xp.may_share_memory(a, b):
        return False
    if call.xp is not np:
        return True
    try:
        return bool(np.shares_memory(a, b, max_work=_OVERLAP_WORK))
    except np.exceptions.TooHardError:
        return True
