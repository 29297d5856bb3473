"""No kernel reads or writes beyond its arrays: each lies flush with a page that nobody may touch.

Every backend and instruction set runs the same list in a child; a fault ends it and names the call.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from cases import (
    ADAPTIVE,
    CONVS,
    POOLS,
    TRANSPOSED,
    WINOGRAD,
    WINOGRAD_DILATED,
    winograd_problem,
)
from child import Died, Enter, in_child
from conftest import SANITIZED, TARGETS, Target, chosen
from guard import SIDES, guarded, guarded_all

from fastconv import backends
from fastconv.backends.protocol import KERNELS, Backend
from fastconv.config import config_context
from fastconv.geometry import ConvGeometry, PoolGeometry, conv_geometry, pool_geometry
from fastconv.testing import Problem, make_problem

pytestmark = pytest.mark.skipif(SANITIZED, reason="AddressSanitizer does this for every array that it knows")

SECONDS = 500  # for a whole list, should Numba have to compile first
LARGEST = 40_000  # elements; what matters happens at borders

# Around the widths of all vectors (4, 8 and 16 floats) and of the tiles made of them.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 49, 65)
WINDOWS = ((1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (2, 3, 0, 1), (5, 1, 2, 2), (2, 1, 0, 3))
CHANNELS = ((1, 1, 1), (3, 5, 1), (8, 13, 1), (17, 16, 1), (6, 4, 2), (5, 5, 5), (3, 6, 3), (33, 7, 1))


def conv_geometries() -> Iterator[ConvGeometry]:
    yield from (case.geometry for case in (*CONVS, *TRANSPOSED))
    for i, width in enumerate(WIDTHS):
        for j, (kernel, stride, padding, dilation) in enumerate(WINDOWS):
            inputs, outputs, groups = CHANNELS[(i + j) % len(CHANNELS)]
            length = max(width, dilation * (kernel - 1) + 1 - 2 * padding)
            x, w = (1 + j % 2, inputs, 2, length), (outputs, inputs // groups, 1 + i % 2, kernel)
            pads = ((0, 0), (padding, padding))
            yield conv_geometry("conv2d", 2, x, w, (1, stride), pads, (1, dilation), groups)


def pool_geometries() -> Iterator[PoolGeometry]:
    yield from (case.geometry for case in (*POOLS, *ADAPTIVE))
    for width in WIDTHS:
        for kernel, stride, padding, dilation in WINDOWS:
            length = max(width, dilation * (kernel - 1) + 1 - 2 * padding)
            pads = ((0, 0), (padding, padding))
            yield pool_geometry(
                "pool2d", 2, (2, 2, 2, length), (1, kernel), (1, stride), pads, (1, dilation), bool(width % 2)
            )


@cache
def problems(kernel: str) -> list[Problem]:
    """Whole numbers, for which every order of summation gives the same bits; two types or more."""
    if kernel.startswith("conv"):
        return [
            make_problem(kernel, geometry, dtype, data="integer", bias=True)
            for i, geometry in enumerate(conv_geometries())
            if max(map(np.prod, (geometry.x_shape, geometry.y_shape, geometry.weight_shape))) <= LARGEST
            for dtype in ("float32", ("float64", "int32", "int64")[i % 3])
        ]
    return [
        make_problem(kernel, geometry, dtype, data="integer")
        for i, geometry in enumerate(pool_geometries())
        if np.prod(geometry.x_shape) <= LARGEST
        for dtype in (
            "float32",
            "float64",
            *(("int8", "uint16", "int64")[i % 3 :][:1] * (kernel == "max_pool")),
        )
    ]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_guard_pages(target: Target, kernel: str):
    listed = problems(kernel)
    wrong = in_child(lambda enter: wrong_problems(target, listed, "direct", enter), SECONDS)
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel.startswith("conv")])
@pytest.mark.parametrize("target", [target for target in TARGETS if target.backend == "cpp"], ids=str)
def test_guard_pages_by_winograd(target: Target, kernel: str):
    listed = [
        winograd_problem(name, kernel, dtype)
        for name in (*WINOGRAD, *WINOGRAD_DILATED)
        for dtype in ("float32", "float64")
    ]
    wrong = in_child(lambda enter: wrong_problems(target, listed, "winograd", enter), SECONDS)
    assert not wrong, "\n".join(wrong[:20])


def wrong_problems(target: Target, listed: list[Problem], algorithm: str, enter: Enter) -> list[str]:
    """The calls with wrong results, or that wrote into the margin of an output."""
    with chosen(target):
        backend = backends.load(target.backend)
        return list(_wrong_problems(backend, listed, algorithm, enter))


def _wrong_problems(backend: Backend, listed: list[Problem], algorithm: str, enter: Enter) -> Iterator[str]:
    for problem in listed:
        for side in SIDES:
            name = f"{problem.kernel} {problem.geometry} {problem.dtypes[0]} flush at the {side}"
            enter(name)
            outputs = [
                guarded(np.full(expected.shape, 99, dtype), side)
                for expected, dtype in zip(problem.expected, problem.dtypes, strict=True)
            ]
            geometry = () if problem.kernel == "max_pool_grad_input" else (problem.geometry,)
            arrays = [output.array for output in outputs]
            with config_context(algorithm=algorithm):
                getattr(backend, problem.kernel)(*guarded_all(problem.inputs, side), *arrays, *geometry)
            if not all(output.margin_is_whole() for output in outputs):
                yield f"{name}: wrote beside an output"
            for array, expected, bound in zip(arrays, problem.expected, problem.bounds, strict=True):
                with np.errstate(invalid="ignore"):  # infinity minus infinity
                    same = (array == expected) | (np.abs(array.astype(float) - expected) <= bound)
                if not same.all():
                    yield f"{name}: {np.count_nonzero(~same)} of {same.size} elements are wrong"


@pytest.mark.parametrize("side", SIDES)
def test_guards_guard(side: str):
    """The pages do end a process that reads beyond an array."""
    array = guarded(np.zeros(5, np.int32), side).array
    beyond = np.lib.stride_tricks.as_strided(array, (6,), (4,))
    outside = beyond[-1:] if side == "end" else np.lib.stride_tricks.as_strided(array, (2,), (-4,))[-1:]
    with pytest.raises(Died, match=r"(SIGSEGV|SIGBUS) at reading"):
        in_child(lambda enter: (enter("reading"), int(outside[0])))
