"""Builds the compiled module ``fastconv._native``; everything else about the package is in pyproject.toml.

Environment variables
---------------------
FASTCONV_NO_OPENMP=1
    Build without OpenMP even where the compiler has it: then only threads of our own can run the kernels.
FASTCONV_NO_NATIVE=1
    Leave the compiled module out, where it cannot be built: the other backends work without.
FASTCONV_SANITIZE=address,undefined | thread | ...
    Build with these sanitizers (see ``make asan``).
FASTCONV_BUILD_JOBS=N
    Compile N files at a time (default: the number of CPUs).
"""

import os
import re
import sys
import tempfile
from glob import glob
from pathlib import Path

import pybind11
from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup
from setuptools.errors import CompileError, LinkError

SOURCES = sorted(glob("csrc/*.cpp") + glob("csrc/tiles/*.cpp"))
HEADERS = sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inl", recursive=True))

# Each file in csrc/tiles/ names its instruction set by a pragma and the best is chosen at run time; IEEE
# arithmetic is part of the contract. So no flag here may raise the instruction set or relax arithmetic.
COMPILE_ARGS = ["-O3", "-Wall", "-Wextra"]

OPENMP_PROBE = """
#include <omp.h>
int main() {
    int threads = 0;
    #pragma omp parallel reduction(+ : threads)
    threads += 1;
    return omp_get_max_threads() > 0 && threads > 0 ? 0 : 1;
}
"""


def included_files(path: str, seen: set[str] | None = None) -> set[str]:
    """`path` and every file of this project that it includes, by name or through a macro, directly or not."""
    seen = set() if seen is None else seen
    if path not in seen and os.path.exists(path):
        seen.add(path)
        text = Path(path).read_text(encoding="utf-8")
        for name in re.findall(r'"([\w./]+\.(?:h|inl))"', text):
            for folder in (os.path.dirname(path), "csrc"):
                included_files(os.path.normpath(os.path.join(folder, name)), seen)
    return seen


class BuildNative(build_ext):
    """build_ext that settles OpenMP and sanitizers, and recompiles only what an edit touches."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # An editable install would compile everything anew in a temporary folder: use the usual one.
        if self.editable_mode:
            self.build_temp = f"build/temp.{self.plat_name}-{sys.implementation.cache_tag}"

    def build_extensions(self) -> None:
        (extension,) = self.extensions
        self.settle_flags(extension)
        flags_file = self.record_flags(extension)
        extension.depends = [*HEADERS, flags_file]

        def needs_recompile(obj: str, source: str) -> bool:
            built = os.stat(obj).st_mtime
            return any(os.stat(path).st_mtime > built for path in (*included_files(source), flags_file))

        with ParallelCompile("FASTCONV_BUILD_JOBS", needs_recompile=needs_recompile):
            super().build_extensions()

    def settle_flags(self, extension: Pybind11Extension) -> None:
        """Add what depends on the environment and on the compiler."""
        if os.environ.get("FASTCONV_NO_OPENMP", "0") not in ("", "0"):
            print("fastconv: building without OpenMP (FASTCONV_NO_OPENMP is set)")
        elif self.links_openmp():
            extension.define_macros.append(("FASTCONV_OPENMP", "1"))
            extension.extra_compile_args.append("-fopenmp")
            extension.extra_link_args.append("-fopenmp")
        else:
            print("fastconv: building without OpenMP: this compiler cannot build an OpenMP program")

        if sanitizers := os.environ.get("FASTCONV_SANITIZE"):
            flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
            extension.extra_compile_args += ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer", *flags]
            extension.extra_link_args += flags

    def links_openmp(self) -> bool:
        """Whether the compiler links an OpenMP program: it may know the flag and lack the library."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(OPENMP_PROBE, encoding="utf-8")
            try:
                flags = ["-fopenmp"]
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
                self.compiler.link_executable(objects, "probe", output_dir=folder, extra_postargs=flags)
            except (CompileError, LinkError):
                return False
        return True

    def record_flags(self, extension: Pybind11Extension) -> str:
        """Write the flags to a file, touched only when they change: it counts as a source of every object."""
        flags = [*self.compiler.compiler_so, *extension.extra_compile_args, *extension.extra_link_args]
        flags += [f"-D{name}={value}" for name, value in extension.define_macros]
        text = "\n".join([*flags, f"pybind11 {pybind11.__version__}", ""])
        path = Path(self.build_temp, "flags.txt")
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return str(path)


NATIVE = Pybind11Extension(
    "fastconv._native", SOURCES, cxx_std=17, extra_compile_args=COMPILE_ARGS, include_dirs=["csrc"]
)

setup(
    ext_modules=[] if os.environ.get("FASTCONV_NO_NATIVE", "0") not in ("", "0") else [NATIVE],
    cmdclass={"build_ext": BuildNative},
)
