"""What a user installs: the source distribution, a wheel built from it, and a build without OpenMP."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fastconv

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

# Run in the installed wheel: 3x3 ones over 5x5 ones, forward and backward, on the compiled backend.
USE_WHEEL = """
import json
import numpy as np, fastconv
x, w = np.ones((1, 1, 5, 5), np.float32), np.ones((1, 1, 3, 3), np.float32)
y = fastconv.conv2d(x, w, backend="cpp")
assert y.shape == (1, 1, 3, 3) and (y == 9).all(), y
grad_x, grad_w, grad_b = fastconv.conv2d_backward(y, x, w, backend="cpp")
assert grad_x[0, 0, 2, 2] == 81 and (grad_w == 81).all() and (grad_b == 81).all()
print(json.dumps([fastconv.__file__, fastconv.show_config("dicts")]))
"""


def run(*command, cwd, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


TINY_PROJECT = {
    "pyproject.toml": '[project]\nname = "tiny"\nversion = "1"\n[tool.setuptools]\npackages = ["fastconv"]\n',
    "fastconv/__init__.py": "",
    "csrc/bindings.cpp": """
        #include <Python.h>
        #include "kernels.h"
        static PyModuleDef module{PyModuleDef_HEAD_INIT, "_native", nullptr, 0, nullptr, {}, {}, {}, {}};
        PyMODINIT_FUNC PyInit__native() { return kernel() ? PyModule_Create(&module) : nullptr; }
        """,
    "csrc/kernels.h": "int kernel();",
    "csrc/tiles/tiles_one.cpp": '#define BODY "tile_body.inl"\n#include BODY',
    "csrc/tiles/tile_body.inl": '#include "kernels.h"\nint kernel() { return 1; }',
    "csrc/other.cpp": "int other() { return 2; }",
}


def test_an_edit_rebuilds_what_depends_on_it(tmp_path):
    for name, text in TINY_PROJECT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copy(ROOT / "setup.py", tmp_path)

    def rebuilt(edited=None, **environment):
        """The objects that a build makes anew, after an edit of one file."""
        before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("build/**/*.o")}
        if edited:
            (tmp_path / edited).write_text(TINY_PROJECT[edited] + "\n")
        run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tmp_path, **environment)
        after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("build/**/*.o")}
        return {path.stem for path, time in after.items() if before.get(path) != time}

    everything = {"bindings", "other", "tiles_one"}
    assert rebuilt() == everything
    assert rebuilt() == set()
    assert rebuilt(edited="csrc/other.cpp") == {"other"}
    assert rebuilt(edited="csrc/tiles/tile_body.inl") == {"tiles_one"}
    assert rebuilt(edited="csrc/kernels.h") == {"bindings", "tiles_one"}
    assert rebuilt(FASTCONV_NO_OPENMP="1") == everything


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, built from a copy of the tree so that nothing is left behind in it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    skip = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=skip, dirs_exist_ok=True)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, cwd=source)
    (path,) = out.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def serial_wheel(sdist, tmp_path_factory):
    """A wheel built from the source distribution, without OpenMP: one compilation serves several tests."""
    source, out = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("wheel")
    run("tar", "--extract", "--file", sdist, cwd=source)
    (top,) = source.iterdir()
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out)
    run(*command, cwd=top, FASTCONV_NO_OPENMP="1")
    (path,) = out.glob("*.whl")
    return path


def test_sdist_holds_every_source(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h", ".inl")]
    wanted += [p for p in (ROOT / "fastconv").rglob("*") if p.suffix in (".py", ".pyi", ".typed", ".cuh")]
    wanted += (ROOT / "tests").rglob("*.py")
    wanted += [ROOT / name for name in ("LICENSE", "README.md", "CHANGELOG.md", "setup.py", "Makefile")]
    assert len(wanted) > 50
    assert not {str(p.relative_to(ROOT)) for p in wanted} - held
    assert not [name for name in held if name.endswith((".so", ".o", ".pyc"))]


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(serial_wheel):
    with zipfile.ZipFile(serial_wheel) as archive:
        held = set(archive.namelist())
    folders = {name.partition("/")[0] for name in held}
    assert folders == {"fastconv", f"fastconv-{fastconv.__version__}.dist-info"}
    suffixes = (".py", ".pyi", ".cuh")
    wanted = {str(p.relative_to(ROOT)) for p in (ROOT / "fastconv").rglob("*") if p.suffix in suffixes}
    assert not {*wanted, "fastconv/py.typed"} - held
    assert [name for name in held if re.fullmatch(r"fastconv/_native\..*so", name)]
    assert serial_wheel.stat().st_size < 5e6


@pytest.mark.slow
def test_wheel_without_openmp_works_and_says_so(serial_wheel, tmp_path):
    with zipfile.ZipFile(serial_wheel) as archive:
        archive.extractall(tmp_path)
    told = run(sys.executable, "-c", USE_WHEEL, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    where, config = json.loads(told)
    assert where.startswith(str(tmp_path))
    assert config["backends"]["cpp"]["parallel"] == "own threads (built without OpenMP)"
    here = fastconv.show_config("dicts")["backends"]["cpp"]["parallel"]
    assert "OpenMP 20" in here or sys.platform == "darwin"
    told = run(
        sys.executable,
        "-c",
        "import fastconv.backends; print(fastconv.available_backends()['cpp'])",
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
        FASTCONV_THREAD_POOL="openmp",
    )
    assert "the module was built without OpenMP" in told


USE_PURE_WHEEL = """
import json, sys
# An editable install would lend its compiled module.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
import fastconv
y = fastconv.conv2d([[[1.0, 2.0], [3.0, 4.0]]], [[[[1.0, 1.0], [1.0, 1.0]]]])
print(json.dumps([fastconv.__file__, y.tolist(), fastconv.available_backends()["cpp"]]))
"""


@pytest.mark.slow
def test_wheel_without_the_compiled_module(sdist, tmp_path):
    run("tar", "--extract", "--file", sdist, cwd=tmp_path)
    (top,) = (path for path in tmp_path.iterdir() if path.is_dir())
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path)
    run(*command, cwd=top, FASTCONV_NO_NATIVE="1")
    (wheel,) = tmp_path.glob("*-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path / "site")
    told = run(sys.executable, "-c", USE_PURE_WHEEL, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    where, y, reason = json.loads(told)
    assert where.startswith(str(tmp_path))
    assert y == [[[10.0]]]
    assert "_native" in reason


def test_there_is_one_version():
    assert fastconv.__version__ == metadata.version("fastconv")
    released = re.findall(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == fastconv.__version__


def test_numpy_is_the_only_dependency():
    assert [Requirement(text).name for text in PROJECT["dependencies"]] == ["numpy"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_extra_resolves(extra):
    """Its requirements parse, and those on fastconv itself name extras that exist."""
    assert EXTRAS[extra]
    for text in EXTRAS[extra]:
        requirement = Requirement(text)
        if requirement.name == "fastconv":
            assert requirement.extras
            assert requirement.extras <= set(EXTRAS) - {extra}
        else:
            assert requirement.specifier, f"{text}: state the oldest version that works"


def test_installed_extras_are_those_declared():
    assert set(metadata.metadata("fastconv").get_all("Provides-Extra")) == set(EXTRAS)


def test_errors_name_extras_that_exist():
    told = re.findall(r"fastconv\[(\w+)\]", "".join(p.read_text() for p in (ROOT / "fastconv").rglob("*.py")))
    assert told
    assert set(told) <= set(EXTRAS)
