"""How the backend and the threads of a call are settled, and what holds however they are."""

import asyncio
import contextvars
import importlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest

import fastconv
from fastconv import BackendUnavailableError, ShapeError, backends
from fastconv.backends import BACKENDS, Row, reference
from fastconv.backends.protocol import KERNELS
from fastconv.machine import UNLIMITED, memory_limit, quota
from fastconv.ops._calls import forget
from fastconv.testing import check_backend

X = np.arange(60, dtype=np.float32).reshape(1, 2, 5, 6)
WEIGHT = np.arange(36, dtype=np.float32).reshape(3, 2, 2, 3)
Y = fastconv.conv2d(X, WEIGHT, backend="reference")


def run_python(code, **environment):
    """The output of a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


class Spies:
    """Backends that compute as the reference does and say who was called."""

    def __init__(self, monkeypatch):
        self.calls = []
        for name in ("spy-a", "spy-b", "spy-c", "spy-d"):
            module = ModuleType(f"fastconv_{name}")
            module.ALGORITHMS = ("auto",)
            module.SILENT = module.TAKES_NARROW = False
            for kernel in KERNELS:
                setattr(module, kernel, self.recorder(name, getattr(reference, kernel)))
            module.describe = reference.describe
            monkeypatch.setitem(sys.modules, module.__name__, module)
            monkeypatch.setitem(BACKENDS, name, Row(module.__name__, "numpy", "nothing"))

    def recorder(self, name, kernel):
        def record(*args):
            self.calls.append(name)
            return kernel(*args)

        return record

    def who(self, **keywords):
        """The backend that serves a call without any hint but `keywords`."""
        self.calls.clear()
        np.testing.assert_array_equal(fastconv.conv2d(X, WEIGHT, **keywords), Y)
        (name,) = self.calls or ["none of them"]
        return name


def look_up_names_again():
    """Names are looked up once, and so are the backends of calls that look the same."""
    backends._import.cache_clear()
    forget()


@pytest.fixture
def spies(monkeypatch):
    look_up_names_again()
    yield Spies(monkeypatch)
    look_up_names_again()


# --- conformance ---


def test_conforms(backend):
    check_backend(backend)


def test_a_backend_of_somebody_else(spies):
    check_backend("spy-a")
    assert set(spies.calls) == {"spy-a"}


# --- which backend ---


def test_available_backends():
    found = fastconv.available_backends()
    assert list(found) == ["reference", "cpp", "numba", "cupy"]
    assert found["reference"] is True
    assert all(state is True or (isinstance(state, str) and state) for state in found.values())


def test_order_of_choice(spies, monkeypatch):
    """On the call, in the context, in the process, in the environment, the best."""
    assert spies.who() == "none of them"
    monkeypatch.setenv("FASTCONV_BACKEND", "spy-d")
    assert spies.who() == "spy-d"
    fastconv.set_backend("spy-c")
    assert spies.who() == "spy-c"
    with fastconv.use_backend("spy-b"):
        assert spies.who() == "spy-b"
        assert spies.who(backend="spy-a") == "spy-a"
        with fastconv.use_backend("spy-d"):
            assert spies.who() == "spy-d"
        assert spies.who() == "spy-b"
    assert spies.who() == "spy-c"
    fastconv.set_backend(None)
    assert spies.who() == "spy-d"


def test_best_available_without_a_hint():
    available = fastconv.available_backends()
    best = next(name for name in ("cpp", "numba", "reference") if available[name] is True)
    assert backends.resolve("conv2d", None, "numpy")[0] == best
    assert fastconv.show_config("dicts")["backend"] == best


def test_context_ends_with_an_exception(spies):
    with pytest.raises(ZeroDivisionError), fastconv.use_backend("spy-a"):
        raise ZeroDivisionError
    assert spies.who() == "none of them"


def test_contexts_of_threads_are_their_own(spies):
    seen = {}
    barrier = threading.Barrier(2)

    def work(name):
        barrier.wait()
        with fastconv.use_backend(name):
            barrier.wait()
            seen[name] = backends.resolve("conv2d", None, "numpy")[0]
            barrier.wait()

    with fastconv.use_backend("spy-c"), ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ["spy-a", "spy-b"]))
        assert spies.who() == "spy-c"
    assert seen == {"spy-a": "spy-a", "spy-b": "spy-b"}


def test_a_copied_context_carries_the_backend(spies):
    with fastconv.use_backend("spy-a"):
        context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(context.run, spies.who).result() == "spy-a"


def test_contexts_of_tasks_are_their_own(spies):
    async def task(name):
        found = []
        with fastconv.use_backend(name), fastconv.config_context(threads=len(name)):
            for _ in range(3):
                await asyncio.sleep(0)
                found.append((spies.who(), fastconv.get_num_threads()))
        return found

    async def both():
        return await asyncio.gather(task("spy-a"), task("reference"))

    first, second = asyncio.run(both())
    assert first == [("spy-a", 5)] * 3
    assert second == [("none of them", 9)] * 3


@pytest.fixture
def broken(monkeypatch):
    """A backend whose module needs a library that is not there."""
    look_up_names_again()
    monkeypatch.setitem(BACKENDS, "broken", Row("fastconv_of_nobody", "numpy", "pip install nothing"))
    return "broken"


def test_explicit_and_impossible_raises(broken, monkeypatch):
    message = "backend 'broken' is not available: No module named 'fastconv_of_nobody'.*pip install nothing"
    assert issubclass(BackendUnavailableError, ImportError)
    with pytest.raises(BackendUnavailableError, match=message):
        fastconv.conv2d(X, WEIGHT, backend=broken)
    with pytest.raises(BackendUnavailableError, match=message):
        fastconv.set_backend(broken)
    with pytest.raises(BackendUnavailableError, match=message), fastconv.use_backend(broken):
        pass
    monkeypatch.setenv("FASTCONV_BACKEND", broken)
    with pytest.raises(BackendUnavailableError, match=message):
        fastconv.conv2d(X, WEIGHT)
    assert fastconv.available_backends()[broken] == "No module named 'fastconv_of_nobody'"


def test_unknown_names(monkeypatch):
    message = "backend must be one of reference, cpp, numba, cupy, got 'torch'"
    for use in (fastconv.set_backend, lambda name: fastconv.use_backend(name).__enter__()):
        with pytest.raises(ValueError, match=message):
            use("torch")
    with pytest.raises(ValueError, match=f"conv2d: {message}"):
        fastconv.conv2d(X, WEIGHT, backend="torch")
    monkeypatch.setenv("FASTCONV_BACKEND", "torch")
    with pytest.raises(ValueError, match=f"FASTCONV_BACKEND: {message}"):
        fastconv.conv2d(X, WEIGHT)
    assert fastconv.show_config("dicts")["backend"].startswith("none (FASTCONV_BACKEND: backend must be")


class TestOtherLibraries:
    @pytest.fixture
    def gpu_array(self, monkeypatch):
        """What CuPy's arrays look like from outside, on a machine that has none."""
        cupy = ModuleType("cupy")
        cupy.ndarray = type("ndarray", (), {"__module__": "cupy", "shape": (1, 2, 5, 6)})
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        return cupy.ndarray()

    def test_arrays_choose_their_backend(self, gpu_array):
        """... before any setting does; a backend that cannot run is no reason to move the array."""
        with (
            fastconv.use_backend("reference"),
            pytest.raises(BackendUnavailableError, match="backend 'cupy'"),
        ):
            fastconv.conv2d(gpu_array, gpu_array)

    def test_arrays_are_not_moved(self, gpu_array):
        with pytest.raises(
            TypeError, match="conv2d: backend 'reference' takes numpy arrays, got cupy arrays"
        ):
            fastconv.conv2d(gpu_array, gpu_array, backend="reference")


# --- how many threads ---


def test_threads_settings():
    fastconv.set_num_threads(3)
    assert fastconv.get_num_threads() == 3
    with fastconv.config_context(threads=5):
        assert fastconv.get_num_threads() == 5
        with ThreadPoolExecutor(1) as pool:  # the context is this thread's, the setting the process's
            assert pool.submit(fastconv.get_num_threads).result() == 3
    assert fastconv.get_num_threads() == 3
    assert fastconv.show_config("dicts")["threads"] == 3


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ShapeError),
        (-1, ShapeError),
        (2**40, ShapeError),
        (1.5, TypeError),
        (True, TypeError),
        (None, TypeError),
    ],
)
def test_impossible_thread_counts(value, error):
    before = fastconv.get_num_threads()
    with pytest.raises(error, match=r"^set_num_threads: n must be"):
        fastconv.set_num_threads(value)
    if value is not None:
        with (
            pytest.raises(error, match=r"^config_context: threads must be"),
            fastconv.config_context(threads=value),
        ):
            pass
    assert fastconv.get_num_threads() == before


COUNT = "import fastconv; print(fastconv.get_num_threads())"


def test_threads_of_the_environment():
    assert run_python(COUNT, FASTCONV_NUM_THREADS="7") == "7"
    refuse = f"try:\n    {COUNT}\nexcept ValueError as error:\n    print(error)"
    for wrong in ("many", "-1", "0", "1.5"):
        assert "FASTCONV_NUM_THREADS" in run_python(refuse, FASTCONV_NUM_THREADS=wrong)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_threads_respect_the_affinity_mask():
    one = min(os.sched_getaffinity(0))
    assert (
        run_python(f"import os; os.sched_setaffinity(0, {{{one}}}); {COUNT}", FASTCONV_NUM_THREADS="") == "1"
    )


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {}, UNLIMITED),
        ("0::/", {"cpu.max": "max 100000"}, UNLIMITED),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "300000 100000"}, 1),
        ("0::/a/b", {"cpu.max": "nonsense"}, UNLIMITED),
        (
            "2:cpu,cpuacct:/x",
            {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"},
            UNLIMITED,
        ),
        ("2:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"}, 4),
        ("2:cpuset:/x", {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"}, UNLIMITED),
        ("1:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
    ],
)
def test_threads_respect_the_quota_of_cgroups(membership, files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert quota(membership, tmp_path) == expected


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a", {}, UNLIMITED),
        ("0::/a", {"a/memory.max": "max"}, UNLIMITED),
        ("0::/a", {"a/memory.max": "nonsense"}, UNLIMITED),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "1000", "memory.max": "2000"}, 1000),
        ("0::/a/b", {"a/b/memory.max": "500", "a/memory.max": "1000"}, 500),
        ("4:memory:/x", {"memory/x/memory.limit_in_bytes": "700"}, 700),
        ("4:cpu:/x", {"memory/x/memory.limit_in_bytes": "700"}, UNLIMITED),
    ],
)
def test_memory_respects_the_limit_of_cgroups(membership, files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert memory_limit(membership, tmp_path) == expected


def test_config_context():
    with fastconv.config_context(algorithm="direct", workspace_limit=2**20, deterministic=True):
        np.testing.assert_array_equal(fastconv.conv2d(X, WEIGHT, backend="reference"), Y)
    with pytest.raises(ValueError, match="config_context: algorithm must be one of auto, tune, direct, gemm"):
        fastconv.config_context(algorithm="magic").__enter__()
    with pytest.raises(TypeError, match="config_context: deterministic must be True or False, got 'no'"):
        fastconv.config_context(deterministic="no").__enter__()
    with pytest.raises(ShapeError, match="config_context: workspace_limit must be at least 0"):
        fastconv.config_context(workspace_limit=-1).__enter__()


def test_show_config(capsys):
    report = fastconv.show_config("dicts")
    assert set(report["backends"]) == set(BACKENDS)
    assert {"fastconv", "python", "numpy", "platform", "threads", "backend"} <= set(report)
    assert fastconv.show_config() is None
    printed = capsys.readouterr().out
    for name in BACKENDS:
        assert f"{name}:" in printed
    with pytest.raises(ValueError, match="show_config: mode must be"):
        fastconv.show_config("xml")


# --- what holds for every number of threads ---

# Enough for several threads each.
WORK = {
    "conv": ((4, 20, 27, 29), (44, 20, 3, 3), {"padding": 1}),
    "strided": ((12, 6, 41, 43), (17, 6, 5, 5), {"stride": 2, "padding": 2}),
    "pointwise": ((12, 40, 19, 23), (72, 40, 1, 1), {}),
    "grouped": ((16, 24, 21, 22), (36, 4, 3, 3), {"groups": 6}),
    "depthwise": ((9, 33, 25, 27), (33, 1, 3, 3), {"padding": 1, "groups": 33}),
    "one-sum": ((1, 1, 450, 451), (1, 1, 3, 3), {}),
    "few-channels": ((16, 3, 40, 41), (8, 3, 3, 3), {"padding": 1}),
}


def everything(name, dtype, backend):
    """The bytes of all results that a training step on this shape has."""
    x_shape, weight_shape, window = WORK[name]
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, weight_shape))
    bias = rng.standard_normal(len(weight)).astype(dtype)
    window = {**window, "backend": backend}
    y = fastconv.conv2d(x, weight, bias, activation="relu", **window)
    results = [y, *fastconv.conv2d_backward(y, x, weight, **window)]
    values, indices = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True, backend=backend)
    results += [
        values,
        indices,
        fastconv.max_pool2d_backward(values, indices, x.shape, backend=backend),
        fastconv.avg_pool2d(x, 3, 2, 1, backend=backend),
        fastconv.avg_pool2d_backward(values, x.shape, 3, 2, 1, backend=backend),
        fastconv.adaptive_avg_pool2d(x, 1, backend=backend),
        fastconv.lp_pool2d(x, 2, 3, 2, backend=backend),
    ]
    return [result.tobytes() for result in results]


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_for_every_number_of_threads(dtype, name, threaded_backend):
    backend = threaded_backend
    with fastconv.config_context(threads=1):
        expected = everything(name, dtype, backend)
    for threads in (2, 3, 4, 8):
        with fastconv.config_context(threads=threads):
            assert everything(name, dtype, backend) == expected, f"{threads} threads"


def test_concurrent_callers(threaded_backend):
    backend = threaded_backend
    names = list(itertools.islice(itertools.cycle(WORK), 12))
    expected = {name: everything(name, "float32", backend) for name in WORK}

    def work(name):
        with fastconv.config_context(threads=1 + len(name) % 3):
            return everything(name, "float32", backend)

    with ThreadPoolExecutor(4) as pool:
        for name, results in zip(names, pool.map(work, names), strict=True):
            assert results == expected[name]


@pytest.mark.parametrize("threads", [1, 2])
def test_other_threads_run_during_a_compiled_kernel(threads, isa):
    """It holds no lock of the interpreter."""
    x, weight = np.ones((4, 128, 64, 64), np.float32), np.ones((256, 128, 3, 3), np.float32)
    out = np.empty((4, 256, 62, 62), np.float32)
    finished = threading.Event()

    def work():
        with fastconv.config_context(threads=threads):
            fastconv.conv2d(x, weight, out=out, backend="cpp")
        finished.set()

    worker = threading.Thread(target=work)
    worker.start()
    turns = 0
    while not finished.is_set():
        time.sleep(0.001)
        turns += 1
    worker.join()
    assert turns >= 5


@pytest.mark.parametrize(("wanted", "found"), [("", "own"), ("own", "own"), ("openmp", "OpenMP 2")])
def test_environment_chooses_the_threads(wanted, found):
    native = pytest.importorskip("fastconv._native", exc_type=ImportError)
    if wanted == "openmp" and not native.use_openmp(False):
        pytest.skip("built without OpenMP")
    code = "import fastconv; print(fastconv.show_config('dicts')['backends']['cpp']['parallel'])"
    assert run_python(code, FASTCONV_THREAD_POOL=wanted).startswith(found)


def test_unknown_threads_are_refused():
    """Not even another backend serves the call."""
    pytest.importorskip("fastconv._native", exc_type=ImportError)
    code = """
import fastconv
try:
    fastconv.avg_pool1d([[1.0, 2.0]], 2)
except fastconv.BackendUnavailableError as error:
    print(error)
"""
    assert "FASTCONV_THREAD_POOL: expected 'own' or 'openmp', got 'both'" in run_python(
        code, FASTCONV_THREAD_POOL="both"
    )


FORK = """
import os, signal, sys
import numpy as np
import fastconv

backend = os.environ['TESTED_BACKEND']
signal.alarm(120)  # ends a child that hangs too, since alarms are set anew there
rng = np.random.default_rng(0)
x, weight = (rng.standard_normal(s).astype(np.float32) for s in ((16, 16, 30, 31), (24, 16, 3, 3)))

def results():
    y = fastconv.conv2d(x, weight, padding=1, backend=backend)
    values, indices = fastconv.max_pool2d(y, 2, return_indices=True, backend=backend)
    grad = fastconv.max_pool2d_backward(values, indices, y.shape, backend=backend)
    gradients = fastconv.conv2d_backward(grad, x, weight, padding=1, backend=backend)
    return [a.tobytes() for a in (y, values, *gradients)]

fastconv.set_num_threads(2)
expected = results()
for _ in range(5):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            same = results() == expected and results() == expected
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            same = False
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert results() == expected
print("served")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_fork_after_threads_have_run(threaded_backend):
    environment = {"TESTED_BACKEND": threaded_backend}
    if threaded_backend == "cpp":
        native = importlib.import_module("fastconv._native")
        openmp = native.parallel_description().startswith("OpenMP")
        environment |= {
            "FASTCONV_ISA": native.get_isa(),
            "FASTCONV_THREAD_POOL": "openmp" if openmp else "own",
        }
    assert run_python(FORK, **environment) == "served"


INTERRUPT = """
import os, signal, threading, time
import numpy as np
import fastconv

# Some ten seconds of work, with one thread and without vector instructions.
x, weight = np.ones((8, 512, 32, 32), np.float32), np.ones((512, 512, 7, 7), np.float32)
out = np.empty((8, 512, 26, 26), np.float32)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
begin = time.monotonic()
try:
    fastconv.conv2d(x, weight, out=out, backend="cpp")
except KeyboardInterrupt:
    print("interrupted" if time.monotonic() - begin < 2.5 else "too late")
assert fastconv.conv2d(x[:1, :, :7, :7], weight[:1], backend="cpp").item() == 512 * 49
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in the way of POSIX")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_interrupt_of_a_long_compiled_kernel(threads):
    if fastconv.available_backends()["cpp"] is not True:
        pytest.skip("there is no compiled backend here")
    assert run_python(INTERRUPT, FASTCONV_ISA="baseline", FASTCONV_NUM_THREADS=threads) == "interrupted"


HANDLER = """
import signal
import numpy as np
import fastconv

rng = np.random.default_rng(0)
x, weight = (rng.standard_normal(s).astype(np.float32) for s in ((8, 128, 56, 56), (128, 128, 3, 3)))
small = rng.standard_normal((1, 64, 8, 8)).astype(np.float32)
expected = fastconv.conv2d(x, weight)
calls = 0

def handler(number, frame):
    global calls
    calls += 1
    fastconv.conv2d(small, weight[:64, :64])

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
same = all(np.array_equal(fastconv.conv2d(x, weight), expected) for _ in range(3))
signal.setitimer(signal.ITIMER_REAL, 0)
print(same, calls > 3)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_signal_handlers_may_convolve():
    """What they compute with must not be what the interrupted call computes with."""
    if fastconv.available_backends()["cpp"] is not True:
        pytest.skip("there is no compiled backend here")
    environment = {"FASTCONV_ISA": "baseline", "FASTCONV_NUM_THREADS": "1", "FASTCONV_BACKEND": "cpp"}
    assert run_python(HANDLER, **environment) == "True True"
