"""The algorithm that is measured best: once per geometry, right from the first call on, in threads, and bounded."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import TESTED

import fastconv
from fastconv import config_context, explain, grad, tuning

if "cpp" not in TESTED:
    pytest.skip("only the compiled backend has several algorithms", allow_module_level=True)

RNG = np.random.default_rng(0)
X, WEIGHT = RNG.standard_normal((2, 72, 20, 20), np.float32), RNG.standard_normal((80, 72, 3, 3), np.float32)
GRAD = RNG.standard_normal((2, 80, 20, 20), np.float32)
WINDOW = {"padding": 1, "backend": "cpp"}
CALLS = {
    "conv2d": lambda: fastconv.conv2d(X, WEIGHT, **WINDOW),
    "conv2d_input": lambda: grad.conv2d_input(X.shape, WEIGHT, GRAD, **WINDOW),
    "conv2d_weight": lambda: grad.conv2d_weight(X, WEIGHT.shape, GRAD, **WINDOW),
}
SHAPES = {
    "conv2d": (X.shape, WEIGHT.shape),
    "conv2d_input": (X.shape, WEIGHT.shape, GRAD.shape),
    "conv2d_weight": (X.shape, WEIGHT.shape, GRAD.shape),
}


@pytest.fixture(autouse=True)
def nothing_measured():
    tuning.forget()
    yield
    tuning.forget()


def by(algorithm, call=CALLS["conv2d"], **settings):
    with config_context(algorithm=algorithm, threads=2, **settings):
        return call().tobytes()


def told(op="conv2d", algorithm="tune", **settings):
    with config_context(algorithm=algorithm, threads=2, **settings):
        return explain(op, *SHAPES[op], **WINDOW)


def favour(monkeypatch, name):
    """From now on `name` is measured as the quickest."""
    measure = tuning._measure

    def biased(names, run):
        return {key: taken * (1e-6 if key == name else 1) for key, taken in measure(names, run).items()}

    monkeypatch.setattr(tuning, "_measure", biased)


@pytest.mark.smoke
@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("algorithm", ["gemm", "winograd"])
def test_the_winner_is_taken_from_the_first_call_on(op, algorithm, monkeypatch):
    favour(monkeypatch, algorithm)
    expected = by(algorithm, CALLS[op])
    assert expected != by("winograd" if algorithm == "gemm" else "gemm", CALLS[op])
    before = told(op)
    assert "the model's choice, until the first call measures" in before.why
    assert before.algorithm == told(op, "auto").algorithm
    for _ in range(3):
        assert by("tune", CALLS[op]) == expected
    after = told(op)
    assert after.algorithm == algorithm
    assert after.why.startswith("measured as the quickest (gemm ")
    assert told(op, "auto").algorithm == before.algorithm


def test_measured_once(monkeypatch):
    runs = []
    monkeypatch.setattr(
        tuning, "_measure", lambda names, run: runs.append(names) or {"gemm": 1.0, "winograd": 2.0}
    )
    for _ in range(3):
        by("tune")
    assert runs == [["gemm", "winograd"]]
    assert fastconv.clear_cache() >= 0
    by("tune")
    assert len(runs) == 2, "clear_cache() forgets"


def test_each_setting_is_measured_on_its_own(monkeypatch):
    runs = []
    monkeypatch.setattr(
        tuning, "_measure", lambda names, run: runs.append(names) or dict.fromkeys(names, 1.0)
    )
    for settings in ({"threads": 1}, {"threads": 2}, {"threads": 2, "workspace_limit": 2**28}):
        for dtype in (np.float32, np.float64):
            for x in (X, X[:1]):
                for _ in range(2):
                    with config_context(algorithm="tune", **settings):
                        fastconv.conv2d(x.astype(dtype), WEIGHT.astype(dtype), **WINDOW)
    assert len(runs) == 3 * 2 * 2


def test_only_what_fits_the_limit_is_measured(monkeypatch):
    favour(monkeypatch, "winograd")
    limit = int(told().candidates["gemm"].workspace) + 1
    assert told().candidates["winograd"].workspace > limit
    assert by("tune", workspace_limit=limit) == by("gemm")
    assert "the only one that serves the call" in told(workspace_limit=limit).why
    with pytest.raises(MemoryError, match="conv2d: workspace_limit is 10 bytes, the algorithms"):
        by("tune", workspace_limit=10)


def test_deterministic_is_auto(monkeypatch):
    """What is measured may change from process to process, and the rounding of results with it."""
    other = "winograd" if told(algorithm="auto").algorithm == "gemm" else "gemm"
    favour(monkeypatch, other)
    assert by("tune", deterministic=True) == by("auto") != by(other)
    assert not tuning._choices
    assert told(deterministic=True).why == told(algorithm="auto").why
    assert by("tune") == by("tune", deterministic=False) == by(other)


def test_whole_numbers_stay_exact():
    x, weight = np.arange(2 * 3 * 64).reshape(2, 3, 8, 8), np.arange(4 * 27).reshape(4, 3, 3, 3)
    expected = fastconv.conv2d(x, weight, backend="reference")
    with config_context(algorithm="tune"):
        for _ in range(2):
            np.testing.assert_array_equal(fastconv.conv2d(x, weight, backend="cpp"), expected)


def test_out_is_written(monkeypatch):
    favour(monkeypatch, "winograd")
    out = np.full((2, 80, 20, 20), np.nan, np.float32)
    assert (
        by("tune", lambda: fastconv.conv2d(X, WEIGHT, **WINDOW, out=out)) == by("winograd") == out.tobytes()
    )


def test_real_measurements():
    """Of a layer on which Winograd's algorithm wins by far."""
    x, weight = np.ones((4, 64, 56, 56), np.float32), np.ones((64, 64, 3, 3), np.float32)
    with config_context(algorithm="tune", threads=1):
        fastconv.conv2d(x, weight, **WINDOW)
        found = explain("conv2d", x.shape, weight.shape, **WINDOW)
    (seconds,) = tuning._choices.values()
    assert seconds["winograd"] < seconds["gemm"]
    assert found.algorithm == "winograd"


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(tuning, "CAPACITY", 5)
    for height in range(3, 20):
        by("tune", lambda n=height: fastconv.conv2d(X[:, :, :n], WEIGHT, backend="cpp"))
        assert len(tuning._choices) <= 5
    heights = [key[2].input_size[1] for key in tuning._choices]
    assert heights == [15, 16, 17, 18, 19], "the oldest is forgotten"


def test_turns_and_medians(monkeypatch):
    """Runs alternate, the first of each does not count, and one that is slow once is not taken for slow."""
    clock, order = [0.0], []
    taken = {"a": iter([9, 2, 2, 50, 2, 2]), "b": iter([1, 3, 3, 3, 3, 3])}

    def run(name):
        order.append(name)
        clock[0] += next(taken[name]) / 1000

    monkeypatch.setattr(tuning, "perf_counter", lambda: clock[0])
    seconds = tuning.measured("key", ["a", "b"], run)
    assert seconds == pytest.approx({"a": 0.002, "b": 0.003})
    assert order == ["a", "b"] * 6
    assert tuning.winner(seconds) == "a"


def test_long_runs_are_few(monkeypatch):
    clock, order = [0.0], []

    def run(name):
        order.append(name)
        clock[0] += 10

    monkeypatch.setattr(tuning, "perf_counter", lambda: clock[0])
    tuning.measured("key", ["a", "b"], run)
    assert order == ["a", "b"] * 3
    tuning.measured("one", ["a"], run)
    assert len(order) == 6, "nothing to choose from"


def test_failures_are_not_remembered():
    def fail(name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuning.measured("key", ["a", "b"], fail)
    assert tuning.known("key") is None
    assert tuning.measured("key", ["a", "b"], lambda name: None).keys() == {"a", "b"}


def test_threads_measure_one_at_a_time():
    together, most = [], []

    def run(name):
        together.append(name)
        most.append(len(together))
        time.sleep(0.001)
        together.pop()

    def work(i):
        return tuning.measured(i % 2, ["a", "b"], run)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(16)))
    assert max(most) == 1
    assert len(most) == 2 * 2 * (1 + tuning.RUNS)
    assert all(found[i] is found[i % 2] for i in range(16))


def test_threads_get_right_results():
    inputs = [X[:, :, : 4 + n] for n in range(8)]
    expected = [fastconv.conv2d(x, WEIGHT, backend="reference") for x in inputs]
    barrier = threading.Barrier(4)

    def work(seed):
        barrier.wait()
        with config_context(algorithm="tune", threads=2):
            for i in np.random.default_rng(seed).integers(0, len(inputs), 40):
                if i == 0:
                    tuning.forget()
                y = fastconv.conv2d(inputs[i], WEIGHT, backend="cpp")
                np.testing.assert_allclose(y, expected[i], rtol=1e-4, atol=1e-4)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_a_call_within_a_measurement():
    """A signal's handler may compute the same while it is being measured."""
    inner = []

    def run(name):
        if not inner:
            inner.append(tuning.measured("inner", ["a", "b"], lambda name: None))

    tuning.measured("outer", ["a", "b"], run)
    assert tuning.known("inner") is inner[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_a_process_that_measures():
    """The thread that held the lock does not exist in the child."""
    started, end = threading.Event(), threading.Event()

    def run(name):
        started.set()
        end.wait(30)

    measuring = threading.Thread(target=tuning.measured, args=("key", ["a", "b"], run))
    measuring.start()
    started.wait(30)
    child = os.fork()
    if child == 0:
        os._exit(len(tuning.measured("other", ["a", "b"], lambda name: None)))
    end.set()
    measuring.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 2


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_backends_of_one_algorithm_refuse(backend):
    if backend not in TESTED:
        pytest.skip(f"{backend} is not tested here")
    with pytest.raises(
        ValueError, match=f"conv2d: backend '{backend}' has no algorithm 'tune', expected one of auto, "
    ):
        by("tune", lambda: fastconv.conv2d(X, WEIGHT, backend=backend))
