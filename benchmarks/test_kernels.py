"""The kernels alone, under pytest-benchmark: ``pytest benchmarks``; ``fastconv bench`` adds their peers."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastconv as fc
from fastconv.bench.contender import operands
from fastconv.bench.peers import fastconv_on
from fastconv.bench.workloads import LENET, MOBILENET_V2, POOL, RESNET50, TINY, TRANSPOSED, VGG16, Layer

BATCH = 2
LAYERS = [
    *TINY,
    *LENET,
    RESNET50[0],
    RESNET50[2],
    RESNET50[6],
    RESNET50[15],
    VGG16[6],
    MOBILENET_V2[3],
    MOBILENET_V2[14],
    TRANSPOSED[1],
    *POOL,
]
CASES = [(layer, direction) for layer in LAYERS for direction in layer.directions]
BACKENDS = [
    name for name, usable in fc.available_backends().items() if usable is True and name != "reference"
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("layer", "direction"), CASES, ids=[f"{layer.name} {direction}" for layer, direction in CASES]
)
def test_kernel(benchmark: BenchmarkFixture, layer: Layer, direction: str, backend: str) -> None:
    call = fastconv_on(backend).prepare(layer, direction, operands(layer, BATCH, "float32"))
    benchmark.extra_info["gigaflops"] = layer.flops(BATCH) / 1e9
    benchmark(call)
