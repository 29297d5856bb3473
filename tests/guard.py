"""Arrays between pages that may not be touched: reading or writing beyond them ends the process."""

import ctypes
import mmap
import os
from typing import Any, NamedTuple

import numpy as np

SIDES = ("start", "end")  # where an array lies flush with a guard page; elsewhere there may be a margin
MARGIN = 0xFF  # NaN in every floating type
PROT_NONE = 0

_libc = ctypes.CDLL(None, use_errno=True)


class Guarded(NamedTuple):
    """An array, and the bytes of its page that do not belong to it."""

    array: np.ndarray
    margin: np.ndarray

    def margin_is_whole(self) -> bool:
        return bool((self.margin == MARGIN).all())


def guarded(values: np.ndarray, side: str) -> Guarded:
    """A copy of ``values`` that begins, or ends, where a page begins that belongs to nobody."""
    page = mmap.PAGESIZE
    body = max(1, -(-values.nbytes // page)) * page
    memory = mmap.mmap(-1, page + body + page)
    raw = np.frombuffer(memory, np.uint8)
    for offset in (0, page + body):
        if _libc.mprotect(ctypes.c_void_p(raw.ctypes.data + offset), ctypes.c_size_t(page), PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    inner = raw[page : page + body]
    inner[:] = MARGIN
    start = 0 if side == "start" else body - values.nbytes
    array = inner[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    array[...] = values
    margin = inner[values.nbytes :] if side == "start" else inner[:start]
    return Guarded(array, margin)


def guarded_all(values: Any, side: str) -> list[Any]:
    """Each array guarded; what is no array stays."""
    return [guarded(value, side).array if isinstance(value, np.ndarray) else value for value in values]
