"""The support table of README.md, made by calling every operation on every CPU backend with every dtype.

``python tests/support_table.py`` rewrites it; test_readme.py checks that it is up to date.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import fastconv

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- support table: begin -->\n", "<!-- support table: end -->\n"

BACKENDS = ("reference", "cpp", "numba")

# What a code in the table stands for; it is shown where all its types work in 1-D, 2-D and 3-D.
DTYPES: dict[str, tuple[Any, ...]] = {
    "f16": (np.float16,),
    "bf16": (ml_dtypes.bfloat16,),
    "f32": (np.float32,),
    "f64": (np.float64,),
    "int": (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64),
    "bool": (np.bool_,),
}


class Probe:
    """Makes the calls of one operation and remembers how far they went; ``Nd`` in a name is 1d, 2d or 3d."""

    def __init__(self, ndim: int, dtype: Any, backend: str) -> None:
        self.ndim, self.dtype, self.backend = ndim, dtype, backend
        self.forward_works = self.gradient_works = False
        self.gradient_name = ""

    def ones(self, *leading: int, size: int) -> np.ndarray:
        return np.ones((*leading, *[size] * self.ndim), self.dtype)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(fastconv, name.replace("Nd", f"{self.ndim}d"))(*args, backend=self.backend, **kwargs)

    def forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        result = self.call(name, *args, **kwargs)
        self.forward_works = True
        return result

    def gradient(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.gradient_name = name
        self.call(name, *args, **kwargs)
        self.gradient_works = True


def conv(p: Probe) -> None:
    x, weight, bias = p.ones(1, 2, size=4), p.ones(3, 2, size=3), np.ones(3, p.dtype)
    y = p.forward("convNd", x, weight, bias)
    p.gradient("convNd_backward", y, x, weight)


def conv_transpose(p: Probe) -> None:
    x, weight, bias = p.ones(1, 2, size=2), p.ones(2, 3, size=3), np.ones(3, p.dtype)
    y = p.forward("conv_transposeNd", x, weight, bias)
    p.gradient("conv_transposeNd_backward", y, x, weight)


def max_pool(p: Probe) -> None:
    x = p.ones(1, 2, size=4)
    y, indices = p.forward("max_poolNd", x, 2, return_indices=True)
    p.gradient("max_poolNd_backward", y, indices, x.shape)


def max_unpool(p: Probe) -> None:
    x = p.ones(1, 2, size=2)
    p.forward("max_unpoolNd", x, np.zeros(x.shape, np.int64), 2)


def avg_pool(p: Probe) -> None:
    x = p.ones(1, 2, size=4)
    y = p.forward("avg_poolNd", x, 2)
    p.gradient("avg_poolNd_backward", y, x.shape, 2)


def lp_pool(p: Probe) -> None:
    x = p.ones(1, 2, size=4)
    y = p.forward("lp_poolNd", x, 2, 2)
    p.gradient("lp_poolNd_backward", y, x, 2, 2)


def adaptive_avg_pool(p: Probe) -> None:
    x = p.ones(1, 2, size=5)
    y = p.forward("adaptive_avg_poolNd", x, 2)
    p.gradient("adaptive_avg_poolNd_backward", y, x.shape)


def adaptive_max_pool(p: Probe) -> None:
    x = p.ones(1, 2, size=5)
    y, indices = p.forward("adaptive_max_poolNd", x, 2, return_indices=True)
    p.gradient("max_poolNd_backward", y, indices, x.shape)


def unfold(p: Probe) -> None:
    size, kernel = (4,) * p.ndim, (2,) * p.ndim
    columns = p.forward("unfold", p.ones(1, 2, size=4), kernel)
    p.gradient("fold", columns, size, kernel)


def fold(p: Probe) -> None:
    size, kernel = (4,) * p.ndim, (2,) * p.ndim
    x = p.forward("fold", np.ones((1, 2 * 2**p.ndim, 3**p.ndim), p.dtype), size, kernel)
    p.gradient("unfold", x, kernel)


OPERATIONS: dict[str, Callable[[Probe], None]] = {
    "convNd": conv,
    "conv_transposeNd": conv_transpose,
    "max_poolNd": max_pool,
    "max_unpoolNd": max_unpool,
    "avg_poolNd": avg_pool,
    "lp_poolNd": lp_pool,
    "adaptive_avg_poolNd": adaptive_avg_pool,
    "adaptive_max_poolNd": adaptive_max_pool,
    "unfold": unfold,
    "fold": fold,
}


def probe(operation: Callable[[Probe], None], ndim: int, dtype: Any, backend: str) -> Probe:
    found = Probe(ndim, dtype, backend)
    with contextlib.suppress(TypeError):  # a refused dtype; anything else is a fault and stops the program
        operation(found)
    return found


def row(name: str) -> str:
    cells, gradient = [], ""
    for backend in BACKENDS:
        complete, forward_only = [], []
        for code, dtypes in DTYPES.items():
            probes = [probe(OPERATIONS[name], n, dtype, backend) for n in (1, 2, 3) for dtype in dtypes]
            gradient = max(p.gradient_name for p in probes) or gradient
            if all(p.gradient_works for p in probes):
                complete.append(code)
            elif all(p.forward_works for p in probes):
                forward_only.append(code)
        cells.append(" ".join(complete) + (f" ({' '.join(forward_only)})" if forward_only else ""))
    gradient = f"`{gradient}`" if gradient else ""
    return f"| `{name}` | {gradient} | " + " | ".join(cells) + " |\n"


def table() -> str:
    head = f"| operation | gradient | {' | '.join(BACKENDS)} |\n|---{'|---' * (1 + len(BACKENDS))}|\n"
    return head + "".join(row(name) for name in OPERATIONS)


if __name__ == "__main__":
    text = README.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    README.write_text(text[:start] + table() + text[end:])
