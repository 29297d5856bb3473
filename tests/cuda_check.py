"""Compiles every CUDA kernel for every architecture, without a GPU, and checks what came of it.

``make cuda-check`` runs it where CuPy and NVIDIA's compiler are installed; it fails where they are not. With arguments,
such as ``sm_90``, for these architectures only. The last line tells how much was compiled and checked.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import cupy
import numpy as np
from cupy.cuda.function import Function

import fastconv
from fastconv.backends.cupy.compile import Compiled, compile_kernel, registers, version
from fastconv.backends.cupy.launch import packed
from fastconv.backends.cupy.registry import Kernel, all_kernels

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a")
DISASSEMBLED = "sm_90"  # the architecture whose instructions are looked at
REGISTERS, SHARED = 65536, 48 * 1024  # of a block, on every device

# What the sums of a matrix product are made of, by element; operands come from shared memory as vectors.
PRODUCTS = {"float": "FFMA", "double": "DFMA", "int": "IMAD", "long long": "IMAD.WIDE"}
VECTORS = r"LDS\.(U\.)?(64|128)"


class Checked(NamedTuple):
    """A kernel for an architecture: registers of a thread, checks that held, and those that did not."""

    kernel: Kernel
    architecture: str
    registers: int
    passed: int
    failed: list[str]


def check(job: tuple[Kernel, str]) -> Checked:
    """Compile one and look at it."""
    kernel, architecture = job
    try:
        compiled = compile_kernel(kernel, architecture, "--ptxas-options=-v")
    except RuntimeError as error:
        return Checked(kernel, architecture, 0, 0, [str(error)])
    results = dict(checks(kernel, architecture, compiled))
    failed = [name for name, holds in results.items() if not holds]
    return Checked(kernel, architecture, registers(compiled.log)[0][1], len(results) - len(failed), failed)


def checks(kernel: Kernel, architecture: str, compiled: Compiled) -> Iterator[tuple[str, bool]]:
    """What must hold, and whether it does."""
    ((name, used, stack, spilled),) = registers(compiled.log)
    shared = int((re.search(r"(\d+) bytes smem", compiled.log) or [0, 0])[1])
    yield "it has the name that it is looked up by", name == compiled.name
    yield f"no register is spilled ({spilled} bytes are)", spilled == 0
    yield f"there is no stack frame (one of {stack} bytes is)", stack == 0
    yield (
        f"a block has enough registers ({used} for {kernel.threads} threads)",
        (used * kernel.threads <= REGISTERS),
    )
    yield f"every device has its shared memory ({shared} bytes)", shared <= SHARED
    yield "the machine code is an ELF file", compiled.code.startswith(b"\x7fELF")
    if architecture == DISASSEMBLED and kernel.template == "conv_gemm":
        code = disassembled(compiled.code)
        product, rows, columns = PRODUCTS[kernel.arguments[0]], *map(int, kernel.arguments[5:7])
        found = len(re.findall(rf"\b{re.escape(product)}\b", code))
        yield f"its products are {product} ({found} of them)", found >= 8 * rows * columns
        yield "it reads vectors from shared memory", bool(re.search(VECTORS, code))
        yield "it touches no local memory", not re.search(r"\b(LDL|STL)\b", code)


def disassembled(code: bytes) -> str:
    """The instructions, as text."""
    tool = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin", "nvdisasm")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(code)
        return subprocess.run([tool, path], check=True, capture_output=True, text=True).stdout


def launches_take_arguments() -> Iterator[tuple[str, bool]]:
    """CuPy looks at arguments before it launches; without a device the launch itself fails, with another error."""
    nowhere, stream = Function.__new__(Function), SimpleNamespace(ptr=0)
    for name, argument, welcome in (
        ("a struct", packed((1, (2, 3, 4), True), np.dtype(np.int32)), True),
        ("a struct of long ints", packed((1, 2), np.dtype(np.int64)), True),
        *((f"an {t}", np.dtype(t).type(1), True) for t in ("int8", "int64", "uint64", "float32", "float64")),
        ("a null pointer", None, True),
        ("a NumPy array", np.zeros(3), False),
    ):
        try:
            nowhere((1,), (1,), (argument,), 0, stream)
        except TypeError:
            yield f"{name} {'is' if welcome else 'is no'} argument", not welcome
        except (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError):
            yield f"{name} {'is' if welcome else 'is no'} argument", welcome


def backend_tells_why() -> Iterator[tuple[str, bool]]:
    """With CuPy, whether there is a device or not."""
    state = fastconv.available_backends()["cupy"]
    yield (
        f"the backend works or there is no device: {state}",
        state is True or state.startswith("no CUDA device"),
    )


def main(architectures: list[str]) -> int:
    """Check everything; returns how many checks failed."""
    start = time.monotonic()
    print(f"CuPy {cupy.__version__}, NVRTC {version()}")
    general = dict([*launches_take_arguments(), *backend_tells_why()])
    failed = [name for name, holds in general.items() if not holds]
    passed = len(general) - len(failed)
    kernels = list(all_kernels())
    jobs = [(kernel, architecture) for architecture in architectures for kernel in kernels]
    most: dict[str, dict[str, int]] = {}
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        for found in pool.imap_unordered(check, jobs, chunksize=4):
            passed += found.passed
            failed += [f"{found.kernel.expression} for {found.architecture}: {name}" for name in found.failed]
            of = most.setdefault(found.kernel.template, {})
            of[found.architecture] = max(of.get(found.architecture, 0), found.registers)
    width = max(map(len, most))
    print(f"{'registers of a thread, at most':{width}}", *(f"{a:>8}" for a in architectures))
    for template in sorted(most):
        print(f"{template:{max(width, 30)}}", *(f"{most[template].get(a, 0):8d}" for a in architectures))
    for text in failed:
        print(f"failed: {text}")
    print(
        f"{len(kernels)} kernels compiled for {len(architectures)} architectures in {time.monotonic() - start:.0f} s, "
        f"{passed} checks passed, {len(failed)} failed"
    )
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(ARCHITECTURES)) > 0)
