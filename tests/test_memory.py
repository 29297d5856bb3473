"""Large results lie in recycled buffers: who has them, for how long, and what comes of them."""

import copy
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from child import in_child
from conftest import SANITIZED, TESTED

import fastconv
from fastconv import memory

_native = pytest.importorskip("fastconv._native", exc_type=ImportError)

MIB = 1 << 20
HUGE_PAGE = 2 * MIB
FLOAT = np.dtype(np.float32)
X = np.arange(MIB, dtype=np.float32).reshape(1, 4, 512, 512)


@pytest.fixture(autouse=True)
def pool() -> Iterator[None]:
    """Nothing is kept at first, and 64 MiB at most, whatever this machine or the environment say."""
    memory.cache_limit()
    fastconv.clear_cache()
    before = _native.cache_limit()
    _native.set_cache_limit(64 * MIB)
    yield
    _native.set_cache_limit(before)
    fastconv.clear_cache()


def copied(backend: str | None = None) -> np.ndarray:
    """A result that equals `X`, of 4 MiB."""
    return fastconv.avg_pool2d(X, 1, backend=backend)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def megabytes(count: float) -> np.ndarray:
    return memory.empty((int(count * MIB) // FLOAT.itemsize,), FLOAT)


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    assert not done.stderr
    return done.stdout.strip()


# --- reuse ---


@pytest.mark.smoke
@pytest.mark.parametrize("backend", TESTED)
def test_a_dead_result_gives_its_memory_to_the_next(backend):
    y = copied(backend)
    place = address(y)
    assert place % HUGE_PAGE == 0
    assert _native.cached_bytes() == 0
    del y
    assert _native.cached_bytes() == X.nbytes
    y = copied(backend)
    assert address(y) == place
    assert _native.cached_bytes() == 0
    np.testing.assert_array_equal(y, X)


@pytest.mark.parametrize("backend", TESTED)
def test_live_results_share_nothing(backend):
    results = [copied(backend) for _ in range(3)]
    del results[1]
    results += [copied(backend) for _ in range(2)]
    for i, y in enumerate(results):
        y += i
    for i, y in enumerate(results):
        np.testing.assert_array_equal(y, X + i)


def test_gradients_and_indices_are_recycled_too():
    values, indices = fastconv.max_pool2d(X, 1, return_indices=True, backend="cpp")
    grad = fastconv.max_pool2d_backward(X, indices, X.shape, backend="cpp")
    np.testing.assert_array_equal(grad, X)
    held = values.nbytes + indices.nbytes + grad.nbytes
    del values, indices, grad
    assert _native.cached_bytes() == held


def test_small_results_are_numpys_own():
    elements = memory.SMALLEST // FLOAT.itemsize
    small = memory.empty((elements - 1,), FLOAT)
    assert small.flags.owndata
    large = memory.empty((elements,), FLOAT)
    assert not large.flags.owndata
    del small, large
    assert _native.cached_bytes() == memory.SMALLEST


def test_out_needs_no_buffer():
    out = np.empty_like(X)
    assert fastconv.avg_pool2d(X, 1, out=out, backend="cpp") is out
    assert _native.cached_bytes() == 0


@pytest.mark.parametrize("size", [0.13, 1, 1.01, 1.99, 2, 3.3, 7.9, 8.1, 33])
def test_little_is_wasted(size):
    wanted = megabytes(size).nbytes
    assert wanted <= _native.cached_bytes() <= wanted * 1.125 + 4096


def test_similar_sizes_share_buffers():
    place = address(megabytes(4))
    assert address(megabytes(3.9)) == place
    assert address(megabytes(3)) != place


def test_what_is_left_over_can_be_poisoned():
    megabytes(4)[...] = 1
    array = megabytes(4)  # as conftest.py asks for
    assert np.isnan(array).all()


# --- limits ---


def test_the_longest_idle_go_first():
    _native.set_cache_limit(16 * MIB)
    for size in (7, 5, 4, 6):
        megabytes(size)
    assert _native.cached_bytes() == 15 * MIB  # 7 is gone
    seven = megabytes(7)
    assert _native.cached_bytes() == 15 * MIB
    five = megabytes(5)
    assert _native.cached_bytes() == 10 * MIB
    del five, seven
    assert _native.cached_bytes() == 12 * MIB  # 5 and 7: 4 and 6 had been idle for longer


def test_the_limit_holds_at_once():
    megabytes(40)
    megabytes(20)
    assert _native.cached_bytes() == 60 * MIB
    _native.set_cache_limit(30 * MIB)
    assert _native.cached_bytes() == 20 * MIB
    megabytes(32)
    assert _native.cached_bytes() == 20 * MIB, "more than the limit is never kept, nor in place of others"


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_clear_cache():
    kept = megabytes(2)
    megabytes(40)
    assert fastconv.clear_cache() == 40 * MIB
    assert _native.cached_bytes() == 0
    assert fastconv.clear_cache() == 0
    kept[...] = 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads what Linux says of a process")
def test_clear_cache_returns_memory_to_the_system():
    megabytes(40)[...] = 1
    before = resident()
    fastconv.clear_cache()
    assert resident() < before - 39 * MIB


def test_clear_cache_releases_workspaces():
    x, weight = np.ones((1, 512, 8, 8), np.float32), np.ones((512, 512, 3, 3), np.float32)
    with fastconv.config_context(algorithm="direct"):
        y = fastconv.conv2d(x, weight, backend="cpp")
        released = fastconv.clear_cache()
        assert released >= weight.nbytes, "the packed weights"
        assert fastconv.clear_cache() == 0
        np.testing.assert_array_equal(fastconv.conv2d(x, weight, backend="cpp"), y)


WORKSPACES = """
import time
import numpy as np, fastconv

def workspaces():
    return fastconv.show_config("dicts")["cache"]["workspaces"]

x, weight = np.ones((8, 64, 56, 56), np.float32), np.ones((64, 64, 3, 3), np.float32)
with fastconv.config_context(threads=4):
    for _ in range(20):
        fastconv.conv2d(x, weight, out=np.empty((8, 64, 54, 54), np.float32), backend="cpp")
before = workspaces()
released = fastconv.clear_cache()
until = time.monotonic() + 10
while workspaces() and time.monotonic() < until:
    time.sleep(0.01)
print(released < before, workspaces())
"""


def test_clear_cache_releases_the_workspaces_of_workers():
    """Though they are asleep, and not only when they are used again."""
    assert run_python(WORKSPACES, FASTCONV_THREAD_POOL="own") == "True 0"


def test_show_config(capsys):
    y = copied()
    cache = fastconv.show_config("dicts")["cache"]
    assert (cache["bytes"], cache["limit"]) == (0, 64 * MIB)
    assert cache["workspaces"] >= 0
    del y
    fastconv.show_config()
    assert f"cache:      bytes: {X.nbytes}, limit: {64 * MIB}, workspaces: " in capsys.readouterr().out


# --- the environment ---

CACHE = """
import numpy as np, fastconv
y = fastconv.avg_pool1d(np.ones((1, 1 << 19)), 1)
owner = y.base if isinstance(y.base, np.ndarray) else y
print(owner.flags.owndata, end=" ")
del y, owner
cache = fastconv.show_config("dicts")["cache"]
cache.pop("workspaces", None)
print(*cache.values())
"""


def test_environment_sets_the_limit():
    assert run_python(CACHE, FASTCONV_CACHE_BYTES="5000000") == f"False {4 * MIB} 5000000"
    assert run_python(CACHE, FASTCONV_CACHE_BYTES="4000000") == "False 0 4000000"


def test_environment_switches_it_off():
    assert run_python(CACHE, FASTCONV_CACHE_BYTES="0") == "True 0 0"


def test_the_default_is_a_share_of_the_memory():
    limit = int(run_python(CACHE, FASTCONV_CACHE_BYTES="").split()[-1])
    assert 0 < limit <= memory.MOST_BY_DEFAULT
    assert limit * memory.SHARE_BY_DEFAULT <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


REFUSED = """
import fastconv
for backend in ("cpp", "reference", None):
    try:
        fastconv.avg_pool1d([[1.0, 2.0]], 2, backend=backend)
    except fastconv.BackendUnavailableError as error:
        print(error)
try:
    fastconv.clear_cache()
except ImportError as error:
    print(error)
print(fastconv.show_config("dicts")["cache"]["unavailable"])
"""


@pytest.mark.parametrize("wrong", ["many", "-1", "1e9", "1 GB", "9" * 19, "1" * 30])
def test_environment_must_make_sense(wrong):
    """Whatever the backend and the size, from the first call on."""
    lines = run_python(REFUSED, FASTCONV_CACHE_BYTES=wrong).splitlines()
    message = f"FASTCONV_CACHE_BYTES: expected a number of bytes, 0 or more, got {wrong!r}"
    unavailable = (f"backend {name!r} is not available: {message}" for name in ("cpp", "reference", "cpp"))
    assert lines == [*unavailable, message, message]


def test_without_the_compiled_module_arrays_are_numpys():
    code = f"""
import sys
sys.modules["fastconv._native"] = None
import os, fastconv
os.environ["FASTCONV_BACKEND"] = "reference"
{CACHE}
print(fastconv.clear_cache())
"""
    assert run_python(code).splitlines() == ["True there is no compiled module", "0"]


# --- arrays as any others ---


def test_a_view_keeps_the_memory():
    y = copied("cpp")
    view = y[0, 1:, ::2, 5]
    place = address(y)
    del y
    assert _native.cached_bytes() == 0
    other = copied("cpp")
    assert address(other) != place
    other[...] = -1
    np.testing.assert_array_equal(view, X[0, 1:, ::2, 5])
    del view
    assert _native.cached_bytes() == X.nbytes


@pytest.mark.parametrize(
    "make",
    [
        np.copy,
        copy.copy,
        copy.deepcopy,
        lambda y: pickle.loads(pickle.dumps(y)),  # noqa: S301
        lambda y: pickle.loads(pickle.dumps(y, 5)),  # noqa: S301
        lambda y: np.asarray(memoryview(y)),
    ],
    ids=["np.copy", "copy", "deepcopy", "pickle", "pickle-5", "memoryview"],
)
def test_copies_and_pickles_survive(make):
    twin = make(copied("cpp"))
    other = copied("cpp")
    other[...] = -1
    np.testing.assert_array_equal(twin, X)
    assert twin.flags.writeable


def test_results_are_plain_arrays():
    y = copied("cpp")
    assert type(y) is np.ndarray
    assert y.flags.c_contiguous
    assert y.flags.writeable
    assert y.flags.aligned
    with pytest.raises(ValueError, match="cannot resize this array: it does not own its data"):
        y.resize(10, refcheck=False)


# --- threads, forks, and the end ---


def test_many_threads_allocate_and_free():
    """What one thread makes another frees, while both have arrays of their own."""
    _native.set_cache_limit(16 * MIB)
    passed: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()

    def work(number: int) -> bool:
        own: list[np.ndarray] = []
        whole = True
        for step in range(150):
            array = megabytes(1 + step % 3)
            array[:: MIB // 64] = number
            own.append(array)
            if step % 2:
                passed.put(own.pop(0))
            if step % 3 == 0 and not passed.empty():
                passed.get()
            if step % 50 == 49:
                fastconv.clear_cache()
            whole &= all((mine[:: MIB // 64] == number).all() for mine in own)
            del own[:-3]
        return whole

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(work, range(4)))
    del executor
    while not passed.empty():
        passed.get()
    assert _native.cached_bytes() <= 16 * MIB
    assert fastconv.clear_cache() <= 16 * MIB


def test_clear_cache_beside_kernels_at_work():
    """Workers free their workspaces between loops, not during them."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(np.float32) for s in ((2, 64, 30, 30), (64, 64, 3, 3)))
    with fastconv.config_context(threads=4):
        expected = fastconv.conv2d(x, weight, backend="cpp")
    stop = threading.Event()

    def clear() -> None:
        while not stop.is_set():
            fastconv.clear_cache()

    clearing = threading.Thread(target=clear)
    clearing.start()
    try:
        with fastconv.config_context(threads=4):
            for _ in range(50):
                np.testing.assert_array_equal(fastconv.conv2d(x, weight, backend="cpp"), expected)
    finally:
        stop.set()
        clearing.join()


FORK = """
import os, signal, threading
import numpy as np
from fastconv import _native, clear_cache, memory

signal.alarm(100)
FLOAT = np.dtype(np.float32)

def make(value, count=1 << 19):
    array = memory.empty((count,), FLOAT)
    array[...] = value
    return array

_native.set_cache_limit(64 << 20)
alive = [make(i) for i in range(4)]
make(9)
stop = threading.Event()

def disturb():  # has the pool's lock as often as can be, and not the interpreter's
    while not stop.is_set():
        memory.empty((1 << 18,), FLOAT)
        for _ in range(100):
            clear_cache()

for _ in range(2):
    threading.Thread(target=disturb, daemon=True).start()
for _ in range(120):
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        good = all((array == i).all() for i, array in enumerate(alive))
        alive.clear()
        mine = [make(7) for _ in range(6)]
        good = good and all((array == 7).all() for array in mine)
        del mine
        good = good and clear_cache() > 0 and _native.cached_bytes() == 0
        os._exit(0 if good else 1)
    status = os.waitpid(child, 0)[1]
    assert status == 0, status
stop.set()
print(all((array == i).all() for i, array in enumerate(alive)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_fork_with_buffers_alive():
    """The child has copies: it reads, frees and recycles them, though other threads used the pool meanwhile."""
    assert run_python(FORK, PYTHONWARNINGS="ignore::DeprecationWarning") == "True"


@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer ends a process where malloc would fail")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_exhaustion():
    """Idle buffers are freed first; then it is NumPy's error."""

    def work(_: object) -> list[object]:
        _native.set_poison(False)  # none of this is ever touched
        _native.set_cache_limit(64 << 30)
        megabytes(4 << 10)
        idle = _native.cached_bytes()
        kept = megabytes(3 << 10)
        left = _native.cached_bytes()
        del kept
        try:
            megabytes(32 << 10)
        except MemoryError as error:
            return [idle, left, str(error)]
        return [idle, left, "allocated"]

    idle, left, message = in_child(work)
    assert idle == 4 << 30
    assert left == 0, "there was no room for both"
    assert "Unable to allocate 32.0 GiB for an array with shape" in message


EXIT = """
import builtins, sys, threading, time
import numpy as np, fastconv
from fastconv import memory

x = np.ones((1, 1 << 19))
kept = fastconv.avg_pool1d(x, 1)
class Node: pass
node = Node()
node.itself, node.array = node, fastconv.avg_pool1d(x, 1)
builtins.kept_to_the_end = fastconv.avg_pool1d(x, 1)[0, 5:]
sys.modules["kept too"] = fastconv.avg_pool1d(x, 1)

def work():
    while True:
        array = memory.empty(x.shape, x.dtype)

threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
print("done")
"""


def test_arrays_that_live_to_the_end():
    for _ in range(3):
        assert run_python(EXIT) == "done"


# --- the compiled module's own entry ---


def test_native_empty():
    array = _native.empty((3, 0, 2), FLOAT)
    assert array.shape == (3, 0, 2)
    assert array.dtype == FLOAT
    with pytest.raises(ValueError, match="shape must not be negative"):
        _native.empty((2, -1), FLOAT)
    with pytest.raises(TypeError, match="dtype must not hold objects"):
        _native.empty((2,), np.dtype([("a", object)]))
    for shape in ((2**62, 2**62), (2**61,), (2**63 - 1,)):
        with pytest.raises(MemoryError):
            _native.empty(shape, FLOAT)
    with pytest.raises(TypeError):
        _native.empty((2**64,), FLOAT)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_signal_handlers_may_clear_the_cache():
    """The call that they interrupt goes on with the workspaces that it has."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(np.float32) for s in ((8, 64, 56, 56), (64, 64, 3, 3)))
    with fastconv.config_context(threads=1):
        expected = fastconv.conv2d(x, weight, backend="cpp")
        released = []
        before = signal.signal(signal.SIGALRM, lambda *_: released.append(fastconv.clear_cache()))
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        try:
            same = [np.array_equal(fastconv.conv2d(x, weight, backend="cpp"), expected) for _ in range(10)]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert all(same)
    assert released
