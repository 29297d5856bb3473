"""Memory for results: large ones lie in buffers that outlive them, for the next result of that size.

New memory costs a page fault for every page when it is first written, which takes a large part of the time of an
operation that does little else. So the compiled module keeps the buffers of arrays that have died, up to a limit,
and has them on huge pages. Without it, and below `SMALLEST`, arrays are NumPy's own.
"""

from __future__ import annotations

import math
import os
import sys
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastconv import tuning
from fastconv.errors import SettingError
from fastconv.machine import usable_memory

SMALLEST = 1 << 17  # bytes: from here on, malloc often takes new pages for an array
MOST_BY_DEFAULT = 1 << 30
SHARE_BY_DEFAULT = 16  # one part in so many of the memory there is


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """As `numpy.empty`; a large array may lie in a recycled buffer, which it gives back when it dies.

    Raises
    ------
    MemoryError
        If there is not as much memory, even after all idle buffers were released.
    ValueError
        If the address space is too small for it.
    SettingError
        If ``FASTCONV_CACHE_BYTES`` is no number of bytes.
    """
    size = math.prod(shape) * dtype.itemsize
    if SMALLEST <= size <= sys.maxsize and (pool := _pool()) is not None and pool.cache_limit():
        try:
            array: NDArray[Any] = pool.empty(shape, dtype)
            return array
        except MemoryError:  # NumPy says how large it would be
            pass
    return np.empty(shape, dtype)


def clear_cache() -> int:
    """Release the memory that is kept for results and kernels to come, and forget which algorithms were measured best.

    These are the buffers of large results that have died, and the temporary memory of the compiled kernels, which
    each thread keeps from call to call: that of the calling thread at once, that of the kernels' own threads as soon
    as they have nothing to do. With ``algorithm="tune"`` (see `config_context`) convolutions measure anew.

    Returns
    -------
    int
        The bytes that were released at once. Arrays that are alive keep theirs.

    Raises
    ------
    ImportError
        If the environment variable ``FASTCONV_CACHE_BYTES`` is no number of bytes.

    See Also
    --------
    show_config : says how many bytes of buffers are kept and may be kept, and how many of temporary memory.
    """
    tuning.forget()
    pool = _pool()
    return 0 if pool is None else pool.clear_cache()


def cache_limit() -> int:
    """How many bytes of buffers may wait for their next use.

    Returns
    -------
    int
        What ``FASTCONV_CACHE_BYTES`` says, where 0 means that there are no such buffers; by default a sixteenth of
        the memory that this process may use, at most 1 GiB.

    Raises
    ------
    SettingError
        If it says anything else.
    """
    wanted = os.environ.get("FASTCONV_CACHE_BYTES")
    if not wanted:
        return min(usable_memory() // SHARE_BY_DEFAULT, MOST_BY_DEFAULT)
    if not wanted.isdecimal() or int(wanted[:20]) > sys.maxsize:
        raise SettingError(f"FASTCONV_CACHE_BYTES: expected a number of bytes, 0 or more, got {wanted!r}")
    return int(wanted)


def describe() -> dict[str, Any]:
    """What `fastconv.show_config` prints of it."""
    try:
        pool = _pool()
    except SettingError as error:
        return {"unavailable": str(error)}
    if pool is None:
        return {"unavailable": "there is no compiled module"}
    return {
        "bytes": pool.cached_bytes(),
        "limit": pool.cache_limit(),
        "workspaces": pool.workspace_bytes(),
    }


@cache
def _pool() -> ModuleType | None:
    """The compiled module, which has the buffers, with the limit set; ``None`` where it was left out."""
    limit = cache_limit()
    try:
        from fastconv import _native  # not when fastconv is imported
    except ImportError:
        return None
    _native.set_cache_limit(limit)
    return _native
