"""CUDA source to machine code, one kernel at a time, by NVIDIA's run-time compiler; results are kept on disk.

FASTCONV_CUDA_CACHE=<folder>
    Where compiled kernels are kept (default: ``fastconv/cuda`` in ``$XDG_CACHE_HOME`` or ``~/.cache``).

No device is needed here: kernels are compiled for an architecture, such as ``sm_90``.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cupy.cuda import nvrtc

from fastconv.backends.cupy.registry import SOURCES, Kernel

OPTIONS = ("--std=c++17",)
_DIGEST = hashlib.sha256().digest_size


class Compiled(NamedTuple):
    """Machine code, the kernel's name in it, and what the compiler said."""

    code: bytes
    name: str
    log: str


def compile_kernel(kernel: Kernel, architecture: str, *options: str) -> Compiled:
    """Compile a kernel now.

    Raises
    ------
    RuntimeError
        If that fails, with the compiler's messages.
    """
    names, texts = zip(*headers().items(), strict=True)
    program = nvrtc.createProgram(f'#include "{kernel.source}"\n', "fastconv.cu", texts, names)
    try:
        nvrtc.addNameExpression(program, kernel.expression)
        try:
            nvrtc.compileProgram(program, [f"--gpu-architecture={architecture}", *OPTIONS, *options])
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise RuntimeError(f"{kernel.expression} for {architecture}: {error}\n{log}") from error
        code = nvrtc.getCUBIN(program) + b"\0"  # CuPy takes the last byte for the end of a string
        return Compiled(code, nvrtc.getLoweredName(program, kernel.expression), nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


def machine_code(kernel: Kernel, architecture: str) -> tuple[bytes, str]:
    """The code of a kernel and its name there, from the cache if it has them. Raises as `compile_kernel` does."""
    path = cache_folder() / f"{_key(kernel, architecture)}.cubin"
    found = _read(path)
    if found is None:
        compiled = compile_kernel(kernel, architecture)
        found = compiled.code, compiled.name
        _write(path, *found)
    return found


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    if named := os.environ.get("FASTCONV_CUDA_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastconv" / "cuda"


def version() -> str:
    """The compiler's version."""
    return ".".join(map(str, nvrtc.getVersion()))


@cache
def headers() -> dict[bytes, bytes]:
    """The source, by file name, as the compiler takes it."""
    return {path.name.encode(): path.read_bytes() for path in sorted(SOURCES.glob("*.cuh"))}


def _key(kernel: Kernel, architecture: str) -> str:
    """What the code depends on; it names the file."""
    parts = [kernel.expression, kernel.source, architecture, version(), *OPTIONS]
    digest = hashlib.sha256("\0".join(parts).encode())
    for name, text in headers().items():
        digest.update(b"\0".join((name, text, b"")))
    return digest.hexdigest()[:32]


def _read(path: Path) -> tuple[bytes, str] | None:
    """What `_write` wrote; ``None`` where there is nothing, or something else."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, rest = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(rest).digest() != digest:
        return None
    name, _, code = rest.partition(b"\n")
    return code, name.decode()


def _write(path: Path, code: bytes, name: str) -> None:
    """Whole or not at all, whatever other processes write; a folder that cannot be written to is no error."""
    rest = name.encode() + b"\n" + code
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(rest).digest() + rest)
        Path(made).replace(path)
    except OSError:
        return


def registers(log: str) -> list[tuple[str, int, int, int]]:
    """Of each kernel in a log of ``--ptxas-options=-v``: name, registers, bytes of stack and bytes spilled."""
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    return [
        (name, int(used), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, used in re.findall(pattern, log, re.DOTALL)
    ]
