"""What only the numba backend promises: threads, forks, concurrent callers, the cache on disk, vector lengths.

Most of it needs a fresh process, because Numba settles its threads once.
"""

import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv.backends.protocol import KERNELS

numba = pytest.importorskip("numba")

from fastconv.backends import numba_cpu  # noqa: E402
from fastconv.backends.numba_cpu import dense, launch, narrow, pool  # noqa: E402

# Every kernel and algorithm on a size that is worth several threads; what it returns can be compared by its bytes.
PRELUDE = """
import os, sys, threading
import numpy as np
import numba
import fastconv as fc
from fastconv import grad
from fastconv.backends import numba_cpu

def results(dtype="float32"):
    rng = np.random.default_rng(0)
    def array(*shape):
        return rng.standard_normal(shape).astype(dtype)
    x, found = array(2, 24, 40, 41), []
    layers = ((20, 24, 3, 3), 1, 1), ((24, 1, 3, 3), 24, 2), ((20, 24, 1, 1), 1, 1)
    for shape, groups, stride in layers:
        weight = array(*shape)
        y = fc.conv2d(x, weight, None, stride, "same", groups=groups, activation="silu", backend="numba")
        gradients = fc.conv2d_backward(y, x, weight, stride=stride, padding="same", groups=groups, backend="numba")
        found += [y, *gradients]
    y, indices = fc.max_pool2d(x, 3, 2, 1, return_indices=True, backend="numba")
    found += [y, indices, fc.max_pool2d_backward(y, indices, x.shape, backend="numba")]
    found += [fc.max_pool2d(x, 13, 5, backend="numba"), fc.adaptive_avg_pool2d(x, (5, 7), backend="numba")]
    y = fc.avg_pool2d(x, 3, 2, 1, backend="numba")
    found += [y, fc.avg_pool2d_backward(y, x.shape, 3, 2, 1, backend="numba")]
    return found

def digest(*args):
    return b"".join(array.tobytes() for array in results(*args))
"""


def run(code: str, **environment: str) -> str:
    """The output of a fresh interpreter that runs `PRELUDE` and ``code``."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def layers() -> list[str]:
    """The threading layers that work here; what is installed beside Numba decides."""
    found = []
    for name in ("omp", "workqueue", "tbb"):
        code = f"import numba; numba.config.THREADING_LAYER = {name!r}; numba.get_num_threads()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        found += [name] * (done.returncode == 0)
    return found


LAYERS = layers()


def test_a_threading_layer_works():
    assert "workqueue" in LAYERS, "it is part of Numba"


# --- threads ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_for_any_number_of_threads(dtype):
    output = run(
        f"""
        with fc.config_context(threads=1):
            expected = digest({dtype!r})
        for threads in (2, 3, 4, 8, 16):
            with fc.config_context(threads=threads):
                assert digest({dtype!r}) == expected, threads
        print(numba_cpu.launch.worker_count(1e9), numba.threading_layer())
        """,
        NUMBA_NUM_THREADS="16",
        FASTCONV_NUM_THREADS="16",
    )
    workers, layer = output.split()
    assert workers == "16", "so many workers did take part"
    assert layer in LAYERS


def test_workers_follow_settings_and_work():
    most = numba.config.NUMBA_NUM_THREADS
    with fastconv.config_context(threads=1000):
        assert launch.worker_count(1e12) == most
        assert launch.worker_count(1) == 1
    with fastconv.config_context(threads=1):
        assert launch.worker_count(1e12) == 1


def test_callers_keep_their_own_number_of_threads():
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        x = np.ones((1, 64, 64, 64), np.float32)
        with fastconv.config_context(threads=2):
            fastconv.max_pool2d(x, 2, backend="numba")
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("layer", LAYERS)
def test_concurrent_callers(layer):
    """The workqueue layer aborts the process when two threads enter it at once."""
    run(
        """
        expected, wrong = digest(), []
        def work():
            for _ in range(20):
                if digest() != expected:
                    wrong.append(1)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        """,
        NUMBA_THREADING_LAYER=layer,
        NUMBA_NUM_THREADS="2",
        FASTCONV_NUM_THREADS="2",
    )


# --- forks -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("layer", LAYERS)
def test_a_forked_child_computes(layer):
    """GNU OpenMP ends a child that starts a parallel region after its parent did."""
    output = run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads: that is what is tested
        expected = digest()
        assert numba_cpu.launch.layer() is not None, "the parent has threads"
        for _ in range(3):
            child = os.fork()
            if child == 0:
                os._exit(0 if digest() == expected and "forked" in numba_cpu.describe()["threads"] else 1)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0, os.waitstatus_to_exitcode(status)
        assert digest() == expected, "the parent goes on"
        print(numba_cpu.launch.worker_count(1e9))
        """,
        NUMBA_THREADING_LAYER=layer,
        NUMBA_NUM_THREADS="2",
        FASTCONV_NUM_THREADS="2",
    )
    assert output.split() == ["2"], "the parent keeps its threads"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_of_a_process_without_threads_has_its_own():
    run(
        """
        child = os.fork()
        if child == 0:
            digest()
            os._exit(0 if numba_cpu.launch.worker_count(1e9) == 2 and numba_cpu.launch.layer() else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        """,
        NUMBA_NUM_THREADS="2",
        FASTCONV_NUM_THREADS="2",
    )


# --- compilation -----------------------------------------------------------------------------------------

COUNT = """
def counts():
    kernels = [k for m in (numba_cpu.dense, numba_cpu.narrow, numba_cpu.direct, numba_cpu.pool)
               for k in vars(m).values() if isinstance(k, numba_cpu.launch.Kernel)]
    stats = [function.stats for kernel in kernels for function in kernel]
    return sum(sum(s.cache_hits.values()) for s in stats), sum(sum(s.cache_misses.values()) for s in stats)
x, weight = np.ones((2, 24, 40, 41), "float32"), np.ones((20, 24, 3, 3), "float32")
for threads in (1, 2):
    with fc.config_context(threads=threads):
        fc.conv2d(x, weight, backend="numba")
        fc.max_pool2d(x, 2, backend="numba")
print(*counts(), numba_cpu.describe()["cache"])
"""


@pytest.mark.slow
def test_compiled_once_and_for_all(tmp_path):
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2", "FASTCONV_NUM_THREADS": "2"}
    hits, misses, *state = run(COUNT, **environment).split()
    assert int(hits) == 0
    assert int(misses) >= 6
    assert state == ["on", "disk"]
    hits, misses, *_ = run(COUNT, **environment).split()
    assert int(hits) >= 6
    assert int(misses) == 0


def test_cache_depends_on_all_sources():
    """Numba looks only at the file of the function; the name of a cached function says the rest."""
    version = launch._source_hash()
    for module in (dense, narrow, pool):
        for kernel in vars(module).values():
            if isinstance(kernel, launch.Kernel):
                for function in kernel:
                    assert function.py_func.__qualname__.endswith(version)


def test_works_where_nothing_can_be_cached(monkeypatch):
    monkeypatch.setattr(launch, "_state", launch._State())
    namespace: dict = {}
    exec("def double(x):\n    return 2 * x", namespace)  # has no file, so no place for a cache
    assert launch.worker(namespace["double"])(21) == 42
    assert launch.describe()["cache"].startswith("off")


def test_read_only_arrays_are_not_compiled_for_again():
    x = np.ones((1, 3, 8, 8), np.float32)
    weight = np.ones((40, 3, 3, 3), np.float32)
    expected = fastconv.conv2d(x, weight, backend="numba")
    compiled = len(dense.forward_dense.worker.signatures)
    x.flags.writeable = weight.flags.writeable = False
    np.testing.assert_array_equal(fastconv.conv2d(x, weight, backend="numba"), expected)
    assert len(dense.forward_dense.worker.signatures) == compiled


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of x86 processors")
@pytest.mark.parametrize(
    ("processor", "features", "size"), [("haswell", "+avx,+avx2,+fma", 32), ("generic", "", 16)]
)
def test_other_vector_lengths(processor, features, size, tmp_path):
    """Shorter vectors have other tiles. Whole numbers must come out exactly."""
    environment = {"NUMBA_CPU_NAME": processor, "NUMBA_CACHE_DIR": str(tmp_path), "FASTCONV_NUM_THREADS": "1"}
    if features:
        environment["NUMBA_CPU_FEATURES"] = features
    run(
        f"""
        assert numba_cpu.vectors.VECTOR_BYTES == {size}
        rng = np.random.default_rng(0)
        def array(*shape):
            return rng.integers(-4, 5, shape).astype("float32")
        for width in (1, 7, 8, 23, 24, 25, 49):
            x = array(2, 6, 5, width)
            for weight, groups in ((array(13, 6, 3, 2), 1), (array(12, 1, 3, 2), 6)):
                for stride in (1, 2, 3):
                    window = dict(stride=stride, padding=2, groups=groups)
                    y = fc.conv2d(x, weight, **window, backend="reference")
                    assert (fc.conv2d(x, weight, **window, backend="numba") == y).all()
                    for ours, theirs in zip(
                        fc.conv2d_backward(y, x, weight, **window, backend="numba"),
                        fc.conv2d_backward(y, x, weight, **window, backend="reference"),
                    ):
                        assert (ours == theirs).all()
            ours = fc.max_pool2d(x, 3, 2, 1, return_indices=True, backend="numba")
            theirs = fc.max_pool2d(x, 3, 2, 1, return_indices=True, backend="reference")
            assert all((a == b).all() for a, b in zip(ours, theirs))
        """,
        **environment,
    )


# --- numbers that are not finite -------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [8, 1], ids=["dense", "narrow"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("where", ["input", "weight", "grad_output"])
def test_padding_does_not_spread_what_is_not_finite(channels, value, where):
    """0 * infinity is NaN: padding must not be multiplied where the other factor is not finite."""
    rng = np.random.default_rng(0)
    arrays = {
        "input": rng.standard_normal((2, channels, 6, 7)),
        "weight": rng.standard_normal((8, channels, 3, 3)),
        "grad_output": rng.standard_normal((2, 8, 6, 7)),
    }
    arrays[where][0, 0, 0, 0] = value
    x, weight, gy = arrays.values()

    def results(backend: str) -> list[np.ndarray]:
        with np.errstate(invalid="ignore"):
            y = fastconv.conv2d(x, weight, padding=1, backend=backend)
            return [y, *fastconv.conv2d_backward(gy, x, weight, padding=1, backend=backend)]

    for ours, expected in zip(results("numba"), results("reference"), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint64"])
@pytest.mark.parametrize("shape", [(1, 1, 9, 200), (1, 1, 150, 70)])
def test_large_windows_keep_the_rules_of_ties(dtype, shape):
    """Rows of large windows are searched in parts that lie interleaved; the first of equals must win all the same."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, shape).astype(dtype)
    if x.dtype.kind == "f":
        x.reshape(-1)[rng.integers(0, x.size, 3)] = np.nan
    for window in ((shape[2:], 1), ((9, 65), (1, 5))):
        ours = fastconv.max_pool2d(x, *window, return_indices=True, backend="numba")
        expected = fastconv.max_pool2d(x, *window, return_indices=True, backend="reference")
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(a, b)


# --- the report ------------------------------------------------------------------------------------------


def test_describe():
    report = numba_cpu.describe()
    assert report["numba"] == numba.__version__
    assert report["vectors"].removesuffix(" bytes") in ("16", "32", "64")
    assert set(report) == {"numba", "threading layer", "threads", "cache", "vectors"}
    assert all(hasattr(numba_cpu, kernel) for kernel in KERNELS)


def test_without_numba_the_reason_is_said():
    code = """
        import sys
        sys.modules["numba"] = None
        for name in [name for name in sys.modules if name.startswith("fastconv")]:
            del sys.modules[name]
        import fastconv
        assert "numba" in fastconv.available_backends()["numba"]
        try:
            fastconv.set_backend("numba")
        except fastconv.BackendUnavailableError as error:
            assert "fastconv[numba]" in str(error)
        else:
            raise AssertionError
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parent.parent, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
