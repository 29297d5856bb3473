"""The structure of the project, held by reading its source: floors, homes of libraries, rules for C++.

Each rule is a function from source text to offences, so the rules themselves are tested on small offenders.
"""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import SANITIZED

import fastconv
from fastconv.backends import BACKENDS
from fastconv.backends.protocol import KERNELS, Backend

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastconv"
CSRC = ROOT / "csrc"

# Lowest first. A module may import its own floor and those below; a name stands for everything in it.
FLOORS = (
    ("fastconv.errors", "fastconv.machine", "fastconv._version"),
    ("fastconv.geometry",),
    ("fastconv.config", "fastconv.dtypes", "fastconv.activations"),
    ("fastconv.memory", "fastconv.tuning", "fastconv._native"),
    ("fastconv.backends",),
    (
        "fastconv.ops",
        "fastconv.grad",
        "fastconv.plan",
        "fastconv.explain",
        "fastconv.info",
        "fastconv.testing",
    ),
    ("fastconv",),  # the public names
    ("fastconv.nn", "fastconv.optim", "fastconv.data", "fastconv.models", "fastconv.viz"),
    ("fastconv.train",),
    ("fastconv.bench", "fastconv.cli", "fastconv.__main__"),
)

# Libraries, and the only files or folders of fastconv that may import them.
HOMES = {
    "numba": ("backends.numba_cpu",),
    "llvmlite": ("backends.numba_cpu",),
    "cupy": ("backends.cupy",),
    "fastconv._native": ("backends.cpp", "memory"),
}

# Other optional libraries: imported where they are used, inside functions.
LAZY = {"PIL", "matplotlib", "ml_dtypes", "safetensors", "skimage", "sklearn", "tqdm"}

# What fastconv is compared with: in fastconv.bench only, inside functions.
PEERS = {"onnx", "onnxruntime", "scipy", "threadpoolctl", "torch"}

# What `import fastconv` must not bring in.
UNWANTED = {*LAZY, *PEERS, "numba", "cupy", "autograd", "mpi4py"}

MAX_LINES = 900
MAX_IMPORT_MS = 30


class Import(NamedTuple):
    module: str
    line: int
    lazy: bool  # inside a function, or for the type checker only


def imports(source: str, package: str = "fastconv") -> Iterator[Import]:
    """Every import in `source`, a module of `package`; submodules by their full names."""
    tree = ast.parse(source)
    lazy: set[ast.AST] = set()
    for node in ast.walk(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if typing_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lazy.update(child for statement in node.body for child in ast.walk(statement))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, node in lazy)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(full if is_module(full) else base, node.lineno, node in lazy)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return name in HOMES or (
        name.startswith("fastconv.") and (path.is_dir() or path.with_suffix(".py").exists())
    )


def floor(module: str) -> int:
    """The floor with the longest name that `module` is or lies in; only `fastconv` itself is "fastconv"."""
    found = [
        (len(name), level)
        for level, names in enumerate(FLOORS)
        for name in names
        if module == name or (name != "fastconv" and module.startswith(name + "."))
    ]
    if not found:
        raise AssertionError(f"{module} has no floor: add it to FLOORS")
    return max(found)[1]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def upward_imports(module: str, source: str, package: str) -> list[str]:
    return [
        f"line {found.line}: {module} imports {found.module}"
        for found in imports(source, package)
        if found.module.split(".")[0] == "fastconv" and floor(found.module) > floor(module)
    ]


def misplaced_libraries(module: str, source: str, package: str) -> list[str]:
    """Imports of a library outside its home, on import where that must be lazy, or of an unknown one."""
    offences = []
    for found in imports(source, package):
        top = found.module.split(".")[0]
        homes = HOMES.get(found.module, HOMES.get(top))
        if homes is not None:
            if not any((module + ".").startswith(f"fastconv.{home}.") for home in homes):
                offences.append(f"line {found.line}: {found.module} belongs to {' and '.join(homes)}")
        elif top in LAZY or (top in PEERS and module.startswith("fastconv.bench.")):
            if not found.lazy:
                offences.append(f"line {found.line}: {found.module} must be imported inside a function")
        elif top not in sys.stdlib_module_names and top not in ("numpy", "fastconv"):
            offences.append(f"line {found.line}: {found.module} is no dependency")
        if top in ("pickle", "shelve", "marshal", "urllib", "http", "ftplib", "socket"):
            offences.append(f"line {found.line}: {found.module}: no pickle and no network")
    return offences


def careless_handlers(source: str) -> list[str]:
    """Bare `except:` and `except ...: pass` around everything."""
    return [
        f"line {node.lineno}: except without a class, or for every class"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and not any(isinstance(child, ast.Raise) for child in ast.walk(node))
    ]


def without_comments(source: str) -> str:
    """C++ without comments and string contents; line numbers stay."""

    def blank(match: re.Match[str]) -> str:
        return '""' if match[0].startswith('"') else "\n" * match[0].count("\n")

    # An include's file name is no string.
    return re.sub(r'//[^\n]*|/\*.*?\*/|(?<!include )"(?:\\.|[^"\\\n])*"', blank, source, flags=re.DOTALL)


def openmp_uses(source: str) -> list[str]:
    return re.findall(r"#\s*pragma\s+omp\b|\bomp_\w+|<omp\.h>|\b_OPENMP\b", without_comments(source))


def pybind_uses(source: str) -> list[str]:
    return re.findall(r"pybind11|\bPython\.h\b|\bPy[A-Z_]\w+", without_comments(source))


# Types, limits and vector intrinsics: nothing that defines an inline function which two files would share.
TILE_INCLUDES = {"cfloat", "climits", "cstddef", "cstdint", "float.h", "limits.h", "stddef.h", "stdint.h"}
TILE_INCLUDES |= {"arm_neon.h", "immintrin.h"}


def tile_offences(source: str) -> list[str]:
    """What a tile may not hold: it would let wide instructions leak into code that older processors run."""
    code = without_comments(source)
    types = r"u?int(?:\d*|ptr)_t|size_t|ptrdiff_t"
    offences = re.findall(rf"\bstd::(?!(?:{types})\b)\w+|\busing\s+namespace\s+std\b", code)
    offences += re.findall(r"\[[&=\w\s,]*\]\s*\([^()]*\)\s*(?:mutable\s*)?(?:->[^{]*)?\{", code)  # lambdas
    offences += re.findall(r"\bthread_local\b|\bstatic\b(?![^;{=]*\()[^;]*;", code)
    offences += [name for name in re.findall(r"#\s*include\s*<([^>]+)>", code) if name not in TILE_INCLUDES]
    return offences + openmp_uses(source)


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def cpp_files() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in (".cpp", ".h", ".inl"))


def report(offences: dict[Path, list[str]]) -> str:
    return "\n".join(
        f"{path.relative_to(ROOT)}: {text}" for path, found in offences.items() for text in found
    )


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


# --- Python ---


def test_imports_run_downward_only():
    files = python_files("fastconv")
    assert len(files) > 10
    offences = {p: upward_imports(module_name(p), p.read_text(), package_of(p)) for p in files}
    assert not report(offences), report(offences)


def test_libraries_stay_in_their_homes():
    files = python_files("fastconv")
    offences = {p: misplaced_libraries(module_name(p), p.read_text(), package_of(p)) for p in files}
    assert not report(offences), report(offences)


def test_backends_do_not_import_each_other():
    modules = {row.module for row in BACKENDS.values()}
    offences = {}
    for path in (PACKAGE / "backends").rglob("*.py"):
        own = module_name(path)
        others = {m for m in modules if not (own + ".").startswith(m + ".")}
        offences[path] = [
            f"line {found.line}: imports {found.module}"
            for found in imports(path.read_text(), package_of(path))
            if any((found.module + ".").startswith(m + ".") for m in others)
        ]
    assert not report(offences), report(offences)


def test_no_careless_except():
    files = python_files("fastconv", "examples", "benchmarks")
    offences = {p: careless_handlers(p.read_text()) for p in files}
    assert not report(offences), report(offences)


def backend_functions(name: str) -> dict[str, int]:
    """The functions in a backend's file or folder and how many parameters each has, without importing it."""
    base = ROOT / BACKENDS[name].module.replace(".", "/")
    files = sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
    return {
        node.name: len(node.args.posonlyargs) + len(node.args.args)
        for path in files
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_has_every_kernel(backend):
    found = backend_functions(backend)
    if not found:  # announced, not there: it must say so, and not be half there
        with pytest.raises(ImportError, match=r"no .* kernels"):
            importlib.import_module(BACKENDS[backend].module)
        return
    for kernel in (*KERNELS, "conv_plan", "choice", "describe"):
        expected = getattr(Backend, kernel).__code__.co_argcount - 1  # less self
        assert found.get(kernel) == expected, f"{kernel} needs {expected} parameters"
    if fastconv.available_backends()[backend] is True:
        module = importlib.import_module(BACKENDS[backend].module)
        assert all(callable(getattr(module, kernel)) for kernel in KERNELS)


def test_kernels_have_one_name_everywhere():
    stub = ast.parse((PACKAGE / "_native.pyi").read_text())
    typed = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    bindings = (CSRC / "bindings.cpp").read_text()
    for kernel in KERNELS:
        assert kernel in typed, f"_native.pyi lacks {kernel}"
        assert f'"{kernel}"' in bindings or f"({kernel})" in bindings, f"bindings.cpp does not bind {kernel}"


def test_no_file_is_too_long():
    files = [*python_files("fastconv", "tests", "benchmarks", "examples"), *cpp_files()]
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not long


# --- C++ ---


def test_only_parallel_knows_openmp():
    files = cpp_files()
    assert len(files) > 5
    offences = {p: openmp_uses(p.read_text()) for p in files if p.stem != "parallel"}
    assert not report(offences), report(offences)


def test_only_bindings_knows_python():
    offences = {p: pybind_uses(p.read_text()) for p in cpp_files() if p.name != "bindings.cpp"}
    assert not report(offences), report(offences)


def test_tiles_hold_arithmetic_only():
    files = [p for p in cpp_files() if p.parent.name == "tiles" and p.stem != "select_tiles"]
    assert files
    offences = {p: tile_offences(p.read_text()) for p in files}
    assert not report(offences), report(offences)


def test_no_build_relaxes_arithmetic_or_needs_this_processor():
    files = [*cpp_files(), *(ROOT / name for name in ("setup.py", "pyproject.toml", "Makefile"))]
    flags = r"march=native|mtune=native|mcpu=native|fast-math|Ofast|unsafe-math|fastmath\s*=\s*True"
    offences = {p: re.findall(flags, p.read_text()) for p in [*files, *python_files("fastconv")]}
    assert not report(offences), report(offences)


# --- the rules themselves ---


@pytest.mark.parametrize(
    ("module", "source", "offends"),
    [
        ("fastconv.geometry", "from fastconv.errors import ShapeError", False),
        ("fastconv.geometry", "from fastconv.ops import conv2d", True),
        ("fastconv.geometry", "from fastconv import nn", True),
        ("fastconv.geometry", "import fastconv", True),
        ("fastconv.geometry", "def f():\n    from .nn import Module", True),
        ("fastconv.train", "import fastconv\nfrom fastconv import nn", False),
    ],
)
def test_rule_floors(module, source, offends):
    assert bool(upward_imports(module, source, "fastconv")) == offends


@pytest.mark.parametrize(
    ("module", "source", "offends"),
    [
        ("fastconv.backends.numba_cpu", "import numba", False),
        ("fastconv.ops", "from numba import njit", True),
        ("fastconv.backends.cpp", "from fastconv import _native", False),
        ("fastconv.memory", "from fastconv import _native", False),
        ("fastconv.ops", "from fastconv import _native", True),
        ("fastconv.viz", "import matplotlib.pyplot as plt", True),
        ("fastconv.viz", "def f():\n    import matplotlib.pyplot as plt", False),
        ("fastconv.viz", "if TYPE_CHECKING:\n    from matplotlib.axes import Axes", False),
        ("fastconv.ops", "def f():\n    import torch", True),
        ("fastconv.bench.peers", "def f():\n    import torch", False),
        ("fastconv.bench.peers", "import torch", True),
        ("fastconv.train", "import pickle", True),
        ("fastconv.data", "from urllib.request import urlopen", True),
    ],
)
def test_rule_homes(module, source, offends):
    assert bool(misplaced_libraries(module, source, "fastconv")) == offends


@pytest.mark.parametrize(
    ("handler", "offends"),
    [("except:\n pass", True), ("except Exception:\n pass", True), ("except OSError:\n pass", False)],
)
def test_rule_handlers(handler, offends):
    assert bool(careless_handlers(f"try:\n f()\n{handler}")) == offends


@pytest.mark.parametrize(
    ("source", "offends"),
    [
        ("for (int i = 0; i < n; ++i) y[i] = x[i] + w[k];", False),
        ("static inline float dot(const float* a) { return a[0]; }", False),
        ("static void pack(const float* x, float* y) {}", False),
        ("#include <cstdint>\nstd::int64_t n;", False),
        ("// std::vector is not for here", False),
        ("float v = std::max(a, b);", True),
        ("#include <algorithm>", True),
        ("#include <cmath>", True),
        ("auto f = [&](int i) { return i; };", True),
        ("auto f = [=, &y](int i) -> int { return i; };", True),
        ("static int counter = 0;", True),
        ("static const float table[4] = {1, 2, 3, 4};", True),
        ("#pragma omp simd", True),
    ],
)
def test_rule_tiles(source, offends):
    assert bool(tile_offences(source)) == offends


def test_rule_openmp_and_python():
    assert openmp_uses("int n = omp_get_max_threads();")
    assert openmp_uses("#  pragma omp parallel")
    assert not openmp_uses("parallel_for(n, body);  // omp_get_max_threads() decides")
    assert pybind_uses("#include <pybind11/pybind11.h>")
    assert pybind_uses("PyErr_CheckSignals();")
    assert not pybind_uses('throw Error("Python.h");')


# --- import ---

# Processor time, which other work on this machine does not stretch.
MEASURE = """
import json, sys, time, numpy
before = set(sys.modules)
start = time.process_time()
import fastconv
elapsed = time.process_time() - start
print(json.dumps({"ms": 1e3 * elapsed, "modules": sorted(set(sys.modules) - before)}))
"""


@pytest.mark.smoke
def test_import_is_light(tmp_path):
    # Compiled once, as in any installation: the first run leaves its bytecode here.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", MEASURE]
    runs = []
    for _ in range(8):
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout))
    imported = {module.split(".")[0] for module in runs[0]["modules"]}
    assert not imported & UNWANTED
    assert "fastconv._native" not in runs[0]["modules"], "backends are imported when first used"
    if not SANITIZED:  # an instrumented allocator is slower
        assert min(run["ms"] for run in runs[1:]) <= MAX_IMPORT_MS  # what other work does to it only adds
