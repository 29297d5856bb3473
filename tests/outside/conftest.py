"""The outside suites run on every backend that computes on the CPU."""

import pytest

import fastconv

CPU_BACKENDS = ("reference", "cpp", "numba")


@pytest.fixture(params=CPU_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a CPU backend; one that cannot run here is skipped with its own reason."""
    state = fastconv.available_backends()[request.param]
    if state is not True:
        pytest.skip(f"backend {request.param}: {state}")
    return request.param
