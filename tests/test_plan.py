"""Plans: the same bits as the operation, with weights that were packed once."""

import threading
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from cases import CONVS, TRANSPOSED, Conv, params
from conftest import TESTED

import fastconv
from fastconv import ShapeError
from fastconv.backends import load

SERVED_BEST = (  # by each algorithm of the compiled backend
    ("gemm", Conv("pointwise", (2, 72, 7, 9), (64, 72, 1, 1))),
    ("gemm", Conv("strided", (2, 24, 14, 15), (40, 24, 3, 3), 2, 1)),
    ("window", Conv("few", (2, 3, 20, 17), (8, 3, 3, 3), 1, 1)),
    ("depthwise", Conv("depthwise", (2, 35, 14, 17), (35, 1, 3, 3), 1, 1, 1, 35)),
    ("winograd", Conv("winograd", (2, 40, 14, 18), (24, 40, 3, 3), 1, 1)),
    ("winograd", Conv("winograd-5x5", (1, 16, 14, 11), (24, 16, 5, 5), 1, 2)),
    ("winograd", Conv("winograd-dilated", (1, 16, 14, 11), (24, 16, 3, 3), 1, 2, 2)),
    ("winograd", Conv("winograd-grouped", (1, 48, 14, 11), (34, 24, 3, 3), 1, 1, 1, 2)),
    ("winograd", Conv("winograd-few-tiles", (1, 272, 7, 7), (272, 272, 3, 3), 1, 1)),
)

needs_cpp = pytest.mark.skipif("cpp" not in TESTED, reason="the compiled backend is not tested")

LAYER = Conv("layer", (2, 24, 11, 13), (20, 24, 3, 3), 1, 1)


@pytest.fixture
def backend(backend):
    """In use for every call."""
    with fastconv.use_backend(backend):
        yield backend


def arrays(case, dtype, seed=0):
    rng = np.random.default_rng([seed, *case.x])
    channels = case.weight[0] if isinstance(case, Conv) else case.weight[1] * case.groups
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in (case.x, case.weight, (channels,)))


def operation(case):
    return getattr(fastconv, case.op), getattr(fastconv, f"plan_{case.op}")


def same(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", params(CONVS) + params(TRANSPOSED))
def test_plan_is_the_operation(case, dtype, backend):
    conv, plan_conv = operation(case)
    x, weight, bias = arrays(case, dtype)
    with fastconv.config_context(algorithm="direct"):
        expected = conv(x, weight, bias, **case.window)
        plan = plan_conv(weight, bias, case.x, **case.window)
        assert (plan.input_shape, plan.output_shape) == (x.shape, expected.shape)
        assert (plan.op, plan.backend, plan.dtype) == (case.op, backend, expected.dtype)
        weight[...] = bias[...] = np.nan  # the plan has its own
        if backend != "cpp":
            same(plan(x), expected)
            return
        # the model knows that weights of a plan are packed already, so it may prefer another algorithm
        with fastconv.config_context(algorithm=plan.algorithm):
            _, weight, bias = arrays(case, dtype)
            expected = conv(x, weight, bias, **case.window)
    same(plan(x), expected)


@pytest.mark.smoke
@needs_cpp
@pytest.mark.parametrize(("algorithm", "case"), SERVED_BEST, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
class TestAlgorithms:
    def plan(self, algorithm, case, dtype):
        conv, plan_conv = operation(case)
        _, weight, bias = arrays(case, dtype)
        window = {**case.window, "activation": "relu", "backend": "cpp"}
        with fastconv.config_context(algorithm=algorithm):
            plan = plan_conv(weight, bias, case.x, **window)
        assert plan.algorithm == algorithm

        def expected(x):
            with fastconv.config_context(algorithm=algorithm):
                return conv(x, weight, bias, **window)

        return plan, expected

    def test_every_call(self, algorithm, case, dtype, isa):
        plan, expected = self.plan(algorithm, case, dtype)
        out = np.empty(plan.output_shape, dtype)
        for seed in range(3):
            x, _, _ = arrays(case, dtype, seed)
            same(plan(x), expected(x))
            assert plan(x, out=out) is out
            same(out, expected(x))

    def test_threads(self, algorithm, case, dtype, isa):
        """Any number of them, in a call and in calls at once."""
        plan, expected = self.plan(algorithm, case, dtype)
        inputs = [arrays(case, dtype, seed)[0] for seed in range(4)]
        results = [None] * len(inputs)

        def work(i):
            with fastconv.config_context(threads=1 + i):
                for _ in range(5):
                    results[i] = plan(inputs[i])

        workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for x, result in zip(inputs, results, strict=True):
            same(result, expected(x))

    def test_infinity_and_nan(self, algorithm, case, dtype, isa):
        plan, expected = self.plan(algorithm, case, dtype)
        x, _, _ = arrays(case, dtype)
        x.flat[[3, 77]] = np.inf, np.nan
        same(plan(x), expected(x))
        x, _, _ = arrays(case, dtype)
        same(plan(x), expected(x))  # nothing is left of it

    def test_no_allocation(self, algorithm, case, dtype, isa):
        plan, _ = self.plan(algorithm, case, dtype)
        native = pytest.importorskip("fastconv._native")
        x, out = arrays(case, dtype)[0], np.empty(plan.output_shape, dtype)
        plan(x, out)
        before = native.workspace_bytes()
        tracemalloc.start()
        for _ in range(3):
            plan(x, out)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4096 < out.nbytes  # the objects of a call, no array
        assert native.workspace_bytes() == before


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("activation", [None, "tanh"])
def test_padding_modes(padding_mode, activation, backend):
    x, weight, bias = arrays(LAYER, "float64")
    how = {"padding": 2, "padding_mode": padding_mode, "activation": activation}
    plan = fastconv.plan_conv2d(weight, bias, x.shape, **how)
    with fastconv.config_context(algorithm=plan.algorithm or "auto"):
        same(plan(x), fastconv.conv2d(x, weight, bias, **how))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int8, np.int64, np.bool_])
def test_dtypes(dtype, backend):
    x, weight, bias = ((4 * array).astype(dtype) for array in arrays(LAYER, "float64"))
    with fastconv.config_context(algorithm="direct"):
        plan = fastconv.plan_conv2d(weight, bias, x.shape)
        expected = fastconv.conv2d(x, weight, bias)
    same(plan(x), expected)
    out = np.empty_like(expected)
    same(plan(x, out=out), expected)
    assert plan.dtype == expected.dtype


def test_inputs_of_another_dtype(backend):
    x, weight, bias = arrays(LAYER, "float32")
    plan = fastconv.plan_conv2d(weight, bias, x.shape)
    same(plan(x.astype(np.float16)), plan(x.astype(np.float16).astype(np.float32)))
    same(plan(x[:, ::-1]), plan(np.ascontiguousarray(x[:, ::-1])))
    with pytest.raises(TypeError, match="plan_conv2d: with an input of dtype float64 the result has dtype"):
        plan(x.astype(np.float64))
    wide = fastconv.plan_conv2d(weight, bias, x.shape, dtype=np.float64)
    assert wide(x.astype(np.float64)).dtype == wide.dtype == np.float64


def test_one_image_and_none(backend):
    x, weight, bias = arrays(LAYER, "float32")
    one = fastconv.plan_conv2d(weight, bias, x.shape[1:], padding=1)
    assert one(x[0]).shape == one.output_shape == (20, 11, 13)
    none = fastconv.plan_conv2d(weight, bias, (0, *x.shape[1:]), padding=1)
    assert none(x[:0]).shape == none.output_shape == (0, 20, 11, 13)
    flat = fastconv.plan_conv2d(np.ones((4, 0, 3, 3)), np.arange(4.0), (1, 0, 5, 5), activation="relu6")
    same(flat(np.ones((1, 0, 5, 5))), np.broadcast_to(np.arange(4.0)[:, None, None], (1, 4, 3, 3)))


def test_tuned(backend):
    if "tune" not in load(backend).ALGORITHMS:
        pytest.skip("this backend measures nothing")
    x, weight, bias = arrays(LAYER, "float64")
    with fastconv.config_context(algorithm="tune"):
        plan = fastconv.plan_conv2d(weight, bias, x.shape, padding=1)
    with fastconv.config_context(algorithm=plan.algorithm):
        same(plan(x), fastconv.conv2d(x, weight, bias, padding=1))


def test_repr():
    plan = fastconv.plan_conv1d(np.ones((1, 1, 3)), None, (1, 1, 9), backend="reference")
    assert repr(plan) == "<conv1d (1, 1, 9) -> (1, 1, 7) float64 on reference>"
    assert plan.nbytes == 24


class TestErrors:
    def plan(self, backend):
        _, weight, bias = arrays(LAYER, "float32")
        return fastconv.plan_conv2d(weight, bias, LAYER.x, padding=1)

    def test_making(self, backend):
        _, weight, bias = arrays(LAYER, "float32")
        make = fastconv.plan_conv2d
        with pytest.raises(ShapeError, match=r"plan_conv2d: .*24"):
            make(weight, bias, (2, 23, 11, 13))
        with pytest.raises(ShapeError, match="plan_conv2d: input_shape"):
            make(weight, bias, (11, 13))
        with pytest.raises(TypeError, match="plan_conv2d: input_shape"):
            make(weight, bias, 7)
        with pytest.raises(TypeError, match="plan_conv2d: missing a required argument: 'input_shape'"):
            make(weight, bias)
        with pytest.raises(ShapeError, match="plan_conv2d: bias"):
            make(weight, bias[1:], LAYER.x)
        with pytest.raises(TypeError, match="plan_conv2d: dtype must be a dtype, got 'float31'"):
            make(weight, bias, LAYER.x, dtype="float31")
        with pytest.raises(TypeError, match="plan_conv2d: input has dtype complex128"):
            make(weight, bias, LAYER.x, dtype=complex)
        with pytest.raises(ValueError, match="plan_conv2d: activation"):
            make(weight, bias, LAYER.x, activation="gelu")
        with pytest.raises(TypeError, match="plan_conv_transpose2d: weight must be an array, got None"):
            fastconv.plan_conv_transpose2d(None, bias, LAYER.x)

    def test_calls(self, backend):
        plan = self.plan(backend)
        x = np.zeros(plan.input_shape, np.float32)
        with pytest.raises(ShapeError, match=r"plan_conv2d: input has shape"):
            plan(x[:1])
        with pytest.raises(TypeError, match="plan_conv2d: input must be an array, got None"):
            plan(None)
        with pytest.raises(ShapeError, match="plan_conv2d: out has shape"):
            plan(x, out=np.empty((2, 20, 11, 12), np.float32))
        with pytest.raises(ValueError, match="plan_conv2d: out has dtype"):
            plan(x, out=np.empty(plan.output_shape))
        shared = np.zeros(max(x.size, np.prod(plan.output_shape)), np.float32)
        with pytest.raises(ValueError, match="plan_conv2d: out shares memory with an input"):
            plan(
                shared[: x.size].reshape(x.shape),
                out=shared[: np.prod(plan.output_shape)].reshape(plan.output_shape),
            )


@needs_cpp
class TestNative:
    def make(self, kernel="conv_forward", weight=None, bias=None, geometry=None, algorithm=0):
        native = pytest.importorskip("fastconv._native")
        geometry = LAYER.geometry if geometry is None else geometry
        weight = np.zeros(geometry.weight_shape, np.float32) if weight is None else weight
        return native.conv_plan(kernel, weight, bias, 0, geometry, algorithm, 1, None)

    def test_arguments_are_checked(self):
        with pytest.raises(ValueError, match="kernel 'conv_grad_weight' has no plan"):
            self.make("conv_grad_weight")
        with pytest.raises(ValueError, match="weight has shape"):
            self.make(weight=np.zeros((3, 3), np.float32))
        with pytest.raises(ValueError, match="bias has shape"):
            self.make(bias=np.zeros(3, np.float32))
        with pytest.raises(MemoryError):
            self.make(geometry=LAYER.geometry._replace(batch=1 << 60))
        plan = self.make()
        geometry = LAYER.geometry
        x, y = np.zeros(geometry.x_shape, np.float32), np.zeros(geometry.y_shape, np.float32)
        with pytest.raises(ValueError, match="source has shape"):
            plan.run(y, y, 1)
        with pytest.raises(ValueError, match="result has shape"):
            plan.run(x, x, 1)
        with pytest.raises(TypeError, match="source differs in dtype"):
            plan.run(x.astype(np.float64), y, 1)
        with pytest.raises(ValueError, match="threads"):
            plan.run(x, y, 0)

    def test_another_instruction_set(self, isa):
        """What is kept is laid out for the tiles of the plan."""
        native = pytest.importorskip("fastconv._native")
        others = [name for name in native.available_isas() if name != isa]
        plan = self.make()
        geometry = LAYER.geometry
        x, y = np.zeros(geometry.x_shape, np.float32), np.ones(geometry.y_shape, np.float32)
        for other in others:
            native.set_isa(other)
            with pytest.raises(RuntimeError, match=f"made for instruction set {isa}, selected is {other}"):
                plan.run(x, y, 1)
            native.set_isa(isa)
        plan.run(x, y, 1)
        assert not y.any()

    def test_workspace_limit(self):
        _, weight, _ = arrays(LAYER, "float32")
        with (
            fastconv.config_context(workspace_limit=10),
            pytest.raises(MemoryError, match="plan_conv2d: workspace_limit is 10 bytes"),
        ):
            fastconv.plan_conv2d(weight, None, LAYER.x, backend="cpp")
