"""The CUDA kernels on this machine's CPU, and a backend of them for NumPy's arrays.

g++ compiles the kernels' own source behind `cuda_on_cpu.h`. Everything above a launch is what runs with CuPy.
FASTCONV_EXPECT_SANITIZED=1 compiles with AddressSanitizer.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.backends.cupy import conv, pool
from fastconv.backends.cupy.registry import SOURCES, Kernel, all_kernels
from fastconv.backends.protocol import Choice, Planned, planned

HEADER = Path(__file__).parent / "cuda_on_cpu.h"
BUILD = Path(__file__).resolve().parents[2] / "build" / "emulator"
SANITIZED = os.environ.get("FASTCONV_EXPECT_SANITIZED", "0") not in ("", "0")
# Sizes may be as large as numbers are: offsets that nobody uses wrap around, as on the device.
FLAGS = (
    "-std=c++17",
    "-fwrapv",
    "-fPIC",
    "-shared",
    "-fno-gnu-unique",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-maybe-uninitialized",
)
OPTIMIZED, CHECKED = ("-O2",), ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address")

CXX = os.environ.get("CXX", "g++")

RUN = """
extern "C" bool run_{number}(unsigned blocks, unsigned threads, void** arguments, unsigned order) {{
    return emulator::launch({expression}, blocks, threads, arguments, order);
}}
"""


class EmulatorError(Exception):
    """A kernel does what would hang or be undefined on a device."""


def available() -> bool | str:
    """Whether it works here, or why not."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        return f"it cannot switch stacks on {platform.machine()} with {sys.platform}"
    return True if shutil.which(CXX) else f"there is no {CXX}"


def compiled(source: str, kernels: tuple[Kernel, ...], folder: Path = SOURCES) -> ctypes.PyDLL:
    """Kernels of one file, as functions run_0, run_1, ... They hold the interpreter's lock: blocks share memory."""
    lines = [f'#include "{HEADER}"', f'#include "{folder / source}"']
    lines += [RUN.format(number=i, expression=kernel.expression) for i, kernel in enumerate(kernels)]
    lines += ['extern "C" const char* error() { return emulator::block.error; }']
    command = [CXX, *FLAGS, *(CHECKED if SANITIZED else OPTIMIZED)]
    texts = [HEADER.read_text(), *(path.read_text() for path in sorted(folder.glob("*.cuh")))]
    key = hashlib.sha256("\0".join([*command, *lines, *texts]).encode()).hexdigest()[:20]
    library = BUILD / f"{Path(source).stem}-{key}.so"
    if not library.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        text, made = library.with_suffix(".cpp"), library.with_suffix(f".{os.getpid()}")
        text.write_text("\n".join(lines))
        subprocess.run([*command, str(text), "-o", str(made)], check=True)
        made.replace(library)
    found = ctypes.PyDLL(str(library))
    found.error.restype = ctypes.c_char_p
    return found


class Emulator:
    """A `fastconv.backends.cupy.launch.Device` whose memory is NumPy's."""

    def __init__(self) -> None:
        self.order = 0  # in which threads run: upwards, downwards (1), or shuffled
        self.launched: list[Kernel] | None = None

    def launch(self, kernel: Kernel, blocks: int, *arguments: Any) -> None:
        if self.launched is not None:
            self.launched.append(kernel)
        values = [
            np.array(a) if isinstance(a, np.generic) else np.uint64(0 if a is None else a.ctypes.data)
            for a in arguments
        ]
        kept = [np.ascontiguousarray(value) for value in values]
        addresses = (ctypes.c_void_p * len(kept))(*(value.ctypes.data for value in kept))
        library, number = _function(kernel)
        run = getattr(library, f"run_{number}")
        run.restype = ctypes.c_bool
        if not run(blocks, kernel.threads, addresses, self.order):
            raise EmulatorError(f"{kernel.expression}: {library.error().decode()}")

    def empty(self, size: int, dtype: np.dtype[Any]) -> Any:
        return np.full(size * dtype.itemsize, 0xFF, np.uint8).view(dtype)  # NaN where that exists

    @contextmanager
    def ordered(self, order: int) -> Iterator[None]:
        before, self.order = self.order, order
        try:
            yield
        finally:
            self.order = before


@cache
def _function(kernel: Kernel) -> tuple[ctypes.PyDLL, int]:
    kernels = tuple(k for k in all_kernels() if k.source == kernel.source)
    return _library(kernel.source, kernels), kernels.index(kernel)


@cache
def _library(source: str, kernels: tuple[Kernel, ...]) -> ctypes.PyDLL:
    return compiled(source, kernels)


# --- the backend ---

device = Emulator()
ALGORITHMS = ("auto", "direct")
TAKES_NARROW = False
SILENT = True


def conv_forward(*arguments: Any) -> None:
    conv.conv_forward(device, *arguments)


def conv_grad_input(*arguments: Any) -> None:
    conv.conv_grad_input(device, *arguments)


def conv_grad_weight(*arguments: Any) -> None:
    conv.conv_grad_weight(device, *arguments)


def conv_plan(kernel: str, *arguments: Any) -> Planned:
    kernels = {"conv_forward": conv_forward, "conv_grad_input": conv_grad_input}
    return planned(kernels[kernel], *arguments)


def max_pool(*arguments: Any) -> None:
    pool.max_pool(device, *arguments)


def max_pool_grad_input(*arguments: Any) -> int:
    return int(pool.max_pool_grad_input(device, *arguments)[0])


def avg_pool(*arguments: Any) -> None:
    pool.avg_pool(device, *arguments)


def avg_pool_grad_input(*arguments: Any) -> None:
    pool.avg_pool_grad_input(device, *arguments)


def choice(_kernel: str, _dtype: Any, geometry: Any) -> Choice:
    return Choice(threads=1, algorithm=None if geometry is None else "direct")


def describe() -> dict[str, str]:
    return {"device": "this machine's CPU"}
