"""IDX files: the format of MNIST and its successors, plain or gzipped.

A file holds four bytes (two zeros, a code for the type of number, the number of axes), the length of each
axis as a big-endian 32-bit number, and the elements, big-endian, in row-major order.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_AXES = 4
# Deflate cannot compress further than this: two bits at the least for a match of 258 bytes.
_DEFLATE_LIMIT = 1032
_CHUNK = 1 << 20

_DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}


class _Readable(Protocol):
    def read(self, n: int, /) -> bytes: ...


class DataError(ValueError):
    """A data file or folder is not what it should be; the message names the file."""


def read_idx(path: str | os.PathLike[str], *, max_bytes: int = 1 << 31) -> NDArray[Any]:
    """The array in an IDX file; gzip is recognised by content, whatever the name.

    Parameters
    ----------
    path : path
        The file.
    max_bytes : int
        The largest array to accept, in bytes; nothing is allocated for a file that claims more.

    Returns
    -------
    numpy.ndarray
        1 to 4 axes; uint8, int8, int16, int32, float32 or float64 in native byte order.

    Raises
    ------
    DataError
        The file is not IDX, is damaged or truncated, holds more than its header says, or is too large.
    OSError
        The file cannot be read.
    """
    path = Path(path)
    with path.open("rb") as raw:
        size = os.fstat(raw.fileno()).st_size
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not compressed:
            return _read(raw, path, max_bytes, size)
        try:
            with gzip.open(raw) as stream:
                return _read(stream, path, max_bytes, size * _DEFLATE_LIMIT, exact=False)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: truncated or damaged gzip file ({error})") from error


def _read(stream: _Readable, path: Path, max_bytes: int, size: int, exact: bool = True) -> NDArray[Any]:
    """Reads header and elements; ``size`` is what the stream holds, or the most it can (not ``exact``)."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        raise DataError(f"{path}: not an IDX file: it starts with {magic.hex(' ') or 'nothing'}")
    dtype, axes = _DTYPES[magic[2]], magic[3]
    if not 1 <= axes <= MAX_AXES:
        raise DataError(f"{path}: an IDX file of {axes} axes; 1 to {MAX_AXES} are supported")
    lengths = stream.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise DataError(
            f"{path}: truncated: the header ends after {4 + len(lengths)} of {4 + 4 * axes} bytes"
        )
    shape = tuple(int(n) for n in np.frombuffer(lengths, ">u4"))
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > max_bytes:
        raise DataError(
            f"{path}: the header's shape {shape} of {dtype.name} needs {nbytes} bytes, the limit is "
            f"{max_bytes}"
        )
    total = 4 + 4 * axes + nbytes
    if total > size or (exact and total != size):
        what = "truncated" if total > size else "too long"
        held = f"has {size}" if exact else f"cannot hold more than {size}"
        raise DataError(
            f"{path}: {what}: the header's shape {shape} of {dtype.name} needs {total} bytes, the file {held}"
        )
    data = _read_up_to(stream, nbytes + 1)
    if len(data) != nbytes:
        what = "truncated" if len(data) < nbytes else "too long"
        raise DataError(
            f"{path}: {what}: the header's shape {shape} of {dtype.name} does not match its contents"
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _read_up_to(stream: _Readable, n: int) -> bytes:
    """At most ``n`` bytes, in steps: memory follows what is really there, not what a header claims."""
    chunks = []
    while n > 0 and (chunk := stream.read(min(n, _CHUNK))):
        chunks.append(chunk)
        n -= len(chunk)
    return b"".join(chunks)


def write_idx(path: str | os.PathLike[str], array: ArrayLike) -> None:
    """Writes an array as an IDX file, gzipped if the name ends in ``.gz``.

    Parameters
    ----------
    path : path
        The file; an existing one is replaced.
    array : array_like
        1 to 4 axes; uint8, int8, int16, int32, float32 or float64.

    Raises
    ------
    ValueError
        The number of axes or the length of one has no place in the format.
    TypeError
        Nor has the dtype.
    """
    array = np.asarray(array)
    codes = {dtype.newbyteorder("="): code for code, dtype in _DTYPES.items()}
    dtype = array.dtype.newbyteorder("=")
    if dtype not in codes:
        known = ", ".join(dtype.name for dtype in codes)
        raise TypeError(f"write_idx: dtype must be one of {known}, got {array.dtype}")
    if not 1 <= array.ndim <= MAX_AXES or max(array.shape) >= 1 << 32:
        raise ValueError(
            f"write_idx: the array must have 1 to {MAX_AXES} axes of less than 2^32, got shape {array.shape}"
        )
    header = bytes([0, 0, codes[dtype], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    payload = header + array.astype(_DTYPES[codes[dtype]]).tobytes()
    path = Path(path)
    path.write_bytes(gzip.compress(payload, mtime=0) if path.suffix == ".gz" else payload)
