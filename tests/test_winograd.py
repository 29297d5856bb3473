"""Winograd's algorithm: within its own, wider bound; the same in every corner; taken where it pays."""

import numpy as np
import pytest
from cases import WINOGRAD, WINOGRAD_DILATED, winograd_problem
from conftest import TARGETS, chosen

import fastconv
from fastconv import config_context
from fastconv.backends import load
from fastconv.testing import check_kernel

if not any(target.backend == "cpp" for target in TARGETS):
    pytest.skip("only the compiled backend has it", allow_module_level=True)


@pytest.fixture(params=[target for target in TARGETS if target.backend == "cpp"], ids=str)
def cpp(request):
    with chosen(request.param):
        yield load("cpp")


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", ["conv_forward", "conv_grad_input", "conv_grad_weight"])
@pytest.mark.parametrize("name", [*WINOGRAD, *WINOGRAD_DILATED])
def test_within_the_bound(name, kernel, dtype, cpp):
    with config_context(algorithm="winograd", threads=2):
        check_kernel(cpp, winograd_problem(name, kernel, dtype))
        rest = {} if kernel == "conv_grad_weight" else {"bias": True, "activation": "silu"}
        check_kernel(cpp, winograd_problem(name, kernel, dtype, data="positive", **rest))


@pytest.mark.parametrize("channels", [64, 256, 512])
def test_accuracy_of_real_layers(channels, cpp):
    """Images behind a ReLU and He's weights: the error that RESNET and VGG meet, at most 2e-5 of the largest result."""
    rng = np.random.default_rng(channels)
    x = np.maximum(rng.standard_normal((2, channels, 14, 14)), 0).astype(np.float32)
    weight = rng.standard_normal((48, channels, 3, 3), np.float32) * np.float32(np.sqrt(2 / 9 / channels))
    exact = fastconv.conv2d(x.astype(np.float64), weight.astype(np.float64), padding=1, backend="reference")
    size = {}
    for algorithm in ("direct", "winograd"):
        with config_context(algorithm=algorithm):
            error = fastconv.conv2d(x, weight, padding=1, backend="cpp") - exact
        size[algorithm] = np.sqrt((error**2).mean())
    assert np.abs(error).max() <= 2e-5 * np.abs(exact).max()
    assert size["winograd"] <= 2e-6 * np.sqrt((exact**2).mean())
    assert size["winograd"] <= 8 * size["direct"]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, "largest"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_not_finite_as_in_direct_summation(value, dtype, cpp):
    """An infinity reaches the results of its own windows only; what overflows on the way does not show."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 32, 20, 22)).astype(dtype)
    weight = rng.standard_normal((16, 32, 3, 3)).astype(dtype) / 32
    x[1, 3, 7, 9] = np.finfo(dtype).max if value == "largest" else value
    window = {"padding": 1, "backend": "cpp"}
    grad_y = rng.standard_normal((2, 16, 20, 22)).astype(dtype) / 32

    def both():
        return fastconv.conv2d(x, weight, **window), fastconv.grad.conv2d_weight(
            x, weight.shape, grad_y, **window
        )

    with config_context(algorithm="direct"):
        expected = both()
    with config_context(algorithm="winograd"):
        actual = both()
    for result, reference in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(np.isfinite(result), np.isfinite(reference))
        np.testing.assert_allclose(result, reference, rtol=1e-4, atol=1e-4)


def test_same_bits_for_every_number_of_threads(cpp):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((5, 40, 30, 31)), rng.standard_normal((44, 40, 3, 3))
    grad_y = rng.standard_normal((5, 44, 30, 31))
    found = set()
    for threads in (1, 2, 3, 8):
        with config_context(algorithm="winograd", threads=threads):
            y = fastconv.conv2d(x, weight, padding=1, backend="cpp")
            grad_weight = fastconv.grad.conv2d_weight(x, weight.shape, grad_y, padding=1, backend="cpp")
            found.add((y.tobytes(), grad_weight.tobytes()))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("weight_shape", "options", "dtype"),
    [
        ((16, 16, 1, 5), {}, np.float32),
        ((16, 16, 3, 3), {"stride": 2}, np.float32),
        ((16, 16, 3, 3), {"dilation": 2, "padding": 1}, np.float32),
        ((16, 8, 3, 3), {"groups": 2}, np.float32),
        ((16, 16, 3, 3), {}, np.int32),
    ],
)
def test_what_it_cannot_serve_raises(weight_shape, options, dtype):
    x, weight = np.ones((1, 16, 12, 12), dtype), np.ones(weight_shape, dtype)
    with (
        config_context(algorithm="winograd"),
        pytest.raises(ValueError, match=r"^conv2d: algorithm 'winograd' needs floating-point"),
    ):
        fastconv.conv2d(x, weight, backend="cpp", **options)


def test_who_does_not_have_it_raises():
    x, weight = np.ones((1, 16, 12, 12)), np.ones((16, 16, 3, 3))
    with config_context(algorithm="winograd"):
        with pytest.raises(ValueError, match="conv2d: backend 'reference' has no algorithm 'winograd'"):
            fastconv.conv2d(x, weight, backend="reference")
        assert fastconv.max_pool2d(x, 2, backend="cpp").shape == (1, 16, 6, 6)  # concerns convolutions only


def test_taken_where_it_pays(cpp):
    """By its bits: they are those of one of the two."""
    rng = np.random.default_rng(0)

    def auto(x_shape, weight_shape, kernel):
        x, weight = rng.standard_normal(x_shape, np.float32), rng.standard_normal(weight_shape, np.float32)
        grad_y = rng.standard_normal((x_shape[0], weight_shape[0], *x_shape[2:]), np.float32)
        call = {
            "forward": lambda: fastconv.conv2d(x, weight, padding=1, backend="cpp"),
            "weight": lambda: fastconv.grad.conv2d_weight(x, weight.shape, grad_y, padding=1, backend="cpp"),
        }[kernel]
        results = {}
        for name in ("auto", "direct", "winograd"):
            with config_context(algorithm=name):
                results[name] = call().tobytes()
        assert results["direct"] != results["winograd"]
        return next(name for name in ("direct", "winograd") if results[name] == results["auto"])

    assert auto((4, 64, 56, 56), (64, 64, 3, 3), "forward") == "winograd"
    assert auto((1, 16, 5, 5), (16, 16, 3, 3), "forward") == "direct"  # transforming would take longer
    assert auto((4, 64, 56, 56), (64, 64, 3, 3), "weight") == "winograd"
    assert auto((1, 64, 7, 7), (64, 64, 3, 3), "weight") == "direct"
