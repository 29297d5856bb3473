"""The compiled module called directly, as anybody can: what does not fit raises, nothing goes astray.

Calls are made in children, with arrays between guard pages, so that a fault is a failed test that names it.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from child import Enter, in_child
from conftest import SANITIZED, TESTED
from guard import guarded, guarded_all

from fastconv.backends import reference
from fastconv.geometry import ConvGeometry, PoolGeometry, conv_geometry, pool_geometry

if "cpp" not in TESTED:
    pytest.skip("the compiled module is not tested here", allow_module_level=True)

from fastconv import _native

pytestmark = pytest.mark.smoke

CONV = conv_geometry("conv2d", 2, (2, 4, 6, 7), (6, 2, 3, 2), (2, 1), 1, (1, 2), 2)
POOL = pool_geometry("pool2d", 2, (2, 3, 6, 7), (3, 2), (2, 1), 1, 1, False)
SIDE = "end"


def arguments(kernel: str, geometry: Any, dtype: Any = np.float64) -> dict[str, Any]:
    """A call that is right."""
    g = geometry
    call = {
        "conv_forward": lambda: {
            "x": np.ones(g.x_shape, dtype),
            "weight": np.ones(g.weight_shape, dtype),
            "bias": np.ones(g.out_channels, dtype),
            "activation": 1,
            "y": np.zeros(g.y_shape, dtype),
            "geometry": g,
        },
        "conv_grad_input": lambda: {
            "grad_y": np.ones(g.y_shape, dtype),
            "weight": np.ones(g.weight_shape, dtype),
            "bias": np.ones(g.in_channels, dtype),
            "activation": 1,
            "grad_x": np.zeros(g.x_shape, dtype),
            "geometry": g,
        },
        "conv_grad_weight": lambda: {
            "x": np.ones(g.x_shape, dtype),
            "grad_y": np.ones(g.y_shape, dtype),
            "grad_weight": np.zeros(g.weight_shape, dtype),
            "geometry": g,
        },
        "max_pool": lambda: {
            "x": np.ones(g.x_shape, dtype),
            "y": np.zeros(g.y_shape, dtype),
            "indices": np.zeros(g.y_shape, np.int64),
            "geometry": g,
        },
        "max_pool_grad_input": lambda: {
            "grad_y": np.ones(g.y_shape, dtype),
            "indices": np.zeros(g.y_shape, np.int64),
            "grad_x": np.zeros(g.x_shape, dtype),
        },
        "avg_pool": lambda: {
            "x": np.ones(g.x_shape, dtype),
            "y": np.zeros(g.y_shape, dtype),
            "geometry": g,
        },
        "avg_pool_grad_input": lambda: {
            "grad_y": np.ones(g.y_shape, dtype),
            "grad_x": np.zeros(g.x_shape, dtype),
            "geometry": g,
        },
    }[kernel]()
    settings = {"algorithm": 0, "workspace_limit": None} if kernel.startswith("conv_") else {}
    return {**call, **settings, "threads": 2}


KERNELS = {
    "conv_forward": CONV,
    "conv_grad_input": CONV,
    "conv_grad_weight": CONV,
    "max_pool": POOL,
    "max_pool_grad_input": POOL,
    "avg_pool": POOL,
    "avg_pool_grad_input": POOL,
}
OUTPUTS = ("y", "grad_x", "grad_weight")
OPTIONAL = ("bias", "indices")
SETTINGS = ("algorithm", "workspace_limit", "threads")


def bad_arrays(name: str, a: np.ndarray, kernel: str) -> Iterator[tuple[str, Any]]:
    other = np.float64 if a.dtype == np.int64 else np.int64
    yield "one axis less", a[0]
    yield "one axis more", a[None]
    yield "no axes", np.ones((), a.dtype)
    yield "flat", a.reshape(-1) if a.ndim > 1 else a.reshape(1, -1)
    yield "no elements", a[:0]
    free = kernel == "max_pool_grad_input" and name == "grad_x"  # its plane may have any size
    for axis, step in itertools.product(range(1 if free else a.ndim), (-1, 1)):
        shape = [n + step * (i == axis) for i, n in enumerate(a.shape)]
        yield f"shape {shape}", np.ones(shape, a.dtype)
    if not free:
        yield "other order of axes", np.ones(a.shape[::-1], a.dtype) if a.ndim > 1 else a[:-1]
    for dtype in (other, "f4", "f2", "c16", "O", "?", "V8", "m8[s]", a.dtype.newbyteorder()):
        if a.dtype != np.dtype(dtype):
            yield f"dtype {dtype}", a.astype(dtype) if dtype != "V8" else np.zeros(a.shape, dtype)
    if a.ndim > 1:
        yield "columns first", np.asfortranarray(a)
    yield "gaps", np.repeat(a, 2, axis=-1)[..., ::2]
    yield "backwards", a[::-1]
    yield "one element spread", np.broadcast_to(a.flat[0], a.shape)
    yield "misaligned", np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    yield "a list", a.tolist()
    yield "a buffer", memoryview(a)
    yield "text", "abc"
    yield "a number", 1.0
    yield "an object", object()
    if name not in OPTIONAL or kernel == "max_pool_grad_input":
        yield "None", None
    if name in OUTPUTS or (name == "indices" and kernel == "max_pool"):
        read_only = a.copy()
        read_only.flags.writeable = False
        yield "read-only", read_only


BAD_NUMBERS = (1.5, "1", None, (), 2**63, 2**64, 10**30, -(10**30), float("nan"), object())
BAD_SIZES = (0, -1, -(2**63), 2**61 + 1, 2**62, 2**63 - 1, *BAD_NUMBERS)


def bad_geometries(geometry: ConvGeometry | PoolGeometry) -> Iterator[tuple[str, Any]]:
    fields = tuple(geometry)
    yield "None", None
    yield "text", "geometry"
    yield "a number", 1
    yield "empty", ()
    yield "a field less", fields[:-1]
    yield "a field more", (*fields, 1)
    yield "numbers only", (1,) * len(fields)
    yield "tuples only", ((1, 1, 1),) * len(fields)
    for i, (name, field) in enumerate(zip(geometry._fields, fields, strict=True)):

        def replaced(value: Any, i: int = i) -> Any:
            return (*fields[:i], value, *fields[i + 1 :])

        if isinstance(field, tuple):
            for value in ((), field[:2], (*field, 1), 3, None, "abc", "ab", {1, 2, 3}):
                yield f"{name}={value!r}", replaced(value)
            for axis, value in itertools.product(range(3), BAD_SIZES):
                if value == 0 and name.startswith("pad_"):
                    continue
                yield (
                    f"{name}[{axis}]={value!r}",
                    replaced((*field[:axis], value, *field[axis + 1 :])),
                )
        elif name == "divisor_override":
            yield from ((f"{name}={value!r}", replaced(value)) for value in BAD_NUMBERS)
        elif not isinstance(field, bool):
            yield from ((f"{name}={value!r}", replaced(value)) for value in BAD_SIZES)


def bad_calls(kernel: str) -> Iterator[tuple[str, dict[str, Any]]]:
    good = arguments(kernel, KERNELS[kernel])
    for name, value in good.items():
        if isinstance(value, np.ndarray):
            choices = bad_arrays(name, value, kernel)
        elif name == "geometry":
            choices = bad_geometries(value)
        elif name == "algorithm":
            choices = ((repr(v), v) for v in (-1, 6, 255, 2**31, 2**32 + 1, -(2**31), "direct", *BAD_NUMBERS))
        elif name == "workspace_limit":
            numbers = (value for value in BAD_NUMBERS if value is not None)
            choices = ((repr(v), v) for v in (-1, -(2**63), "1", *numbers))
        elif name == "activation":
            choices = ((repr(v), v) for v in (-1, 8, 255, 2**31, 2**32 + 1, -(2**31), "relu", *BAD_NUMBERS))
        else:
            choices = ((repr(v), v) for v in (0, -1, 1025, 2**31, 2**32 + 1, *BAD_NUMBERS))
        for what, bad in choices:
            yield f"{kernel} with {name}: {what}", {**good, name: bad}
    for name in good:
        yield f"{kernel} without {name}", {n: value for n, value in good.items() if n != name}


def accepted(
    calls: Iterator[tuple[str, dict[str, Any]]], call: Callable[..., Any], enter: Enter
) -> list[str]:
    """The calls that did not raise as they should."""
    wrong = []
    for name, kwargs in calls:
        enter(name)
        try:
            call(**kwargs)
        except (TypeError, ValueError):
            continue
        except Exception as error:  # noqa: BLE001 - reported
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        else:
            wrong.append(f"{name}: accepted")
    return wrong


@pytest.mark.parametrize("kernel", KERNELS)
def test_misfits_raise(kernel: str):
    wrong = in_child(lambda enter: accepted(bad_calls(kernel), getattr(_native, kernel), enter))
    assert not wrong, f"{len(wrong)} calls:\n" + "\n".join(wrong[:40])


@pytest.mark.parametrize("kernel", KERNELS)
def test_good_calls_are_good(kernel: str):
    """What `test_misfits_raise` spoils is right without that."""
    kwargs = arguments(kernel, KERNELS[kernel])
    assert getattr(_native, kernel)(**kwargs) in (None, -1)
    assert any(kwargs[name].any() for name in OUTPUTS if name in kwargs)


# Windows of which the arrays' shapes say nothing: wherever they lead, nothing outside may be touched.
REACH_LIMIT = 2**62
FAR = (1, 3, 2**31, 2**32 + 1, 2**40, 2**59, 2**60, 2**61)


def far_conv_geometries() -> Iterator[ConvGeometry]:
    for stride, dilation, pad in itertools.product(FAR, FAR, (0, *FAR)):
        yield ConvGeometry(
            1, 2, 2, 1, (1, 2, 5), (1, 3, 4), (1, 2, 3), (1, 1, stride), (1, 1, dilation), (0, 1, pad)
        )
    for value in FAR:
        sizes = (value, value, value)
        yield ConvGeometry(1, 1, 1, 1, (2, 2, 5), (2, 3, 4), (2, 2, 3), sizes, sizes, (0, 0, 0))
        yield ConvGeometry(1, 1, 1, 1, (2, 2, 5), (2, 3, 4), (2, 2, 3), sizes, sizes, sizes)
        yield ConvGeometry(3, 4, 4, 4, (2, 2, 5), (2, 3, 4), (2, 2, 3), (1, 1, 1), (1, 1, 1), sizes)


def far_pool_geometries() -> Iterator[PoolGeometry]:
    one, none = (1, 1, 1), (0, 0, 0)
    for kernel, stride, dilation, pad in itertools.product(FAR, FAR, FAR, (0, *FAR)):
        yield PoolGeometry(
            2,
            (1, 2, 5),
            (1, 1, 4),
            (1, 1, kernel),
            (1, 1, stride),
            (1, 1, dilation),
            (0, 0, pad),
            (0, 0, pad),
        )
    for value in FAR:
        sizes = (value, value, value)
        yield PoolGeometry(2, (2, 2, 5), (2, 3, 4), sizes, one, one, none, none)
        yield PoolGeometry(2, (2, 2, 5), (2, 3, 4), sizes, sizes, sizes, sizes, sizes)
        yield PoolGeometry(2, (2, 2, 5), (2, 3, 4), one, one, one, sizes, none, True)
        for divisor in (-(2**63), 2**63 - 1):
            yield PoolGeometry(2, (2, 2, 5), (2, 3, 4), one, one, one, none, none, False, True, divisor)


def reach(geometry: ConvGeometry | PoolGeometry) -> int:
    """The farthest that a window reaches from where the first one starts, in exact arithmetic."""
    g = geometry
    return max(
        (o - 1) * s + (k - 1) * d
        for o, s, k, d in zip(g.output_size, g.stride, g.kernel_size, g.dilation, strict=True)
    )


def astray(kernel: str, geometries: Iterator[Any], enter: Enter) -> list[str]:
    """The calls that raised without need, did not raise where sizes overflow, or computed something else."""
    wrong = []
    for geometry in geometries:
        name = f"{kernel} {geometry}"
        enter(name)
        kwargs = arguments(kernel, geometry)
        plain = dict(kwargs)
        kwargs = dict(zip(kwargs, guarded_all(kwargs.values(), SIDE), strict=True))
        output = next(n for n in OUTPUTS if n in kwargs)
        kwargs[output], margin = guarded(kwargs[output], SIDE)
        try:
            getattr(_native, kernel)(**kwargs)
        except ValueError:
            if reach(geometry) <= REACH_LIMIT:
                wrong.append(f"{name}: refused")
            continue
        if reach(geometry) > REACH_LIMIT:
            wrong.append(f"{name}: accepted")
            continue
        plain = {name: value for name, value in plain.items() if name not in SETTINGS}
        if "activation" in plain:
            plain["activation"] = "relu"
        getattr(reference, kernel)(*plain.values())
        if not np.allclose(kwargs[output], plain[output], rtol=1e-6, atol=0):
            wrong.append(f"{name}: differs from the reference")
        if not (margin == margin.flat[0]).all():
            wrong.append(f"{name}: wrote beside its output")
    return wrong


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "max_pool_grad_input"])
def test_far_windows(kernel: str):
    geometries = far_conv_geometries if isinstance(KERNELS[kernel], ConvGeometry) else far_pool_geometries
    wrong = in_child(lambda enter: astray(kernel, geometries(), enter), 120)
    assert not wrong, f"{len(wrong)} calls:\n" + "\n".join(wrong[:40])


def explained(enter: Enter) -> list[str]:
    """What `explain_conv` should refuse and does not; it needs no arrays, so sizes may be anything."""
    good = {
        "kernel": "conv_forward",
        "dtype": np.dtype("f4"),
        "geometry": CONV,
        "algorithm": 0,
        "threads": 2,
        "workspace_limit": None,
    }
    calls = [
        ("kernel: pooling", {**good, "kernel": "max_pool"}),
        ("dtype", {**good, "dtype": np.dtype("i2")}),
    ]
    calls += [
        (f"{kernel} with {what}", {**good, "kernel": kernel, "geometry": bad})
        for kernel in ("conv_forward", "conv_grad_input", "conv_grad_weight")
        for what, bad in bad_geometries(CONV)
    ]
    wrong = accepted(iter(calls), _native.explain_conv, enter)
    for geometry in far_conv_geometries():
        enter(f"explain {geometry}")
        for kernel in ("conv_forward", "conv_grad_input", "conv_grad_weight"):
            try:
                name, candidates = _native.explain_conv(**{**good, "kernel": kernel, "geometry": geometry})
            except ValueError:
                continue
            if name not in candidates or not all(np.isfinite(row[:3]).all() for row in candidates.values()):
                wrong.append(f"{kernel} {geometry}: {name} of {candidates}")
    return wrong


def test_explaining_misfits_raises():
    wrong = in_child(explained, 120)
    assert not wrong, f"{len(wrong)} calls:\n" + "\n".join(wrong[:40])


@pytest.mark.parametrize("shape", [(0, 2, 2, 2), (1, 0, 1, 1), (1, 1, 1, 0)])
def test_empty_planes_are_refused(shape: tuple[int, ...]):
    def call(enter: Enter) -> str:
        enter("max_pool_grad_input")
        try:
            empty = np.ones(shape)
            _native.max_pool_grad_input(empty, np.zeros(shape, np.int64), empty, threads=2)
        except ValueError as error:
            return str(error)
        return "accepted"

    assert "must not be empty" in in_child(call)


@pytest.mark.parametrize("kernel", ["max_pool", "avg_pool", "avg_pool_grad_input"])
def test_adaptive_windows_have_no_dilation(kernel: str):
    def call(enter: Enter) -> str:
        size, one, none = (1, 1, 5), (1, 1, 1), (0, 0, 0)
        geometry = PoolGeometry(2, size, (1, 1, 2), one, one, (1, 1, 100_000), none, none, True)
        enter(kernel)
        try:
            getattr(_native, kernel)(**arguments(kernel, geometry))
        except ValueError as error:
            return str(error)
        return "accepted"

    assert "adaptive" in in_child(call)


@pytest.mark.parametrize("bad", [-2, 126, 2**31, 2**32 + 3, -(2**32), 2**63 - 1, -(2**63)])
def test_bad_index_is_reported(bad: int):
    def call(enter: Enter) -> tuple[int, bool]:
        kwargs = arguments("max_pool_grad_input", POOL)
        kwargs["indices"].flat[11] = bad
        kwargs["grad_x"], margin = guarded(kwargs["grad_x"], SIDE)
        enter("the kernel")
        return _native.max_pool_grad_input(**kwargs), bool((margin == margin.flat[0]).all())

    assert in_child(call) == [11, True]


@pytest.mark.parametrize("name", ["", "AVX2", "sse9", "avx2\0", "x" * 10**6, None, 1, ["avx2"]])
def test_unknown_instruction_set(name: Any):
    before = _native.get_isa()
    with pytest.raises((TypeError, ValueError)):
        _native.set_isa(name)
    assert _native.get_isa() == before


DAEMONS = """
import threading, time
import numpy as np, fastconv

x, weight = np.ones((4, 32, 40, 40), np.float32), np.ones((32, 32, 3, 3), np.float32)

def compute():
    while True:
        fastconv.conv2d(x, weight, backend="cpp")

for _ in range(3):
    threading.Thread(target=compute, daemon=True).start()
time.sleep(0.05)
"""


@pytest.mark.skipif(SANITIZED, reason="a sanitizer has words to say when a process ends")
def test_the_interpreter_ends_while_threads_compute():
    """Daemon threads come back from a kernel to an interpreter that is no more."""
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", DAEMONS], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
