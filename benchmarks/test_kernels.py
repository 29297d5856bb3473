"""The kernels alone, under pytest-benchmark: ``pytest benchmarks``; compare.py adds their peers."""

from __future__ import annotations

import pytest
from peers import CONV_DIRECTIONS, POOL_DIRECTIONS, conv_arrays, fastconv_conv, fastconv_pool, pool_arrays
from pytest_benchmark.fixture import BenchmarkFixture
from workloads import LENET, MOBILENET_V2, POOL_LAYERS, RESNET50, VGG16, ConvLayer, PoolLayer

import fastconv as fc

BATCH = 2
LAYERS = [
    *LENET,
    RESNET50[0],
    RESNET50[2],
    RESNET50[6],
    RESNET50[15],
    VGG16[6],
    MOBILENET_V2[3],
    MOBILENET_V2[14],
]
BACKENDS = [
    name for name, usable in fc.available_backends().items() if usable is True and name != "reference"
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("direction", CONV_DIRECTIONS)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_convolution(benchmark: BenchmarkFixture, layer: ConvLayer, direction: str, backend: str) -> None:
    call = fastconv_conv(backend)(layer, direction, conv_arrays(layer, BATCH, "float32"))
    assert call is not None
    benchmark.extra_info["gigaflops"] = layer.flops(BATCH) / 1e9
    benchmark(call)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("direction", POOL_DIRECTIONS)
@pytest.mark.parametrize("layer", POOL_LAYERS, ids=lambda layer: layer.name)
def test_pooling(benchmark: BenchmarkFixture, layer: PoolLayer, direction: str, backend: str) -> None:
    call = fastconv_pool(backend)(layer, direction, pool_arrays(layer, BATCH, "float32"))
    assert call is not None
    benchmark(call)
